"""A backbone of your own: one class and one line, then it trains, saves, loads and carries A-LLMRec like ours.

python examples/own_cf_backbone.py --output runs/own

The command line takes it too: allmrec train --backbone.module own_cf_backbone --backbone decay ... (from this folder)
"""

import argparse
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel

from allmrec_hf import (
    ALLMRecTrainer,
    ALLMRecTrainingArguments,
    BackboneRanker,
    CFEncoder,
    CFEncoderConfig,
    PopularityRanker,
    SyntheticWorld,
    prepare,
    register_cf_encoder,
)


class DecayConfig(CFEncoderConfig):
    """Describe a backbone that remembers a fading mean of the history."""

    model_type: ClassVar[str] = "decay"

    half_life: float = 3.0


class DecayModel(CFEncoder):
    """Predict from the last item, through a learned transition, and from a mean that forgets older items."""

    config_class = DecayConfig
    training_recipe: ClassVar[dict[str, float]] = {"learning_rate": 3e-3}

    def __init__(self, config: DecayConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.transition = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def sequence_states(self, item_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the state after each item of left-padded histories (B, L), as (B, L, d_cf)."""
        real = (item_ids != 0 if attention_mask is None else attention_mask).float()  # (B, L)
        items = self.item_embedding(item_ids)
        place = torch.arange(item_ids.shape[1], device=item_ids.device)
        age = place[:, None] - place  # (L, L), below 0 for later items
        weights = (0.5 ** (age / self.config.half_life)).tril() * real.unsqueeze(1)  # (B, L, L)
        memory = weights @ items / weights.sum(-1, keepdim=True).clamp(min=1e-9)
        return (self.transition(items) + memory) * real.unsqueeze(-1)


register_cf_encoder(DecayConfig, DecayModel)


def main() -> None:
    """Train the backbone alone and under stage 1 of A-LLMRec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-encoder", default="demo", help="id or folder; by default the tiny one of the package")
    parser.add_argument("--output", type=Path, default=Path("runs/own"))
    parser.add_argument("--tiny", action="store_true", help="a few steps on a small world")
    options = parser.parse_args()
    world = SyntheticWorld(num_items=120, num_users=200) if options.tiny else SyntheticWorld()
    data = prepare(world.interactions(), world.items(), filter="none", name="own", domain="movie")
    few = {"max_steps": 10, "min_steps": None} if options.tiny else {}
    args = ALLMRecTrainingArguments(
        options.output, preset="quick", backbone={"name": "decay", "options": {"half_life": 2.0}, **few}, align=few
    )
    trainer = ALLMRecTrainer(text_encoder=options.text_encoder, args=args, data=data)

    # 1. Alone: trained, saved, loaded by the Auto classes, ranked.
    trainer.train("backbone")
    loaded = AutoModel.from_pretrained(options.output / "backbone")
    print(trainer.evaluate([BackboneRanker(loaded), PopularityRanker(data.item_counts("train"))]).to_table())

    # 2. Under A-LLMRec: stage 1 aligns its vectors with texts; stage 2 would follow with an LLM.
    trainer.train("align")
    model = AutoModel.from_pretrained(options.output, language_model=None)
    print("stage 1 on top of", model.cf_encoder.config.model_type)


if __name__ == "__main__":
    main()
