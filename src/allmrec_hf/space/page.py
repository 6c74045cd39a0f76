"""The page itself, in Gradio: three tabs over one history."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import gradio as gr

from ..errors import ALLMRecError, DataError
from . import page_html as parts
from .page_model import PageModel
from .ranked_lists import RankedList
from .trial_items import LONGEST_DESCRIPTION, LONGEST_TITLE, new_trial

logger = logging.getLogger(__name__)
TITLE = "What would they like next?"
LONGEST_HISTORY = 200
_EVENTS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_MODEL: dict[str, Any] = {**_EVENTS, "concurrency_id": "model", "concurrency_limit": 1}
_RESULT_JS = """
const waits = () => element.querySelector('.am-loading, [aria-busy=true]') !== null;
let probe = null;
function look() {  // while something is awaited, see whether the server is still there
  clearInterval(probe);
  if (!waits()) return;
  probe = setInterval(async () => {
    if (!waits()) return clearInterval(probe);
    try {
      await fetch(window.location.pathname, { method: 'HEAD', cache: 'no-store' });
    } catch {
      clearInterval(probe);
      if (waits()) props.value = props.lost;
    }
  }, 3000);
}
watch('value', look);
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-item], button[data-remove]');
  if (!button || button.getAttribute('aria-busy') === 'true') return;
  button.setAttribute('aria-busy', 'true');
  button.textContent = 'Wait…';
  trigger('select', { item: button.dataset.item || button.dataset.remove });
  look();
});
"""
_WAITING = {
    "recommend": "The candidates are found and scored. A large language model takes a while.",
    "place": "The new item's text is read, and its rank is found for many histories.",
    "compare": "Both lists are made.",
}


@dataclass
class Shown:
    """What a visitor sees in the first tab, kept between two clicks."""

    found: RankedList
    history: list[str]
    trials: list[dict[str, str]]
    opened: dict[str, str] = field(default_factory=dict)

    def html(self, explains: bool) -> str:
        """Return it as HTML."""
        return parts.list_html(self.found, [trial["item_id"] for trial in self.trials], self.opened, explains)


def picked_ids(value: Any) -> list[str]:
    """Return the item ids of a history as the picker sends it.

    Raises:
        DataError: when it is something else, or too long.
    """
    entries = value or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError("the history is no list of items")
    if len(entries) > LONGEST_HISTORY:
        raise DataError(f"a history may have {LONGEST_HISTORY} items here; this one has {len(entries)}")
    return [str(entry.get("item_id", ""))[:500] for entry in entries]


class Page:
    """The handlers of the page; what a visitor adds is in the visitor's own state.

    Args:
        models: One checkpoint, or the two that are compared.
    """

    def __init__(self, models: Sequence[PageModel]) -> None:
        self.models = list(models)
        self.model = self.models[0]

    def _answer(self, make: Callable[[], Any], failed: Callable[[str], Any]) -> Any:
        """Return what is made, or what stands there when it cannot be made."""
        try:
            return make()
        except ALLMRecError as error:
            return failed(parts.failure(error))
        except Exception:
            logger.exception("the page could not answer")
            return failed(parts.failure(None))

    def search(self, typed: Any) -> list[dict[str, str]]:
        """Return the items that match what was typed."""
        return [
            {"item_id": item.item_id, "title": parts.shown_title(item.title)} for item in self.model.search.find(typed)
        ]

    # -- recommend

    def recommend(self, picked: Any, ranker: str, trials: list[dict[str, str]]) -> tuple[str, Shown | None, str]:
        """Return the list, what is kept of it, and what a screen reader says."""

        def make() -> tuple[str, Shown | None, str]:
            history = picked_ids(picked)
            if not history:
                return parts.empty_history(), None, "There is no history yet"
            shown = Shown(self.model.recommend(history, ranker, trials), history, list(trials))
            return shown.html(self.model.explains), shown, f"{len(shown.found.items)} recommendations"

        found: tuple[str, Shown | None, str] = self._answer(make, lambda card: (card, None, "No answer"))
        return found

    def why(self, shown: Shown | None, event: gr.EventData) -> tuple[str, Shown | None, str]:
        """Open the explanation of one item of the list, or close it."""
        item = str(event._data.get("item", ""))
        if shown is None or item not in shown.found.candidates:
            return parts.ready(), None, ""
        if item in shown.opened:
            del shown.opened[item]
            return shown.html(True), shown, "Explanation closed"

        def make() -> str:
            explanation = self.model.explain(shown.history, item, shown.found.candidates, shown.trials)
            return parts.explanation_html(explanation)

        shown.opened[item] = self._answer(make, lambda card: card)
        return shown.html(True), shown, "Explanation opened"

    # -- new items

    def place(
        self, picked: Any, title: str, description: str, trials: list[dict[str, str]]
    ) -> tuple[str, list[dict[str, str]], str, str]:
        """Try out a new item: where it ranks, the visitor's items with it, their list, and what is said."""

        def make() -> tuple[str, list[dict[str, str]], str, str]:
            history = picked_ids(picked)
            same = [one for one in trials if (one["title"], one["description"]) == (title.strip(), description.strip())]
            trial = same[0] if same else new_trial(self.model.pipe.processor.catalog, trials, title, description)
            grown = trials if same else [*trials, trial]
            placement = self.model.place(history, grown, trial["item_id"])
            return parts.placement_html(placement), grown, parts.trials_html(grown), "The item is placed"

        def failed(card: str) -> tuple[str, list[dict[str, str]], str, str]:
            return card, trials, parts.trials_html(trials), "No answer"

        found: tuple[str, list[dict[str, str]], str, str] = self._answer(make, failed)
        return found

    def remove(self, trials: list[dict[str, str]], event: gr.EventData) -> tuple[list[dict[str, str]], str, str]:
        """Remove one of the visitor's items."""
        left = [trial for trial in trials if trial["item_id"] != event._data.get("item")]
        return left, parts.trials_html(left), parts.message("empty", "The item is gone. Type another one.")

    # -- compare

    def sides(self) -> list[tuple[str, str]]:
        """Return what can be compared: each ranker of each checkpoint, as label and value."""
        return [
            (self._label(number, ranker), f"{number}:{ranker}")
            for number, model in enumerate(self.models)
            for ranker in model.rankers
        ]

    def _label(self, number: int, ranker: str) -> str:
        name = parts.WORDS.get(ranker, (ranker, ""))[0]
        return f"{self.models[number].name} · {name}" if len(self.models) > 1 else name

    def default_sides(self) -> tuple[str, str]:
        """Return the two that are compared at first."""
        values = [value for _, value in self.sides()]
        left = f"0:{self.model.ranker}"
        if len(self.models) > 1:
            return left, f"1:{self.models[1].ranker}"
        return left, next((value for value in values if value != left), left)

    def compare(self, picked: Any, left: str, right: str) -> tuple[str, str]:
        """Return both lists, and what is said."""

        def side(chosen: str, history: list[str]) -> tuple[str, RankedList | None, str]:
            number, _, ranker = str(chosen).partition(":")
            name = self._label(int(number), ranker)
            return self._answer(
                lambda: (name, self.models[int(number)].recommend(history, ranker), ""),
                lambda card: (name, None, card),
            )

        def make() -> tuple[str, str]:
            history = picked_ids(picked)
            if not history:
                return parts.empty_history(), "There is no history yet"
            return parts.comparison_html([side(left, history), side(right, history)]), "Both lists are there"

        found: tuple[str, str] = self._answer(make, lambda card: (card, "No answer"))
        return found


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _now(html: str) -> dict[str, Any]:
    """Return the settings of an event that shows something at once, before the server has answered."""
    return {"fn": None, "js": f"() => {json.dumps(html)}", **_EVENTS}


