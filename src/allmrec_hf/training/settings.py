"""What a run is made of, by itself and by preset, and which of it each stage leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from ..cf_encoder import MODEL_TYPE_PREFIX
from ..errors import ALLMRecError
from ..prompt import PromptTemplate
from .arguments import PRESETS

DEFAULT_BACKBONE = "sasrec"
DEFAULT_TEXT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS = ("alpha", "beta", "matching", "recommendation", "cross_reconstruction")
ALIGNMENT_LOSS = (*WEIGHTS, "matching_loss", "matching_temperature")
MatchingLoss = Literal["mse", "infonce"]
ProjectorKind = Literal["mlp", "linear", "resampler"]
ItemEmbedding = Literal["auto", "cf", "text", "random"]
CHOICES = {
    "matching_loss": get_args(MatchingLoss),
    "projector": get_args(ProjectorKind),
    "item_embedding": get_args(ItemEmbedding),
}
# Settings that a stage is trained with; a later stage run alone takes them over from `run.json`. Stage 2 has the rest.
SETTINGS_OF_STAGE: dict[str, tuple[str, ...]] = {
    "cf": ("cf", "cf_options", "cf_checkpoint", "cf_module", "missing_items"),
    "align": (
        "text_encoder",
        "fine_tune_text_encoder",
        "joint_dim",
        "positions",
        *ALIGNMENT_LOSS,
    ),
}


@dataclass(frozen=True)
class RunSettings:
    """What a run is made of; what a stage's loop needs is in `StageArguments`.

    Attributes:
        cf: Name of the CF backbone; that of `cf_checkpoint`, or `sasrec`, where not given.
        cf_options: Fields of its config, such as `hidden_size`; the data give `num_items`.
        cf_checkpoint: Folder or Hub id of a trained backbone to be used in place of training one; its items are matched
            by id to those of the data.
        missing_items: What happens where it lacks items of the data: `"refuse"`, or `"zeros"` to take them as cold.
        cf_module: A Python module that registers a backbone of one's own; it is imported first, which runs its code.
        llm: Id or path of the frozen LLM.
        llm_revision: Its revision on the Hub.
        llm_options: Passed to `AutoModelForCausalLM.from_pretrained`: dtype, device_map, quantization_config, ...
        text_encoder: Id or path of the text encoder.
        fine_tune_text_encoder: Train it in stage 1 (the paper), or embed every text once.
        joint_dim: d_joint.
        alpha: Weight of the item reconstruction.
        beta: Weight of the text reconstruction.
        matching: Weight of the matching of both sides; 1 in the paper.
        recommendation: Weight of the recommendation loss; 1 in the paper.
        matching_loss: `"mse"` (the paper) or `"infonce"`, see `losses.contrastive_loss`.
        matching_temperature: Of InfoNCE; that of most published two-tower models where not given.
        cross_reconstruction: Weight of the CF embedding decoded from text in stage 1, not in the paper.
        positions: Stage 1 trains on the `"last"` position of each user or on `"all"`.
        targets: Stage 2's targets, `"validation"` items that the backbone has not seen, or the last of `"train"`.
        projection_loss: `"lm"` (the paper) or `"listwise"`.
        temperature: Of the listwise softmax.
        warm_start_steps: Steps of the projectors' warm start before stage 2, not in the paper; 0 for none.
        history_in_prompt: History items that the prompt names.
        num_candidates: Candidates in a training prompt.
        prompt: A prompt template of one's own; the paper's in the words of the data's domain where not given.
        no_user_representation: Stage 2's prompt has no user representation.
        no_joint_embedding: Stage 2's prompt has no joint embeddings.
        projector: Kind of the projectors, see `ALLMRecConfig.projector`.
        projector_tokens: Learned queries of the resampler.
        item_embedding: The rule of `ALLMRecConfig.item_embedding`.
        score_normalization: As in `ALLMRecConfig`.
        include_llm: Save the LLM's weights in the run folder too.
        checkpoint_activations: Trade time for memory in stage 2.
    """

    cf: str | None = None
    cf_options: dict[str, Any] | None = None
    cf_checkpoint: str | None = None
    missing_items: Literal["refuse", "zeros"] = "refuse"
    cf_module: str | None = None
    llm: str | None = None
    llm_revision: str | None = None
    llm_options: dict[str, Any] | None = None
    text_encoder: str = DEFAULT_TEXT_ENCODER
    fine_tune_text_encoder: bool = True
    joint_dim: int = 128
    alpha: float = 0.5
    beta: float = 0.5
    matching: float = 1.0
    recommendation: float = 1.0
    matching_loss: MatchingLoss = "mse"
    matching_temperature: float = 0.07
    cross_reconstruction: float = 0.0
    positions: Literal["last", "all"] = "last"
    targets: Literal["validation", "train"] = "validation"
    projection_loss: Literal["lm", "listwise"] = "lm"
    temperature: float = 1.0
    warm_start_steps: int = 0
    history_in_prompt: int = 10
    num_candidates: int = 20
    prompt: dict[str, str] | None = None
    no_user_representation: bool = False
    no_joint_embedding: bool = False
    projector: ProjectorKind = "mlp"
    projector_tokens: int = 8
    item_embedding: ItemEmbedding = "auto"
    score_normalization: Literal["sum", "mean"] = "sum"
    include_llm: bool = False
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ALLMRecError(
                    f"{name} is a weight of stage 1's loss: a finite number of at least 0, not {getattr(self, name)}"
                )
        if not any(getattr(self, name) for name in WEIGHTS):
            raise ALLMRecError(f"every weight of stage 1's loss is 0 ({', '.join(WEIGHTS)}), so nothing is trained")
        if not 0 < self.matching_temperature < float("inf"):
            raise ALLMRecError(f"matching_temperature must be greater than 0, got {self.matching_temperature}")
        if not 0 < self.temperature < float("inf"):
            raise ALLMRecError(f"temperature must be greater than 0, got {self.temperature}")
        if self.projector_tokens < 1:
            raise ALLMRecError(f"projector_tokens must be at least 1, got {self.projector_tokens}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ALLMRecError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}")

    def alignment_loss(self) -> dict[str, Any]:
        """Return what stage 1's loss is made of, as `AlignmentModule` takes it."""
        return {name: getattr(self, name) for name in ALIGNMENT_LOSS}

    def template(self, domain: str) -> PromptTemplate:
        """Return the prompt template of stage 2 for data of a domain.

        Raises:
            ALLMRecError: when a template of one's own has slots that the settings leave out, or when no slot is left,
                so that there is nothing to train.
        """
        users, items = not self.no_user_representation, not self.no_joint_embedding
        if self.prompt is None:
            template = PromptTemplate.for_domain(domain, user_representation=users, joint_embedding=items)
        else:
            template = PromptTemplate.from_dict(self.prompt)
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


