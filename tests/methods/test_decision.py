"""The baseline `decision`: the pipeline of transformers, its letters, orders and limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from allmrec_hf.data.prepared import PreparedData
from allmrec_hf.errors import ALLMRecError, DataError
from allmrec_hf.evaluation.evaluator import evaluate
from allmrec_hf.methods.a_llmrec import facts
from allmrec_hf.methods.registry import method
from allmrec_hf.prompt import LETTERS
from tests import small_run
from tests.methods.world import small_setting

pytest.importorskip("transformers.pipelines.decision", reason="this transformers has no pipeline decision")
CHAT = "{% for message in messages %}<user>{{ message.content }}</user>{% endfor %}<answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decision")


@pytest.fixture(scope="module")
def data(folder: Path) -> PreparedData:
    return small_run.write_data(folder / "data")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Path:
    return small_run.write_llm(folder / "llm")


def fitted(folder: Path, data: PreparedData, llm: Path, **options: Any) -> Any:
    return method("decision").fit(data, small_setting(folder, llm=str(llm), options=options))


def rows(data: PreparedData, count: int = 4) -> tuple[list[Any], Any]:
    candidates = data.candidates("test").take(np.arange(count))
    return [data.history(int(user), "test") for user in candidates.users], candidates.items


def test_scores_are_the_logits_of_the_letters_behind_the_question(folder, data, llm):
    ranker = fitted(folder, data, llm, history_in_prompt=2)
    titles = ["Lonely River", "Silent Paper", "Paper 3"]
    found = ranker.decide([3, 1, 7], titles)
    names = [ranker.processor.title(item) for item in (1, 7)]
    text = (
        f'This user has watched "{names[0]}", "{names[1]}" in the previous.\n\nWhich movie will this user watch next?\n'
        "A. Lonely River\nB. Silent Paper\nC. Paper 3\n"
        "Answer with the letter of the option that fits best (A to C) only.\nAnswer:\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(llm)
    with torch.no_grad():
        logits = ranker.model.language_model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABC"]
    assert list(found) == titles
    assert list(found.values()) == pytest.approx(logits[letters].softmax(dim=0).tolist(), abs=1e-5)


def test_a_chat_model_is_asked_in_its_own_template(folder, data):
    chat = small_run.write_llm(folder / "chat")
    settings = json.loads((chat / "tokenizer_config.json").read_text(encoding="utf-8"))
    (chat / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}), encoding="utf-8")
    ranker = fitted(folder, data, chat)
    question = {"next": {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": None}}}
    ids = ranker.pipe.preprocess({"state": "S", "questions": question})["prompts"][0][0]["input_ids"][0]
    text = ranker.pipe.tokenizer.decode(ids)
    assert text.startswith("<user>S\n\nWhich?\nA. a\nB. b\n")
    assert text.endswith("only.</user><answer>")


@pytest.mark.parametrize("orders", [1, 3])
def test_score_depends_neither_on_the_order_of_candidates_nor_on_the_batch(folder, data, llm, orders):
    ranker = fitted(folder, data, llm, num_permutations=orders)
    histories, items = rows(data)
    scores = ranker.score(histories, items)
    np.testing.assert_allclose(ranker.score(histories, items[:, ::-1])[:, ::-1], scores, atol=1e-4)
    np.testing.assert_allclose(ranker.score(histories[2:3], items[2:3]), scores[2:3], atol=1e-4)
    padded = np.concatenate([items, np.zeros((len(items), 2), dtype=np.int64)], axis=1)
    np.testing.assert_allclose(ranker.score(histories, padded)[:, :-2], scores, atol=1e-4)
    assert np.isneginf(ranker.score(histories, padded)[:, -2:]).all()


def test_all_orders_put_every_candidate_into_every_place(folder, data, llm, monkeypatch):
    ranker = fitted(folder, data, llm, num_permutations=5)
    asked: list[list[str]] = []

    def first_is_best(history: Any, titles: Any) -> dict[str, float]:
        asked.append(list(titles))
        return {title: 0.6 if place == 0 else 0.1 for place, title in enumerate(titles)}

    monkeypatch.setattr(ranker, "decide", first_is_best)
    histories, items = rows(data, 1)
    scores = ranker.score(histories, items)
    assert all(len(set(place)) == 5 for place in zip(*asked, strict=True))
    np.testing.assert_allclose(scores, np.full((1, 5), (np.log(0.6) + 4 * np.log(0.1)) / 5))


def test_a_history_too_long_for_the_context_loses_its_oldest_items(folder, data, llm):
    ranker = fitted(folder, data, llm)
    history, titles = list(range(1, 9)), ["a", "b"]
    whole = ranker.decide(history, titles)
    ranker.context = 120
    assert ranker.decide(history, titles) != whole
    ranker.context = 20
    with pytest.raises(DataError, match="with one history item, and the LLM reads 20"):
        ranker.decide(history, titles)


def test_more_candidates_than_letters_are_refused(folder, data, llm):
    ranker = fitted(folder, data, llm)
    many = np.arange(1, len(LETTERS) + 3)[None]
    with pytest.raises(DataError, match=r"26 letters A to Z, and a user has 2\d of different titles"):
        ranker.score([np.array([40])], many)


def test_an_llm_without_the_letters_is_refused(folder, data):
    with pytest.raises(ALLMRecError, match=r"letters A to Z as one token.*take llm-only"):
        method("decision").fit(data, small_setting(folder))  # the demo's LM knows the words of its world alone


def test_it_is_evaluated_beside_others_and_says_what_it_is(folder, data, llm):
    ranker = fitted(folder, data, llm)
    report = evaluate([ranker], data, max_users=5, protocol="full", num_retrieved=10)
    assert list(report.ranks) == ["decision"]
    assert facts(ranker)["llm_parameters"] > 0
    assert facts(ranker)["trained_parameters"] == 0
    found = method("decision")
    assert found.paper
    assert found.reads_llm
    with pytest.raises(ALLMRecError, match=r"no options \['wings'\]"):
        fitted(folder, data, llm, wings=2)
