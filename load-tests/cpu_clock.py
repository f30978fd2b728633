#!/usr/bin/env python3
"""The CPU that a process has used, from the clock that the kernel keeps for each (clock_getcpuclockid(3)).

It counts nanoseconds on a CPU of all threads, also of those that have ended, until the process is waited for.
`/proc/PID/stat` shows the same count in ticks of 10 ms, and `/proc/PID/task/*/schedstat` loses ended threads.

usage: load-tests/cpu_clock.py FILE COMMAND...      runs a command, and writes its seconds of CPU to a file
"""
import os
import subprocess
import sys
import time


def seconds(pid):
    # The number of a process's clock in Linux, which Python has no name for.
    return time.clock_gettime(~pid << 3 | 2)


def main():
    file, *command = sys.argv[1:]
    child = subprocess.Popen(command)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    used = seconds(child.pid)
    with open(file, "w") as out:
        print(used, file=out)
    sys.exit(child.wait())


if __name__ == "__main__":
    main()
