"""A tool that shares a pool directory with pinfold and knows nothing of it.

It keeps to the rules of the KCM directory: flock(LOCK_EX) on DIR/lock around every look and every change; `tasks`
holds pids joined by commas, without a newline, and is rewritten in place; `exclusive` is `1` or not; an exclusive CPU
list is free when its `tasks` names nobody.

usage: kcm_peer.py DIR POOL LEAST-ROUNDS STOP-FILE

Each round starts a process, enters it, looks again, takes it out and ends it. It goes on until it has done
LEAST-ROUNDS and STOP-FILE exists, then prints what it saw as one line of JSON.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None).prctl

directory, pool_name, least_rounds, stop_file = sys.argv[1:]
pool = os.path.join(directory, "pools", pool_name)
seen = {"rounds": 0, "waited": 0, "full": 0, "faults": []}


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


def read_tasks(cpu_list):
    with open(os.path.join(pool, cpu_list, "tasks")) as file:
        return [int(part) for part in file.read().split(",") if part.strip()]


def write_tasks(cpu_list, pids):
    with open(os.path.join(pool, cpu_list, "tasks"), "w") as file:
        file.write(",".join(map(str, pids)))


def start_process():
    pid = os.fork()
    if pid == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    return pid


def choose(exclusive):
    lists = sorted(entry.name for entry in os.scandir(pool) if entry.is_dir())
    if not exclusive:
        return lists[seen["rounds"] % len(lists)]
    return next((name for name in lists if not read_tasks(name)), None)


def one_round(exclusive):
    pid = start_process()
    with Lock():
        cpu_list = choose(exclusive)
        if cpu_list is not None:
            write_tasks(cpu_list, read_tasks(cpu_list) + [pid])
    if cpu_list is None:
        seen["full"] += 1
    else:
        with Lock():
            pids = read_tasks(cpu_list)
            if pid not in pids:
                seen["faults"].append(f"{pid} was lost from {cpu_list}, which names {pids}")
            if exclusive and pids != [pid]:
                seen["faults"].append(f"{pid} owns {cpu_list}, which names {pids}")
            write_tasks(cpu_list, [other for other in pids if other != pid])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    seen["rounds"] += 1


def main():
    with open(os.path.join(pool, "exclusive")) as file:
        exclusive = file.read(1) == "1"
    while seen["rounds"] < int(least_rounds) or not os.path.exists(stop_file):
        one_round(exclusive)
    print(json.dumps(seen))


main()
