"""The contract of a method that the benchmark trains and evaluates; `registry` finds one by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.protocol import Ranker
from ..training.section_arguments import DEFAULT_BACKBONE, DEFAULT_TEXT_ENCODER


@dataclass(frozen=True)
class Setting:
    """The settings that a method is trained with, besides its data.

    Attributes:
        folder: The method's own folder; an interrupted training may be resumed from it.
        parts: Folder shared by all methods of the same training data and seed, see `shared`.
        common: Folder shared by all methods of a benchmark, whatever their data and seeds; `parts` where not given.
        seed: Seed of everything the method draws.
        llm: Id or path of the causal LM, for the methods that have one.
        text_encoder: Id or path of the sentence-transformers model.
        backbone: Name of the backbone under the methods that have one.
        preset: Preset of the stages' loops, see `training.presets`.
        budget: Settings of any stage's loop, by stage (`"backbone"`, `"align"`, `"project"`, `"retrieve"`), that
            replace the preset's: a method trained by a loop of its own takes those of the stage nearest to it.
        options: What the suite says of this method alone; an unknown option is refused.
        trust_remote_code: Run code that comes with the LLM, its tokenizer or the text encoder.
    """

    folder: Path
    parts: Path
    common: Path | None = None
    seed: int = 0
    llm: str | None = None
    text_encoder: str = DEFAULT_TEXT_ENCODER
    backbone: str = DEFAULT_BACKBONE
    preset: str = "default"
    budget: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    def required_llm(self, method: str) -> str:
        """Return the LLM.

        Raises:
            ALLMRecError: when none was given.
        """
        if self.llm is None:
            raise ALLMRecError(f"the method {method} needs an LLM; give the suite's `llm`, or --llm ID_OR_PATH")
        return self.llm


class Method(ABC):
    """One way to recommend: how it is trained, and where it comes from.

    Attributes:
        name: Its name in suites.
        paper: The publication, with its arXiv number or venue; empty for a control.
        simplified: What differs here from the publication; empty where nothing does.
        options: The names it understands in `Setting.options`.
        reads_llm: Whether it needs an LLM.
        ranked_by: Values of its option `ranker`, the first where none is given; empty where it has none.
        seeded: Whether it draws anything; if not, one seed is as good as several.
    """

    name: str
    paper: str = ""
    simplified: str = ""
    options: ClassVar[tuple[str, ...]] = ()
    reads_llm: ClassVar[bool] = False
    ranked_by: ClassVar[tuple[str, ...]] = ()
    seeded: ClassVar[bool] = True

    @abstractmethod
    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train on the data's training part (and validation part, where the method says so) and return the ranker.

        The test part is never looked at. Anything to select is selected on the validation part.
        """

    def checked(self, setting: Setting) -> Mapping[str, Any]:
        """Return the options.

        Raises:
            ALLMRecError: when one is unknown, or `ranker` is none of `ranked_by`; the message lists the known ones.
        """
        unknown = sorted(set(setting.options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ALLMRecError(f"the method {self.name} has no options {unknown}; it has {known}")
        kind = setting.options.get("ranker")
        if kind is not None and kind not in self.ranked_by:
            raise ALLMRecError(f"the option ranker of {self.name} is one of {', '.join(self.ranked_by)}; got {kind!r}")
        idle = sorted(set(setting.options) & set(self.idle_options(self.ranked_as(setting))))
        if idle:
            raise ALLMRecError(
                f"options {idle} of the method {self.name} have no effect where it ranks by {self.ranked_as(setting)}; "
                "leave them out, or give another ranker"
            )
        return setting.options

    def ranked_as(self, setting: Setting) -> str:
        """Return by what it ranks: the option `ranker`, or the first of `ranked_by`."""
        return str(setting.options.get("ranker") or (self.ranked_by or ("",))[0])

    def idle_options(self, ranker: str) -> tuple[str, ...]:
        """Return the options that change nothing where it ranks so."""
        return ()
