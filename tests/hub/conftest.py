"""The fake Hub for every test of this folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_hub import fake_hub  # noqa: F401


@pytest.fixture
def plain_transfer(monkeypatch, tmp_path):
    """Upload over plain HTTP from this process too, with no stored token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_anybody")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
