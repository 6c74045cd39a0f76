"""A method without training, which the runner's tests watch: its scores depend on the seed alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from allmrec_hf.evaluation.rankers import PopularityRanker
from allmrec_hf.methods.method import Method
from allmrec_hf.methods.registry import METHODS

LOG, KILL_AT = "STUB_LOG", "STUB_KILL_AT"


class Stub(Method):
    """Ranks by seeded noise; fails on demand, and can have the whole process killed."""

    name = "stub"
    paper = "nobody, nowhere"
    options = ("fail", "strength")

    def fit(self, data, setting):
        """Write down that it was asked, leave half a result, and return the ranker."""
        options = self.checked(setting)
        fitted = Path(os.environ[LOG])
        before = fitted.read_text().splitlines() if fitted.exists() else []
        fitted.write_text("\n".join([*before, f"{data.num_users} {setting.seed}"]))
        (setting.folder / "half").write_text("written before the kill")
        if os.environ.get(KILL_AT) == str(len(before) + 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if options.get("fail"):
            raise RuntimeError("no such luck")
        noise = np.random.default_rng(setting.seed).random(data.num_items + 1)
        return PopularityRanker(options.get("strength", 1.0) * noise, name="anything")


class Steady(Stub):
    """The same for every seed."""

    name = "steady"
    options = ()
    seeded = False


def register(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Make the method known by its name."""
    for kind in (Stub, Steady):
        if monkeypatch is None:
            METHODS[kind.name] = kind
        else:
            monkeypatch.setitem(METHODS, kind.name, kind)


def content(**changes):
    """Return a suite of two methods, two scenarios and two seeds on a small world."""
    return {
        "title": "mini",
        "seeds": [0, 1],
        "reference": "stub",
        "datasets": [
            {
                "name": "world",
                "synthetic": {"seed": 0, "num_items": 80, "num_users": 60, "num_topics": 4},
                "prepare": {"num_candidates": 10},
            }
        ],
        "scenarios": ["overall", {"name": "few-shot", "num_users": [20, 30]}],
        "methods": ["steady", "stub"],
        "evaluation": {"cutoffs": [1, 5]},
        **changes,
    }


if __name__ == "__main__":
    from allmrec_hf.benchmark.runner import Place, run_suite
    from allmrec_hf.benchmark.suite_parser import parse_suite

    register()
    run_suite(parse_suite(content(), "mini.yaml"), Place(Path(sys.argv[1])))
