"""The programs that `run.py` runs: for each a function that runs it and returns what it printed."""

import hashlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from process import Failed, Missing, need, status

WORKLOADS = {}


def workload(name):
    def register(function):
        WORKLOADS[name] = function
        return function
    return register


def digest(data):
    return hashlib.sha256(data).hexdigest()


def prepare(data):
    """Writes the input files, the same in every run."""
    rng = random.Random(1)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 12))) for _ in range(20_000)]
    text = "\n".join(" ".join(rng.choice(words) for _ in range(12)) for _ in range(60_000)) + "\n"
    (data / "words.txt").write_text(text)
    (data / "rows.csv").write_text("".join(
        f"{n},{rng.choice(words)} {rng.choice(words)},{rng.random():.6f},{'x' * rng.randint(0, 200)}\n" for n in range(150_000)))
    (data / "history").write_bytes(history(rng, words))
    (data / "large.c").write_text(c_source(rng))
    (data / "templates.cc").write_text(CXX_SOURCE)
    (data / "pages.ps").write_text(POSTSCRIPT)
    (data / "hole.smt2").write_text(pigeonhole(8))
    root, crate = Path(__file__).resolve().parent.parent.parent, data / "crate"
    crate.mkdir()
    for name in ["Cargo.toml", "Cargo.lock", "src", "examples", "benches"]:
        if (root / name).is_dir():
            shutil.copytree(root / name, crate / name, ignore=shutil.ignore_patterns("target", "results"))
        else:
            shutil.copy(root / name, crate / name)


@workload("sh")
def sh(run):
    """dash: a thousand processes, made by vfork."""
    return run.program("dash", "-c", "i=0; while [ $i -lt 1000 ]; do x=$(/bin/echo $i); i=$((i+1)); done; echo $x $i")


@workload("loops")
def loops(run):
    """malloc and free in loops of C (loops.c); nanoseconds a call are in the notes."""
    need("gcc")
    source = Path(__file__).resolve().parent / "loops.c"
    # Without the compiler's own ideas about malloc.
    subprocess.run(["gcc", "-O2", "-fno-builtin", source, "-o", run.scratch / "loops"], check=True)
    *rows, total = run.program(run.scratch / "loops").decode().splitlines()
    run.note("ns: " + ", ".join(rows))
    return total.encode()


PYTHON_OBJECTS = """
import json, pickle, hashlib, sys
words = open(sys.argv[1]).read().split()
index = {}
for place, word in enumerate(words):
    index.setdefault(word, []).append(place)
for turn in range(3):
    text = json.dumps(index)
    again = json.loads(text)
    assert again == index
    copy = pickle.loads(pickle.dumps(again))
    assert copy == index
    table = {(n, str(n)): [n, float(n), {"n": n}] for n in range(200000)}
    del table
print(len(index), hashlib.sha256(text.encode()).hexdigest())
"""


@workload("python3")
def python(run):
    """python3: an index of words through json and pickle, and large tables of small objects."""
    return run.program("python3", "-c", PYTHON_OBJECTS, run.data / "words.txt")


PYTHON_POOL = """
import multiprocessing, sys
def count(part):
    counts = {}
    for word in part:
        counts[word] = counts.get(word, 0) + 1
    return counts
if __name__ == "__main__":
    words = open(sys.argv[1]).read().split()
    parts = [words[n::64] for n in range(64)]
    for method in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            total = {}
            for counts in pool.imap_unordered(count, parts):
                for word, n in counts.items():
                    total[word] = total.get(word, 0) + n
        print(method, len(total), sum(total.values()), sorted(total.items())[:3])
"""


@workload("python3-pool")
def python_pool(run):
    """python3's multiprocessing: pools made by fork, forkserver and spawn."""
    script = run.scratch / "pool.py"
    script.write_text(PYTHON_POOL)
    return run.program("python3", script, run.data / "words.txt")


