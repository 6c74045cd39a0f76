"""A CF backbone of your own: one class and one line, then it trains, saves, loads and carries A-LLMRec like ours.

python examples/own_cf_backbone.py --output runs/own

The command line takes it too: allmrec train --cf-module own_cf_backbone --cf decay ... (from this folder)
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel

import allmrec_hf
from allmrec_hf.cf_encoder import CFEncoder, CFEncoderConfig, register_cf_encoder
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.evaluation.rankers import CFRanker, PopularityRanker
from allmrec_hf.training.presets import preset
from allmrec_hf.training.backbone_training import train_cf_encoder
from allmrec_hf.training.run import train
from allmrec_hf.training.settings import run_settings


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
    parser.add_argument("--text-encoder", default=str(Path(allmrec_hf.__file__).parent / "demo" / "text_encoder"))
    parser.add_argument("--output", type=Path, default=Path("runs/own"))
    parser.add_argument("--tiny", action="store_true", help="a few steps on a small world")
    options = parser.parse_args()
    world = SyntheticWorld(num_items=120, num_users=200) if options.tiny else SyntheticWorld()
    data = prepare(
        world.interactions(), world.items(), output=options.output / "data", filter="none", name="own", domain="movie"
    )
    quick = {"backbone": preset("quick", "backbone", DecayModel.training_recipe), "align": preset("quick", "align")}
    if options.tiny:
        quick = {stage: replace(arguments, max_steps=10) for stage, arguments in quick.items()}

    # 1. Alone: trained, saved, loaded by the Auto classes, ranked.
    config = DecayConfig(num_items=data.num_items, half_life=2.0)
    trained = train_cf_encoder(data, config, quick["backbone"], options.output / "training")
    trained.save_pretrained(options.output / "alone")
    loaded = AutoModel.from_pretrained(options.output / "alone")
    print(evaluate([CFRanker(loaded), PopularityRanker(data.item_counts("train"))], data).to_table())

    # 2. Under A-LLMRec: stage 1 aligns its vectors with texts; stage 2 would follow with an LLM.
    settings = replace(
        run_settings("quick", cf="decay"), text_encoder=options.text_encoder, backbone_options={"half_life": 2.0}
    )
    run = train(data, options.output / "run", settings, ("backbone", "align"), quick, "quick")
    print("stage 1 on top of", AutoModel.from_pretrained(run, language_model=None).cf_encoder.config.model_type)


if __name__ == "__main__":
    main()
