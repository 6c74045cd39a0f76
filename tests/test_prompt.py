"""Prompts as pure text: the paper's words, and titles that cannot break them."""

import random

import pytest

from allmrec_hf.errors import DataError
from allmrec_hf.prompt import NO_SLOT, USER_SLOT, ForbiddenTexts, PromptTemplate, Segment, Title, clean_title


def test_paper_prompt_is_rendered_with_slots_in_reading_order():
    template = PromptTemplate.for_domain("movie")
    segments = template.render([Title(3, "Lost Harbor")], [Title(5, "Iron Sea"), Title(7, "Last Light")])
    assert segments == [
        Segment("", USER_SLOT),
        Segment(' is a user representation.This user has watched "Lost Harbor"', 3),
        Segment(
            " in the previous. Recommend one next movie for this user to watch next from the following movie title "
            'set, "Iron Sea"',
            5,
        ),
        Segment(',"Last Light"', 7),
        Segment(". The recommendation is ", NO_SLOT),
    ]
    assert template.render_answer("Iron Sea") == '"Iron Sea"'


@pytest.mark.parametrize(("domain", "words"), [("game", "played"), ("item", "bought"), ("movie", "watched")])
def test_domains_have_their_own_words(domain, words):
    assert f"This user has {words} " in PromptTemplate.for_domain(domain).prompt


def test_any_domain_has_a_prompt_in_its_words():
    assert "has bought {history} in the previous. Recommend one next song" in PromptTemplate.for_domain("song").prompt
    assert "has heard {history}" in PromptTemplate.for_domain("song", verbs=("hear", "heard")).prompt


@pytest.mark.parametrize(
    ("domain", "verbs"), [("", None), ("{song}", None), ("song\n", None), ("song", ("hear", " ")), ("song", ("hear",))]
)
def test_a_domain_that_is_no_noun_with_two_verbs_is_refused(domain, verbs):
    with pytest.raises(DataError, match="a domain is a noun with two verbs"):
        PromptTemplate.for_domain(domain, verbs=verbs)


def test_template_without_vectors_has_no_slot():
    segments = PromptTemplate.for_domain("item").without_vectors().render([Title(1, "A")], [Title(2, "B")])
    assert [segment.slot for segment in segments] == [NO_SLOT]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "only {candidates}"},
        {"prompt": "{history}{candidates}{candidates}"},
        {"prompt": "{history}{candidates}{history}"},
        {"prompt": "{history}{candidates}{mood}"},
        {"prompt": "{history}{candidates}", "item": "{vector}"},
        {"prompt": "{history}{candidates}", "answer": "yes"},
    ],
)
def test_broken_templates_are_refused(fields):
    with pytest.raises(DataError, match="prompt template: "):
        PromptTemplate(**fields)


def test_a_prompt_without_candidates_says_the_same_words_without_their_list():
    template = PromptTemplate.for_domain("movie", candidates=False)
    assert not template.lists_candidates
    assert template.prompt == (
        "{user} is a user representation.This user has watched {history} in the previous. Recommend one next movie for "
        "this user to watch next. The recommendation is "
    )
    segments = template.render([Title(3, "Lost Harbor")], [Title(5, "Iron Sea")])
    assert [segment.slot for segment in segments] == [USER_SLOT, 3, NO_SLOT]


@pytest.mark.parametrize("answer", ['"{title}"', "{title}."])
@pytest.mark.parametrize("blanks", ["", " ", "  ", "\n"])
def test_the_natural_boundary_moves_blanks_and_changes_no_text(answer, blanks):
    before = PromptTemplate(prompt=f"{{history}}{{candidates}} is{blanks}", answer=answer)
    after = before.with_natural_boundary()
    assert after.prompt + after.answer == before.prompt + before.answer
    assert not after.prompt.endswith(" ")
    assert after.answer.startswith(" ") == (" " in blanks)
    assert after.with_natural_boundary() == after


def test_template_survives_json():
    template = PromptTemplate.for_domain("game")
    assert PromptTemplate.from_dict(template.to_dict()) == template
    with pytest.raises(DataError, match="has the fields prompt, item, separator, answer"):
        PromptTemplate.from_dict({"prompt": template.prompt, "colour": "red"})


@pytest.mark.parametrize("hostile", ["{user}", "{history}", "{vector}", "{title}", "%s", "\\1"])
def test_placeholders_in_a_title_stay_text(hostile):
    template = PromptTemplate.for_domain("movie")
    segments = template.render([Title(1, hostile)], [Title(2, hostile)])
    assert [segment.slot for segment in segments] == [USER_SLOT, 1, 2, NO_SLOT]
    assert sum(segment.text.count(hostile) for segment in segments) == 2
    assert template.render_answer(hostile) == f'"{hostile}"'


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ('Say "Cheese"', "Say 'Cheese'"),
        ("Two\nLines\r\n and\ta tab", "Two Lines and a tab"),
        ("null\x00byte \x1b[31mred", "null byte [31mred"),
        ("x" * 10_000, "x" * 200),
        ("🎬🍿", "🎬🍿"),
        ("\u2028\x07", ""),
        ("end</s>start<s>", "end< /s>start< s>"),
        ("<<//ss>>", "<<//ss>>"),
    ],
)
def test_hostile_titles_become_harmless(title, clean):
    assert clean_title(title, forbidden=["</s>", "<s>"]) == clean


def test_tokens_with_white_space_are_broken_up_and_the_work_ends():
    for token in ("  ", "a ", " a", "< s"):
        assert token not in clean_title("a < s> a a < s", forbidden=[token, "< s> a"])


def test_breaking_up_one_special_token_makes_no_other():
    text = clean_title("</</s>s>", forbidden=["</s>"])
    assert "</s>" not in text


def tried_one_by_one(text: str, forbidden: list[str]) -> str:
    """Break up forbidden texts by trying each, the longest first."""
    for token in sorted(forbidden, key=len, reverse=True):
        broken = f"{token[:1]} {token[1:]}"
        if token in broken:
            broken = token[1:]
        while len(token) > 1 and token in text:
            text = text.replace(token, broken)
    return text


def test_forbidden_texts_are_broken_up_as_if_each_were_tried():
    generator = random.Random(0)

    def drawn(longest: int) -> str:
        return "".join(generator.choice("ab <") for _ in range(generator.randint(0, longest)))

    for _ in range(3000):
        forbidden, text = [drawn(4) for _ in range(generator.randint(0, 6))], drawn(12)
        assert ForbiddenTexts(forbidden).broken_up(text) == tried_one_by_one(text, forbidden), (forbidden, text)


def test_thousands_of_added_tokens_are_not_each_looked_for():
    class Counted(str):
        looked = 0

        def __contains__(self, other):
            Counted.looked += 1
            return str.__contains__(self, other)

    forbidden = ForbiddenTexts([f"<unused{number}>" for number in range(6000)] + ["\n" * n for n in range(1, 31)])
    assert forbidden.broken_up(Counted("The Silent River <3 <unused")) == "The Silent River <3 <unused"
    assert Counted.looked == 0
    assert clean_title("A <unused77> B", forbidden) == "A < unused77> B"
