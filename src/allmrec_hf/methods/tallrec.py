"""TALLRec: an LLM tuned with LoRA to answer whether a user will like one item."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from ..data.prepared import PreparedData
from ..errors import ALLMRecError
from ..evaluation.protocol import History, Ranker
from ..evaluation.rankers import PopularityRanker
from ..language_model_checks import examine
from ..language_model_passes import last_logits, padded_pass
from ..processing_allmrec import ALLMRecProcessor, left_padded
from ..prompt import NO_SLOT, PromptTemplate, domain_words
from ..ranking import ndcg_at_k, target_ranks
from ..slot_text import SlotText
from ..training.arguments import ALLMRecTrainingArguments
from ..training.loop import run_stage
from ..training.projection import CandidateTask
from ..training.stage_arguments import StageArguments
from ..training.task import Batch
from .llm_parts import LLM_OPTIONS, Scores, chosen_llm, llm_processor, on_device, required_llm, reranked
from .method import Method, Setting
from .shared import check_same_settings, stage_arguments

logger = logging.getLogger(__name__)

_PROMPT = (
    "Instruction: Given the {noun}s that a user has {verb_past}, answer whether this user will {verb} the target "
    "{noun} next, with Yes or No. Input: This user has {verb_past} {{history}} in the previous. The target {noun} is "
    "{{candidates}}. Response:"
)
ANSWERS = ("Yes", "No")
PAPER_MODULES = ("q_proj", "v_proj")
LORA = {"rank": 8, "lora_alpha": 16, "lora_dropout": 0.05}  # as published
PROMPTS_AT_ONCE = 64


class YesNoPrompts:
    """Make the question whether a user will like one item, as tokens.

    Args:
        processor: Words of the question; its slots are left out.
        answers: The two answers. Where the tokenizer cannot tell them apart, two tokens of its vocabulary stand for
            them, which get their meaning in training.
    """

    def __init__(self, processor: ALLMRecProcessor, answers: Sequence[str] = ANSWERS) -> None:
        self.processor = processor
        self.ending, self.yes, self.no = answer_tokens(processor.tokenizer, answers)

    def tokens(self, history: Sequence[int], item: int) -> list[int]:
        """Return the question about one item; the oldest titles of a history that does not fit are left out."""
        prompt = self.processor.encode_prompt(history, [item])
        return [token for token, slot in zip(prompt.tokens, prompt.slots, strict=True) if slot == NO_SLOT] + self.ending

    def batch(self, questions: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` `(P, T)`, left-padded."""
        padded = left_padded([(tokens, [NO_SLOT] * len(tokens)) for tokens in questions])
        return {name: padded[name] for name in ("input_ids", "attention_mask")}


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> tuple[list[int], int, int]:
    """Return the tokens that both answers begin with, and the first in which they differ, of each."""
    yes, no = (SlotText(tokenizer).inside(f" {answer}") for answer in answers)
    same = 0
    while same < min(len(yes), len(no)) and yes[same] == no[same]:
        same += 1
    if same < min(len(yes), len(no)):
        return list(yes[:same]), int(yes[same]), int(no[same])
    special = set(tokenizer.all_special_ids)
    first, second = [token for token in sorted(tokenizer.get_vocab().values()) if token not in special][:2]
    logger.warning("the tokenizer cannot tell %r from %r: two of its other tokens stand for them", *answers)
    return [], int(first), int(second)


class YesNoModule(nn.Module):
    """The LLM with LoRA weights, the only ones that train, and the loss on the answer's token.

    Args:
        language_model: A causal LM with LoRA.
        prompts: The questions and the two answers.
    """

    def __init__(self, language_model: Any, prompts: YesNoPrompts, name: str | None = None) -> None:
        super().__init__()
        self.language_model = language_model
        self.pads_left = examine(language_model.eval()).pads_left
        self.config = copy.copy(language_model.config)  # its own: the LLM's says where the LLM comes from
        self.config.base_model_name_or_path = name
        self.yes, self.no = prompts.yes, prompts.no

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return `(P, V)` logits of what follows each question."""
        embeds = self.language_model.get_input_embeddings()(batch["input_ids"])

        def run(keep: int, **inputs: torch.Tensor) -> torch.Tensor:
            return last_logits(self.language_model, keep, **inputs)

        return padded_pass(run, embeds, batch["attention_mask"], 1, self.pads_left)[:, -1].float()

    def scores(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return `(P,)` log p(Yes) - log p(No)."""
        logits = self.logits(batch)
        return logits[:, self.yes] - logits[:, self.no]

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the LM's cross entropy of the answers; `liked` `(P,)` tells which is right."""
        logits = self.logits(batch)
        answers = torch.where(batch["liked"], self.yes, self.no)
        return {"loss": F.cross_entropy(logits, answers)}


