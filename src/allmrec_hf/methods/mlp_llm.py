"""MLP-LLM: project the item embeddings of the backbone into the LLM without a joint space."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from ..configuration_allmrec import ALLMRecConfig
from ..data.prepared import PreparedData
from ..evaluation.llm_ranker import ALLMRecRanker
from ..evaluation.protocol import Ranker
from ..modeling_allmrec import ALLMRecModel
from ..training.arguments import ALLMRecTrainingArguments
from ..training.loop import run_stage
from ..training.pretrained_backbone import load_backbone
from ..training.projection import ProjectionModule, ProjectionTask
from ..training.warm_start import warm_start
from .llm_parts import (
    LLM_OPTIONS,
    STAGE_2_OPTIONS,
    chosen_llm,
    llm_processor,
    on_device,
    required_llm,
    stage_options,
)
from .method import Method, Setting
from .shared import check_same_settings, run_until, stage_arguments


class IdentityAligner(nn.Module):
    """An aligner that changes nothing: the joint embedding of an item is its CF vector."""

    def encode_items(self, item_embeddings: torch.Tensor) -> torch.Tensor:
        """Return the CF item embeddings `(..., d_cf)` as they are."""
        return item_embeddings

    def decode_items(self, joint: torch.Tensor) -> torch.Tensor:
        """Return the joint embeddings `(..., d_cf)` as they are."""
        return joint


class MLPLLM(Method):
    """MLP-LLM, the baseline of arXiv 2404.11343: stage 2 of A-LLMRec without stage 1.

    Trained are the two projectors, on the targets of stage 2; backbone and LLM are frozen. An item that training never
    met has the backbone's untrained vector, as in the paper.
    """

    name = "mlp-llm"
    reads_llm = True
    paper = "Kim et al., KDD 2024, arXiv 2404.11343, baseline MLP-LLM"
    simplified = "Ranks candidates by the likelihood of their titles in place of matching generated text."
    options: ClassVar[tuple[str, ...]] = (
        *LLM_OPTIONS,
        *stage_options("backbone"),
        *STAGE_2_OPTIONS,
        *("no_user_representation", "projector", "projector_tokens", "num_permutations"),
    )

    def fit(self, data: PreparedData, setting: Setting) -> Ranker:
        """Train the projectors and return the ranker by title likelihood."""
        args = required_llm(self, setting)
        check_same_settings(self, setting, args.llm.source)
        template = args.project.template(data.domain, data.verbs)
        model, tokenizer = _untrained(data, setting, args)
        processor = llm_processor(
            tokenizer,
            model.language_model,
            template,
            data,
            args,
            model.cf_encoder.config.max_history_length,
        )
        arguments = stage_arguments(setting, "project")
        module = ProjectionModule(model, args.project.projection_loss, args.project.listwise_temperature)
        sizes = (args.project.num_candidates, arguments, args.project.max_tokens_per_batch)
        task = ProjectionTask(module, processor, data, args.project.targets, *sizes)
        if args.project.warm_start_steps:
            warm_start(task, data, args.project, setting.folder / "warm-start", resume=True)
        model.user_projector.requires_grad_(template.has_user_slot)  # what no prompt shows is not trained
        run_stage(task, arguments, setting.folder / "project", resume=True)
        permutations = int(setting.options.get("num_permutations", 1))
        return ALLMRecRanker(on_device(model), processor, name=self.name, num_permutations=permutations)


def _untrained(data: PreparedData, setting: Setting, args: ALLMRecTrainingArguments) -> tuple[ALLMRecModel, Any]:
    """Return the model around the trained backbone and the LLM, with fresh projectors, and the LLM's tokenizer."""
    backbone = load_backbone(run_until(data, setting, args, "backbone") / "backbone")
    language_model, tokenizer = chosen_llm(args, setting)
    width = backbone.config.hidden_size
    config = ALLMRecConfig(
        cf_config=backbone.config,
        joint_dim=width,
        text_dim=1,
        item_embedding="cf",
        projector=args.project.projector,
        projector_tokens=args.project.projector_tokens,
        base_model_name_or_path=args.llm.name,
        base_model_gguf_file=args.llm.gguf_file,
        score_normalization=args.project.score_normalization,
    )
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed)
        model = ALLMRecModel(config)
        model.cf_encoder.load_state_dict(backbone.state_dict())
        model.aligner = IdentityAligner()  # type: ignore[assignment]
        model.attach_language_model(language_model)
    if args.project.gradient_checkpointing:
        model.checkpoint_activations()
    return model, tokenizer