SETTINGS_OF_STAGE["project"] = tuple(
    field.name
    for field in fields(RunSettings)
    if field.name not in (*SETTINGS_OF_STAGE["cf"], *SETTINGS_OF_STAGE["align"])
)


def run_settings(preset_name: str, cf: str | None = None) -> RunSettings:
    """Return the settings of a preset for a CF backbone, the default one where not given.

    `"default"` is the strongest recipe we know, `"paper"` the published one (arXiv 2404.11343), `"quick"` a few
    minutes on two cores whatever the data, `"demo"` the default on the invented world. Of the backbones the paper
    describes its SASRec alone; another one takes over the width of its vectors and no more.
    """
    if preset_name == "paper":
        options: dict[str, Any] = {"hidden_size": 50}
        if cf is None or cf.removeprefix(MODEL_TYPE_PREFIX) == DEFAULT_BACKBONE:
            options |= {"dropout": 0.5, "loss": "bce", "attend_padding": True}
        return RunSettings(cf=cf, cf_options=options, targets="train", item_embedding="cf")
    beyond = RunSettings(cf=cf, cross_reconstruction=1.0, warm_start_steps=600)
    if preset_name == "default":
        return beyond
    if preset_name == "demo":
        return replace(beyond, joint_dim=64, include_llm=True)
    if preset_name == "quick":
        return replace(beyond, fine_tune_text_encoder=False)
    raise ALLMRecError(f"unknown preset {preset_name!r}; known are {', '.join(PRESETS)}")
