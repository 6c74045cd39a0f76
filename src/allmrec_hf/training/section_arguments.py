"""The options of training by section, declared once: each stage's own, those of the rankers, and the LLM's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..cf_encoder import BUILT_IN, MODEL_TYPE_PREFIX, cf_encoder_class, cf_encoder_types
from ..errors import ALLMRecError
from ..prompt import PromptTemplate
from .option_fields import Checked, option
from .stage_arguments import LARGEST_SEED, STEPS, StageArguments

DEFAULT_BACKBONE = "sasrec"
DEFAULT_TEXT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LEAST_TEMPERATURE = 0.01  # that infonce's may be trained down to
BACKBONE_NAMES = ", ".join(name.removeprefix(MODEL_TYPE_PREFIX) for name in BUILT_IN)


@dataclass(frozen=True)
class BackboneArguments(StageArguments):
    """Hold the settings of stage 0, which trains the backbone or takes a trained one."""

    name: str = option(
        DEFAULT_BACKBONE,
        f"The backbone: the name of one to be trained ({BACKBONE_NAMES}), or the folder or Hub id of a trained one, "
        "whose items are matched by id to those of the data.",
        flag="--backbone",
    )
    options: dict[str, Any] | None = option(None, "Fields of its config, such as hidden_size; the data give num_items.")
    module: str | None = option(
        None, "Python module that registers a backbone of your own; it is imported first, which runs its code."
    )
    missing_items: Literal["refuse", "zeros"] = option(
        "refuse", "Items of the data that a trained backbone lacks: refuse, or zeros to take them as cold."
    )

    @property
    def trained(self) -> str | None:
        """The folder or Hub id of a trained backbone, or None where one is to be trained."""
        return None if is_backbone_name(self.name) else self.name


@dataclass(frozen=True)
class AlignArguments(StageArguments):
    """Hold the settings of stage 1, which aligns the item embeddings with the items' texts."""

    text_encoder: str = option(
        DEFAULT_TEXT_ENCODER, "sentence-transformers id or folder; demo: the package's tiny one.", flag="--text-encoder"
    )
    fine_tune_text_encoder: bool = option(True, "Train the text encoder (the paper), or embed every text once.")
    joint_dim: int = option(128, "Width of the joint space (d').", at_least=1)
    positions: Literal["last", "all"] = option("last", "Positions of a user's sequence that are targets.")
    item_reconstruction_weight: float = option(
        0.5, "Weight of the item reconstruction (the paper's alpha).", at_least=0
    )
    text_reconstruction_weight: float = option(0.5, "Weight of the text reconstruction (the paper's beta).", at_least=0)
    matching_weight: float = option(1.0, "Weight of the matching of both sides; 1 in the paper.", at_least=0)
    recommendation_weight: float = option(1.0, "Weight of the recommendation loss; 1 in the paper.", at_least=0)
    cross_reconstruction_weight: float = option(
        0.0, "Weight of the item embedding decoded from text; 0 in the paper.", at_least=0
    )
    text_recommendation_weight: float = option(
        0.0,
        "Weight of finding a target among the catalogue, half of which is decoded from texts; 0 in the paper.",
        at_least=0,
    )
    matching_loss: Literal["mse", "infonce"] = option("mse", "How both sides are matched: mse (the paper) or infonce.")
    matching_temperature: float = option(0.07, "Temperature of infonce.", above=0)
    learn_matching_temperature: bool = option(
        False,
        f"Train infonce's temperature too, beginning at matching_temperature and never below {LEAST_TEMPERATURE}.",
    )
    text_encoder_learning_rate: float | None = option(
        None,
        "Learning rate of the text encoder where it is trained too; learning_rate, the aligner's, where not given.",
        above=0,
    )
    metric_for_best_model: Literal["loss", "ndcg@10"] = option(
        "loss",
        "What a validation is judged by: the loss, or NDCG@10 of validation candidates, all decoded from their texts.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_matching_temperature and (self.matching_loss != "infonce" or not self.matching_weight):
            raise ALLMRecError(
                "learn_matching_temperature is for matching_loss infonce with a matching_weight above 0; give both"
            )
        if self.learn_matching_temperature and self.matching_temperature < LEAST_TEMPERATURE:
            raise ALLMRecError(
                f"matching_temperature is {self.matching_temperature}, but one that is learned stays at "
                f"{LEAST_TEMPERATURE} or above"
            )
        if self.text_encoder_learning_rate is not None and not self.fine_tune_text_encoder:
            raise ALLMRecError(
                "text_encoder_learning_rate is for a text encoder that is trained, but fine_tune_text_encoder is no "
                "(as in the preset quick); give --align.fine-tune-text-encoder, in Python fine_tune_text_encoder=True"
            )
        if self.metric_for_best_model != "loss" and self.eval_strategy == "no":
            raise ALLMRecError(
                f"metric_for_best_model {self.metric_for_best_model} is of validations, but eval_strategy is no"
            )
        if not any(getattr(self, name) for name in ALIGNMENT_WEIGHTS):
            raise ALLMRecError(
                f"every weight of stage 1's loss is 0 ({', '.join(ALIGNMENT_WEIGHTS)}), so nothing is trained"
            )

    def loss(self) -> dict[str, Any]:
        """Return what stage 1's loss is made of, as `AlignmentModule` takes it."""
        letters = ("alpha", "beta", "matching", "recommendation", "cross_reconstruction", "text_recommendation")
        weights = {letter: getattr(self, name) for letter, name in zip(letters, ALIGNMENT_WEIGHTS, strict=True)}
        matching = ("matching_loss", "matching_temperature", "learn_matching_temperature")
        return weights | {name: getattr(self, name) for name in matching}


ALIGNMENT_WEIGHTS = tuple(name for name in AlignArguments.own_names() if name.endswith("_weight"))


@dataclass(frozen=True)
class ProjectArguments(StageArguments):
    """Hold the settings of stage 2, which trains the projectors around the frozen LLM."""

    targets: Literal["validation", "train"] = option(
        "validation",
        "Whose items the LLM learns to name: validation items, unseen by the backbone, or the last of train.",
    )
    num_candidates: int = option(
        20, "Candidates in a training prompt; fewer where the data's sets are smaller.", at_least=2
    )
    history_in_prompt: int = option(10, "The latest history items that a prompt names.", at_least=1)
    max_title_tokens: int | None = option(
        None,
        "Tokens of a title in a prompt's lists, cut behind a word; candidates and answers keep as many more as tell "
        "the title from every other. Whole titles where not given.",
        at_least=1,
    )
    candidates_in_prompt: bool = option(
        True, "Whether a prompt lists the candidates (the paper); without, prompts are a fraction as long."
    )
    answer_boundary: Literal["natural", "paper"] = option(
        "paper",
        "Whose the blank between prompt and answer is: natural, the answer's, with whose opening quote a byte-pair "
        "tokenizer writes one token; or paper, the prompt's. The text is the same.",
    )
    prompt: dict[str, str] | None = option(
        None,
        "Prompt template with the fields prompt, item, separator and answer; the paper's in the words of the data's "
        "domain where not given.",
        flag="--prompt",
    )
    no_user_representation: bool = option(False, "Leave the user representation out of the prompt.")
    no_joint_embedding: bool = option(False, "Leave the joint embeddings out of the prompt.")
    projection_loss: Literal["lm", "listwise"] = option(
        "lm", "lm (the paper, eq. 9), or a listwise softmax over the candidates."
    )
    listwise_temperature: float = option(1.0, "Temperature of the listwise softmax.", above=0)
    warm_start_steps: int = option(
        0, "Steps of the projectors' warm start, without the LLM; 0 in the paper.", at_least=0
    )
    projector: Literal["mlp", "linear", "resampler"] = option("mlp", "Kind of the projectors; mlp in the paper.")
    projector_tokens: int = option(8, "Learned queries of the resampler.", at_least=1)
    item_embedding: Literal["auto", "cf", "text", "random"] = option(
        "auto",
        "Which joint embedding stands for an item: cf, text, auto (text where the backbone was not trained) or random.",
    )
    score_normalization: Literal["sum", "mean", "calibrated", "vector_gain"] = option(
        "sum",
        "What the ranker likelihood scores a candidate by: the sum (the paper) or the mean of its title's "
        "log-likelihoods, or the sum less that without the user (calibrated) or without the vectors (vector_gain), "
        "which reads two prompts.",
    )
    gradient_checkpointing: bool = option(False, "Less memory, more time.", free_on_resume=True)
    max_tokens_per_batch: int | None = option(
        None,
        "Tokens that the LLM reads at once, padding included: a batch is read in parts, whose gradients are summed. "
        "Not given: 1,024 on a CPU, else the batch.",
        at_least=1,
        free_on_resume=True,
    )

    def words(
        self, domain: str, verbs: tuple[str, str] | None = None, users: bool = True, items: bool = True
    ) -> PromptTemplate:
        """Return the prompt template for data of a domain, whatever slots it has.

        Args:
            domain: What an item is called.
            verbs: See `PromptTemplate.for_domain`.
            users: Whether the paper's prompt has the user's slot; a template of one's own has what it has.
            items: Whether it has the items' slots.

        Raises:
            ALLMRecError: when a template of one's own and `candidates_in_prompt` do not agree.
        """
        if self.prompt is None:
            template = PromptTemplate.for_domain(domain, users, items, verbs, self.candidates_in_prompt)
        else:
            template = PromptTemplate.from_dict(self.prompt)
        if template.lists_candidates and not self.candidates_in_prompt:
            raise ALLMRecError(
                "candidates_in_prompt is no, but the prompt template has {candidates}; take out one of the two"
            )
        if not template.lists_candidates and self.candidates_in_prompt:
            raise ALLMRecError(
                "the prompt template has no {candidates}, so that no prompt would list them; put it in, or set "
                "candidates_in_prompt to no"
            )
        return template.with_natural_boundary() if self.answer_boundary == "natural" else template

    def template(self, domain: str, verbs: tuple[str, str] | None = None) -> PromptTemplate:
        """Return the prompt template of stage 2 for data of a domain.

        Raises:
            ALLMRecError: when a template of one's own has slots that the settings leave out, or when no slot is left,
                so that there is nothing to train.
        """
        users, items = not self.no_user_representation, not self.no_joint_embedding
        template = self.words(domain, verbs, users, items)
        for wanted, found, slot, name in (
            (users, template.has_user_slot, "{user}", "no_user_representation"),
            (items, template.has_item_slots, "{vector}", "no_joint_embedding"),
        ):
            if found and not wanted:
                raise ALLMRecError(f"{name} is set, but the prompt template has {slot}; take out one of the two")
        if not (template.has_user_slot or template.has_item_slots):
            raise ALLMRecError(
                "the prompt has no slot for a user or an item vector, so stage 2 has nothing to train; keep the user "
                "representation or the joint embeddings, or evaluate the LLM alone"
            )
        return template


@dataclass(frozen=True)
class RetrieveArguments(StageArguments):
    """Hold the settings of the ranker `retrieval`, whose head is trained around the frozen LLM."""

    dim: int = option(128, "Width of the space in which users and items are compared.", at_least=1)
    num_llm_layers: float | None = option(
        None,
        "The LLM's first layers that are run; the cost falls with them. A value below 1 is a share of its layers, "
        "rounded up. All where not given.",
        above=0,
    )
    llm_depths: str | None = option(
        None,
        "Depths to train at in place of num_llm_layers, with commas between, such as 2,4,8; the one that ranks "
        "validation users best stays.",
    )
    history_in_prompt: int = option(10, "The latest history items that a prompt holds.", at_least=1)
    history_titles: bool = option(
        True, "Whether a history names titles, or shows vectors alone, which is some five times cheaper."
    )
    positions: int | None = option(
        None, "The latest positions of a user's sequence that are targets; all where not given.", at_least=1
    )
    num_negatives: int = option(32, "Items drawn for each batch, beside the targets of its other users.", at_least=1)
    distillation_weight: float = option(1.0, "Weight of the distance to the user representation.", at_least=0)
    uniformity_weight: float = option(0.1, "Weight of the uniformity of users and items.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm_depths is not None and self.num_llm_layers is not None:
            raise ALLMRecError("num_llm_layers and llm_depths are both given; give one")
        if self.llm_depths is not None and self.eval_strategy == "no":
            raise ALLMRecError("llm_depths are chosen among by validation, but eval_strategy is no")
        self.layers_of(1)

    def layers_of(self, whole: int) -> list[int | None]:
        """Return the depths to train at, as numbers of layers; None: all.

        Args:
            whole: The LLM's layers, of which a share is taken.

        Raises:
            ALLMRecError: when a depth is neither a whole number of layers nor a share.

        Example:
            >>> RetrieveArguments(num_llm_layers=0.15).layers_of(30)
            [5]
            >>> RetrieveArguments(llm_depths="2, 0.5").layers_of(12)
            [2, 6]
        """
        if self.llm_depths is None:
            return [None if self.num_llm_layers is None else _layers("num_llm_layers", self.num_llm_layers, whole)]
        return list(dict.fromkeys(_layers("llm_depths", text, whole) for text in split_names(self.llm_depths)))


def _layers(name: str, value: Any, whole: int) -> int:
    """Return a number of layers that was given as such or as a share of `whole`."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number < 1:
        return math.ceil(number * whole)
    if number >= 1 and number.is_integer():
        return int(number)
    raise ALLMRecError(f"{name} must be a whole number of layers, or a share of them below 1; got {value!r}")


RANKER_STAGES = {
    "likelihood": "project",
    "likelihood_sum": "project",
    "likelihood_mean": "project",
    "likelihood_calibrated": "project",
    "likelihood_vector_gain": "project",
    "letter": "project",
    "retrieval": "retrieve",
    "zero_shot": "rank",
    "fusion": "rank",
}


@dataclass(frozen=True)
class RankArguments(Checked):
    """Hold what the checkpoint ranks by, and how its fusion is fitted."""

    rankers: str = option(
        "likelihood",
        "Rankers that are trained, with commas between: likelihood (the paper), its forms likelihood_sum, "
        "likelihood_mean, likelihood_calibrated and likelihood_vector_gain beside it, letter, retrieval, zero_shot "
        "(the LLM by itself), fusion, which alone needs no LLM. The backbone's own is always there.",
        flag="--rankers",
    )
    ranker: str | None = option(
        None, "What ranks where a request asks for none; the best on validation users where not given."
    )
    fusion_parts: str | None = option(
        None,
        "What the fusion is made of; where not given cf,text,words and retrieval, or likelihood without it.",
    )
    num_candidates: int = option(
        500,
        "Items that a fusion is fitted on for each user, drawn from the whole catalogue; the prepared candidates where "
        "a part asks the LLM for each.",
        at_least=2,
    )
    max_validation_users: int = option(2_000, "Validation users that it is fitted on at most.", at_least=20)
    cold_weight: float = option(
        1.0,
        "How much a validation user counts whose target is cold when the fusion is fitted; others count 1. Above 1, "
        "cold items rank higher and warm ones lower.",
        above=0,
    )
    seed: int = option(0, "Seed of the users, their items and the folds.", at_least=0, at_most=LARGEST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = split_names(self.rankers)
        unknown = sorted(set(names) - set(RANKER_STAGES))
        if unknown or not names:
            raise ALLMRecError(f"rankers are of {', '.join(RANKER_STAGES)}, with commas between; got {self.rankers!r}")

    @property
    def asks_llm(self) -> bool:
        """Whether a ranker of the run reads prompts; a fusion alone is made of parts that need no LLM."""
        return set(split_names(self.rankers)) != {"fusion"}

    def steps(self) -> tuple[str, ...]:
        """Return the steps of a run that gives these rankers.

        Example:
            >>> RankArguments(rankers="retrieval,fusion").steps()
            ('backbone', 'align', 'retrieve', 'rank')
        """
        needed = {"backbone", "align", *(RANKER_STAGES[name] for name in split_names(self.rankers))}
        return tuple(step for step in STEPS if step in needed)


def split_names(text: str) -> list[str]:
    """Return names that were written with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class LLMArguments(Checked):
    """Hold what is said of the frozen LLM."""

    name: str | None = option(
        None,
        "Hub id or folder of a causal LM or of its adapter, or a .gguf file; demo: the package's tiny one.",
        flag="--llm",
    )
    revision: str | None = option(None, "Its revision on the Hub.", flag="--llm-revision")
    gguf_file: str | None = option(
        None, "Name of the GGUF file, where --llm is a folder or a Hub id that has such files.", flag="--gguf-file"
    )
    gguf_packed: bool = option(
        False,
        "Keep a GGUF file's weights packed where transformers has a kernel for them (a GPU, and the package kernels), "
        "which takes no gradient through prompts of 8 tokens or less; else they are unpacked.",
        free_on_resume=True,
    )
    dtype: str | None = option(None, "Its dtype, such as bfloat16.", free_on_resume=True)
    device_map: str | None = option(None, "Its device map, such as auto.", free_on_resume=True)
    load_in_8bit: bool = option(False, "Quantize it to 8 bits (extra quantization).")
    options: dict[str, Any] | None = option(
        None,
        "More options of AutoModelForCausalLM.from_pretrained, such as attn_implementation=flash_attention_2.",
    )
    torch_compile: bool = option(
        False, "Compile its layers (torch.compile): faster on a GPU after some minutes.", free_on_resume=True
    )
    include_llm: bool = option(
        False, "Save its weights in the run folder too.", flag="--include-llm", free_on_resume=True
    )

    check_memory: bool = option(
        True, "Refuse an LLM whose weights do not fit into memory before it is loaded.", free_on_resume=True
    )

    @property
    def source(self) -> str | None:
        """The LLM's name, of one in a GGUF file that file's."""
        return self.name if self.gguf_file is None else f"{self.name}/{self.gguf_file}"

    def loading_options(self) -> dict[str, Any]:
        """Return the options of `training.llms.load_llm`: those of transformers, and those of GGUF files and memory."""
        named: dict[str, Any] = {"dtype": self.dtype, "device_map": self.device_map, "gguf_file": self.gguf_file}
        named |= {"gguf_packed": self.gguf_packed or None, "check_memory": None if self.check_memory else False}
        found = {**{name: value for name, value in named.items() if value is not None}, **(self.options or {})}
        if self.load_in_8bit:
            from transformers import BitsAndBytesConfig

            found["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        return found


SECTIONS: dict[str, type[Checked]] = {
    "backbone": BackboneArguments,
    "align": AlignArguments,
    "project": ProjectArguments,
    "retrieve": RetrieveArguments,
    "rank": RankArguments,
    "llm": LLMArguments,
}


def is_backbone_name(name: str) -> bool:
    """Tell whether a name is that of a backbone that can be trained."""
    return name in cf_encoder_types() or MODEL_TYPE_PREFIX + name in cf_encoder_types()


def recipe_of(name: str) -> dict[str, Any]:
    """Return the loop's settings that suit a backbone that is to be trained (`CFEncoder.training_recipe`)."""
    return dict(cf_encoder_class(name).training_recipe) if is_backbone_name(name) else {}
