"""A hostile title changes no other item's rows, tokens or scores, and escapes into no page, log, card or file name."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import unicodedata
from html.parser import HTMLParser

import polars as pl
import pytest
import torch
import yaml

from allmrec_hf import ALLMRecProcessor, ItemCatalog, PromptTemplate
from allmrec_hf.cli.loading import load_pipeline
from allmrec_hf.data.dataset_card import dataset_card_files
from allmrec_hf.data.prepare import prepare
from allmrec_hf.explaining.explanation import explain
from allmrec_hf.hub.card import ALLMRecCard, render_card
from allmrec_hf.pipeline_recommendation import RecommendationPipeline
from allmrec_hf.processing_allmrec import IGNORED_LABEL
from tests.command_line import succeeded
from tests.hostile_titles import HOSTILE
from tests.tiny import tiny_catalog, tiny_model, tiny_processor

PLAIN = "Saddle of the North"
PLACE = 3  # the catalogue index of the item with the title in question
ROUNDING = 1e-4  # of a log-likelihood of about -30 in a batch of another shape
titles = pytest.mark.parametrize("title", [pytest.param(text, id=name) for name, text in HOSTILE.items()])
COMMANDING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def with_title(catalog, title, place=PLACE):
    """Return a catalogue in which one item has the title, as a checkpoint of somebody else could hold it."""
    texts = [catalog.title(index) for index in range(1, len(catalog) + 1)]
    texts[place - 1] = title
    return ItemCatalog(catalog.frame.with_columns(pl.Series("title", texts)), saved=True)


# -- prepare


def table_world(titles):
    """Return interactions of 12 users with 10 items, and the items: those ten, every second with one of the titles."""
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{(user + step) % 10}", "timestamp": 1000 * user + step}
        for user in range(12)
        for step in range(6)
    ]
    names = [f"Paper River {number}" for number in range(10)] + [title for title in titles]
    items = [{"item_id": f"i{number}", "title": name} for number, name in enumerate(names)]
    items[1]["title"], items[10]["title"] = items[10]["title"], items[1]["title"]  # one with interactions
    return pl.DataFrame(rows), pl.DataFrame(items)


def written(frame, path):
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[path.suffix[1:]](path)
    return path


def prepared_files(titles, folder, ending):
    interactions, items = table_world(titles)
    folder.mkdir()
    given = [written(frame, folder / f"{name}.{ending}") for name, frame in (("log", interactions), ("items", items))]
    data = prepare(
        *given, output=folder / "data", filter="none", keep_items="all", num_candidates=5, name="small", domain="movie"
    )
    return data, {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_prepared_data_are_those_of_plain_titles_but_for_the_titles(tmp_path, ending):
    kept = [title for title in HOSTILE.values() if not (ending == "csv" and "\x00" in title)]  # which is no text table
    hostile = [f"{title} {number}" for number, title in enumerate(kept)]  # candidates never share a title
    plain, plain_files = prepared_files([f"{PLAIN} {number}" for number in range(len(hostile))], tmp_path / "a", ending)
    data, files = prepared_files(hostile, tmp_path / "b", ending)
    assert files == plain_files
    assert data.catalog.item_ids == plain.catalog.item_ids
    others = pl.col("item_id").is_in([f"i{number}" for number in (0, *range(2, 10))])
    assert data.catalog.frame.filter(others).equals(plain.catalog.frame.filter(others))
    for name in ("interactions.parquet", "candidates.parquet"):
        found, expected = (pl.read_parquet(tmp_path / world / "data" / name) for world in "ba")
        assert found.equals(expected)
    for index in range(1, len(data.catalog) + 1):
        assert "\n" not in data.catalog.title(index)
        assert not re.search("<(script|img|b)\\b", data.catalog.title(index))


# -- the prompt and the training data


@pytest.fixture(scope="module")
def processors():
    """Return what gives processors of a plain catalogue and of one with a title; the context holds any prompt."""
    catalog = tiny_catalog()
    processor = tiny_processor(catalog, max_length=20_000)

    def with_catalog(title):
        processor.catalog = with_title(catalog, title)
        return processor

    return with_catalog


HISTORIES, CANDIDATES = [[2, PLACE, 7]], [[4, PLACE, 5]]


def seen(processor):
    """Return the slots of a prompt in their order, the tokens of the other candidates' answers, and the prompt."""
    prompt = processor.encode_prompt(HISTORIES[0], CANDIDATES[0])
    slots = [slot for slot in prompt.slots if slot]
    return slots, [processor.answer_tokens(item) for item in (4, 5)], prompt


