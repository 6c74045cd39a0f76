"""Two processes whose clocks differ, and of whose examples one is broken: `OUTPUT`; see `test_progress.py`."""

import json
import os
import sys
from pathlib import Path

import numpy as np
from accelerate import PartialState
from toy_task import ToyTask

from allmrec_hf.errors import ALLMRecError
from allmrec_hf.training import checkpoint as ckpt
from allmrec_hf.training import loop
from allmrec_hf.training.stage_arguments import StageArguments

RANK = int(os.environ["RANK"])
ARGUMENTS = StageArguments(num_train_epochs=3, learning_rate=1e-2, per_device_train_batch_size=8)


class Clock:
    now = 0.0


def main(output):
    saved, save = [], ckpt.save_checkpoint

    def watched(*arguments):
        saved.append(Clock.now)
        return save(*arguments)

    ckpt.save_checkpoint = watched
    loop.monotonic = lambda: Clock.now
    task = ToyTask(validation=0)
    collate = task.collate

    def slowly(examples, generator):
        Clock.now += 170.0 if RANK == 0 else 1e4
        return collate(examples, generator)

    task.collate = slowly
    loop.run_stage(task, ARGUMENTS, output / "clocks")
    (output / f"saved-{RANK}.json").write_text(json.dumps(saved))
    broken = ToyTask(validation=0)
    broken.y[3] = np.nan
    try:
        loop.run_stage(broken, ARGUMENTS, output / "broken")
    except ALLMRecError as error:
        (output / f"refused-{RANK}.txt").write_text(str(error))
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
