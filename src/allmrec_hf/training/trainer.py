"""`ALLMRecTrainer`: train the three stages, evaluate, recommend and share, from Python."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, TrainerCallback, pipeline

from ..cf_encoder import CFEncoder
from ..data.prepared import PreparedData
from ..data.subsets import with_more_training
from ..errors import ALLMRecError, CheckpointError, DataError
from ..evaluation.evaluator import EvaluationResult, evaluate
from ..evaluation.llm_ranker import checkpoint_rankers
from ..evaluation.protocol import Ranker
from ..evaluation.rankers import BackboneRanker, PopularityRanker
from ..hub.publish import push_checkpoint
from ..modeling_allmrec import ALLMRecModel
from ..pipeline_recommendation import RecommendationPipeline
from ..processing_allmrec import ALLMRecProcessor
from ..ranker_built_in import can_rank
from .arguments import ALLMRecTrainingArguments
from .llms import without_trust
from .pretrained_backbone import load_backbone
from .refit import (
    IN_TRAINING,
    Known,
    check_output,
    finished_stages,
    fitted_config,
    has_loaded_text_encoder,
    refit_arguments,
)
from .run import LoadedParts, Run
from .run_checks import check_run
from .stage_arguments import LOOPS, RUN_WIDE, STEPS, StageArguments
from .stages import TRAIN

logger = logging.getLogger(__name__)
PART_KINDS = "a name, a folder or a loaded object"


class ALLMRecTrainer:
    """Train A-LLMRec on prepared data: the backbone, the alignment, and the projection around the frozen LLM.

    Args:
        llm: The LLM: a Hub id, a folder, a GGUF file, `"demo"`, or a loaded causal LM. It may stay away where stage
            `project` is not trained.
        backbone: The name of a backbone that is trained, the folder or Hub id of a trained one, or a trained
            `CFEncoder` whose items are those of the data, in their order. SASRec where not given.
        args: Every option, see `ALLMRecTrainingArguments`.
        data: What `prepare` returns, or its folder.
        text_encoder: A sentence-transformers id, a folder, `"demo"`, or a loaded `SentenceTransformer`.
        tokenizer: The tokenizer of a loaded LLM; by default that of the folder or repository it came from.
        callbacks: `transformers.TrainerCallback` objects or classes. Each stage is a training of its own: a callback
            hears of `on_train_begin` once for each, `args.stage` tells which.
        trust_remote_code: Run code that comes with the LLM, its tokenizer or the text encoder; no file of the run
            remembers it.
        text_table: `(N + 1, d_text)`, what the frozen text encoder makes of the catalogue, row 0 zeros, where several
            runs share it.

    Raises:
        ALLMRecError: when an argument is of another kind.
        DataError: when `data` are not prepared.
    """

    def __init__(
        self,
        llm: str | Path | PreTrainedModel | None = None,
        backbone: str | Path | CFEncoder | None = None,
        args: ALLMRecTrainingArguments | None = None,
        data: PreparedData | str | Path | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
        trust_remote_code: bool = False,
        text_table: torch.Tensor | None = None,
    ) -> None:
        if not isinstance(args, ALLMRecTrainingArguments):
            raise ALLMRecError(
                f"args must be ALLMRecTrainingArguments, such as ALLMRecTrainingArguments('runs/shop'); got {args!r}"
            )
        self.data = _prepared(data)
        self.parts = LoadedParts(text_table=text_table)
        changes: dict[str, dict[str, Any]] = {}
        for section, name, value in (
            ("llm", "name", llm),
            ("backbone", "name", backbone),
            ("align", "text_encoder", text_encoder),
        ):
            if isinstance(value, (str, Path)):
                changes[section] = {name: str(value)}
        if isinstance(llm, PreTrainedModel):
            changes["llm"] = self._loaded_llm(llm, tokenizer, args.llm.gguf_file)
        elif llm is not None and "llm" not in changes:
            raise ALLMRecError(f"llm must be {PART_KINDS}; got {type(llm).__name__}")
        if isinstance(backbone, CFEncoder):
            self.parts.backbone = backbone.eval()
            changes["backbone"] = {"name": backbone.config.model_type}
        elif backbone is not None and "backbone" not in changes:
            raise ALLMRecError(f"backbone must be {PART_KINDS} (CFEncoder); got {type(backbone).__name__}")
        if text_encoder is not None and "align" not in changes:
            if not callable(getattr(text_encoder, "encode", None)):
                raise ALLMRecError(
                    f"text_encoder must be {PART_KINDS} with `encode`; got {type(text_encoder).__name__}"
                )
            self.parts.text_encoder = text_encoder
        args = args.replaced(**changes)
        options, self.trust_remote_code = without_trust(args.llm.options, trust_remote_code)
        self.args = args if options == (args.llm.options or {}) else args.replaced(llm={"options": options or None})
        self.callbacks = tuple(callbacks)

    def _loaded_llm(self, llm: PreTrainedModel, tokenizer: Any, gguf_file: str | None) -> dict[str, Any]:
        source = getattr(llm.config, "name_or_path", "") or None
        if source is not None and gguf_file is None and Path(source).is_dir():
            source = source if (Path(source) / "config.json").exists() else None  # the folder of a GGUF file
        if tokenizer is None and source is None:
            raise ALLMRecError("the LLM given does not say where it came from; give its tokenizer too (tokenizer=)")
        self.parts.llm = llm
        self.parts.tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(source)
        return {"name": source} if source is not None else {"include_llm": True}  # else nobody could load the result

    @property
    def output_dir(self) -> Path:
        """The run folder, a checkpoint."""
        return Path(self.args.output_dir)

    def train(
        self, stages: str | Sequence[str] | None = None, *, resume_from_checkpoint: bool = False
    ) -> ALLMRecTrainer:
        """Train stages in order and leave a loadable checkpoint in the run folder.

        Args:
            stages: Of `"backbone"`, `"align"`, `"project"`, `"retrieve"` and `"rank"`; by default those that
                `args.rank.rankers` need. A later stage alone builds on what the folder holds, and may have other
                options than it was trained with before.
            resume_from_checkpoint: Go on where an interrupted run stopped, or start where there is none; finished
                stages are not trained again. Which checkpoint is the run folder's affair: no path is taken.

        Raises:
            ALLMRecError: when the folder is not empty or another trainer is at work in it, an earlier stage is missing,
                a part cannot be loaded, options changed since the run was interrupted, or a callback raised.
        """
        if stages is None:
            stages = self.args.rank.steps()
            self._warn_of_unused_options(stages)
        wanted = (stages,) if isinstance(stages, str) else tuple(stages)
        if not isinstance(resume_from_checkpoint, bool):
            raise ALLMRecError(
                f"resume_from_checkpoint is True or False, got {resume_from_checkpoint!r}: a run goes on from the "
                "latest checkpoint of its own folder (output_dir)"
            )
        run = Run(self.data, self.args, resume_from_checkpoint, self.trust_remote_code, self.parts, self.callbacks)
        with run.locked():
            wanted = check_run(run, wanted)
            for stage in STEPS:
                if stage in wanted:
                    logger.info("stage %s", stage)
                    TRAIN[stage](run)
        return self

    def refit(
        self,
        output_dir: str | Path,
        on: Known = "all",
        *,
        resume_from_checkpoint: bool = False,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
    ) -> ALLMRecTrainer:
        """Train the finished stages of the run folder again on more interactions, and return their trainer.

        Nothing is chosen anew: each stage is as long as its best validation was late, and depth, weights of the fusion
        and default ranker are those of this run. Quote this run's figures on test users; those that `"all"` would give
        are none, since it is trained on their targets.

        Args:
            output_dir: The new run folder.
            on: `"all"` interactions, to ship the model; or `"train+validation"`, to measure on test users what that is
                worth.
            resume_from_checkpoint: Go on with an interrupted refit.
            callbacks: Of this training; those of the first one may wait for validations, of which there are none.

        Raises:
            ALLMRecError: when the run is not finished, was trained on other data or by another number of processes,
                did not train its backbone, or started from a loaded text encoder that is not given.
            CheckpointError: when a stage left no record.
        """
        if on not in IN_TRAINING:
            raise ALLMRecError(f"on must be one of {', '.join(IN_TRAINING)}; got {on!r}")
        stages, output = finished_stages(self.output_dir, self.data), Path(output_dir)
        check_output(self.output_dir, output, on)
        if "align" in stages and self.parts.text_encoder is None and has_loaded_text_encoder(self.output_dir):
            raise ALLMRecError(
                f"stage align of {self.output_dir} started from a loaded text encoder; give it again (text_encoder=)"
            )
        again = ALLMRecTrainer(
            args=refit_arguments(self.output_dir, output, self.args),
            data=with_more_training(self.data, IN_TRAINING[on]),
            callbacks=callbacks,
            trust_remote_code=self.trust_remote_code,
        )
        again.parts = replace(self.parts, backbone=None, fitted=fitted_config(self.output_dir))
        return again.train(stages, resume_from_checkpoint=resume_from_checkpoint)

    def _warn_of_unused_options(self, stages: Sequence[str]) -> None:
        """Say which options of a loop were given for stages that the run's rankers do not need."""
        loop = set(StageArguments.names()) - set(RUN_WIDE)
        unused = [
            f"{stage}.{name}"
            for stage in LOOPS
            if stage not in stages
            for name in self.args.given[stage]
            if name in loop
        ]
        if unused:
            logger.warning(
                "%s: no effect, since the rankers of this run (%s) do not train that stage; name one that does "
                "(--rankers, in Python rank=): likelihood or letter for project, retrieval for retrieve",
                ", ".join(unused),
                self.args.rank.rankers,
            )

    @property
    def processor(self) -> ALLMRecProcessor:
        """The processor of the checkpoint."""
        self._require_ranking()
        return ALLMRecProcessor.from_pretrained(self.output_dir, trust_remote_code=self.trust_remote_code)

    @property
    def model(self) -> ALLMRecModel:
        """The model of the checkpoint, around the LLM given or the one that it names."""
        if not (self.output_dir / "align").is_dir():
            self._require_ranking()
        own: Any = "auto" if self.parts.llm is None else self.parts.llm
        options = {} if self.parts.llm is not None else self.args.llm.loading_options()
        found: ALLMRecModel = ALLMRecModel.from_pretrained(
            self.output_dir, language_model=own, trust_remote_code=self.trust_remote_code, **options
        )
        return found.eval()

    def _require_ranking(self) -> None:
        """Refuse a run folder whose stages give nothing that ranks yet."""
        try:
            ready = can_rank(AutoConfig.from_pretrained(self.output_dir))
        except (OSError, ValueError, AttributeError):  # nothing is trained, or a backbone alone
            ready = False
        if not ready:
            raise CheckpointError(
                f"{self.output_dir} is not trained to the end: its rankers ({self.args.rank.rankers}) need the stages "
                f"{', '.join(self.args.rank.steps())}; call train(resume_from_checkpoint=True)"
            )

    def evaluate(self, rankers: Sequence[Ranker] | None = None, **options: Any) -> EvaluationResult:
        """Return how well the model ranks, beside its backbone and popularity on the same candidates.

        The whole catalogue is ranked for the same users too, see `full_ranking` of `allmrec_hf.evaluate`.

        Args:
            rankers: What is evaluated in place of these; every ranker of the checkpoint is among them.
            **options: As of `allmrec_hf.evaluate`: `split`, `max_users`, `protocol`, ...
        """
        if rankers is None:
            whole = options.get("protocol", "candidates") == "full"
            candidates = None if whole else self.data.candidates("test").items.shape[1]
            rankers = [
                *checkpoint_rankers(self.model, self.processor, num_candidates=candidates),
                BackboneRanker(load_backbone(self.output_dir / "backbone")),
                PopularityRanker(self.data.item_counts("train")),
            ]
        return evaluate(rankers, self.data, **{"full_ranking": True, **options})

    def pipeline(self, **options: Any) -> RecommendationPipeline:
        """Return `pipeline("recommendation")` of the checkpoint."""
        return pipeline("recommendation", model=self.model, processor=self.processor, **options)  # type: ignore[no-any-return,call-overload]

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint and return its address; options as of `allmrec_hf.push_checkpoint`."""
        return push_checkpoint(self.output_dir, repo_id, **options)


def _prepared(data: Any) -> PreparedData:
    if isinstance(data, PreparedData):
        return data
    if isinstance(data, (str, Path)):
        return PreparedData.load(data)
    raise DataError(
        f"data must be what allmrec_hf.prepare returns, or its folder; got {type(data).__name__}: call "
        "prepare(interactions, items) first"
    )