def build_page(models: Sequence[PageModel], title: str = TITLE, about: str = "") -> gr.Blocks:
    """Return the page.

    Args:
        models: One checkpoint, or the two that are compared.
        title: Its heading.
        about: What a visitor should know of the checkpoint.
    """
    page = Page(models)
    model = page.model

    def search(typed: Any) -> list[dict[str, str]]:  # Gradio marks the function, which a method cannot take
        return page.search(typed)

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        trials, shown = gr.State([]), gr.State(None)
        gr.HTML(_heading(model, title, about), apply_default_css=False, js_on_load=None)
        picker = gr.HTML(
            [],
            html_template=_resource("item_picker.html"),
            js_on_load=_resource("item_picker.js"),
            server_functions=[search],
            examples=[_shown_example(example) for example in model.examples()],
            apply_default_css=False,
            elem_id="am-history",
        )
        said = gr.HTML(
            "", js_on_load="element.setAttribute('role', 'status')", apply_default_css=False, elem_classes="am-sr"
        )
        with gr.Tabs():
            with gr.Tab("Recommend"):
                with gr.Row(elem_classes="am-ask"):
                    ranker = gr.Radio(
                        _ranker_choices(model),
                        value=model.ranker,
                        label="Rank by",
                        scale=3,
                        min_width=240,
                        container=False,
                    )
                    button = gr.Button("Recommend", variant="primary", elem_id="am-recommend", min_width=200)
                results = _result(parts.empty_history(), "am-results")
            with gr.Tab("New item"):
                gr.HTML(
                    '<p class="am-lead">An item that nobody has touched yet is known by its text alone. Type one and '
                    "see for whom it ranks high.</p>",
                    apply_default_css=False,
                    js_on_load=None,
                )
                name = gr.Textbox(label="Title", max_length=LONGEST_TITLE, elem_id="am-new-title")
                text = gr.Textbox(label="Description", lines=3, max_length=LONGEST_DESCRIPTION, elem_id="am-new-text")
                try_out = gr.Button("Place the item", variant="primary", elem_id="am-place")
                placed = _result(
                    parts.message("empty", "Give the new item a title and, better, a description.")
                    if model.takes_no_items is None
                    else parts.message("error", model.takes_no_items, title="This checkpoint takes no new items"),
                    "am-placed",
                )
                own = _result("", "am-own")
            with gr.Tab("Compare"):
                left_value, right_value = page.default_sides()
                with gr.Row():
                    left = gr.Dropdown(page.sides(), value=left_value, label="Left", min_width=260)
                    right = gr.Dropdown(page.sides(), value=right_value, label="Right", min_width=260)
                if len(page.models) == 1:
                    gr.HTML(
                        '<p class="am-lead">Here are the rankers of one checkpoint. Start the page with '
                        "<code>--compare</code> to put another checkpoint beside it.</p>",
                        apply_default_css=False,
                        js_on_load=None,
                    )
                duel = gr.Button("Compare", variant="primary", elem_id="am-compare")
                compared = _result(parts.empty_history(), "am-compared")
        lost = _now(parts.lost())

        asked = gr.on(
            [button.click, picker.submit, ranker.input],
            outputs=results,
            **_now(parts.loading(_WAITING["recommend"])),
        ).then(page.recommend, [picker, ranker, trials], [results, shown, said], **_MODEL)
        asked.failure(outputs=results, **lost)
        why = results.select(page.why, shown, [results, shown, said], **_MODEL)
        why.failure(outputs=results, **lost)
        placing = gr.on([try_out.click, name.submit], outputs=placed, **_now(parts.loading(_WAITING["place"]))).then(
            page.place, [picker, name, text, trials], [placed, trials, own, said], **_MODEL
        )
        placing.failure(outputs=placed, **lost)
        own.select(page.remove, trials, [trials, own, placed], **_EVENTS)
        comparing = gr.on(
            [duel.click, left.input, right.input], outputs=compared, **_now(parts.loading(_WAITING["compare"]))
        ).then(page.compare, [picker, left, right], [compared, said], **_MODEL)
        comparing.failure(outputs=compared, **lost)
        state_js = (
            f"(items) => {{ const card = items && items.length ? {json.dumps(parts.ready())} : "
            f"{json.dumps(parts.empty_history())}; return [card, card]; }}"
        )
        picker.change(None, picker, [results, compared], js=state_js, **_EVENTS)
        picker.change(None, cancels=[asked, why, comparing], **_EVENTS)
    blocks.queue(max_size=64)
    return blocks