@titles
def test_a_prompt_has_the_slots_and_answers_that_it_has_with_a_plain_title(processors, title):
    slots, answers, _ = seen(processors(PLAIN))
    processor = processors(title)
    found_slots, found_answers, prompt = seen(processor)
    assert (found_slots, found_answers) == (slots, answers)
    assert prompt.note is None
    special = set(processor.tokenizer.all_special_ids)
    start = len(processor._slot_text.start)
    text = [token for token, slot in zip(prompt.tokens, prompt.slots, strict=True) if not slot]
    assert not special & set(text[start:])
    named = processor.title(PLACE)
    assert 0 < len(named) <= 2 * processor.max_title_characters  # a token that is broken up takes a blank more
    assert '"' not in named
    assert not any(unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") for char in named)
    assert not re.search("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f]", named)


@titles
def test_what_is_trained_on_another_item_is_what_it_is_beside_a_plain_title(processors, title):
    def answer_labels(processor):
        labels = processor.training_batch(HISTORIES, CANDIDATES, [4])["labels"][0]
        return labels[labels != IGNORED_LABEL].tolist()

    assert answer_labels(processors(title)) == answer_labels(processors(PLAIN))


@pytest.mark.parametrize("hidden", ["Saddle \uff1c/s\uff1e", "Saddle <\u00ad/s>", "\uff1c\uff0f\uff53\uff1e"])
def test_a_special_token_that_a_tokenizer_makes_of_other_characters_is_broken_up_too(hidden):
    from tokenizers import AddedToken, normalizers
    from transformers import AutoTokenizer

    from tests.tiny import OPT_TINY

    tokenizer = AutoTokenizer.from_pretrained(OPT_TINY)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("</s>", normalized=True, special=True)])
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert end in tokenizer(unicodedata.normalize("NFKC", hidden).replace("\u00ad", ""))["input_ids"]
    processor = ALLMRecProcessor(tokenizer, PromptTemplate.for_domain("movie").to_dict(), max_length=1000)
    processor.catalog = with_title(tiny_catalog(), hidden)
    assert end not in processor.answer_tokens(PLACE)[:-1]


def test_titles_of_many_tokens_take_no_history_from_others_where_tokens_of_titles_are_limited():
    request = [2, 7, 8, 9], [4, PLACE, 5]
    kept = {}
    for limit in (None, 30):
        processor = tiny_processor(with_title(tiny_catalog(), HOSTILE["emoji"]), max_title_tokens=limit)
        kept[limit] = processor.encode_prompt(*request).note
    assert "shortened" in kept[None]
    assert kept[30] is None


# -- scores


class Scored:
    """A pipeline whose catalogue can be exchanged, and what it answers."""

    def __init__(self, pipe):
        self.pipe, self.catalog = pipe, pipe.processor.catalog

    def scores(self, title, requests, **options):
        """Return the scores of every item but that of the title, by id, for each request."""
        self.pipe.processor.catalog = with_title(self.catalog, title)
        self.pipe._rankers.clear()
        hostile = self.catalog.item_id(PLACE)
        return [
            {row["item_id"]: row["score"] for row in rows if row["item_id"] != hostile}
            for rows in self.pipe(requests, top_k=50, **options)
        ]


@pytest.fixture(scope="module")
def demo():
    return Scored(load_pipeline("demo"))


@pytest.fixture(scope="module")
def without_a_list():
    """Return a pipeline whose prompts name no candidates."""
    prompt = PromptTemplate.for_domain("movie", candidates=False).to_dict()
    processor = ALLMRecProcessor(tiny_processor().tokenizer, prompt, max_length=1000)
    processor.catalog = tiny_catalog()
    return Scored(RecommendationPipeline(model=tiny_model(), processor=processor))


def ids(scored, *places):
    return [scored.catalog.item_id(place) for place in places]


