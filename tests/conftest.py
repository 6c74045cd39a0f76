"""What several folders of tests share: one small world, its parts on disk, and one trained run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from allmrec_hf.data.prepared import PreparedData
from tests import small_run


@pytest.fixture(scope="session")
def small_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the prepared data `data`, the LM `llm` and the text encoder `text_encoder`."""
    folder = tmp_path_factory.mktemp("parts")
    small_run.write_data(folder / "data")
    small_run.write_llm(folder / "llm")
    small_run.write_text_encoder(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def small_data(small_parts: Path) -> PreparedData:
    """Return the prepared data of `small_parts`."""
    return PreparedData.load(small_parts / "data")


@pytest.fixture(scope="session")
def finished_run(small_parts: Path, small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of all stages; tests that change it copy it first."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return small_run.train(small_data, output, small_run.settings(small_parts))


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Give every test the log of this package as it found it: a command of this process leaves its handler behind."""
    own = [name for name in logging.root.manager.loggerDict if name.startswith("allmrec_hf.")]
    names = ["allmrec_hf", "uvicorn", *own]
    loggers = [logging.getLogger(name) for name in names]
    before = [(list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
