"""The processor: tokens and slots, shortening, hostile titles, files."""

import copy
import pickle

import polars as pl
import pytest
import torch
from transformers import AutoProcessor

from allmrec_hf import (
    ALLMRecProcessor,
    CheckpointError,
    DataError,
    ItemCatalog,
    PromptTemplate,
    item_titles,
    processing_allmrec,
)
from allmrec_hf.caches import BoundedCache
from allmrec_hf.prompt import NO_SLOT, USER_SLOT
from tests.tiny import tiny_catalog, tiny_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def catalog_of(titles: list[str | None]) -> ItemCatalog:
    return ItemCatalog.from_records({"item_id": f"I{i}", "title": t} for i, t in enumerate(titles, start=1))


def test_user_vector_stands_before_the_start_token(processor):
    batch = processor([[1]], [[2, 3]])
    assert batch["slot_ids"][0, 0] == USER_SLOT
    assert batch["input_ids"][0, 1] == processor.tokenizer.bos_token_id


def test_every_item_has_one_slot_right_after_its_title(processor):
    tokens, slots, *_ = processor.encode_prompt([1, 2], [3, 4, 5])
    assert [slot for slot in slots if slot > 0] == [1, 2, 3, 4, 5]
    for index in (1, 2, 3, 4, 5):
        at = slots.index(index)
        title = processor.tokenizer.decode(tokens[:at])
        assert title.endswith(f'{processor.title(index)}"')


