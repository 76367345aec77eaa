"""A tool that reads a whole pool directory over and over while pinfold changes its pools, and knows nothing of it.

It keeps to the rules of the KCM directory, as kcm_peer.py does: flock(LOCK_EX) on DIR/lock around every look and every
change, `tasks` of pids joined by commas, CPU lists of numbers joined by commas, `exclusive` of one byte.

usage: kcm_watcher.py DIR STOP-FILE

Between looks it works without the lock. For some looks it has a process in a list, and for some it has none. It goes on
until STOP-FILE exists, then prints what it saw as one line of JSON.
"""

import ctypes
import fcntl
import json
import os
import re
import signal
import sys

PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None).prctl

# For so many looks it has a process in a list, and then as many none.
STAY = 4

directory, stop_file = sys.argv[1:]
pools = os.path.join(directory, "pools")
seen = {"looks": 0, "waited": 0, "changes": 0, "stays": 0, "followed": 0, "faults": []}


class Lock:
    """The directory's lock; counts how often somebody else had it."""

    def __enter__(self):
        self.fd = os.open(os.path.join(directory, "lock"), os.O_RDONLY)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen["waited"] += 1
            fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_):
        os.close(self.fd)


def fault(text):
    seen["faults"].append(f"look {seen['looks']}: {text}")


def read(*path):
    try:
        with open(os.path.join(pools, *path), "rb") as file:
            return file.read()
    except OSError as error:
        fault(str(error))
        return b""


def parsed(pattern, text, what):
    """The numbers joined by commas in a text that must be as the pattern says."""
    if not re.fullmatch(pattern, text):
        fault(f"{what}: {text!r}")
        return []
    return [int(number) for number in text.split(",") if number]


def look():
    """The lists as (pool, name) -> (is it exclusive, its CPUs, its pids)."""
    lists = {}
    taken = {}
    for pool in sorted(os.listdir(pools)):
        exclusive = read(pool, "exclusive")
        if exclusive not in (b"0", b"1"):
            fault(f"{pool}/exclusive: {exclusive!r}")
        entries = os.scandir(os.path.join(pools, pool))
        for name in sorted(entry.name for entry in entries if entry.is_dir()):
            cpus = parsed(r"\d+(,\d+)*", name, f"a list of {pool}")
            tasks = read(pool, name, "tasks").decode()
            pids = parsed(r"(\d+(,\d+)*)?", tasks, f"{pool}/{name}/tasks")
            for cpu in cpus:
                if cpu in taken:
                    fault(f"CPU {cpu} is in {taken[cpu]} and in {pool}/{name}")
                taken[cpu] = f"{pool}/{name}"
            if exclusive == b"1" and len(pids) > 1:
                fault(f"{pool}/{name} has the owners {pids}")
            lists[pool, name] = exclusive == b"1", set(cpus), pids
    return lists


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def owners(lists):
    found = {}
    for (pool, name), (exclusive, cpus, pids) in lists.items():
        for pid in pids:
            if pid in found:
                fault(f"{pid} is in two lists, one of them {pool}/{name}")
            found[pid] = pool, name, exclusive, cpus
    return found


def compare(before, after):
    """Whoever was in a list and lives is in it still; a shared one may have grown."""
    there = owners(after)
    for pid, (pool, name, exclusive, cpus) in owners(before).items():
        if pid not in there:
            if is_alive(pid):
                fault(f"{pid} lives, and {pool}/{name} is no longer its")
            continue
        now_pool, now_name, _, now_cpus = there[pid]
        if now_pool != pool or not now_cpus >= cpus or (exclusive and now_cpus != cpus):
            fault(f"{pid} was in {pool}/{name} and is in {now_pool}/{now_name}")
        if now_name != name:
            seen["followed"] += 1


def start_process():
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    return pid


def write_tasks(place, pids):
    with open(os.path.join(pools, *place, "tasks"), "w") as file:
        file.write(",".join(map(str, pids)))


def enter(lists, pid):
    """One list after another, of those that can be had."""
    free = [place for place in sorted(lists) if not (lists[place][0] and lists[place][2])]
    if free:
        place = free[seen["stays"] % len(free)]
        lists[place][2].append(pid)
        write_tasks(place, lists[place][2])
        seen["stays"] += 1
    return bool(free)


def leave(lists, pid):
    for place, (_, _, pids) in lists.items():
        if pid in pids:
            pids.remove(pid)
            write_tasks(place, pids)


def main():
    last, guest, inside = {}, None, False
    while not os.path.exists(stop_file) or inside:
        guest = guest or start_process()
        gone = None
        with Lock():
            lists = look()
            compare(last, lists)
            seen["looks"] += 1
            seen["changes"] += set(lists) != set(last)
            if seen["looks"] % STAY == 0:
                if inside:
                    leave(lists, guest)
                    gone, guest, inside = guest, None, False
                else:
                    inside = enter(lists, guest)
            last = lists
        # Its other work, during which the lock is anybody's.
        gone = gone or start_process()
        os.kill(gone, signal.SIGKILL)
        os.waitpid(gone, 0)
    print(json.dumps(seen))


main()
