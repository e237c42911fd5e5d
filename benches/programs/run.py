#!/usr/bin/env python3
"""Real programs under several allocators, by LD_PRELOAD.

    benches/programs/run.py [--install] [--rounds N] [--only a,b] [--allocators glibc,pcpalloc] [--thorough] [--list]
        [--library FILE] [--out FILE]

Runs every program of `workloads.py` with the allocator of glibc, jemalloc, mimalloc and this one, in turn, compares
what each prints with what it prints under glibc, and writes `results.md`: seconds and peak memory. `--install` gets
the programs and the two libraries from Debian or Ubuntu with apt-get first (as root). A program that is missing, or an
allocator, is named and left out.

Exit status 1 if an output differs or a program fails with glibc or with this one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from process import Failed, Missing, Run
from workloads import WORKLOADS, prepare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

PACKAGES = """time libjemalloc2 libmimalloc2.0 python3 libpython3-all-dev libpython3-stdlib redis-server redis-tools
sqlite3 git gcc g++ perl lua5.4 nodejs ghostscript postgresql z3 memcached""".split()
TEST_SUITE = "libpython3.{}-testsuite"

# Programs that are linked with another malloc get glibc's back if glibc comes first.
LIBRARIES = {
    "glibc": ["libc.so.6"],
    "jemalloc": ["libjemalloc.so.2"],
    "mimalloc": ["libmimalloc.so.2", "libmimalloc.so.2.0", "libmimalloc.so.3"],
}


def find_library(names):
    for name in names:
        for folder in ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"]:
            path = Path(folder) / name
            if path.exists():
                return path
    return None


def install():
    subprocess.run(["apt-get", "update", "-q"], check=True)
    for package in PACKAGES + [TEST_SUITE.format(minor) for minor in range(9, 15)]:
        done = subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
                              env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True)
        if done.returncode != 0 and "testsuite" not in package:
            print(f"apt-get has no {package}", file=sys.stderr)


def build():
    print("building libpreload.so", file=sys.stderr)
    subprocess.run(["cargo", "build", "--release", "--features", "capi", "--example", "preload"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release/examples/libpreload.so"


def table(programs, allocators, results, rounds):
    lines = ["# Real programs, by LD_PRELOAD", ""]
    cpus = os.cpu_count()
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    lines += [f"`benches/programs/run.py --rounds {rounds}`: {cpus} CPUs, Linux {os.uname().release}, load {load}. Seconds are"
              " the shortest of the rounds, CPU seconds (user and system) likewise; peak memory is the least of the largest"
              " process, in MiB. Every program printed under each allocator what it printed under glibc's, unless said.",
              "", "| program | " + " | ".join(f"{a}: s | cpu s | MiB" for a in allocators) + " |",
              "|---|" + "---:|" * 3 * len(allocators)]
    for name in programs:
        cells = []
        for allocator in allocators:
            runs = results.get((name, allocator), [])
            if not runs:
                cells.append("– | – | –")
            elif isinstance(runs[-1], str):
                cells.append(f"{runs[-1]} | |")
            else:
                cpu = min(run.cpu for run in runs)
                cells.append(f"{min(run.seconds for run in runs):.2f} | {f'{cpu:.2f}' if cpu else '–'} | "
                             f"{min(run.peak_kib for run in runs) / 1024:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [f"- {name}, {allocator}: {note}" for (name, allocator), runs in results.items()
             for run in runs[-1:] if not isinstance(run, str) for note in run.notes]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="get programs and allocators by apt-get, as root")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program (default: 3)")
    parser.add_argument("--only", default="", help="names of programs, by commas (default: all)")
    parser.add_argument("--thorough", action="store_true", help="more of python3's own tests, which wait a lot")
    parser.add_argument("--allocators", default="glibc,jemalloc,mimalloc,pcpalloc",
                        help="by commas (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="say what each program does, and run none")
    parser.add_argument("--library", type=Path, help="libpreload.so; built if it is not given")
    parser.add_argument("--out", type=Path, default=HERE / "results.md",
                        help="file for the tables (default: results.md beside this program)")
    args = parser.parse_args()
    if args.list:
        for name, workload in WORKLOADS.items():
            print(f"{name:16} {workload.__doc__.strip().splitlines()[0]}")
        return 0
    programs = [name for name in WORKLOADS if not args.only or name in args.only.split(",")]
    if args.install:
        install()
    if not Path("/usr/bin/time").exists():
        sys.exit("run.py: /usr/bin/time is missing; --install gets it and the rest from apt-get")
    libraries = {}
    for allocator in args.allocators.split(","):
        path = (args.library or build()) if allocator == "pcpalloc" else find_library(LIBRARIES[allocator])
        if path is None:
            print(f"skipping {allocator}: there is no {' or '.join(LIBRARIES[allocator])}", file=sys.stderr)
        else:
            libraries[allocator] = path.resolve()
    results, wrong, skipped = {}, [], {}
    with tempfile.TemporaryDirectory(prefix="programs-") as folder:
        folder = Path(folder)
        # Servers give up their rights and must still read it.
        folder.chmod(0o755)
        for allocator, path in libraries.items():
            if allocator == "pcpalloc":
                libraries[allocator] = folder / path.name
                libraries[allocator].write_bytes(path.read_bytes())
                libraries[allocator].chmod(0o755)
        data = folder / "data"
        data.mkdir()
        prepare(data)
        for number in range(args.rounds):
            for name in programs:
                expected = None
                for allocator, library in libraries.items():
                    if name in skipped or isinstance(results.get((name, allocator), [None])[-1], str):
                        continue
                    scratch = folder / "scratch"
                    scratch.mkdir()
                    scratch.chmod(0o777)
                    run = Run(library, scratch, data, args.thorough)
                    try:
                        output = WORKLOADS[name](run)
                    except Missing as missing:
                        print(f"skipping {name}: {missing}", file=sys.stderr)
                        skipped[name] = str(missing)
                        continue
                    except (Failed, subprocess.TimeoutExpired, OSError) as failure:
                        print(f"{name} with {allocator}: {failure}", file=sys.stderr)
                        results[name, allocator] = ["failed"]
                        wrong += [f"{name} with {allocator}"] * (allocator in ("glibc", "pcpalloc"))
                        continue
                    finally:
                        run.end()
                        subprocess.run(["rm", "-rf", str(scratch)], check=True)
                    if expected is None:
                        expected = output
                    if output != expected:
                        print(f"{name} with {allocator} printed something else:\n{output[-500:]}\nbut was to print\n"
                              f"{expected[-500:]}", file=sys.stderr)
                        results[name, allocator] = ["differs"]
                        wrong += [f"{name} with {allocator}"] * (allocator in ("glibc", "pcpalloc"))
                        continue
                    results.setdefault((name, allocator), []).append(run)
                    print(f"{number + 1}/{args.rounds} {name:16} {allocator:9} {run.seconds:7.2f} s  cpu {run.cpu:6.2f} s"
                          f"  {run.peak_kib / 1024:6.0f} MiB  {'; '.join(run.notes)}", file=sys.stderr, flush=True)
    text = table([name for name in programs if name not in skipped], list(libraries), results, args.rounds)
    text += "".join(f"\nNot run: {name} ({why}).\n" for name, why in skipped.items())
    args.out.write_text(text)
    print(text)
    if wrong:
        print("wrong: " + ", ".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
