"""Train the small run in child processes that are killed with SIGKILL, then resume it: `PARTS OUTPUT SEED`.

The parent never computes, so forking is safe. Standard output: how many children were killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from allmrec_hf.data.prepared import PreparedData
from tests.small_run import STAGES, arguments, settings, train


def child(parts, output):
    """Fork a process that trains, or goes on with, the run; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            data = PreparedData.load(parts / "data")
            train(data, output, settings(parts), loops=arguments(), resume=True)
            code = 0
        finally:
            os._exit(code)
    return pid


def killed_after(pid, path, seconds):
    """Kill a process so many seconds after a path is there; tell whether it was still alive."""
    while not path.exists():
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit(f"training ended before {path} was there")
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(parts, output, seed):
    chance, kills = random.Random(seed), 0
    for stage in STAGES:
        place = chance.choice(("training.json", "checkpoints"))  # the first checkpoint comes after the former
        path = output / "checkpoints" / stage / place
        kills += killed_after(child(parts, output), path, chance.uniform(0.0, 0.06))
    if os.waitpid(child(parts, output), 0)[1]:
        raise SystemExit("the resumed run failed")
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