@workload("python3-tests")
def python_tests(run):
    """python3's own tests of what uses memory, processes and threads."""
    tests = """test_dict test_set test_list test_bytes test_array test_mmap test_pickle test_json test_re test_io
               test_gc test_weakref test_fork1 test_thread test_threading""".split()
    if run.thorough:
        tests += ["test_subprocess", "test_multiprocessing_fork", "test_concurrent_futures"]
    if subprocess.run(["/usr/bin/python3", "-c", "import test.test_dict"], capture_output=True).returncode != 0:
        raise Missing("python3's test suite is not installed (libpython3.N-testsuite)")
    out = run.program("python3", "-m", "test", "-j2", *tests).decode()
    lines = [line for line in out.splitlines() if re.match(r"All \d+ tests OK|\d+ tests? (failed|skipped)|Result:", line)]
    return "\n".join(lines).encode()


@workload("sqlite3")
def sqlite(run):
    """sqlite3: an import of 150,000 rows, indices, updates, a vacuum and queries."""
    commands = f"""
.mode csv
PRAGMA cache_size=-64000;
CREATE TABLE rows(id INTEGER PRIMARY KEY, name TEXT, value REAL, filler TEXT);
.import {run.data / 'rows.csv'} rows
CREATE INDEX by_name ON rows(name);
CREATE INDEX by_value ON rows(value, name);
UPDATE rows SET filler = filler || name WHERE id % 3 = 0;
DELETE FROM rows WHERE id % 5 = 0;
VACUUM;
SELECT count(*), sum(id), round(sum(value), 3), sum(length(filler)) FROM rows;
SELECT substr(name, 1, 2) AS head, count(*), group_concat(id % 7) FROM rows GROUP BY head ORDER BY head LIMIT 200;
SELECT a.name, count(*) FROM rows a JOIN rows b ON a.name = b.name GROUP BY a.name ORDER BY 2 DESC, 1 LIMIT 20;
PRAGMA integrity_check;
"""
    return run.program("sqlite3", "test.db", stdin=commands.encode())


def redis_cli(port, *command):
    done = subprocess.run(["redis-cli", "-p", str(port), *command], capture_output=True, timeout=120)
    if done.returncode != 0:
        raise Failed(f"redis-cli {command}: {done.stderr.decode()}")
    return done.stdout.decode().strip()


