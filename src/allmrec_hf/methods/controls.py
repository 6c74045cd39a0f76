"""Controls: methods that a gain must survive before it is credited to the LLM, and an alarm for leaks of the test."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from ..data.prepared import PreparedData
from ..evaluation.protocol import Ranker
from ..evaluation.rankers import BackboneRanker
from ..files import folder_written_whole
from ..histories import pad_histories
from ..llm_files import load_config, load_tokenizer
from ..modeling_allmrec import ALLMRecModel
from ..ranker_fusion import Fusion
from ..training.arguments import ALLMRecTrainingArguments
from ..training.devices import share_of_batch
from ..training.llms import check_llm, llm_source
from ..training.loop import run_stage
from ..training.warm_start import (
    BATCH_SIZE,
    LEARNING_RATE,
    STATISTICS_USERS,
    MatchingModule,
    WarmStartTask,
    centre_inputs,
)
from .a_llmrec import TRAINED_RANKERS, ALLMRec, fit_run
from .llm_only import LLMOnly, words_ranker
from .llm_parts import (
    VectorRanker,
    chosen_arguments,
    input_width,
    on_device,
    ranking_options,
    required_llm,
    stage_options,
)
from .method import Method, Setting
from .shared import backbone_on_all_known, check_same_settings, run_until, stage_arguments, trained_backbone

WIDTH_WITHOUT_LLM = 128
VALIDATIONS = 25
STEPS = 600
PATIENCE = 5


@dataclass(frozen=True)
class _NoPrompts:
    """A stand-in for the processor of a method without prompts."""

    max_history_length: int


class TwoTowers(MatchingModule):
    """The two projectors of stage 2 with no LLM behind them: a softmax over the candidates' cosines.

    Args:
        model: The model after stage 1.
        width: Width of the projections, d_llm.
        seed: Seed of their weights.
    """

    def __init__(self, model: ALLMRecModel, width: int, seed: int) -> None:
        nn.Module.__init__(self)
        self.model = model.requires_grad_(False)
        self.word_norm = 1.0  # there are no words whose length a projection should have
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model._build_projectors(width)
            for projector in (model.user_projector, model.item_projector):
                projector.apply(model._init_weights)

    @torch.no_grad()
    def prepare(self, task: WarmStartTask) -> None:
        """Fold the standardisation of users and items into the projectors, as stage 2's warm start does."""
        model, histories = self.model, task.samples.take(np.arange(min(len(task.samples), STATISTICS_USERS))).histories
        ids, mask = pad_histories(histories, model.cf_encoder.config.max_history_length)
        centre_inputs(model.user_projector, model.cf_encoder.encode_users(ids, mask))
        centre_inputs(model.item_projector, model.item_vectors(torch.arange(1, model.cf_encoder.num_items + 1)))

    @torch.no_grad()
    def ranker(self, name: str) -> VectorRanker:
        """Return the ranker by cosine."""
        model: Any = on_device(self).model
        device = model.cf_encoder.item_embeddings.device

        def encode_users(histories: Any) -> torch.Tensor:
            ids, mask = pad_histories(histories, model.cf_encoder.config.max_history_length)
            users = model.cf_encoder.encode_users(ids.to(device), mask.to(device))
            return F.normalize(model.user_projector(users), dim=-1)

        items = model.item_vectors(torch.arange(model.cf_encoder.num_items + 1, device=device))
        return VectorRanker(model, encode_users, F.normalize(model.item_projector(items), dim=-1), name, batch_size=256)


