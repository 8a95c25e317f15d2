"""Processes the bench begins: pinned, weighed, and ended by their own process group.

Always true: every child leads a process group of its own, so what it forks (nginx workers) is counted and ended with it;
nothing outside those groups is ever signalled; a child dies with the bench even if the bench is killed.
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_libc = ctypes.CDLL(None)
_began = []  # every Group not yet stopped, so that an interrupt can stop them


class Group:
    """One program and all it forks."""

    def __init__(self, name, argv, cores, log_path, env=None):
        def in_child():
            os.sched_setaffinity(0, cores)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        self.name = name
        self.log_path = log_path
        with open(log_path, "wb") as log:  # its last words, not those of an earlier round
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, preexec_fn=in_child
            )
        _began.append(self)

    def alive(self):
        return self.child.poll() is None

    def pids(self):
        """The live processes of the group. Zombies have nothing left to weigh."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                fields = _stat_fields(int(entry))
                if fields and fields[2] == str(self.child.pid) and fields[0] not in "ZX":
                    found.append(int(entry))
        return sorted(found)

    def cpu(self):
        return Cpu(self.pids())

    def memory_kib(self):
        """(Rss, Pss) of all processes together, in KiB."""
        rss = pss = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                for line in rollup:
                    if line.startswith("Rss:"):
                        rss += int(line.split()[1])
                    elif line.startswith("Pss:"):
                        pss += int(line.split()[1])
        return rss, pss

    def listens(self, address):
        """Whoever listens at `address` is of this group: an answer from there is its answer."""
        own = set()
        for pid in self.pids():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    own.add(os.readlink(descriptor))
        sockets = {f"socket:[{inode}]" for inode in _listening(address)}
        return bool(sockets) and sockets <= own

    def last_words(self, characters=400):
        try:
            with open(self.log_path, errors="replace") as log:
                return " / ".join(log.read()[-characters:].split("\n")).strip(" /")
        except OSError:
            return ""

    def stop(self):
        """SIGKILL: a peer of ours has nothing to save, and a graceful drain would take its time."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()
        deadline = time.monotonic() + 5
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.01)
        if self in _began:
            _began.remove(self)


class Cpu:
    """CPU time used so far by each of `pids`, all threads, living and dead.

    The process's CPU clock is the sum behind utime + stime in /proc/PID/stat (test_bench.py compares them), in
    nanoseconds instead of ticks of 10 ms, which a refusal row of one second would notice.
    """

    def __init__(self, pids):
        self.nanoseconds = {pid: time.clock_gettime_ns((~pid << 3) | 2) for pid in pids}

    def seconds_since(self, before):
        if self.nanoseconds.keys() != before.nanoseconds.keys():
            raise Unmeasured("its processes changed while it was measured")
        return sum(now - before.nanoseconds[pid] for pid, now in self.nanoseconds.items()) / 1e9


class Unmeasured(Exception):
    """This peer gave no value in this round; the text says why."""


def stop_all():
    for group in list(_began):
        group.stop()


def stat_seconds(pid):
    """utime + stime of /proc/PID/stat, in seconds."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def core_seconds(cores):
    """(busy, stolen): all time the given cores were not idle, whoever used them, and the part the hypervisor gave to others."""
    busy = stolen = 0
    names = {f"cpu{core}" for core in cores}
    with open("/proc/stat") as stat:
        for line in stat:
            name, *ticks = line.split()
            if name in names:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
                busy += user + nice + system + irq + softirq + steal
                stolen += steal
    tick = os.sysconf("SC_CLK_TCK")
    return busy / tick, stolen / tick


def _listening(address):
    """The inodes of all sockets that listen at `address`."""
    host, port = address
    where = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
    found = []
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            fields = line.split()
            if fields[3] != LISTEN:
                break  # listening sockets come first, before perhaps 100 000 in TIME_WAIT
            if fields[1] == where:
                found.append(fields[9])
    return found


def limit_nofile(wanted):
    """`wanted` descriptors, or as many as this user may have; children inherit it. Returns the limit in force."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _stat_fields(pid):
    """The fields of /proc/PID/stat after the name (which may hold anything): state is 0, pgrp is 2, utime 11, stime 12."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return None
