from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec_hf import ALLMRecError, DataError
from allmrec_hf.explaining.tasks import TASKS, TextTask, answer_scores, find_task, generate_answers
from tests.tiny import tiny_model, tiny_processor

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("favourite_category", ROOT / "examples" / "favourite_category.py")
favourite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(favourite)
HISTORIES = [[3, 9, 14], [21]]
WORDS = ["river", "paper house", "lonely"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_answers_score_the_same_alone_and_together(model):
    task = TASKS["favourite-category"]
    together = answer_scores(model, tiny_processor(), task, HISTORIES, WORDS)
    assert together.shape == (2, 3)
    for row, history in enumerate(HISTORIES):
        for column, word in enumerate(WORDS):
            alone = answer_scores(model, tiny_processor(), task, [history], [word])
            torch.testing.assert_close(alone[0, 0], together[row, column], rtol=0, atol=1e-4)


def test_an_answer_score_is_the_mean_log_probability_of_its_tokens(model):
    task = TextTask("This user has watched {history}. Favourite: ", item='"{title}"')
    processor = tiny_processor()
    text = f'This user has watched "{processor.title(3)}". Favourite: '
    tokens = processor.tokenizer(text).input_ids
    answer = processor.tokenizer("paper house", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model.language_model(torch.tensor([tokens + answer])).logits[0].log_softmax(-1)
    expected = sum(float(logits[len(tokens) - 1 + n, token]) for n, token in enumerate(answer)) / len(answer)
    found = answer_scores(model, processor, task, [[3]], ["paper house"])
    assert float(found) == pytest.approx(expected, abs=1e-3)


def test_the_user_vector_changes_the_answer_and_the_control_without_slots_ignores_the_order_of_users(model):
    task = TASKS["favourite-category"]
    with_vectors = answer_scores(model, tiny_processor(), task, HISTORIES, WORDS)
    without = answer_scores(model, tiny_processor(), task.without_vectors(), HISTORIES, WORDS)
    assert (with_vectors - without).abs().max() > 1e-3
    swapped = answer_scores(model, tiny_processor(), task.without_vectors(), HISTORIES[::-1], WORDS)
    torch.testing.assert_close(without, swapped.flip(0), rtol=0, atol=1e-4)


def test_the_llm_writes_an_answer_for_every_history(model):
    assert len(generate_answers(model, tiny_processor(), TASKS["favourite-category"], HISTORIES, batch_size=1)) == 2
    why = generate_answers(model, tiny_processor(), TASKS["why-this"], HISTORIES, items=[5, 6], max_new_tokens=3)
    assert len(why) == 2
    with pytest.raises(DataError, match="asks about an item"):
        generate_answers(model, tiny_processor(), TASKS["why-this"], HISTORIES)
    with pytest.raises(DataError, match="a history is empty"):
        generate_answers(model, tiny_processor(), TASKS["favourite-category"], [[]])


def test_a_task_is_data(tmp_path):
    path = tmp_path / "mood.json"
    path.write_text(json.dumps({"prompt": "{history} suits the mood "}), encoding="utf-8")
    assert find_task(str(path)) == TextTask("{history} suits the mood ")
    path.write_text(json.dumps({"prompt": "{history}", "code": "x"}), encoding="utf-8")
    with pytest.raises(DataError, match="must be an object"):
        find_task(str(path))
    path.write_text(json.dumps({"prompt": "{usr} likes {history}."}), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        find_task(str(path))
    assert str(caught.value) == (
        f"{path}: a text task's prompt takes {{history}} once, {{item}} at most once, {{user}} at most once; found "
        "{usr}, {history} in '{usr} likes {history}.'"
    )
    with pytest.raises(DataError, match=r"separator takes no placeholder; found \{user\} in"):
        TextTask("{history}", separator="{user}")
    with pytest.raises(DataError, match="unknown task 'mood'; known are favourite-category, why-this"):
        find_task("mood")
    with pytest.raises(DataError, match="history"):
        TextTask("no field at all")


def test_the_favourite_is_the_most_frequent_category_and_of_equals_the_latest():
    assert favourite._favourite([["a"], ["b"], ["a", "c"]]) == "a"
    assert favourite._favourite([["a"], ["b"]]) == "b"
    assert favourite._favourite([[], []]) is None


def test_of_tied_categories_one_is_answered_at_random():
    names, right, targets = ["a", "b", "c", "d"], ["a", "b"], [{"c"}, {"a", "b"}]
    constant = favourite._accuracy(favourite._best(np.zeros((2, 4)), names), right, targets)
    assert constant == {"history": 1 / 4, "target": (1 / 4 + 2 / 4) / 2}  # chance, whatever comes first by name
    answers = favourite._best(np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0]]), names)
    assert answers == [["a", "b"], ["b"]]
    assert favourite._accuracy(answers, right, targets)["history"] == (1 / 2 + 1) / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_name_no_favourite(bad):
    with pytest.raises(ALLMRecError, match="scores of 1 of 2 users are no finite numbers"):
        favourite._best(np.array([[0.0, bad], [0.0, 1.0]]), ["a", "b"])


def test_favourite_category_reports_controls_beside_the_llm(finished_run, small_data):
    from transformers import AutoModel

    from allmrec_hf import ALLMRecProcessor

    model, processor = AutoModel.from_pretrained(finished_run), ALLMRecProcessor.from_pretrained(finished_run)
    found = favourite.favourite_category(model, processor, small_data, max_users=20)
    again = favourite.favourite_category(model, processor, small_data, max_users=20, batch_size=7)
    assert found["column"] == "genre"
    assert found["users"] == 20
    assert found["methods"]["counted in the history"]["history"] == 1
    assert found["methods"]["chance"]["history"] == 1 / found["num_categories"]
    assert found == again
    assert "| titles only, likelihood |" in favourite.table({"columns": {"genre": [found]}})
    with pytest.raises(DataError, match="no column mood; its columns are"):
        favourite.favourite_category(model, processor, small_data, "mood")


def test_an_answer_is_scored_as_it_is_written(model):
    task, words = TASKS["favourite-category"], ["None", "null", "NA", "Untitled item 0"]
    found = answer_scores(model, tiny_processor(), task, HISTORIES, words)
    assert len({round(float(score), 4) for score in found[0]}) == len(words)
