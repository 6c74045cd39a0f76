"""Ask every route of the service what schemathesis makes of its OpenAPI, valid and invalid, and count the statuses.

A status of 500 or more, or an answer that is not the JSON that the OpenAPI promises, is told with its request.

Run: python benchmarks/openapi_fuzz.py [--examples 200] [--seed 0] [--output FILE]; it needs schemathesis
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import allmrec_hf
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.serving.http_app import create_app
from allmrec_hf.serving.http_server import ModelSource, ServiceSettings, build_service


def measure(examples: int, seed: int) -> dict[str, Any]:
    """Return the statuses of each route, and what should not have been answered."""
    import hypothesis
    import schemathesis
    from schemathesis.generation import GenerationMode

    logging.disable(logging.CRITICAL)
    statuses: dict[str, Counter[str]] = {}
    wrong: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = ModelSource(allmrec_hf.DEMO_CHECKPOINT, lambda: load_pipeline("demo"))
        app = create_app(build_service({"demo": source}, ServiceSettings(state=Path(folder))))
        described = schemathesis.openapi.from_asgi("/openapi.json", app)
        for found in described.get_all_operations():
            operation = found.ok()
            name = f"{operation.method.upper()} {operation.path}"
            counts = statuses.setdefault(name, Counter())
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    _ask(strategy, counts, wrong, name, examples, seed)
                except (hypothesis.errors.Unsatisfiable, schemathesis.errors.SchemathesisError):
                    continue  # a route without parameters has nothing that could be wrong
    total = sum(statuses.values(), Counter[str]())
    return {
        "version": allmrec_hf.__version__,
        "schemathesis": schemathesis.__version__,
        "seed": seed,
        "requests": total.total() if hasattr(total, "total") else sum(total.values()),
        "statuses": dict(sorted(total.items())),
        "wrong": len(wrong),
        "examples": wrong[:10],
        "routes": {name: dict(sorted(counts.items())) for name, counts in statuses.items()},
    }


def _ask(strategy: Any, counts: Counter[str], wrong: list[dict[str, Any]], name: str, examples: int, seed: int) -> None:
    import hypothesis

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(strategy)
    def ask(case: Any) -> None:
        response = case.call()
        counts[str(response.status_code)] += 1
        text = response.content[:300].decode("utf-8", "replace")
        if response.status_code >= 500 or "Traceback" in text:
            wrong.append({"route": name, "status": response.status_code, "answer": text, "body": str(case.body)[:500]})

    ask()


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="of each route, valid and as many invalid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options.examples, options.seed), indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