def test_tokens_equal_the_tokens_of_the_whole_text(processor):
    """Segments are tokenized alone; with placeholders as special tokens the whole text gives the same."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SLOT]"]})
    tokens, slots, *_ = processor.encode_prompt([1, 2, 3], [4, 5])
    template = processor._template
    from allmrec_hf.prompt import Title

    titles = [[Title(i, processor.title(i)) for i in row] for row in ([1, 2, 3], [4, 5])]
    whole = "".join(s.text + ("[SLOT]" if s.slot not in (NO_SLOT, USER_SLOT) else "") for s in template.render(*titles))
    expected = tokenizer(whole)["input_ids"]
    slot = tokenizer.convert_tokens_to_ids("[SLOT]")
    ours = [slot if s > 0 else t for t, s in zip(tokens, slots, strict=True) if s != USER_SLOT]
    assert ours == expected


LONG = "Lonely Silent Paper River"


def test_long_titles_are_cut_behind_a_word_and_answers_stay_different():
    titles = ["Silent River", f"{LONG} One", f"{LONG} Two", "Lonely", f"{LONG} Two", "Paper Silent River Lonely"]
    processor = tiny_processor(catalog_of(titles))
    whole = len(processor._slot_text.inside("Lonely Silent"))
    short = tiny_processor(catalog_of(titles), max_title_tokens=whole)
    assert [short.history_title(index) for index in (2, 3, 4)] == ["Lonely Silent", "Lonely Silent", "Lonely"]
    assert [short.candidate_title(index) for index in (2, 3, 4, 5)] == [titles[i] for i in (1, 2, 3, 4)]
    assert titles[5].startswith(short.candidate_title(6))
    assert len(short.candidate_title(6)) < len(titles[5])
    shown = {short.tokenizer.decode(short.answer_tokens(index), skip_special_tokens=True) for index in range(1, 7)}
    assert len(shown) == 5  # of five different titles
    decoded = short.tokenizer.decode(short.encode_prompt([2], [6]).tokens)
    assert '"Lonely Silent"' in decoded
    assert f'"{short.candidate_title(6)}"' in decoded


def test_one_word_of_many_tokens_is_cut_inside_the_word():
    processor = tiny_processor(catalog_of(["Xylophonographically", "River"]), max_title_tokens=3)
    found = processor.history_title(1)
    assert "Xylophonographically".startswith(found)
    assert 0 < len(found) < 20
    assert len(processor._slot_text.inside(found)) <= 3


def test_added_items_make_answers_longer_where_they_need_it():
    processor = tiny_processor(catalog_of([f"{LONG} One", "River"]), max_title_tokens=4)
    before = processor.candidate_title(1)
    assert before != f"{LONG} One"
    processor.catalog = catalog_of([f"{LONG} One", "River", f"{LONG} Two"])
    assert processor.candidate_title(1) == f"{LONG} One"


def test_titles_cut_to_equality_for_want_of_context_are_told(caplog):
    titles = [f"{LONG} {LONG} {number}" for number in ("One", "Two", "Six")]
    processor = tiny_processor(catalog_of([*titles, "Lonely"]))
    need = len(processor.encode_prompt([4], [1, 2, 3]).tokens)
    tight = tiny_processor(catalog_of([*titles, "Lonely"]), max_length=need - 20)
    assert "are no longer all different, and equal ones cannot be told apart: lost are 2" in (
        tight.encode_prompt([4], [1, 2, 3]).note
    )
    tight([[4], [4]], [[1, 2, 3], [1, 2, 3]])
    assert caplog.text.count("cannot be told apart") == 1


def test_prompts_without_candidates_do_not_depend_on_them():
    template = PromptTemplate.for_domain("movie", candidates=False).to_dict()
    processor = tiny_processor()
    short = ALLMRecProcessor(processor.tokenizer, template, max_length=1000)
    short.catalog = processor.catalog
    batch = short([[1, 2], [1, 2]], [[3, 4, 5], [6, 7, 8]])
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert set(batch["slot_ids"][0].tolist()) == {NO_SLOT, USER_SLOT, 1, 2}
    assert batch["input_ids"].shape[1] < processor([[1, 2]], [[3, 4, 5]])["input_ids"].shape[1]


def test_short_prompts_are_saved_and_loaded(tmp_path):
    template = PromptTemplate.for_domain("movie", candidates=False).with_natural_boundary()
    processor = ALLMRecProcessor(tiny_processor().tokenizer, template.to_dict(), max_length=1000, max_title_tokens=4)
    processor.catalog = catalog_of([f"{LONG} One", "River", f"{LONG} Two"])
    processor.save_pretrained(tmp_path)
    loaded = ALLMRecProcessor.from_pretrained(tmp_path)
    assert (loaded.max_title_tokens, loaded.prompt) == (4, template.to_dict())
    assert loaded.encode_prompt([1], [2, 3]) == processor.encode_prompt([1], [2, 3])


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4"])
def test_a_number_of_title_tokens_that_is_none_is_refused(value):
    with pytest.raises(CheckpointError, match="max_title_tokens must be a whole number > 0"):
        tiny_processor(max_title_tokens=value)


def test_batches_are_left_padded_and_rows_equal_single_prompts(processor):
    batch = processor([[1], [2, 3, 4, 5]], [[6, 7], [8, 9]])
    assert batch["attention_mask"][:, -1].all()
    for user, (history, candidates) in enumerate([([1], [6, 7]), ([2, 3, 4, 5], [8, 9])]):
        alone = processor([history], [candidates])
        real = batch["attention_mask"][user]
        assert torch.equal(batch["input_ids"][user][real], alone["input_ids"][0])
        assert torch.equal(batch["slot_ids"][user][real], alone["slot_ids"][0])


def test_prompt_order_depends_on_the_history_alone(processor):
    first = processor([[1, 2]], [[5, 6, 7, 8]])["input_ids"]
    turned = processor([[1, 2]], [[8, 6, 5, 7]])["input_ids"]
    permuted = processor([[1, 2]], [[5, 6, 7, 8]], permutation=1)["slot_ids"]
    assert torch.equal(first, turned)
    assert not torch.equal(permuted, processor([[1, 2]], [[5, 6, 7, 8]])["slot_ids"])


def test_labels_stand_at_the_answer_and_end_with_the_end_of_sequence(processor):
    batch = processor.training_batch([[1, 2], [3]], [[4, 5], [6, 7]], [5, 6])
    for row, target in zip(batch["labels"], (5, 6), strict=True):
        assert row[row != -100].tolist() == processor.answer_tokens(target)
        assert row[-1] == processor.tokenizer.eos_token_id
    assert torch.equal(batch["input_ids"][batch["labels"] != -100], batch["labels"][batch["labels"] != -100])


def test_only_the_last_history_items_are_named_but_the_cf_encoder_reads_more(processor):
    history = list(range(1, 31))
    batch = processor([history], [[35]])
    assert [int(s) for s in batch["slot_ids"][0] if s > 0] == [*range(21, 31), 35]
    assert batch["history_ids"][0].tolist() == history


# -- hostile titles


HOSTILE = [
    "</s>",
    '","',
    "a\nb",
    "\x00\x1b",
    "y" * 10_000,
    "🎬",
    "{candidates}",
    " is a user representation.",
    None,
    "  ",
]


def test_hostile_titles_break_no_prompt():
    processor = tiny_processor(catalog_of(HOSTILE), max_length=4000)
    size = len(HOSTILE)
    tokens, slots, *_ = processor.encode_prompt(list(range(1, size + 1)), list(range(1, size + 1)))
    assert [slot for slot in slots if slot > 0] == [*range(1, size + 1)] * 2
    end = processor.tokenizer.eos_token_id
    assert tokens[2:].count(end) == 0  # only the start token of this tokenizer has the same id
    for index in range(1, size + 1):
        assert processor.answer_tokens(index).count(end) == 1
        assert len(processor.answer_tokens(index)) > 1


def test_items_without_a_title_never_share_one():
    processor = tiny_processor(catalog_of([None, None, "\x07"]))
    titles = [processor.title(i) for i in (1, 2, 3)]
    assert titles == ["Untitled item I1", "Untitled item I2", "Untitled item I3"]


# -- shortening


def test_long_prompts_lose_history_first_then_ends_of_titles_and_say_so(caplog):
    processor = tiny_processor(catalog_of([f"{'long ' * 12}{i}" for i in range(40)]), max_length=400)
    _, slots, note, _ = processor.encode_prompt([1, 2, 3, 4, 5, 6], [10, 11])
    kept = [slot for slot in slots if slot > 0]
    assert kept[-2:] == [10, 11]
    assert kept[0] > 1
    assert note == f"prompt shortened to {len(kept) - 2} of 6 history items to fit the LLM's context of 400 tokens"
    tokens, slots, note, limit = processor.encode_prompt([1, 2, 3], list(range(10, 16)))
    assert "1 of 3 history items and titles of" in note
    assert len(tokens) + len(processor.answer_tokens(10, limit)) <= 400
    batch = processor([[1, 2, 3]], [list(range(10, 16))])
    assert (
        batch["answer_mask"].sum(-1).max() == len(processor.answer_tokens(10, limit)) < len(processor.answer_tokens(10))
    )
    processor([[1, 2, 3]], [list(range(10, 16))])
    assert "prompt shortened" in caplog.text


def test_prompt_that_cannot_fit_is_refused():
    processor = tiny_processor(max_length=100)
    with pytest.raises(DataError, match=r"the prompt needs \d+ tokens .* give fewer candidates \(now 20\)"):
        processor([[1]], [list(range(2, 22))])


@pytest.mark.parametrize(
    ("histories", "candidates", "message"),
    [([[]], [[1]], "the history is empty"), ([[1]], [[]], "the candidate list is empty")],
)
def test_empty_lists_are_refused(processor, histories, candidates, message):
    with pytest.raises(DataError, match=message):
        processor(histories, candidates)


# -- files


def test_round_trip_keeps_prompt_catalogue_and_settings(tmp_path):
    catalog = ItemCatalog(tiny_catalog().frame.with_columns(pl.lit("x").alias("genre")))
    before = tiny_processor(catalog, history_in_prompt=3)
    before.save_pretrained(tmp_path)
    after = ALLMRecProcessor.from_pretrained(tmp_path)
    assert after.history_in_prompt == 3
    assert after.fingerprint == before.fingerprint
    assert after.catalog.frame.equals(catalog.frame)
    assert torch.equal(after([[1, 2]], [[3, 4]])["input_ids"], before([[1, 2]], [[3, 4]])["input_ids"])
    assert "items" not in (tmp_path / "processor_config.json").read_text()
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), ALLMRecProcessor)


def test_missing_and_truncated_catalogues_are_named(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    path = tmp_path / "items.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"items.parquet is no readable parquet file"):
        ALLMRecProcessor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no catalogue: items.parquet is missing"):
        _ = ALLMRecProcessor.from_pretrained(tmp_path).catalog


def test_printing_a_processor_does_not_print_the_catalogue(processor):
    assert "Lonely" not in repr(processor)


def test_a_limit_that_is_changed_holds_from_then_on():
    processor = tiny_processor()
    whole = processor.history_title(1)
    processor.max_title_tokens = 1
    assert len(processor.history_title(1)) < len(whole)
    processor.max_title_tokens, processor.max_title_characters = None, 3
    assert processor.history_title(1) == whole[:3]


def test_whole_prompts_are_not_kept_and_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(processing_allmrec, "CACHED_TEXTS", 50)
    monkeypatch.setattr(item_titles, "CACHED_TITLES", 20)
    words = ItemCatalog.from_records({"item_id": f"I{i}", "title": f"The Silent River {i} " * 8} for i in range(1, 101))
    with_vectors, without = tiny_processor(words), tiny_processor(words)
    without = ALLMRecProcessor(
        without.tokenizer, PromptTemplate.for_domain("movie", False, False).to_dict(), max_length=4000
    )
    without.catalog = words
    for user in range(60):
        for processor in (with_vectors, without):
            processor.encode_prompt([1 + user, 2 + user, 3 + user], [5 + user, 9 + user, 30 + user, 40 + user])
            assert len(processor._segments) <= 50
            assert len(processor._titles) <= 20
    assert len(with_vectors._segments) == 50  # pieces between slots, those used last
    assert all(text.startswith('"The Silent') for text in without._segments._entries)  # answers, and no whole prompt


def test_a_kept_text_is_tokenized_once_and_safe_from_its_users(monkeypatch):
    processor, asked = tiny_processor(), []
    tokenize = processor.tokenizer.__class__.__call__
    monkeypatch.setattr(
        processor.tokenizer.__class__,
        "__call__",
        lambda self, text, **rest: asked.append(text) or tokenize(self, text, **rest),
    )
    first = processor.answer_tokens(3)
    first.append(-1)
    assert processor.answer_tokens(3) == first[:-1]
    assert len(asked) == 1
    assert isinstance(pickle.loads(pickle.dumps(processor._segments)), BoundedCache)


def test_a_bounded_cache_drops_what_was_not_used_for_longest():
    cache = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    assert len(cache) == 2
    assert copy.deepcopy(cache) is cache


def test_histories_carry_every_item_that_was_seen():
    tensors = tiny_processor(max_history_length=2).history_tensors([[4, 9, 4, 7, 5], [3]])
    assert tensors["history_ids"].tolist() == [[7, 5], [0, 3]]
    assert tensors["seen_ids"].tolist() == [[4, 5, 7, 9], [3, 0, 0, 0]]
    assert set(tensors) == {"history_ids", "history_mask", "seen_ids"}
