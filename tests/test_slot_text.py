"""Text behind a slot has the tokens that it has inside a sentence, whatever the tokenizer does at a text's start."""

import string
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from allmrec_hf import ALLMRecProcessor, PromptTemplate
from allmrec_hf.methods.tallrec import answer_tokens
from allmrec_hf.slot_text import SlotText
from tests.tiny import OPT_TINY, tiny_catalog

STORIES = Path(__file__).parents[2] / "shared" / "lm" / "stories260K"
TEXTS = [',"Iron Sea"', " in the previous.", '"The Lost Harbor"', "This user", ","]
CORPUS = [
    'The Lost Harbor "Iron Sea", in the previous. Yes, a movie',
    'This user has watched "Film 1","Film 2". No',
] * 50
SPECIAL = ["<s>", "</s>", "<unk>"]
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def trained(model, trainer, before=None, normalizer=None, eos=True, rstrip=False):
    tokenizer = Tokenizer(model)
    if before is not None:
        tokenizer.pre_tokenizer = before
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet()
        if isinstance(before, pre_tokenizers.ByteLevel)
        else ["▁", *string.printable]
    )
    extra = {} if trainer is trainers.UnigramTrainer else {"initial_alphabet": alphabet}
    extra |= {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
    size = 120 if trainer is trainers.UnigramTrainer else 400
    tokenizer.train_from_iterator(
        CORPUS, trainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **extra)
    )
    names = {"eos_token": AddedToken("</s>", rstrip=rstrip, special=True), "bos_token": "<s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)


def bpe(before=None, **options):
    return trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer, before, **options)


def no_special_tokens():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


KINDS = {
    "llama-2, legacy": lambda: bpe(normalizer=PREPEND),
    "llama-2, no end of sequence": lambda: bpe(normalizer=PREPEND, eos=False),
    "metaspace always": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace first": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace never": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "byte level": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte level, prefix space": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "byte level, no end of sequence": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), eos=False),
    "byte level, no special token": no_special_tokens,
    "a special token that takes the space behind it": lambda: bpe(
        pre_tokenizers.ByteLevel(add_prefix_space=False), rstrip=True
    ),
    "unigram": lambda: trained(models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace()),
    "unigram, line breaks are spaces": lambda: trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.Replace("  ", " ")]),
    ),
    "opt": lambda: AutoTokenizer.from_pretrained(OPT_TINY),
}


def inside_of_a_sentence(tokenizer, text):
    before = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x" + text, add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] == before
    return whole[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
def test_text_behind_a_slot_is_the_inside_of_a_sentence(kind):
    tokenizer = KINDS[kind]()
    text_of = SlotText(tokenizer)
    for text in TEXTS:
        assert text_of.inside(text) == inside_of_a_sentence(tokenizer, text), text


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("text", TEXTS)
def test_text_behind_a_slot_has_no_extra_space_with_a_llama_tokenizer(text):
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    assert SlotText(tokenizer).inside(text) == inside_of_a_sentence(tokenizer, text)


def test_whole_prompt_of_a_llama_tokenizer_reads_as_written():
    tokenizer = KINDS["llama-2, legacy"]()
    processor = _processor(tokenizer)
    tokens, slots = processor._assemble(processor._template.render(processor._titles_of([1, 2], 200), []))
    kept = [token for token, slot in zip(tokens, slots, strict=True) if slot == 0]
    written = "".join(segment.text for segment in processor._template.render(processor._titles_of([1, 2], 200), []))
    spelled = "".join(tokenizer.convert_ids_to_tokens(kept)).replace("▁", " ")
    assert spelled == written


def test_prompt_that_begins_with_text_begins_as_the_tokenizer_begins_texts():
    tokenizer = KINDS["llama-2, legacy"]()
    assert SlotText(tokenizer).at_start("This user") == tokenizer("This user", add_special_tokens=False)["input_ids"]
    processor = _processor(tokenizer, user=False)
    tokens, _ = processor._assemble(processor._template.render(processor._titles_of([1], 200), []))
    assert tokenizer.convert_ids_to_tokens(tokens[:1])[0].startswith("▁T")


def test_words_yes_and_no_have_one_space_before_them():
    tokenizer = KINDS["llama-2, legacy"]()
    same, yes, no = answer_tokens(tokenizer, ("Yes", "No"))
    spelled = "".join(tokenizer.convert_ids_to_tokens([*same, yes]))
    assert not spelled.startswith("▁▁")
    assert yes != no


def test_start_tokens_are_those_before_any_text():
    assert SlotText(KINDS["opt"]()).start == [2]
    assert SlotText(KINDS["byte level"]()).start == []


def _processor(tokenizer, user=True):
    template = PromptTemplate.for_domain("movie", user_representation=user)
    processor = ALLMRecProcessor(tokenizer, template.to_dict(), max_length=2048)
    processor.catalog = tiny_catalog()
    return processor
