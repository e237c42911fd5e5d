"""How `workloads.py` starts programs under an allocator, and what they take."""

import os
import re
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """A program did not end as it should."""


class Missing(Exception):
    """Something that a workload needs is not there."""


class Run:
    """One run of one workload with one allocator: starts its processes and adds up what they took."""

    def __init__(self, library, scratch, data, thorough):
        self.library, self.scratch, self.data, self.thorough = library, scratch, data, thorough
        self.seconds = self.cpu = 0.0
        self.peak_kib = 0
        self.notes = []
        self.servers = []

    def environment(self, extra=None):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "CARGO_", "RUST"))}
        # The system's own programs, not those of version managers.
        env.update(LC_ALL="C.UTF-8", PATH="/usr/bin:/bin:/usr/sbin:/sbin", HOME=str(self.scratch), TZ="UTC")
        env.update(extra or {})
        return env

    def preload(self, command):
        return ["env", f"LD_PRELOAD={self.library}", *map(str, command)]

    def program(self, *command, stdin=None, cwd=None, env=None, counted=True):
        """Runs a program to its end and returns what it printed."""
        need(command[0])
        command = self.preload(command)
        report = self.scratch / "time.txt"
        if counted:
            # From a small process, so that the program is not charged for what this one is.
            command = ["/usr/bin/time", "-q", "-o", str(report), "-f", "%e %U %S %M", *command]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              cwd=cwd or self.scratch, env=self.environment(env)) as process:
            out, err = process.communicate(stdin, timeout=900)
        if process.returncode != 0:
            raise Failed(f"{' '.join(command[-6:])[:200]}: status {process.returncode}: {err.decode(errors='replace')[-800:]}")
        if b"pcpalloc:" in err:
            raise Failed(f"the allocator complains: {err.decode(errors='replace')[-800:]}")
        if counted:
            elapsed, user, system, peak = report.read_text().split()[-4:]
            self.seconds += float(elapsed)
            self.cpu += float(user) + float(system)
            self.peak_kib = max(self.peak_kib, int(peak))
        return out

    def server(self, *command, env=None, user=None):
        """Starts a server; it is stopped with [`Run.stop`]."""
        need(command[0])
        log = open(self.scratch / f"server{len(self.servers)}.log", "wb")
        command = self.preload(command)
        if user:
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.scratch,
                                   env=self.environment(env))
        process.log = Path(log.name)
        self.servers.append(process)
        return process

    def see(self, process):
        """Notes the largest size that a server and its children have had."""
        ids = [process.pid, *children_of(process.pid)]
        self.peak_kib = max([self.peak_kib, *(status(pid).get("VmHWM", 0) for pid in ids)])

    def stop(self, process):
        """Ends a server."""
        self.see(process)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed("the server does not end") from None
        self.servers.remove(process)
        said = process.log.read_text(errors="replace")
        if process.returncode not in (0, -15) or "pcpalloc:" in said:
            raise Failed(f"the server ended with {process.returncode}: {said[-800:]}")

    def timed(self, action):
        """Counts the time that an action takes against a server."""
        start = time.monotonic()
        result = action()
        self.seconds += time.monotonic() - start
        return result

    def note(self, text):
        self.notes.append(text)

    def end(self):
        for process in self.servers:
            process.kill()
            process.wait()


def need(program):
    if not any((Path(folder) / program).exists() for folder in ["/usr/bin", "/bin", "/usr/sbin"]) \
            and not Path(program).exists():
        raise Missing(f"{program} is not installed")


def status(pid):
    """The sizes in /proc/PID/status, in KiB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def children_of(pid):
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        direct = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return direct + [below for child in direct for below in children_of(child)]
