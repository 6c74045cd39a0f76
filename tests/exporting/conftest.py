"""A tiny model with every part that is exported, and users of its catalogue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from allmrec_hf import ALLMRecModel, ALLMRecProcessor
from allmrec_hf.exporting.export_users import ExportUser
from allmrec_hf.ranker_retrieval import add_retrieval_head
from tests.small_run import text_encoder
from tests.tiny import tiny_model, tiny_processor

NUM_ITEMS = 40


class World(NamedTuple):
    """What is exported, and for whom."""

    model: ALLMRecModel
    processor: ALLMRecProcessor
    users: list[ExportUser]

    @property
    def histories(self) -> list[list[int]]:
        return [user.history for user in self.users]


@pytest.fixture(scope="session")
def world() -> World:
    model = tiny_model("llama", num_items=NUM_ITEMS)
    torch.manual_seed(4)
    prompt = 'A user liked {history}; {user} next: "'
    add_retrieval_head(model, {"dim": 8, "num_llm_layers": 1, "prompt": {"prompt": prompt}, "history_in_prompt": 5})
    model.attach_text_encoder(text_encoder())
    generator = np.random.default_rng(0)
    histories = [
        generator.choice(NUM_ITEMS, size, replace=False) + 1 for size in generator.integers(1, 16, size=30)
    ]  # some are longer than the 12 items that the backbone reads
    return World(model.eval(), tiny_processor(), [ExportUser(history.tolist()) for history in histories])