@titles
@pytest.mark.parametrize("ranker", ["likelihood", "cf"])
def test_an_item_of_the_catalogue_changes_no_score_of_a_request_that_does_not_name_it(demo, title, ranker):
    request = {"history": ids(demo, 1, 2, 8), "candidates": ids(demo, 5, 6, 7)}
    asked = demo.scores(title, [request], ranker=ranker), demo.scores(PLAIN, [request], ranker=ranker)
    assert asked[0] == asked[1]  # bit for bit


@titles
def test_in_the_history_of_one_user_it_changes_no_score_of_another_user_of_the_batch(demo, title):
    other = {"history": ids(demo, 1, 2, 8), "candidates": ids(demo, 5, 6, 7)}
    with_it = {"history": ids(demo, 1, PLACE), "candidates": ids(demo, 5, 6, 7)}
    [alone] = demo.scores(PLAIN, [other], ranker="likelihood")
    _, beside = demo.scores(title, [with_it, other], ranker="likelihood", batch_size=2)
    assert beside == pytest.approx(alone, abs=ROUNDING)


@titles
def test_as_a_candidate_it_changes_no_score_where_prompts_list_no_candidates(without_a_list, title):
    request = {"history": ids(without_a_list, 1, 2, 8), "candidates": ids(without_a_list, 5, PLACE, 7)}
    found, expected = (without_a_list.scores(text, [request], ranker="likelihood") for text in (title, PLAIN))
    assert found[0] == pytest.approx(expected[0], abs=ROUNDING)
    assert all(torch.isfinite(torch.tensor(list(found[0].values()))))


@titles
def test_as_a_candidate_of_the_backbone_it_changes_no_score(demo, title):
    request = {"history": ids(demo, 1, 2, 8), "candidates": ids(demo, 5, PLACE, 7)}
    assert demo.scores(title, [request], ranker="cf") == demo.scores(PLAIN, [request], ranker="cf")


@titles
def test_it_is_ranked_once_under_its_own_id_and_never_as_another(demo, title):
    demo.pipe.processor.catalog = with_title(demo.catalog, title)
    request = {"history": ids(demo, 1, PLACE), "candidates": ids(demo, 5, PLACE, 7)}
    rows = demo.pipe(request, ranker="likelihood", top_k=3)
    assert sorted(row["item_id"] for row in rows) == sorted(request["candidates"])
    assert [row["title"] for row in rows if row["item_id"] == ids(demo, PLACE)[0]] == [
        demo.pipe.processor.catalog.title(PLACE)
    ]


# -- HTML


