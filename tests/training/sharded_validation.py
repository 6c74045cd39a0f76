"""Validate with a sharded LLM in two processes, and write what each computed; run by test_processes_agree.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from allmrec_hf.evaluation.shares import leave, process_state, sharding_hidden
from allmrec_hf.training.processes import Processes
from allmrec_hf.training.sharded_llm import is_sharded, shard_language_model
from allmrec_hf.training.validation import validation_means
from tests.tiny import tiny_llm


def validated(accelerator: Accelerator) -> dict[str, Any]:
    """Return what two validations gave, of five users and of one; each user takes a pass of another length."""
    torch.manual_seed(0)
    llm = tiny_llm("llama").requires_grad_(False)
    mine: list[list[int]] = []

    @torch.no_grad()
    def value(number: int) -> float:
        return float(llm(torch.arange(2 * number + 2)[None]).logits.mean())

    def validate(rows: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        mine.append(rows.tolist())
        return {"value": np.array([value(number) for number in rows])}

    expected = [value(number) for number in range(5)]
    shard_language_model(llm)
    processes = Processes(accelerator, in_step=is_sharded(llm))
    task = SimpleNamespace(module=llm, metric="value", rows_add_up=True, validate=validate)
    means = []
    for task.num_validation_examples in (5, 1):
        means.append(validation_means(task, accelerator, processes)["value"])
    return {"sharded": processes.in_step, "expected": expected, "mine": mine, "means": means}


def main(folder: Path) -> None:
    """Validate with layers that are let go after each pass, and with ones that stay whole."""
    process_state()
    with sharding_hidden():
        accelerator = Accelerator(cpu=True)
    found = {}
    for frees_layers in ("true", "false"):
        os.environ["FSDP_RESHARD_AFTER_FORWARD"] = frees_layers
        found[frees_layers] = validated(accelerator)
    (folder / f"found-{accelerator.process_index}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
