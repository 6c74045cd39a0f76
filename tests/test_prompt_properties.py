"""What holds of prompts whatever the titles are: nothing in a title is a slot, a special token or a closing quote."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec_hf import ALLMRecProcessor, ItemCatalog, PromptTemplate
from allmrec_hf.prompt import DOMAIN_WORDS, NO_SLOT, USER_SLOT, ForbiddenTexts, Segment, Title, clean_title
from tests.properties import FEW, MANY, SOME
from tests.tiny import tiny_processor

SPECIAL = ["</s>", "<pad>", "<s>", "<unk>", "<|im_end|>", "<unused7>"]
FIELDS = ["{title}", "{vector}", "{user}", "{history}", "{candidates}", "{", "}"]
PIECES = st.one_of(st.text(max_size=8), st.sampled_from([*SPECIAL, *FIELDS, '"', "'", "\n", "  ", "\t", "\u2028", "é"]))
TITLES = st.lists(PIECES, max_size=6).map("".join)


@pytest.fixture(scope="module")
def processor_of() -> Callable[[list[str]], ALLMRecProcessor]:
    """Return what gives a processor of a catalogue with some titles; the tokenizer is loaded once."""
    processor = tiny_processor()

    def with_titles(titles: list[str]) -> ALLMRecProcessor:
        records = [{"item_id": f"I{number}", "title": title} for number, title in enumerate(titles, 1)]
        processor.catalog = ItemCatalog.from_records(records)
        return processor

    return with_titles


@MANY
@given(TITLES, st.lists(st.sampled_from([*SPECIAL, "  ", "<", "s>"]), unique=True), st.integers(1, 30))
def test_a_cleaned_title_is_safe_in_quotes(title: str, forbidden: list[str], longest: int) -> None:
    cleaned = clean_title(title, forbidden, longest)
    assert '"' not in cleaned
    assert not any(unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") for char in cleaned)
    assert not any(text in cleaned for text in forbidden if len(text) > 1)
    assert cleaned == clean_title(cleaned, forbidden, len(cleaned) or 1)
    assert clean_title(title, (), longest) == clean_title(title, (), 10**6)[:longest].rstrip()


@MANY
@given(TITLES, st.lists(st.text("<>/sab|", min_size=1, max_size=5), max_size=6))
def test_a_broken_up_text_keeps_its_letters(text: str, forbidden: list[str]) -> None:
    broken = ForbiddenTexts(forbidden).broken_up(text)
    assert not any(one in broken for one in forbidden if len(one) > 1)
    assert broken.replace(" ", "") == text.replace(" ", "")


@SOME
@given(
    st.lists(TITLES, min_size=1, max_size=4),
    st.lists(TITLES, min_size=1, max_size=4),
    st.sampled_from(sorted(DOMAIN_WORDS)),
    st.booleans(),
    st.booleans(),
)
def test_slots_stand_where_the_template_says(
    history: list[str], candidates: list[str], domain: str, user: bool, vectors: bool
) -> None:
    template = PromptTemplate.for_domain(domain, user, vectors)
    named = [Title(number, text) for number, text in enumerate(history, 1)]
    offered = [Title(number, text) for number, text in enumerate(candidates, 101)]
    segments = template.render(named, offered)
    slots = [segment.slot for segment in segments]
    items = [title.item for title in [*named, *offered]] if vectors else []
    assert slots == [USER_SLOT] * user + items + [NO_SLOT]
    written = "".join(segment.text for segment in segments)
    for titles in (named, offered):
        assert ",".join(f'"{title.text}"' for title in titles) in written
    plain = template.without_vectors().render(named, offered)
    assert plain == [Segment(written, NO_SLOT)]
    assert PromptTemplate.from_dict(template.to_dict()) == template


@SOME
@given(st.lists(TITLES, min_size=4, max_size=7), st.data())
def test_tokens_spell_the_prompt_and_only_slots_are_vectors(
    processor_of: Callable[[list[str]], ALLMRecProcessor], titles: list[str], data: st.DataObject
) -> None:
    processor = processor_of(titles)
    tokenizer = processor.tokenizer
    indices = st.integers(1, len(titles))
    history = data.draw(st.lists(indices, min_size=1, max_size=4))
    candidates = data.draw(st.lists(indices, min_size=1, max_size=4, unique=True))
    prompt = processor.encode_prompt(history, candidates)
    assert prompt.note is None
    assert [slot for slot in prompt.slots if slot != NO_SLOT] == [USER_SLOT, *history, *candidates]
    assert all(token == 0 for token, slot in zip(prompt.tokens, prompt.slots, strict=True) if slot != NO_SLOT)
    words = [token for token, slot in zip(prompt.tokens, prompt.slots, strict=True) if slot == NO_SLOT]
    start = processor._slot_text.start
    assert words[: len(start)] == start
    assert not set(words[len(start) :]) & set(tokenizer.all_special_ids)
    template = PromptTemplate.from_dict(processor.prompt).without_vectors()
    text = template.render(processor._titles_of(history, 200), processor._titles_of(candidates, 200))[0].text
    assert tokenizer.decode(words[len(start) :], clean_up_tokenization_spaces=False) == text
    for index in candidates:
        *answer, end = processor.answer_tokens(index)
        assert end == tokenizer.eos_token_id
        assert not set(answer) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(answer, clean_up_tokenization_spaces=False) == f'"{processor.title(index)}"'


@FEW
@given(st.lists(TITLES, min_size=6, max_size=9), st.data())
def test_a_row_of_a_batch_is_what_it_is_alone_in_any_order_of_candidates(
    processor_of: Callable[[list[str]], ALLMRecProcessor], titles: list[str], data: st.DataObject
) -> None:
    processor = processor_of(titles)
    indices = st.integers(1, len(titles))
    histories = data.draw(st.lists(st.lists(indices, min_size=1, max_size=4), min_size=2, max_size=3))
    candidates = [data.draw(st.lists(indices, min_size=1, max_size=4, unique=True)) for _ in histories]
    batch = processor(histories, candidates)
    for row, (history, offered) in enumerate(zip(histories, candidates, strict=True)):
        mixed = data.draw(st.permutations(offered))
        alone = processor([history], [mixed])
        width = alone["input_ids"].shape[1]
        for name in ("input_ids", "slot_ids", "attention_mask"):
            assert batch[name][row, -width:].tolist() == alone[name][0].tolist()
            assert not batch["attention_mask"][row, :-width].any()
        for place, index in enumerate(mixed):
            there = batch["candidate_ids"][row].tolist().index(index)
            mask = batch["answer_mask"][row, there]
            tokens = batch["answer_ids"][row, there][mask].tolist()
            assert tokens == alone["answer_ids"][0, place][alone["answer_mask"][0, place]].tolist()
