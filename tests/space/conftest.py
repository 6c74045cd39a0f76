"""The demo checkpoint as the page sees it, and beside it the same with items whose titles are hostile."""

from __future__ import annotations

import polars as pl
import pytest

from allmrec_hf.catalog import ItemCatalog
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.space.page_model import PageModel
from allmrec_hf.space.trial_items import TrialPipelines
from tests.space.hostile_titles import HOSTILE


@pytest.fixture(scope="session")
def pipe():
    return load_pipeline("demo")


@pytest.fixture(scope="session")
def model(pipe):
    return PageModel("demo", pipe)


@pytest.fixture(scope="session")
def hostile(pipe):
    items = [{"item_id": key, "title": f"{key} Saddle", "description": "A western film."} for key in HOSTILE]
    made = TrialPipelines(pipe).with_items(items)
    frame = made.processor.catalog.frame  # added items lose their tags; those of a checkpoint are taken as they are
    titles = pl.col("item_id").replace_strict(HOSTILE, default=pl.col("title"))
    made.processor.catalog = ItemCatalog(frame.with_columns(title=titles), saved=True)
    return PageModel("<b>demo</b> & co", made)
