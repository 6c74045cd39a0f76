"""The ranker `letter`: scores by hand, orders of the candidates, letters of a tokenizer, limits, checkpoints."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, PreTrainedTokenizerFast, pipeline

from allmrec_hf import ALLMRecProcessor, CheckpointError, DataError, PromptTemplate
from allmrec_hf.evaluation.llm_ranker import checkpoint_rankers
from allmrec_hf.prompt import LETTERS, LetterTemplate, Title
from allmrec_hf.ranker import UserBatch
from allmrec_hf.ranker_built_in import build_ranker, compared_rankers
from allmrec_hf.ranker_letter import LetterRanker, letter_order
from allmrec_hf.slot_text import SlotText
from allmrec_hf.training.trainer import ALLMRecTrainer
from tests import command_line, small_run
from tests.tiny import FAMILIES, tiny_catalog, tiny_model, tiny_processor

HISTORIES = [[3, 1, 7], [5], [9, 2]]
CANDIDATES = [[4, 11, 30], [6, 12, 30, 31], [8]]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def ranker_of(model, processor):
    return build_ranker("letter", model, processor)


def scores_of(ranker, histories=HISTORIES, candidates=CANDIDATES, count=1):
    users = UserBatch.encode(ranker.model, ranker.processor, histories)
    return ranker.score(users, candidates, count)


# -- the prompt


def test_a_prompt_with_letters_is_the_prompt_with_a_mark_before_every_candidate():
    template = PromptTemplate("{user}Had {history}. Choose from {candidates}. Next: ")
    segments = LetterTemplate().render(template, [Title(3, "Third")], [Title(7, "Seventh"), Title(5, "Fifth")])
    assert segments == [
        ("", -1),
        ('Had "Third"', 3),
        ('. Choose from \nA. "Seventh"', 7),
        ('\nB. "Fifth"', 5),
        (". Next: the one with the letter", 0),
    ]


def test_a_prompt_that_lists_no_candidates_lists_them_at_its_end():
    segments = LetterTemplate().render(PromptTemplate("Had {history}. Next:"), [], [Title(7, "{letter}")])
    assert "".join(segment.text for segment in segments) == (
        'Had . Next: one of these:\nA. "{letter}"\nIt is the one with the letter'
    )


def test_a_letter_template_without_its_slots_is_refused():
    with pytest.raises(DataError, match="'mark' needs"):
        LetterTemplate(mark="* ")


# -- scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_by_hand_one_user_at_a_time(family, processor):
    """The prompt alone, without padding, through the LLM: the logits of the letters behind its last token."""
    model = tiny_model(family)
    ranker = ranker_of(model, processor)
    found = scores_of(ranker).scores
    for row, (history, items) in enumerate(zip(HISTORIES, CANDIDATES, strict=True)):
        order = letter_order(history, items, 0, 1)
        prompt = processor.encode_prompt(history, order, letters=ranker.template)
        tensors = processor.history_tensors([history])
        embeds = model.embed_prompts(
            torch.tensor([prompt.tokens]), torch.tensor([prompt.slots]), tensors["history_ids"], tensors["history_mask"]
        )
        with torch.no_grad():
            logits = model.language_model(inputs_embeds=embeds).logits[0, -1, ranker.letter_ids[: len(order)]]
        expected = dict(zip(order, logits.log_softmax(dim=0).tolist(), strict=True))
        assert found[row, : len(items)].tolist() == pytest.approx([expected[item] for item in items], abs=1e-4)
        assert found[row, len(items) :].isneginf().all()


def test_users_together_score_as_each_alone(processor):
    ranker = ranker_of(tiny_model(), processor)
    together = scores_of(ranker, count=3).scores
    for row in range(len(HISTORIES)):
        alone = scores_of(ranker, HISTORIES[row : row + 1], CANDIDATES[row : row + 1], 3).scores[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-4)


def test_the_probabilities_of_one_order_sum_to_1(processor):
    assert scores_of(ranker_of(tiny_model(), processor)).scores.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3)


# -- orders


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_the_order_that_candidates_are_given_in_changes_no_score(processor, count):
    ranker = ranker_of(tiny_model(), processor)
    forth, back = (scores_of(ranker, [[3, 1]], [row], count).scores[0] for row in ([4, 11, 6, 9], [9, 6, 11, 4]))
    assert torch.allclose(forth, back.flip(0), atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_over_as_many_orders_as_candidates_each_stands_in_each_place(size):
    items = list(range(1, size + 1))
    orders = [letter_order([3, 1], items, number, size) for number in range(size)]
    assert all(sorted(place) == items for place in zip(*orders, strict=True))
    assert all(sorted(order) == items for order in orders)
    again = [letter_order([3, 1], items, number, 2 * size) for number in range(2 * size)]
    assert all(sorted(place) == sorted(items * 2) for place in zip(*again, strict=True))


def test_a_few_orders_are_spread_over_the_places():
    places = [letter_order([3], list(range(1, 21)), number, 4).index(7) for number in range(4)]
    assert sorted((place - places[0]) % 20 for place in places) == [0, 5, 10, 15]


def test_a_preference_for_letters_is_cancelled_over_all_rotations(processor, monkeypatch):
    """An LLM that likes A to Z in this order, and three items by their vectors: the mean tells the items alone."""
    ranker = ranker_of(tiny_model(), processor)
    liking, letters = {4: 0.0, 11: 2.0, 6: 1.0}, torch.arange(26).flip(0) * 3.0

    def answered(users, orders):
        logits = letters[: len(orders[0])] + torch.tensor([liking[item] for item in orders[0]])
        return logits.log_softmax(0).unsqueeze(0)

    monkeypatch.setattr(ranker, "_log_probabilities", answered)
    by_letter = scores_of(ranker, [[3, 1]], [[4, 11, 6]], 1).scores[0]
    assert by_letter.argmax() == [4, 11, 6].index(letter_order([3, 1], [4, 6, 11], 0, 1)[0])
    mean = scores_of(ranker, [[3, 1]], [[4, 11, 6]], 3).scores[0]
    assert (mean - mean[0]).tolist() == pytest.approx([0.0, 2.0, 1.0], abs=1e-5)


def test_a_candidate_given_twice_has_one_letter(processor):
    ranker = ranker_of(tiny_model(), processor)
    twice, once = (scores_of(ranker, [[3]], [row]).scores[0] for row in ([4, 11, 4], [4, 11]))
    assert torch.allclose(twice, torch.stack([once[0], once[1], once[0]]))


# -- limits


def test_more_candidates_than_letters_are_refused_with_what_to_do(processor):
    ranker = ranker_of(tiny_model(), processor)
    assert scores_of(ranker, [[3]], [list(range(4, 30))]).scores.isfinite().all()
    with pytest.raises(DataError, match=r"26 letters A to Z, and a user has 27 candidates; give at most 26"):
        scores_of(ranker, [[3], [5]], [[4], list(range(4, 31))])


def test_a_tokenizer_without_the_letters_is_refused():
    words = {word: number for number, word in enumerate(["[UNK]", "</s>", "Next", *LETTERS[:-1]])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>")
    processor = ALLMRecProcessor(fast)
    processor.catalog = tiny_catalog()
    with pytest.raises(CheckpointError, match=r"letters A to Z as one token of its own.*take another ranker"):
        LetterRanker(tiny_model(), processor)
    assert SlotText(fast).single_tokens("Next", LETTERS[:-1]) == ("Next", list(range(3, 28)))


@pytest.mark.parametrize("wrong", [-1, 0, 41])
def test_a_candidate_that_is_no_item_is_refused(processor, wrong):
    with pytest.raises(DataError, match="candidate"):
        scores_of(ranker_of(tiny_model(), processor), [[3]], [[4, wrong]])


def test_a_prompt_that_is_too_long_loses_history_first(processor):
    short = tiny_processor(max_length=120)
    prompt = short.encode_prompt([3, 1, 7, 2, 9, 12], [4, 11], letters=LetterTemplate())
    assert len(prompt.tokens) <= 120
    assert "of 6 history items" in prompt.note
    assert sorted(slot for slot in prompt.slots if slot in (4, 11)) == [4, 11]


def test_a_checkpoint_without_stage_2_has_no_letters(processor):
    with pytest.raises(CheckpointError, match="'letter' \\(no stage 2"):
        ranker_of(tiny_model(family=None), processor)


def test_an_evaluation_of_longer_lists_leaves_letters_out_unless_they_were_asked_for(processor, caplog):
    model = tiny_model(rankers={"letter": {"prompt": LetterTemplate().to_dict()}})
    assert compared_rankers(model.config) == ["likelihood", "letter", "cf"]
    kinds = [each.ranker.kind for each in checkpoint_rankers(model, processor, num_candidates=27)]
    assert kinds == ["likelihood", "cf"]
    assert "letter takes 26 candidates" in caplog.text
    with pytest.raises(DataError, match=r"letter takes 26 candidates.*these data have 27"):
        checkpoint_rankers(model, processor, ["letter"], num_candidates=27)


# -- checkpoints


@pytest.fixture(scope="module")
def run(finished_run, small_parts, small_data, tmp_path_factory):
    """Return the folder of a run whose stage `rank` knows of letters."""
    folder = tmp_path_factory.mktemp("letters") / "run"
    shutil.copytree(finished_run, folder)
    args = small_run.run_arguments(folder, small_run.settings(small_parts)).replaced(
        rank={"rankers": "likelihood,letter,fusion", "fusion_parts": "cf,letter", "max_validation_users": 40}
    )
    ALLMRecTrainer(args=args, data=small_data).train("rank")
    return folder


def test_a_saved_checkpoint_ranks_by_letters_as_before(run, tmp_path):
    model, processor = AutoModel.from_pretrained(run), ALLMRecProcessor.from_pretrained(run)
    before = scores_of(ranker_of(model, processor), [[3, 1]], [[4, 11, 30]], 3).scores
    model.save_pretrained(tmp_path, include_llm=True)
    processor.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path), ALLMRecProcessor.from_pretrained(tmp_path)
    assert torch.equal(scores_of(ranker_of(*loaded), [[3, 1]], [[4, 11, 30]], 3).scores, before)
    assert model.config.rankers["letter"]["prompt"] == LetterTemplate().to_dict()


def test_letters_are_a_part_of_a_fusion(run):
    model, processor = AutoModel.from_pretrained(run), ALLMRecProcessor.from_pretrained(run)
    fusion = build_ranker("fusion", model, processor)
    assert fusion.max_candidates == len(LETTERS)
    assert not fusion.ranks_catalogue
    assert list(scores_of(fusion, [[3, 1]], [[4, 11]]).parts) == ["cf", "letter", "popularity"]


def test_letters_alone_are_the_default_of_a_run_that_asks_for_nothing_else(small_parts, small_data, tmp_path):
    args = small_run.run_arguments(tmp_path, small_run.settings(small_parts)).replaced(rank={"rankers": "letter"})
    assert args.rank.steps() == ("backbone", "align", "project")
    trainer = ALLMRecTrainer(args=args, data=small_data).train()
    assert trainer.model.config.ranker == "letter"
    assert next(iter(trainer.evaluate(max_users=5).ranks)) == "a-llmrec letter"


def test_pipeline_and_added_items_rank_by_letters(run):
    recommend = pipeline("recommendation", model=str(run), ranker="letter")
    added = recommend.add_items([{"item_id": "new", "title": "A Brand New River", "description": "silent and lonely"}])
    ids = recommend.processor.catalog.item_ids
    row = recommend({"history": ids[:3], "candidates": [*added, *ids[9:12]]}, num_permutations=4)
    assert sorted(item["item_id"] for item in row) == sorted([*added, *ids[9:12]])
    assert all(item["parts"] == {"letter": item["score"]} for item in row)
    assert len(recommend({"history": ids[:3]}, top_k=3)) == 3


def test_the_command_line_ranks_by_letters(run, small_parts):
    history = ",".join(ALLMRecProcessor.from_pretrained(run).catalog.item_ids[:3])
    shown = command_line.succeeded(
        "recommend", "--model", str(run), "--history", history, "--ranker", "letter", "--json"
    )
    assert list(json.loads(shown.stdout)["recommendations"][0]["parts"]) == ["letter"]
    asked = ("recommend", "--model", str(run), "--history", history, "--ranker", "letter", "--top-k", "30")
    assert "26 letters A to Z" in command_line.refused(*asked)
    report = command_line.succeeded(
        *("evaluate", "--model", str(run), "--data", str(small_parts / "data"), "--max-users", "10", "--json"),
        *("--num-permutations", "2"),
    )
    assert "a-llmrec letter" in json.loads(report.stdout)["methods"]
