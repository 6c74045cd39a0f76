from __future__ import annotations

import builtins
import json
import logging
import warnings

import pytest
import torch
from transformers import AutoTokenizer

from allmrec_hf import ALLMRecError, CheckpointError, DataError, ItemCatalog
from allmrec_hf.explaining.explanation import SAME_NATS, _ranks, explain, write_explanation
from allmrec_hf.explaining.nearest_words import nearest_tokens, token_text, visible_text
from allmrec_hf.explaining.picture import draw_explanation
from tests.tiny import OPT_TINY, tiny_catalog, tiny_model, tiny_processor

HISTORY = ["I3", "I9", "I14"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def hostile(model):
    """Return an explanation whose titles try to be markup and mathematics."""
    records = tiny_catalog().frame.to_dicts()
    records[4]["title"] = "<script>alert(1)</script> $x^2 & \\frac{"
    records[2]["title"] = "$\\undefined{ \u202eevil"
    return explain(model, tiny_processor(ItemCatalog.from_records(records)), HISTORY, "I5", ["I5", "I8"])


def test_an_explanation_holds_what_the_pipeline_scores_and_goes_into_json(model, tmp_path):
    processor = tiny_processor()
    found = explain(model, processor, HISTORY, "I5", ["I8", "I5", "I30"], top_tokens=2)
    batch = processor([[3, 9, 14]], [[5, 8, 30]])
    scores = dict(zip(["I5", "I8", "I30"], model.score(**batch)[0].tolist(), strict=True))
    users = model.cf_encoder.encode_users(batch["history_ids"], batch["history_mask"])
    by_cf = model.cf_encoder.score(users, torch.tensor([[5, 8, 30]]))[0].tolist()
    rows = {row["item_id"]: row for row in found["candidates"]}
    for (item, score), cf in zip(scores.items(), by_cf, strict=True):
        assert rows[item]["llm_score"] == pytest.approx(score, abs=1e-4)
        assert rows[item]["cf_score"] == pytest.approx(cf, abs=1e-4)
    assert sorted(row["llm_rank"] for row in rows.values()) == [1, 2, 3]
    assert found["value"]["nats"] == pytest.approx(found["item"]["llm_score"], abs=1e-4)
    assert [near["source"] for near in found["nearest_tokens"]] == ["user", "history", "history", "history", "item"]
    path = write_explanation(found, tmp_path / "why.json")
    assert json.loads(path.read_text()) == found


def test_the_same_request_gives_the_same_explanation(model):
    again = [explain(model, tiny_processor(), HISTORY, "I5", contrast=True) for _ in range(2)]
    assert again[0] == again[1]
    assert len(again[0]["candidates"]) == 20
    assert not {row["item_id"] for row in again[0]["candidates"]} & set(HISTORY)


def test_notes_tell_of_an_item_in_the_history_and_of_one_that_joined(model):
    found = explain(model, tiny_processor(), HISTORY, "I9", ["I8"])
    assert len(found["notes"]) == 2
    assert "in the history already" in found["notes"][0]


def test_bad_requests_are_refused_with_counts_and_near_ids(model):
    processor = tiny_processor()
    with pytest.raises(DataError, match=r"1 of 1 ids of the item are not in the catalogue of 40 items.*ids like"):
        explain(model, processor, HISTORY, "I55")
    with pytest.raises(DataError, match="2 of 3 ids of the history"):
        explain(model, processor, ["I1", "x", "y"], "I5")
    with pytest.raises(DataError, match="the history is empty"):
        explain(model, processor, [], "I5")
    with pytest.raises(DataError, match="1 candidates are given more than once"):
        explain(model, processor, HISTORY, "I5", ["I8", "I8"])


def test_models_that_have_no_title_likelihood_are_refused(model):
    with pytest.raises(CheckpointError, match="SASRecModel is no A-LLMRec model"):
        explain(model.cf_encoder, tiny_processor(), HISTORY, "I5")
    with pytest.raises(CheckpointError, match="has no LLM"):
        explain(tiny_model(family=None), tiny_processor(), HISTORY, "I5")
    untrained = tiny_model()
    untrained.config.rankers = {"likelihood": {"trained": False}, "retrieval": {}}
    with pytest.raises(CheckpointError, match="by which this checkpoint does not rank: its stage 2 is not trained"):
        explain(untrained, tiny_processor(), HISTORY, "I5")


def test_a_token_is_nearest_to_its_own_embedding(model):
    tokenizer = AutoTokenizer.from_pretrained(OPT_TINY)
    table = model.language_model.get_input_embeddings().weight
    found = nearest_tokens(model, tokenizer, 3.0 * table[[7, 30]], top_k=3)
    assert [row[0].token_id for row in found] == [7, 30]
    assert found[0][0].cosine == pytest.approx(1, abs=1e-5)
    assert found[0][0].cosine >= found[0][1].cosine >= found[0][2].cosine
    with pytest.raises(ALLMRecError, match="d_llm = 32"):
        nearest_tokens(model, tokenizer, torch.zeros(1, 3))


def test_what_cannot_be_seen_is_written_out():
    assert visible_text(" a\x1b[2Jb\u202e") == "␣a\\u001b[2Jb\\u202e"
    assert visible_text("  ") == "␣␣"
    tokenizer = AutoTokenizer.from_pretrained(OPT_TINY)
    assert token_text(tokenizer, 10**6) == "<unused 1000000>"
    for token in range(len(tokenizer)):
        assert token_text(tokenizer, token).isprintable()


@pytest.mark.parametrize("ending", ["svg", "png", "html"])
def test_a_picture_is_the_same_file_every_time_and_escapes_titles(hostile, tmp_path, ending):
    pytest.importorskip("matplotlib", reason="the extra `benchmark` is not installed")
    first = draw_explanation(hostile, tmp_path / f"a.{ending}").read_bytes()
    assert first == draw_explanation(hostile, tmp_path / f"b.{ending}").read_bytes()
    assert b"<script>" not in first
    if ending == "html":
        assert b"&lt;script&gt;" in first
    assert len(list(tmp_path.iterdir())) == 2


def test_other_endings_and_a_missing_matplotlib_are_said(hostile, tmp_path, monkeypatch):
    with pytest.raises(ALLMRecError, match=r"svg, png, html; 'a.gif'"):
        draw_explanation(hostile, tmp_path / "a.gif")
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ALLMRecError, match=r"allmrec-hf\[benchmark\]"):
        draw_explanation(hostile, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_scores_that_differ_by_noise_share_a_rank():
    scores = torch.tensor([-3.0, -1.0, -2.00004, -2.0, -5.0, -2.00008], dtype=torch.float64)
    assert _ranks(scores, SAME_NATS) == [5, 1, 2, 2, 6, 2]
    assert _ranks(scores[:1], SAME_NATS) == [1]
    with pytest.raises(ALLMRecError, match="1 of 3 candidates' scores are no finite numbers"):
        _ranks(torch.tensor([1.0, float("nan"), 2.0]), SAME_NATS)


def test_characters_that_the_font_lacks_are_named_once_without_a_warning(model, tmp_path, caplog):
    pytest.importorskip("matplotlib", reason="the extra `benchmark` is not installed")
    records = tiny_catalog().frame.to_dicts()
    records[4]["title"] = "\U00012000 \U00012001"  # cuneiform, in no usual font
    found = explain(model, tiny_processor(ItemCatalog.from_records(records)), HISTORY, "I5", ["I5", "I8"])
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "allmrec_hf"):
        warnings.simplefilter("error")
        draw_explanation(found, tmp_path / "why.png")
    (message,) = caplog.messages
    assert message.endswith("drawn as boxes: \U00012000 \U00012001")
