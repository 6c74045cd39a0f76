"""One run folder: which stages it holds, what its `run.json` says, and what earlier stages left for later ones.

```
runs/x/backbone/  the backbone alone      runs/x/align/    after stage 1, without LLM
runs/x/           the latest stage's model, processor, card and `run.json`
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import TrainerCallback

from ..cf_encoder import CFEncoder, cf_encoder_class
from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..hub.card import write_card
from ..hub.card_making import card_stages
from ..hub.stored_reports import stage_results
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import public_name
from ..prompt import PromptTemplate
from . import checkpoint
from .arguments import ALLMRecTrainingArguments
from .cards import model_card
from .devices import process_state
from .llms import load_llm
from .loop import CHECKPOINTS_FOLDER
from .provenance import write_record
from .run_record import RUN_FILE, SECTIONS_OF_STAGE, data_record, read_run
from .stage_arguments import STEPS
from .text_encoders import load_text_encoder
from .trained import load_target_counts

DONE_FILE = "done"


@dataclass
class LoadedParts:
    """Parts of a run that the caller has loaded already.

    Attributes:
        llm: A causal LM.
        tokenizer: Its tokenizer.
        text_encoder: A `SentenceTransformer`.
        backbone: A trained backbone whose items are those of the data, in their order.
        text_table: `(N + 1, d_text)`, what the frozen text encoder makes of the catalogue, row 0 zeros.
        fitted: The configuration of a model whose fitted rankers are taken over by stage `rank`.
    """

    llm: Any = None
    tokenizer: Any = None
    text_encoder: Any = None
    backbone: CFEncoder | None = None
    text_table: torch.Tensor | None = None
    fitted: ALLMRecConfig | None = None


@dataclass
class Run:
    """A run: its data, its arguments, its parts and its folder.

    Attributes:
        data: Prepared data.
        args: The arguments, with those of finished earlier stages taken from the folder.
        resume: Whether an interrupted run is gone on with; finished stages are not trained again.
        trust: Whether code that comes with the LLM, its tokenizer or the text encoder is run.
        parts: What was loaded already.
        callbacks: Hear of every stage's training.
        model_type: Name of the backbone, such as `sasrec`.
    """

    data: PreparedData
    args: ALLMRecTrainingArguments
    resume: bool = False
    trust: bool = False
    parts: LoadedParts = field(default_factory=LoadedParts)
    callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = ()
    model_type: str = ""

    def __post_init__(self) -> None:
        self.output = Path(self.args.output_dir)
        self.writes = process_state().is_main_process  # of several processes, all train and one writes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the same folder.

        Raises:
            ALLMRecError: when one does.
        """
        if not self.writes:
            yield
            return
        path = self.output.parent / f".{self.output.name}.training"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)  # the system lets go of it when its holder dies
        try:
            lock.acquire()
        except Timeout as error:
            raise ALLMRecError(
                f"another trainer is at work in {self.output}; wait until it ends, or choose another output folder"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    # -- what the folder holds

    def record(self) -> dict[str, Any]:
        """Return what `run.json` says."""
        return read_run(self.output / RUN_FILE)

    def is_done(self, stage: str) -> bool:
        """Tell whether the folder holds a finished stage; `config.json` is the last file of a stage to be written."""
        return any((self.output / stage / name).is_file() for name in ("config.json", DONE_FILE))

    def mark_done(self, stage: str) -> None:
        """Say that a stage has changed the checkpoint of the folder itself, and that what was built on it is void."""
        for later in STEPS[STEPS.index(stage) + 1 :]:
            (self.output / later / DONE_FILE).unlink(missing_ok=True)
        (self.output / stage).mkdir(exist_ok=True)
        (self.output / stage / DONE_FILE).touch()

    def has_begun(self, stage: str) -> bool:
        """Tell whether something of a stage was trained that can be gone on with."""
        own = self.stage_folder(stage)
        folders = [own, *([self.stage_folder("warm-start")] if stage == "project" else own.glob("layers-*"))]
        return self.is_done(stage) or any(checkpoint.latest(folder / CHECKPOINTS_FOLDER) for folder in folders)

    def is_behind(self, stage: str) -> bool:
        """Tell whether a resumed run has this stage behind it."""
        return self.resume and self.is_done(stage)

    def stage_folder(self, stage: str) -> Path:
        """Return the folder of a stage's checkpoints."""
        return self.output / "checkpoints" / stage

    def note(self, stage: str) -> None:
        """Write `run.json` before a stage is trained: its sections beside those of the stages before it.

        What comes after it is void once it is trained, see `mark_done`.
        """
        if not self.writes:
            return
        before, own = self.record().get("arguments", {}), self.args.to_dict()
        sections = {}
        for other in STEPS[: STEPS.index(stage) + 1]:
            for section in SECTIONS_OF_STAGE[other]:
                if other == stage:
                    sections[section] = own[section]
                elif self.has_begun(other):
                    sections[section] = before.get(section, own[section])
        record = {
            "data": data_record(self.data),
            "preset": self.args.preset,
            "model_type": self.model_type,
            "processes": process_state().num_processes,
            "arguments": sections,
            "others": {section: values for section, values in own.items() if section not in sections},
        }
        write_record(self.output / RUN_FILE, record)

    # -- its parts

    @property
    def prompt(self) -> PromptTemplate:
        """The prompt template of stage 2."""
        return self.args.project.template(self.data.domain, self.data.verbs)

    def load_backbone(self) -> CFEncoder:
        """Return the backbone of the finished stage 0."""
        cf_encoder = cf_encoder_class(self.model_type).from_pretrained(str(self.output / "backbone")).eval()
        cf_encoder.config._name_or_path = ""  # a checkpoint that contains it names no folder of this machine
        cf_encoder.target_counts = load_target_counts(str(self.output / "backbone"), self.data.catalog)
        return cf_encoder

    def load_text_encoder(self) -> Any:
        """Return the text encoder of stage 1."""
        if self.parts.text_encoder is not None:
            return self.parts.text_encoder
        return load_text_encoder(self.args.align.text_encoder, self.trust)

    def load_llm(self) -> tuple[Any, Any]:
        """Return the LLM and its tokenizer."""
        if self.parts.llm is not None:
            return self.parts.llm, self.parts.tokenizer
        llm = self.args.llm
        return load_llm(str(llm.name), llm.revision, llm.loading_options(), self.trust)

    def write_card(self, cf_encoder: CFEncoder, model: ALLMRecModel | None) -> None:
        """Write the model card of a backbone alone, or of a model after stage 1 or 2."""
        card = model_card(cf_encoder, model, self.data, self.args.stages)
        source = self.args.backbone.trained or (None if self.parts.backbone is None else "given")
        if source is not None:  # no loop of this run trained it
            card.training["backbone"] = {"trained backbone": public_name(source)}
            card.seeds.pop("backbone", None)
        card.stage_results = stage_results(self.output, card_stages(card))
        write_card(card, self.output)
