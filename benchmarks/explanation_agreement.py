"""How often leave-one-out and gradient x input agree in sign, on the demo checkpoint and its invented world.

python benchmarks/explanation_agreement.py --users 20 --seeds 0 1 2 --output docs/results
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel

import allmrec_hf
from allmrec_hf.data.prepare import prepare
from allmrec_hf.data.synthetic import SyntheticWorld
from allmrec_hf.explaining.contributions import CLEAR, Contribution, Effect, contributions, sign_agreement
from allmrec_hf.files import written_whole

SETTINGS: dict[str, dict[str, Any]] = {
    "neutral, 8 steps": {"removal": "neutral", "gradient_steps": 8},
    "neutral, gradient at the input": {"removal": "neutral", "gradient_steps": 1},
    "delete, 8 steps": {"removal": "delete", "gradient_steps": 8},
    "neutral, 8 steps, contrast": {"removal": "neutral", "gradient_steps": 8, "contrast": True},
}


def one_route(found: list[Contribution], route: str) -> list[Contribution]:
    """Return contributions whose total is one route's part, where both methods have it."""
    parts = [(one, getattr(one.leave_one_out, route), getattr(one.gradient_x_input, route)) for one in found]
    return [
        replace(one, leave_one_out=Effect(left), gradient_x_input=Effect(right))
        for one, left, right in parts
        if left is not None and right is not None
    ]


def measured(found: list[Contribution]) -> dict[str, dict[str, float | int | None]]:
    """Return the agreement of the user vectors, of the history items and of their two routes."""
    history = [one for one in found if one.source == "history"]
    return {
        "history items": sign_agreement(history),
        "in the prompt": sign_agreement(one_route(history, "in_prompt")),
        "through the user vector": sign_agreement(one_route(history, "through_user_vector")),
        "user vectors": sign_agreement([one for one in found if one.source == "user"]),
    }


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Explain the targets of seeded samples of test users and write `explanation_agreement.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    world = SyntheticWorld()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(
            world.interactions(),
            world.items(),
            output=Path(folder) / "data",
            filter="none",
            keep_items="all",
            domain="movie",
        )
        candidates = data.candidates("test")
    model = AutoModel.from_pretrained(allmrec_hf.DEMO_CHECKPOINT)
    processor = allmrec_hf.ALLMRecProcessor.from_pretrained(allmrec_hf.DEMO_CHECKPOINT)
    results: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        pooled: list[Contribution] = []
        by_seed = {}
        for seed in options.seeds:
            found: list[Contribution] = []
            for row in np.random.default_rng(seed).choice(len(candidates), options.users, replace=False):
                history = data.history(int(candidates.users[row]), "test").tolist()
                shown = candidates.items[row].tolist()
                found += contributions(model, processor, history, int(candidates.targets[row]), shown, **settings)
            by_seed[str(seed)] = measured(found)
            pooled += found
        results[name] = {"seeds": by_seed, "pooled": measured(pooled)}
        print(name, json.dumps(results[name]["pooled"]), flush=True)
    report = {"users_per_seed": options.users, "seeds": options.seeds, "clear_from_nats": CLEAR, "results": results}
    lines = [
        "| leave-one-out, gradient | what | clear | agreement | always one sign | by seed |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, result in results.items():
        for what, value in result["pooled"].items():
            seeds = " · ".join(_share(result["seeds"][str(seed)][what]["agreement"]) for seed in options.seeds)
            lines.append(
                f"| {name} | {what} | {value['contributions']} | {_share(value['agreement'])} | "
                f"{_share(value['always_one_sign'])} | {seeds} |"
            )
    for suffix, text in (("json", json.dumps(report, indent=1)), ("md", "\n".join(lines))):
        with written_whole(options.output / f"explanation_agreement.{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