class TALLRecTask(CandidateTask):
    """TALLRec for the training loop: each target with Yes, sampled negatives with No.

    Args:
        module: The loss.
        prompts: The questions.
        data: Prepared data.
        args: Whose targets, see `CandidateTask`.
        negatives: Negatives of each target.
        arguments: Batch size in users, seed and size of the validation.
    """

    name = "tallrec"
    rows_add_up = False  # a batch has more questions than users

    def __init__(
        self,
        module: YesNoModule,
        prompts: YesNoPrompts,
        data: PreparedData,
        args: ALLMRecTrainingArguments,
        negatives: int,
        arguments: StageArguments,
    ) -> None:
        super().__init__(prompts.processor, data, args.project.targets, args.project.num_candidates, arguments)
        self.module: YesNoModule = module
        self.prompts = prompts
        self.negatives = negatives

    def collate(self, examples: np.ndarray, generator: np.random.Generator) -> Batch:
        """Return the questions about the targets and about fresh negatives, and which are `liked`."""
        samples = self.samples.take(examples)
        repeated = np.tile(np.arange(len(samples)), 1 + self.negatives)
        negatives = self.sampler.negatives(samples.users[repeated[len(samples) :]], generator)
        items = np.concatenate([samples.targets, negatives])
        questions = [
            self.prompts.tokens(samples.histories[row].tolist(), int(item))
            for row, item in zip(repeated, items, strict=True)
        ]
        return {**self.prompts.batch(questions), "liked": torch.arange(len(items)) < len(samples)}

    @torch.no_grad()
    def validate(self, examples: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """Return the NDCG@10 of some validation users on their candidates."""
        candidates = self.validation_candidates.take(examples)
        histories = self.validation.take(examples).histories
        scores = yes_no_scores(self.module, self.prompts, histories, candidates.items)
        return {"ndcg@10": ndcg_at_k(target_ranks(scores, candidates.target_columns), 10)}


@torch.no_grad()
def yes_no_scores(
    module: YesNoModule, prompts: YesNoPrompts, histories: Sequence[History], candidates: NDArray[np.int64]
) -> Scores:
    """Return `(B, C)` log p(Yes) - log p(No), questions of similar length at a time; `-inf` where a candidate is 0."""
    scores = np.full(candidates.shape, -np.inf)
    rows, columns = np.nonzero(candidates)
    kept = [history[-prompts.processor.history_in_prompt :].tolist() for history in histories]
    order = np.argsort([len(kept[row]) for row in rows], kind="stable")
    device = next(module.parameters()).device
    for start in range(0, len(order), PROMPTS_AT_ONCE):
        part = order[start : start + PROMPTS_AT_ONCE]
        batch = prompts.batch([prompts.tokens(kept[rows[i]], int(candidates[rows[i], columns[i]])) for i in part])
        found = module.scores({name: value.to(device) for name, value in batch.items()})
        scores[rows[part], columns[part]] = found.double().cpu().numpy()
    return scores


class TALLRecRanker:
    """Rank by how much rather the LLM answers Yes than No.

    Args:
        model: The tuned LLM.
        prompts: The questions.
        data: Its training part gives the popularity, by which the whole catalogue is narrowed down.
        name: The method's name in reports.
        num_ranked: Of the most popular unseen items, those the LLM ranks; the rest follow by popularity.
    """

    ranks_catalogue = False  # the LLM reads a prompt for each item

    def __init__(
        self, model: YesNoModule, prompts: YesNoPrompts, data: PreparedData, name: str, num_ranked: int = 20
    ) -> None:
        self.model, self.prompts, self.name, self.num_ranked = model.eval(), prompts, name, num_ranked
        self.popularity = PopularityRanker(data.item_counts("train"))

    def score(self, histories: Sequence[History], candidates: NDArray[np.int64]) -> Scores:
        """Return `(B, C)` scores, each of one question that names no other candidate."""
        return yes_no_scores(self.model, self.prompts, histories, candidates)

    def retrieve(self, histories: Sequence[History], top_k: int) -> tuple[NDArray[np.int64], Scores]:
        """Return the most popular unseen items, the first `num_ranked` in the LLM's order."""
        return reranked(self, self.popularity, histories, top_k, self.num_ranked)


class TALLRec(Method):
    """TALLRec (arXiv 2305.00447): only LoRA weights train, on yes/no questions about the targets of stage 2.

    Options beside the LLM's and the prompt's: `rank`, `lora_alpha`, `lora_dropout`, `target_modules` (a list of names
    or `all-linear`; the attention's query and value as published where the LLM has modules of these names),
    `negatives` for each target, and `answers`, the two words.
    """

    name = "tallrec"
    reads_llm = True
    paper = "Bao et al., RecSys 2023, arXiv 2305.00447"
    simplified = (
        "Interactions tell no dislike, so the prompt has no unpreferred items and negatives are sampled; one stage of "
        "tuning, without the general instructions (alpaca) before it; over the whole catalogue it reorders the most "
        "popular items."
    )
    options: ClassVar[tuple[str, ...]] = (
        *LLM_OPTIONS,
        *("targets", "history_in_prompt", "num_candidates", "prompt"),
        *(*LORA, "target_modules", "negatives", "answers"),
    )

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Tune the LLM's LoRA weights and return the ranker by yes or no."""
        args = required_llm(self, setting)
        check_same_settings(self, setting, args.llm.source)
        language_model, tokenizer = chosen_llm(args, setting)
        answers = tuple(setting.options.get("answers", ANSWERS))
        if len(answers) != 2 or answers[0] == answers[1]:
            raise ALLMRecError(f"answers of the method {self.name} must be two different words; got {list(answers)}")
        reserved = 1 + max(len(SlotText(tokenizer).inside(f" {word}")) for word in answers)
        template = _template(args, data)
        processor = llm_processor(tokenizer, language_model, template, data, args, reserved=reserved)
        prompts = YesNoPrompts(processor, answers)
        language_model = with_lora(language_model, setting)
        module = YesNoModule(language_model, prompts, args.llm.source)
        arguments = stage_arguments(setting, "project")
        task = TALLRecTask(module, prompts, data, args, int(setting.options.get("negatives", 1)), arguments)
        run_stage(task, arguments, setting.folder / "tallrec", resume=True)
        return TALLRecRanker(on_device(module), prompts, data, self.name)


def with_lora(language_model: Any, setting: Setting) -> Any:
    """Return the LLM with fresh LoRA weights, the only ones that take gradients.

    They are float32 whatever the LLM is, as peft's own models have them: Adam's steps vanish in half precision.

    Raises:
        ALLMRecError: when `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ALLMRecError("TALLRec needs the package peft: pip install 'allmrec-hf[benchmark]'") from error
    names = {name.rpartition(".")[2] for name, _ in language_model.named_modules()}
    chosen = setting.options.get("target_modules")
    if chosen is None:
        chosen = list(PAPER_MODULES) if names >= set(PAPER_MODULES) else "all-linear"
    values = {name: setting.options.get(name, value) for name, value in LORA.items()}
    config = LoraConfig(r=values.pop("rank"), target_modules=chosen, **values)
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed)
        language_model = inject_adapter_in_model(config, language_model)
    for name, parameter in language_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return language_model


def _template(args: ALLMRecTrainingArguments, data: PreparedData) -> PromptTemplate:
    if args.project.prompt is not None:
        template = PromptTemplate.from_dict(args.project.prompt)
        if not template.lists_candidates:
            raise ALLMRecError("TALLRec asks about the one item that stands for {candidates}; put it into the prompt")
        return template
    noun, verb, verb_past = domain_words(data.domain, data.verbs)
    return PromptTemplate(_PROMPT.format(noun=noun, verb=verb, verb_past=verb_past))
