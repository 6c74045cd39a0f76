"""What schemathesis makes of the OpenAPI, valid and invalid: a sample of `benchmarks/openapi_fuzz.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="pip install schemathesis makes requests from the OpenAPI")


def test_no_request_of_the_openapi_is_an_error_inside(monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import logging

    import openapi_fuzz

    found = openapi_fuzz.measure(examples=2, seed=3)
    logging.disable(logging.NOTSET)
    assert found["wrong"] == 0, found["examples"]
    assert len(found["routes"]) == 14
    assert {"200", "422"} <= set(found["statuses"])
