"""A stage small enough to redo by hand: linear regression around a frozen part, with dropout."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from allmrec_hf.training.checkpoint import module_state
from allmrec_hf.training.loop import run_stage
from allmrec_hf.training.stage_arguments import StageArguments
from allmrec_hf.training.task import StageTask


class ToyModule(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).requires_grad_(False)
        self.trained = nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch):
        hidden = self.dropout(self.norm(torch.tanh(self.frozen(batch["x"])))) if self.dropout.p else batch["x"]
        error = (self.trained(hidden).squeeze(-1) - batch["y"]) ** 2
        wanted = batch["wanted"]
        return {"loss": (error * wanted).sum() / wanted.sum(), "error": error.detach().mean()}


class ToyTask(StageTask):
    name = "toy"
    metric = "loss"

    def __init__(self, size=50, batch_size=4, dropout=0.0, validation=10, shuffled=True):
        generator = np.random.default_rng(5)
        self.x = generator.normal(size=(size, 4)).astype(np.float32)
        self.y = (self.x @ np.array([1.0, -2.0, 0.5, 0.0]) + generator.normal(size=size)).astype(np.float32)
        self.wanted = generator.integers(1, 4, size).astype(np.float32)
        self.batch_size, self.shuffled, self.validation = batch_size, shuffled, validation
        torch.manual_seed(3)
        self.module = ToyModule(dropout)

    def batches(self, epoch):
        order = np.arange(len(self.y))
        order = np.random.default_rng([1, epoch]).permutation(order) if self.shuffled else order
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def collate(self, examples, generator):
        noise = generator.normal(size=(len(examples), 4)).astype(np.float32) * (0.1 if self.shuffled else 0.0)
        values = {"x": self.x[examples] + noise, "y": self.y[examples], "wanted": self.wanted[examples]}
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def loss_weight(self, batch):
        return float(batch["wanted"].sum())

    @property
    def num_validation_examples(self):
        return self.validation

    def validate(self, examples, device):
        batch = self.collate(examples, np.random.default_rng(0))
        return {"loss": ((self.module.trained(batch["x"].to(device)).squeeze(-1).cpu() - batch["y"]) ** 2).numpy()}


LONG = StageArguments(
    num_train_epochs=6, learning_rate=1e-2, save_steps=5, warmup_steps=0.1, lr_scheduler_type="cosine", weight_decay=0.1
)


def train_long(directory, resume=False):
    """Run long enough to be killed in the middle; return the final weights and how it went."""
    task = ToyTask(size=120, dropout=0.3)
    result = run_stage(task, LONG, directory, resume=resume)
    return {name: value.clone() for name, value in module_state(task.module).items()}, result


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _two_processes(directory):
    from accelerate import PartialState
    from safetensors.torch import save_file

    task = ToyTask(size=21, batch_size=5, shuffled=False)  # the last batch has one example for two processes
    result = run_stage(
        task, StageArguments(num_train_epochs=2, gradient_accumulation_steps=2, learning_rate=1e-2), directory
    )
    if int(os.environ.get("RANK", "0")) == 0:
        save_file(module_state(task.module), directory / "weights.safetensors")
        (directory / "history.txt").write_text(repr(result.history))
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    _two_processes(Path(sys.argv[1]))
