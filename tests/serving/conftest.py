"""A service of the demo checkpoint in this process, whose queue and state each test can choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

import allmrec_hf
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.serving.http_app import create_app
from allmrec_hf.serving.http_server import ModelSource, ServiceSettings, build_service
from allmrec_hf.serving.recommender_service import RecommenderService

DEMO = ModelSource(allmrec_hf.DEMO_CHECKPOINT, lambda: load_pipeline("demo"))


def demo_service(state: Any, **settings: Any) -> RecommenderService:
    return build_service({"demo": DEMO}, ServiceSettings(state=state, **settings))


@pytest.fixture
def service(tmp_path) -> RecommenderService:
    return demo_service(tmp_path)


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[TestClient]:
    """One service for the tests of a module that leave nothing behind that others would mind."""
    with TestClient(create_app(demo_service(tmp_path_factory.mktemp("state")))) as opened:
        yield opened
