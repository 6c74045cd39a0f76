"""Train on sequences of ever other lengths and print the resident MiB at each step: `OUTPUT as-it-comes|trimmed STEPS`.

The stage does what an LLM's layers do to a heap: it holds many tensors, as long as the batch, for the backward pass.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from allmrec_hf.data import memory
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.task import StageTask

LAYERS, WIDTH, SHORTEST, LONGEST = 6, 256, 100, 800


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, batch):
        hidden = batch["x"] * self.scale
        for _ in range(LAYERS):
            wide = torch.cat([hidden, hidden, hidden], dim=1)
            hidden = hidden + (wide * torch.sigmoid(wide))[:, :WIDTH] * 0.1
        return {"loss": hidden.square().mean()}


class Varied(StageTask):
    name = "varied"
    varied_lengths = True

    def __init__(self):
        self.module, self.resident = Layers(), []

    def batches(self, epoch):
        return [np.array([step]) for step in range(int(sys.argv[3]))]

    def collate(self, examples, generator):
        self.resident.append(memory.resident_bytes() // 2**20)
        return {"x": torch.ones(2 * int(generator.integers(SHORTEST, LONGEST)), WIDTH)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    memory.SLACK_SHARE, memory.SLACK_BYTES = 0.0, 2**23
    if sys.argv[2] == "as-it-comes":
        memory._glibc = lambda: None
    stage = Varied()
    run_stage(stage, StageArguments(num_train_epochs=1), Path(sys.argv[1]), progress=False)
    print(json.dumps(stage.resident))