def _result(html: str, elem_id: str) -> gr.HTML:
    """Return a place for results."""
    settings: dict[str, Any] = {"apply_default_css": False, "elem_id": elem_id, "lost": parts.lost()}
    return gr.HTML(html, js_on_load=_RESULT_JS, **settings)


def _shown_example(example: Mapping[str, Any]) -> dict[str, Any]:
    items = [{**item, "title": parts.shown_title(item["title"])} for item in example["items"]]
    return {"name": parts.shown_title(example["name"]), "items": items}


def _ranker_choices(model: PageModel) -> list[tuple[str, str]]:
    return [(f"Rank by {parts.WORDS.get(name, (name, ''))[0]}", name) for name in model.rankers]


def _heading(model: PageModel, title: str, about: str) -> str:
    count = f"{len(model.pipe.processor.catalog):,}"
    told = f" {parts.html.escape(about)}" if about else ""
    return (
        f'<header class="am-head1"><h1>{parts.html.escape(title)}</h1><p>Pick a few of <b>{count}</b> items of '
        f"<b>{parts.safe(model.name)}</b> and see what a recommender makes of them, why, and where a new item would "
        f"stand.{told}</p></header>"
    )


def theme() -> Any:
    """Return the look of Gradio's own parts; its fonts are the system's, so nothing is fetched from elsewhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=sans,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#2563a8",
        button_primary_background_fill_hover="#1d4f88",
        button_primary_background_fill_dark="#2f6fb8",
        button_primary_background_fill_hover_dark="#2563a8",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        body_background_fill="#ffffff",
        body_background_fill_dark="#0f141b",
        block_background_fill_dark="#151b24",
        input_background_fill="#ffffff",
        input_background_fill_dark="#151b24",
        input_border_width="1px",
        input_border_color="#7b8696",
        input_border_color_dark="#7b8696",
    )


def launch_page(blocks: gr.Blocks, host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Serve a page and return its address.

    Args:
        blocks: The page.
        host: Address to listen on; by default `GRADIO_SERVER_NAME`, which a Space sets, or this machine alone.
        port: Port; by default `GRADIO_SERVER_PORT`, or the first free one from 7860.
        wait: Return when the server ends, in place of at once.

    Raises:
        ALLMRecError: when the port is in use.
    """
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            theme=theme(),
            css=_resource("page.css"),
            quiet=True,
            share=False,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=1,  # the page takes no files
            state_session_capacity=1000,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ALLMRecError(f"the page cannot listen: {error}; give another --port or --host") from error
    logger.info("the page is at %s", address)
    if wait:
        blocks.block_thread()
    return str(address)
