"""Train the toy stage in child processes that are killed with SIGKILL and resumed; compare with an undisturbed run.

The parent never computes with torch, so forking is safe. Standard output: one line `equal KILLS` or `different`.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import toy_task
from safetensors.torch import load_file, save_file

import allmrec_hf.training.checkpoint as ckpt


def child(directory, before):
    """Fork a process that trains (or resumes) in a folder; return its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            before()
            weights, result = toy_task.train_long(directory, resume=True)
            save_file(weights, directory / "weights.safetensors")
            (directory / "history.txt").write_text(repr((result.history, result.best, result.best_epoch)))
            code = 0
        finally:
            os._exit(code)
    return pid


def die_at(owner, name, count):
    """Make the `count`-th call of a function the end of the process, before it does anything."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        return toy_task.die() if calls[0] == count else original(*args, **kwargs)

    setattr(owner, name, wrapped)


def killed(status):
    if status and not os.WIFSIGNALED(status):
        raise SystemExit("the training process failed")
    return os.WIFSIGNALED(status)


def main(root, seed):
    chance, kills = random.Random(seed), 0
    killed(os.waitpid(child(root / "whole", lambda: None), 0)[1])
    places = [(ckpt, "_save_tensors"), (ckpt, "_checksum"), (ckpt, "sync"), (ckpt, "_prune"), (Path, "replace")]
    for owner, name in places:  # within the writing of a checkpoint, a little later each time
        count = chance.randint(2, 9)
        kills += killed(os.waitpid(child(root / "parts", lambda o=owner, n=name, c=count: die_at(o, n, c)), 0)[1])
    for _ in range(6):  # at any moment
        pid = child(root / "parts", lambda: None)
        time.sleep(chance.uniform(0.02, 0.4))
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            kills += killed(os.waitpid(pid, 0)[1])
    killed(os.waitpid(child(root / "parts", lambda: None), 0)[1])
    whole, parts = (load_file(root / name / "weights.safetensors") for name in ("whole", "parts"))
    histories = [(root / name / "history.txt").read_text() for name in ("whole", "parts")]
    same = all(whole[name].numpy().tobytes() == parts[name].numpy().tobytes() for name in whole)
    print(f"equal {kills}" if same and histories[0] == histories[1] else "different")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