class NoLLM(Method):
    """No LLM: the projectors of A-LLMRec, as wide as with the LLM, matched by cosine and trained on the same targets.

    Users, items and targets are A-LLMRec's, so what A-LLMRec ranks better than this is the LLM's. Options are those of
    stages 0 and 1, those of the projectors and their targets, and `steps`, the most
    optimizer steps: as many passes as stage 2 makes, and at least 600 steps, where not given. The weights of the best
    validation are kept. Of the LLM it takes the width alone.

    With the option `ranker: fusion` it is the control of a fusion: the same one of backbone, text and words alone.
    """

    name = "no-llm"
    simplified = "The projectors have the width of the LLM's embeddings, or 128 where no LLM is given."
    options: ClassVar[tuple[str, ...]] = (
        *stage_options("backbone", "align"),
        *("targets", "num_candidates", "item_embedding", "projector", "projector_tokens"),
        *("llm_revision", "steps", "ranker"),
        *ranking_options("rank"),
    )
    ranked_by = ("cosine", Fusion.kind)

    def idle_options(self, ranker: str) -> tuple[str, ...]:
        """Return the options of the projectors, which a fusion has not, or those of a fusion."""
        if ranker != Fusion.kind:
            return ranking_options("rank")
        return ("targets", "num_candidates", "projector", "projector_tokens", "llm_revision", "steps")

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train the two projectors, or fit the fusion, without an LLM, and return the ranker."""
        args = chosen_arguments(self, setting)
        if self.ranked_as(setting) == Fusion.kind:
            bare = args.replaced(llm={"name": None}, rank={"rankers": Fusion.kind})
            return fit_run(data, setting, bare, self.name, Fusion.kind)
        check_same_settings(self, setting, args.llm.source)
        folder = run_until(data, setting, args, "align")
        model = ALLMRecModel.from_pretrained(folder / "align", language_model=None)
        for name in ("item_embedding", "projector", "projector_tokens"):
            setattr(model.config, name, getattr(args.project, name))
        model.config.item_embedding_seed = setting.seed
        width = WIDTH_WITHOUT_LLM if args.llm.name is None else _width(args, setting)
        module = TwoTowers(model, width, setting.seed)
        own = stage_arguments(setting, "project")
        arguments = own.replaced(
            max_steps=None,
            per_device_train_batch_size=share_of_batch(BATCH_SIZE),
            learning_rate=LEARNING_RATE,
            early_stopping_patience=PATIENCE,
        )
        history: Any = _NoPrompts(model.cf_encoder.config.max_history_length)
        task = WarmStartTask(module, history, data, args.project.targets, args.project.num_candidates, arguments)
        per_epoch = len(task.batches(0))
        steps = int(setting.options.get("steps") or max(STEPS, own.num_train_epochs * per_epoch))
        epochs = math.ceil(steps / per_epoch)
        arguments = arguments.replaced(
            max_steps=steps, num_train_epochs=epochs, eval_epochs=max(1, epochs // VALIDATIONS)
        )
        module.prepare(task)
        run_stage(task, arguments, setting.folder / "no-llm", resume=True)
        return module.ranker(self.name)


def _width(args: ALLMRecTrainingArguments, setting: Setting) -> int:
    return input_width(str(args.llm.source), args.llm.revision, setting.trust_remote_code)


def with_random_llm(args: ALLMRecTrainingArguments, setting: Setting) -> ALLMRecTrainingArguments:
    """Return the arguments with another LLM: same architecture and tokenizer, weights drawn with the setting's seed.

    It is kept in the setting's `common`, so that every control of every scenario takes the same one.
    """
    facts = f"{args.llm.source}|{args.llm.revision}|{setting.seed}"
    folder = (setting.common or setting.parts) / f"random-llm-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").exists():
            name = str(args.llm.source)
            trust = setting.trust_remote_code
            check_llm(name, args.llm.revision, {}, trust)
            source = llm_source(name, args.llm.revision)
            with torch.random.fork_rng():
                torch.manual_seed(setting.seed)
                language_model = AutoModelForCausalLM.from_config(load_config(source, trust), trust_remote_code=trust)
            with folder_written_whole(folder) as temporary:
                load_tokenizer(source, trust).save_pretrained(str(temporary))
                language_model.save_pretrained(str(temporary))
    plain = {"revision": None, "gguf_file": None, "gguf_packed": False}
    return args.replaced(llm={"name": str(folder), **plain})


class RandomLLM(ALLMRec):
    """A-LLMRec around an LLM of the same architecture with random weights.

    What it ranks as well as A-LLMRec does, the LLM's pretraining has no part in. Its options are A-LLMRec's.
    """

    name = "random-llm"
    paper = ""
    simplified = ""

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train A-LLMRec around the random LLM."""
        kind = self.ranked_as(setting)
        args = required_llm(self, setting).replaced(rank={"rankers": TRAINED_RANKERS[kind]})
        return fit_run(data, setting, with_random_llm(args, setting), self.name, kind)


class LeakAlarm(Method):
    """The prompt in words alone, to an LLM with random weights: nothing it knows tells the target.

    Where it ranks better than raw text, the protocol gives the target away; better than chance is worth a look. Its
    options are those of LLM-Only.
    """

    name = "leak-alarm"
    reads_llm = True
    options: ClassVar[tuple[str, ...]] = LLMOnly.options

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Return the ranker; nothing is trained."""
        args = with_random_llm(required_llm(self, setting), setting)
        return words_ranker(data, args, self.name, setting)


class FairBackbone(Method):
    """The backbone alone, trained on all that stage 2 has seen.

    With stage 2's targets from the validation part, these are both parts, for as many epochs as were best on the
    training part alone; with `targets` "train", as in the preset `paper`, it is the backbone itself.
    """

    name = "fair-backbone"
    options: ClassVar[tuple[str, ...]] = ("targets",)

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Return the ranker, after training where the parts differ."""
        targets = chosen_arguments(self, setting).project.targets
        fitted = backbone_on_all_known if targets == "validation" else trained_backbone
        return BackboneRanker(fitted(data, setting), name=f"{setting.backbone}, data of stage 2")