@workload("redis")
def redis(run):
    """redis-server: redis-benchmark, then ten rounds of fill and flush, after which its memory is what it was."""
    need("redis-cli")
    port = free_port()
    server = run.server("redis-server", "--port", port, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1",
                        "--daemonize", "no", "--dir", run.scratch, "--lazyfree-lazy-user-flush", "no")
    wait_for(lambda: redis_cli(port, "ping") == "PONG")
    benchmark = ["redis-benchmark", "-p", str(port), "-q", "-n", "100000", "-r", "50000", "-P", "16", "-t",
                 "set,get,incr,lpush,rpop,sadd,hset,zadd"]
    run.timed(lambda: subprocess.run(benchmark, check=True, capture_output=True))
    redis_cli(port, "flushall")
    fill = """local out = 0
        for n = 1, 100000 do
          local key = 'key:' .. n
          if n % 3 == 0 then redis.call('set', key, string.rep('v', (n * 7 + tonumber(ARGV[1]) * 131) % 700))
          elseif n % 3 == 1 then redis.call('hset', key, 'field', n, 'other', string.rep('h', n % 90))
          else redis.call('rpush', key, n, n + 1, string.rep('l', n % 60)) end
        end
        return redis.call('dbsize')"""
    full, empty, said = [], [], []
    for turn in range(10):
        said.append(run.timed(lambda: redis_cli(port, "eval", fill, "0", str(turn))))
        full.append(status(server.pid)["VmRSS"] // 1024)
        said.append(run.timed(lambda: redis_cli(port, "flushall")))
        said.append(redis_cli(port, "dbsize"))
        # Long enough for an allocator that gives memory back by itself.
        time.sleep(2.5 if turn == 9 else 0.2)
        empty.append(status(server.pid)["VmRSS"] // 1024)
    statistics = redis_cli(port, "memory", "stats")
    fields = dict(zip(*[iter(statistics.splitlines())] * 2))
    if int(fields["keys.count"]) != 0 or int(fields["peak.allocated"]) < 10_000_000:
        raise Failed(f"MEMORY STATS makes no sense: {statistics}")
    run.note(f"MiB resident when full, round 1 to 10: {' '.join(map(str, full))}; flushed: {' '.join(map(str, empty))}")
    if max(full[5:]) > max(full[:5]) * 1.1 + 4 or max(empty[5:]) > max(empty[:5]) * 1.1 + 4:
        raise Failed(f"memory grows: full {full}, flushed {empty}")
    run.stop(server)
    return "\n".join(said).encode()


def history(rng, words):
    """A history of 4000 commits for git fast-import."""
    files = {f"src/{words[n]}/{words[n + 1]}.txt": [rng.choice(words) for _ in range(300)] for n in range(0, 400, 2)}
    paths = sorted(files)
    out = []
    for commit in range(4000):
        message = f"commit {commit}: {' '.join(rng.choice(words) for _ in range(8))}"
        out.append(f"commit refs/heads/main\nmark :{commit + 1}\n"
                   f"committer A U Thor <author@example.com> {1_600_000_000 + commit * 60} +0000\ndata {len(message)}\n{message}\n")
        if commit:
            out.append(f"from :{commit}\n")
        for path in paths if commit == 0 else rng.sample(paths, 2):
            files[path][rng.randrange(300)] = rng.choice(words)
            content = "\n".join(files[path]) + "\n"
            out.append(f"M 100644 inline {path}\ndata {len(content)}\n{content}\n")
    return "".join(out).encode()


@workload("git")
def git(run):
    """git: 4000 commits by fast-import, repacked, logged with their differences, and checked."""
    run.program("git", "init", "-q", "-b", "main", "repo")
    repo = run.scratch / "repo"
    run.program("git", "fast-import", "--quiet", stdin=(run.data / "history").read_bytes(), cwd=repo)
    run.program("git", "repack", "-adfq", "--depth=50", "--window=20", "--threads=2", cwd=repo)
    log = run.program("git", "log", "-p", "--stat", "-n", "2500", cwd=repo)
    run.program("git", "checkout", "-q", "main", cwd=repo)
    blame = run.program("git", "blame", "main", "--", sorted((repo / "src").glob("*/*.txt"))[0].relative_to(repo), cwd=repo)
    run.program("git", "fsck", "--full", "--no-progress", cwd=repo)
    head = run.program("git", "rev-parse", "main", cwd=repo)
    return b"\n".join([head, digest(log).encode(), digest(blame).encode()])


def c_source(rng):
    """A large file of small functions."""
    parts = ["#include <stdio.h>\n#include <string.h>\n"]
    for n in range(350):
        parts.append(f"""static int f{n}(int a, const char *s) {{
    int t[{rng.randint(2, 40)}] = {{{rng.randint(0, 9)}}}, n = sizeof t / sizeof *t;
    for (int i = 0; i < n; i++) t[i] = a * {rng.randint(1, 99)} + i + (s[i % strlen(s)] ^ {rng.randint(0, 255)});
    switch (a % 5) {{ case 0: return t[0]; case 1: return t[n / 2] * {rng.randint(2, 9)}; case 2: return {n}; default: return t[n - 1]; }}
}}
""")
    calls = "\n".join(f"    sum = sum * 31 + f{n}(sum & 0xff, argv[0]);" for n in range(350))
    return "".join(parts) + f"int main(int argc, char **argv) {{\n    int sum = argc;\n{calls}\n    printf(\"%d\\n\", sum);\n}}\n"


@workload("gcc")
def gcc(run):
    """gcc -O2 on 350 functions; the object file is compared."""
    run.program("gcc", "-O2", "-c", run.data / "large.c", "-o", "large.o")
    return digest((run.scratch / "large.o").read_bytes()).encode()


CXX_SOURCE = """
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>
template <int N> struct Table { std::map<int, std::string> entries; Table<N - 1> rest;
    void fill() { entries[N] = std::to_string(N); rest.fill(); } size_t size() const { return entries.size() + rest.size(); } };
template <> struct Table<0> { void fill() {} size_t size() const { return 0; } };
int main() {
    Table<120> table;
    table.fill();
    std::unordered_map<std::string, std::vector<std::shared_ptr<std::string>>> words;
    for (long n = 0; n < 400000; n++)
        words["word" + std::to_string(n * 7919 % 50021)].push_back(std::make_shared<std::string>(n % 97, 'x'));
    size_t sum = table.size();
    for (auto &entry : words) for (auto &text : entry.second) sum += text->size();
    std::regex pattern("(w|x)o?r(d)[0-9]+7$");
    sum += std::count_if(words.begin(), words.end(), [&](auto &e) { return std::regex_match(e.first, pattern); });
    try { std::vector<char> large(size_t(1) << 61); std::cout << "?"; } catch (std::bad_alloc &) { std::cout << "refused "; }
    try { auto large = ::operator new(size_t(1) << 62); std::cout << large; } catch (std::bad_alloc &) { std::cout << "refused "; }
    std::cout << sum << (::operator new(size_t(1) << 62, std::nothrow) == nullptr) << std::endl;
}
"""


@workload("g++")
def gxx(run):
    """g++ -O1 on templates and regular expressions, and what it made of them; std::bad_alloc is thrown."""
    run.program("g++", "-std=c++17", "-O1", run.data / "templates.cc", "-o", "templates")
    return digest((run.scratch / "templates").read_bytes()).encode() + run.program(run.scratch / "templates")


@workload("cargo")
def cargo(run):
    """cargo building this crate (rustc itself brings a malloc of its own)."""
    found = subprocess.run(["rustup", "which", "cargo"], capture_output=True, text=True)
    program = found.stdout.strip() or "/usr/bin/cargo"
    need(program)
    home = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    path = f"{Path(program).parent}:/usr/bin:/bin"
    run.program(program, "build", "--offline", "--lib", "--quiet", "--manifest-path", run.data / "crate/Cargo.toml",
                env={"CARGO_TARGET_DIR": str(run.scratch / "target"), "CARGO_HOME": home, "PATH": path,
                     "CARGO_INCREMENTAL": "0"})
    return digest((run.scratch / "target/debug/libpcpalloc.rlib").read_bytes()).encode()


@workload("perl")
def perl(run):
    """perl: hashes of arrays, sorting, regular expressions and growing strings."""
    return run.program("perl", "-e", r"""
        my (%count, %places, $n); open my $in, '<', $ARGV[0] or die;
        while (<$in>) { for (split) { $count{$_}++; push @{$places{$_}}, $n++ } }
        my @top = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0..9];
        my $text = ''; $text .= "$_ " x 3 for sort keys %places; my $pairs = () = $text =~ /(\w)\1/g;
        for my $turn (1..3) { my %copy = map { $_ => [@{$places{$_}}] } keys %places }
        print "@top $n ", length $text, " $pairs\n";""", run.data / "words.txt")


@workload("lua")
def lua(run):
    """lua: tables that come and go, and strings put together."""
    return run.program("lua5.4", "-e", r"""
        local sum = 0
        for turn = 1, 12 do
            local t = {}
            for n = 1, 120000 do t[n] = {n, tostring(n), {x = n}} end
            for n = 1, #t, 3 do sum = sum + t[n][1] + #t[n][2] + t[n][3].x end
            local parts = {}
            for n = 1, 50000 do parts[#parts + 1] = string.rep(string.char(97 + n % 26), n % 20) end
            sum = sum + #table.concat(parts, ',')
        end
        print(sum)""")


@workload("node")
def node(run):
    """node: maps, JSON, buffers of many sizes and a worker thread."""
    script = run.scratch / "main.js"
    script.write_text("""
        const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
        const crypto = require('crypto');
        function work(seed) {
            const hash = crypto.createHash('sha256');
            for (let turn = 0; turn < 4; turn++) {
                const map = new Map();
                for (let n = 0; n < 100000; n++) map.set('key' + n * seed % 99991, { n, list: [n, n + 1], text: 'v'.repeat(n % 50) });
                hash.update(JSON.stringify([...map.entries()].slice(0, 50000)));
                const buffers = [];
                for (let n = 0; n < 3000; n++) { buffers.push(Buffer.alloc(n * 37 % 100000, n)); if (n % 3 == 0) buffers.shift(); }
                buffers.forEach(buffer => hash.update(buffer));
            }
            return hash.digest('hex');
        }
        if (isMainThread) {
            const worker = new Worker(__filename, { workerData: 7 });
            const mine = work(3);
            worker.on('message', theirs => console.log(mine, theirs));
        } else parentPort.postMessage(work(workerData));
    """)
    return run.program("node", script)


POSTSCRIPT = """%!PS
/Times-Roman findfont 14 scalefont setfont
1 1 12 { /page exch def
  newpath 0 6 359 { /a exch def 300 400 moveto a cos 250 mul 300 add a sin 250 mul 400 add lineto } for
  0.3 setlinewidth stroke
  50 20 740 { /y exch def 50 y moveto page 20 string cvs show ( ) show y 20 string cvs show ( quick brown foxes) show } for
  gsave 100 100 translate 1 1 40 { /n exch def n 40 div setgray n 8 mul n 5 mul 30 0 360 arc fill } for grestore
  showpage
} for
"""


@workload("gs")
def ghostscript(run):
    """gs: twelve pages drawn at 200 dpi and written as PNG and PDF; the images are compared."""
    for device, name in [("png16m", "page%02d.png"), ("pdfwrite", "pages.pdf")]:
        run.program("gs", "-q", "-dSAFER", "-dBATCH", "-dNOPAUSE", "-r200", f"-sDEVICE={device}", "-o", name, run.data / "pages.ps")
    images = sorted(run.scratch.glob("page*.png"))
    if len(images) != 12 or not (run.scratch / "pages.pdf").stat().st_size:
        raise Failed("gs has drawn too little")
    return digest(b"".join(path.read_bytes() for path in images)).encode()


@workload("postgres")
def postgres(run):
    """PostgreSQL: initdb, pgbench with two clients, large sorts and joins."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        raise Missing("postgresql is not installed")
    need("setpriv")
    home, port, user = run.scratch / "pg", free_port(), "postgres" if os.getuid() == 0 else None
    rights = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    initdb = [binaries[-1] / "initdb", "-D", home, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C.UTF-8"]
    made = subprocess.run([*rights, *run.preload(initdb)], capture_output=True, cwd=run.scratch, env=run.environment())
    if made.returncode != 0:
        raise Failed(f"initdb: {made.stderr.decode()[-500:]}")
    server = run.server(binaries[-1] / "postgres", "-D", home, "-p", port, "-k", run.scratch, "-c", "fsync=off", "-c",
                        "shared_buffers=32MB", "-c", "work_mem=64MB", "-c", "autovacuum=off", user=user)

    def client(program, *command):
        done = subprocess.run([*rights, "env", binaries[-1] / program, "-h", run.scratch, "-p", str(port), "-U", "postgres", *command],
                              capture_output=True, timeout=300, cwd=run.scratch, env=run.environment())
        if done.returncode != 0:
            raise Failed(f"{program}: {done.stderr.decode()[-500:]} {server.log.read_text(errors='replace')[-500:]}")
        return done.stdout

    wait_for(lambda: client("psql", "-c", "select 1"))
    run.timed(lambda: client("pgbench", "-i", "-q", "-s", "3", "postgres"))
    run.timed(lambda: client("pgbench", "-c", "2", "-j", "2", "-t", "2000", "--random-seed=1", "postgres"))
    queries = """
        select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
               (select sum(tbalance) from pgbench_tellers), (select count(*) from pgbench_history);
        select md5(string_agg(x, ',' order by x)) from (select md5(n::text) x from generate_series(1, 200000) n) s;
        select count(*), sum(length(y)) from (select n, repeat(md5(n::text), 20) y from generate_series(1, 60000) n) s
            where y in (select repeat(md5((2 * n)::text), 20) from generate_series(1, 60000) n);
        select sum(v) from (select k, array_length(array_agg(n order by md5(n::text)), 1) v
            from (select n, n % 1000 k from generate_series(1, 100000) n) s group by k) t;"""
    # The backend ends with its client, so its peak is read while the client waits.
    client_command = [*rights, "env", binaries[-1] / "psql", "-h", run.scratch, "-p", str(port), "-U", "postgres", "-At", "-f", "-"]
    start = time.monotonic()
    with subprocess.Popen(client_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=run.scratch, env=run.environment()) as psql:
        psql.stdin.write((queries + "\n\\echo done\n").encode())
        psql.stdin.flush()
        lines = []
        while (line := psql.stdout.readline()) not in (b"done\n", b""):
            lines.append(line)
        run.seconds += time.monotonic() - start
        run.see(server)
        _, errors = psql.communicate()
    if psql.returncode != 0 or len(lines) != 4:
        raise Failed(f"psql: {errors.decode()[-500:]}")
    run.stop(server)
    return b"".join(lines)


def pigeonhole(holes):
    """No `holes` + 1 pigeons fit, each alone, into `holes` holes: short to say, hard to see."""
    lines = ["(set-logic QF_UF)"]
    lines += [f"(declare-const p{i}_{j} Bool)" for i in range(holes + 1) for j in range(holes)]
    lines += [f"(assert (or {' '.join(f'p{i}_{j}' for j in range(holes))}))" for i in range(holes + 1)]
    lines += [f"(assert (not (and p{i}_{j} p{k}_{j})))" for j in range(holes) for i in range(holes + 1) for k in range(i)]
    return "\n".join(lines + ["(check-sat)"]) + "\n"


@workload("z3")
def z3(run):
    """z3: nine pigeons for eight holes, and the factors of a number."""
    factors = run.scratch / "factors.smt2"
    factors.write_text("""(set-logic QF_BV)(declare-const a (_ BitVec 36))(declare-const b (_ BitVec 36))
        (assert (= (bvmul a b) (_ bv1022117 36)))(assert (bvult (_ bv1 36) a))(assert (bvult a b))(assert (bvult b (_ bv65536 36)))
        (check-sat)(get-value (a b))""")
    return run.program("z3", run.data / "hole.smt2") + run.program("z3", factors)


@workload("memcached")
def memcached(run):
    """memcached: values of all sizes set, read back and replaced, until old ones have to go."""
    port = free_port()
    server = run.server("memcached", "-p", port, "-U", "0", "-m", "64", "-t", "2", "-l", "127.0.0.1", "-u",
                        "nobody" if os.getuid() == 0 else str(os.getuid()))
    wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None)

    def load():
        rng = random.Random(2)
        found = hashlib.sha256()
        with socket.create_connection(("127.0.0.1", port)) as link:
            answers = link.makefile("rb")
            for turn in range(120):
                sizes = [int(2 ** rng.uniform(1, 15)) for _ in range(250)]
                for n, size in enumerate(sizes):
                    value = bytes([65 + (n + turn) % 26]) * size
                    link.sendall(b"set k%d_%d 0 0 %d noreply\r\n%s\r\n" % (turn, n, size, value))
                for n in range(250):
                    link.sendall(b"get k%d_%d\r\n" % (turn, n))
                    while (line := answers.readline()) != b"END\r\n":
                        if not line:
                            raise Failed("memcached has gone")
                        found.update(line)
            link.sendall(b"stats\r\nquit\r\n")
        return found.hexdigest().encode()

    result = run.timed(load)
    run.stop(server)
    return result


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(ready):
    last = None
    for _ in range(300):
        try:
            if ready():
                return
        except (Failed, OSError) as failure:
            last = failure
        time.sleep(0.1)
    raise Failed(f"the server does not answer: {last}")