class Skeleton(HTMLParser):
    """The elements of a page and the names of their attributes, and all its text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.elements, self.words = [], ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.words += data


def skeleton(page):
    parser = Skeleton()
    parser.feed(page)
    parser.close()
    return parser.elements


def shown(title):
    """Return the HTML that the page of a Space shows of an item with a title."""
    from allmrec_hf.space import page_html
    from allmrec_hf.space.ranked_lists import ListedItem, RankedList

    item = ListedItem("I1", title, 1, 1.0, {"cf": 1.0, "text": 0.5}, {"cf": 1.0}, {"cf": 1})
    found = RankedList("cf", ["cf"], [item], ["I1"], [title[:200]], [f"{title[:200]} is unknown"])
    total = {"leave_one_out": {"total": 1.0}, "gradient_x_input": {"total": 0.5}}
    told = {"contributions": [{"title": title, **total}], "value": {"nats": 1.0}, "notes": [f"{title[:200]} was cut"]}
    return [
        page_html.list_html(found, opened={"I1": page_html.explanation_html(told)}),
        page_html.trials_html([{"item_id": "new-1", "title": title}]),
        page_html.comparison_html([(title[:200], found, ""), ("b", found, "")]),
        page_html.failure(ValueError(f"no item {title[:200]}")),
    ]


@titles
def test_the_page_of_a_space_has_the_elements_that_it_has_with_a_plain_title(title):
    for page, plain in zip(shown(title), shown(PLAIN), strict=True):
        assert skeleton(page) == skeleton(plain)
        assert not COMMANDING.search(page)
        assert len(page) < 20_000


def retitled(value, title):
    """Return an explanation with another title in every place of the plain one."""
    if isinstance(value, dict):
        return {key: retitled(entry, title) for key, entry in value.items()}
    if isinstance(value, list):
        return [retitled(entry, title) for entry in value]
    return title if value == PLAIN else value


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_a_picture_has_the_elements_that_it_has_with_a_plain_title(demo, tmp_path, kind):
    pytest.importorskip("matplotlib", reason="pip install 'allmrec-hf[plots]' draws pictures")
    from allmrec_hf.explaining.picture import draw_explanation

    def drawn(title):
        path = draw_explanation(retitled(explained, title), tmp_path / f"picture.{kind}")
        return path.read_text(encoding="utf-8")

    demo.pipe.processor.catalog = with_title(demo.catalog, PLAIN)
    asked = {"candidates": ids(demo, 5, PLACE, 7)}
    explained = explain(demo.pipe.model, demo.pipe.processor, ids(demo, 1, PLACE), ids(demo, PLACE)[0], **asked)
    assert PLAIN in json.dumps(explained)
    names = {tag for tag, _ in skeleton(drawn(PLAIN))}
    for name in ("attribute", "comment", "controls", "turned", "format"):
        page = drawn(HOSTILE[name])
        assert {tag for tag, _ in skeleton(page)} <= names, name
        assert not [key for _, keys in skeleton(page) for key in keys if key.startswith("on")], name
        assert not COMMANDING.search(page), name
    assert {path.name for path in tmp_path.iterdir()} == {f"picture.{kind}"}


# -- cards: names of data are text from outside too, and item ids stand in the example


@titles
def test_a_model_card_has_the_front_matter_and_headings_that_it_has_with_a_plain_name(title):
    def page(text):
        data = {"dataset_name": text, "dataset_source": text, "warnings": [text], "part_licenses": {"data": text}}
        return render_card(
            ALLMRecCard(name=text, example_history=[text[:300]], not_for=[text], cf_parameters=3, **data)
        )

    found, plain = page(title), page(PLAIN)
    assert _front(found).keys() == _front(plain).keys()
    assert _lines(found) == _lines(plain)
    assert not COMMANDING.search(found)


@titles
def test_a_data_card_has_the_front_matter_and_tables_that_it_has_with_a_plain_name(title):
    def page(text):
        counts = dict.fromkeys(("users", "items", "interactions", "test"), 3)
        info = {"name": text, "source": text, "num_candidates": 20, "counts": counts, "settings": {text[:99]: text}}
        return dataset_card_files(info, None, None)

    found, plain = page(title), page(PLAIN)
    assert _front(found["README.md"]).keys() == _front(plain["README.md"]).keys()
    assert _lines(found["README.md"]) == _lines(plain["README.md"])
    assert yaml.safe_load(found["eval.yaml"]).keys() == yaml.safe_load(plain["eval.yaml"]).keys()
    assert not COMMANDING.search("".join(found.values()))


def _front(page):
    return yaml.safe_load(page.split("---\n")[1])


def _lines(page):
    """Return what kind each line of a page is, with the number of its unescaped pipes, and its HTML elements."""
    body = page.split("\n---\n", 1)[1]
    outside = re.sub(r"```.*?```", "```", body, flags=re.DOTALL)  # without code, where only its end could be forged
    assert body.count("```") % 2 == 0
    assert not skeleton(re.sub(r"`[^`]*`", "", outside))
    assert not re.search(r"(?<!\\)\]\((javascript|http://evil)", outside)
    lines = outside.splitlines()
    return [(re.match(r"(#+ |\||```|- |)", line)[0], len(re.findall(r"(?<!\\)\|", line))) for line in lines]


@titles
def test_a_benchmark_report_has_the_elements_that_it_has_with_a_plain_name(tmp_path, title):
    pytest.importorskip("matplotlib", reason="pip install 'allmrec-hf[benchmark]' draws reports")
    from allmrec_hf.benchmark.benchmark_report import markdown_text

    assert "\n" not in markdown_text(title)
    assert not re.search(r"(?<!\\)[<|`*]", markdown_text(title))


# -- the service, its log, and an assistant


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    pytest.importorskip("fastapi", reason="pip install 'allmrec-hf[serve]' brings the service")
    from tests.serving.conftest import demo_service

    return demo_service(tmp_path_factory.mktemp("state"))


def test_the_service_answers_in_plain_json_and_logs_in_plain_lines(service, capsys, tmp_path):
    from starlette.testclient import TestClient

    from allmrec_hf.serving.http_app import create_app
    from allmrec_hf.serving.service_log import JSONFormatter

    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(JSONFormatter(with_histories=True).format(record))

    logger = logging.getLogger("allmrec_hf")
    logger.addHandler(Kept())
    logger.setLevel(logging.INFO)
    with TestClient(create_app(service, log_bodies=True)) as client:
        request = {"history": ["M0001", "M0002"], "candidates": ["M0005", "M0006", "M0007"], "ranker": "likelihood"}
        before = client.post("/v1/rank", json=request).json()["recommendations"]
        for name, title in HOSTILE.items():
            added = client.post("/v1/items", json={"items": [{"item_id": f"H-{name}", "title": title}]})
            if len(title) > 1000:
                assert added.status_code in (413, 422), name
                continue
            assert added.status_code == 201, added.text
            answers = [added, client.get(f"/v1/items/H-{name}")]
            known = [f"H-{name}", "M0005", "M0006"]
            answers.append(client.post("/v1/rank", json={"history": [f"H-{name}"], "candidates": known}))
            answers.append(client.post("/v1/recommend", json={"titles": ["M0001", title], "top_k": 1}))
            answers.append(client.post("/v1/recommend", json={"history": [title[:500]]}))
            for answer in answers:
                assert answer.status_code in (200, 201, 422), (name, answer.text)
                assert "\n" not in answer.text
                assert not COMMANDING.search(answer.text)
                json.loads(answer.text)
        assert client.post("/v1/rank", json=request).json()["recommendations"] == before
    assert len(lines) > len(HOSTILE)
    for line in lines:
        assert line.isascii()
        assert "\n" not in line
        assert json.loads(line)["level"] in ("info", "warning", "error")


def test_an_assistant_gets_titles_as_data(tmp_path):
    pytest.importorskip("mcp", reason="pip install 'allmrec-hf[serve]' brings the tools")
    from mcp import Client

    from allmrec_hf.serving.mcp_tools import create_mcp_server
    from tests.serving.conftest import demo_service

    short = {name: title for name, title in HOSTILE.items() if len(title) <= 1000}

    async def run():
        async with Client(create_mcp_server(demo_service(tmp_path))) as client:
            for name, title in short.items():
                added = await client.call_tool("add_item", {"item_id": f"H-{name}", "title": title})
                assert not added.is_error, name
            candidates = [f"H-{name}" for name in short]
            return await client.call_tool("rank", {"history": ["M0001"], "candidates": candidates, "ranker": "cf"})

    found = asyncio.run(run())
    assert len(found.structured_content["recommendations"]) == len(short)
    text = found.content[0].text
    assert json.loads(text) == found.structured_content
    assert not COMMANDING.search(text)


# -- the command line


def test_the_command_line_prints_a_line_for_each_item_and_commands_no_terminal(demo, tmp_path):
    catalog = demo.catalog
    for place, title in enumerate(HOSTILE.values(), start=10):
        catalog = with_title(catalog, title, place)
    demo.pipe.processor.catalog = catalog
    demo.pipe.save_pretrained(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").rglob("*")}
    demo.pipe.processor.catalog = demo.catalog
    demo.pipe.save_pretrained(tmp_path / "plain")
    assert names == {path.name for path in (tmp_path / "plain").rglob("*")}
    wanted = ",".join(catalog.item_ids[9 : 9 + len(HOSTILE)])
    ask = ("recommend", "--model", tmp_path / "model", "--history", "M0001", "--candidates", wanted, "--ranker", "cf")
    table, as_json = succeeded(*ask, "--top-k", 100), succeeded(*ask, "--top-k", 100, "--json")
    assert len(table.stdout.splitlines()) == len(HOSTILE) + 1
    assert len(json.loads(as_json.stdout)["recommendations"]) == len(HOSTILE)
    for result in (table, as_json):
        assert not COMMANDING.search(result.stdout + result.stderr)
