"""The model: a CF encoder, an aligner and two projectors around a frozen causal LM (A-LLMRec, arXiv 2404.11343)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .aligner import ItemTextAligner
from .cf_encoder import build_cf_encoder, cf_config_from_dict
from .configuration_allmrec import ALLMRecConfig
from .errors import ALLMRecError, CheckpointError
from .indices import check_bounds, check_padded
from .item_table import ItemTable, random_joint_embeddings
from .modeling_pretrained import ALLMRecPreTrainedModel
from .outputs import ALLMRecOutput, RetrievalOutput
from .projector import build_projector
from .prompt import NO_SLOT, USER_SLOT
from .scoring import METHODS, check_method, verified_method


class ALLMRecModel(ALLMRecPreTrainedModel):
    """Recommends with a frozen LLM that reads projected user and item vectors beside the titles.

    The constructor builds the light part only (CF encoder, aligner, projectors, item table); `from_pretrained` and
    `attach_language_model` bring the LLM, which is frozen, in eval mode, and not part of the default checkpoint.

    Example:
        >>> from transformers import AutoModel
        >>> import allmrec_hf
        >>> model = AutoModel.from_pretrained(allmrec_hf.DEMO_CHECKPOINT)
        >>> model.config.base_model_name_or_path is None or model.language_model is not None
        True
    """

    config: ALLMRecConfig

    def __init__(self, config: ALLMRecConfig) -> None:
        super().__init__(config)
        cf_config = cf_config_from_dict(config.cf_config or {})
        self.cf_encoder = build_cf_encoder(cf_config)  # first, so that model.device describes the light part
        self.aligner = ItemTextAligner(cf_config.hidden_size, config.text_dim, config.joint_dim)
        self.item_table = ItemTable(cf_config.num_items, config.joint_dim)
        self.user_projector: Any = None  # a projector once the width of the LLM is known
        self.item_projector: Any = None
        if config.llm_dim is not None:
            self._build_projectors(config.llm_dim)
        self.language_model: Any = None
        self.scoring_method = "naive"
        self._random_items: tuple[int, torch.Tensor] | None = None  # seed, (N + 1, d_joint); made on demand, not saved
        self.register_state_dict_post_hook(_drop_language_model)
        self.register_load_state_dict_post_hook(_expect_no_language_model)
        self.post_init()
        self.cf_encoder.eval()

    def _build_projectors(self, llm_dim: int) -> None:
        kind, tokens = self.config.projector, self.config.projector_tokens
        user_dim = self.cf_encoder.config.hidden_size
        self.user_projector = build_projector(kind, user_dim, llm_dim, "leaky_relu", tokens)
        self.item_projector = build_projector(kind, self.config.joint_dim, llm_dim, "gelu", tokens)

    def get_input_embeddings(self) -> nn.Module:
        """Return the CF encoder's item table, the light part's only embedding."""
        return self.cf_encoder.get_input_embeddings()

    # -- the frozen LLM

    def attach_language_model(self, language_model: Any, scoring_method: str = "auto") -> None:
        """Freeze a causal LM and make it this model's.

        Builds fresh projectors where the model has none yet. The fast scoring methods are checked against the naive
        one on a few tokens, and the fastest equal one is used.

        Args:
            language_model: A causal LM with its weights.
            scoring_method: `"auto"`, `"tree"`, `"prefix_cache"` or `"naive"`.

        Raises:
            CheckpointError: when the LLM's width is not the one the projectors were trained for.
        """
        embeddings = language_model.get_input_embeddings()
        llm_dim = embeddings.weight.shape[1]
        if self.config.llm_dim is None:
            self.config.llm_dim = llm_dim
            text_config = copy.deepcopy(language_model.config)
            self.config.text_config = text_config
            text_config._name_or_path = ""  # base_model_name_or_path says where it comes from
            self._build_projectors(llm_dim)
            for projector in (self.user_projector, self.item_projector):
                projector.apply(self._init_weights)
        elif llm_dim != self.config.llm_dim:
            raise CheckpointError(
                f"the projectors were trained for an LLM of width d_llm = {self.config.llm_dim} "
                f"({self.config.base_model_name_or_path}), this one has {llm_dim}; give the LLM of the training"
            )
        language_model.requires_grad_(False)
        language_model.eval()
        self.language_model = language_model
        self._no_split_modules = sorted({*(self._no_split_modules or []), *(language_model._no_split_modules or [])})
        if getattr(language_model, "hf_device_map", None) is not None:
            self.hf_device_map = language_model.hf_device_map
        for part in (self.cf_encoder, self.aligner, self.item_table, self.user_projector, self.item_projector):
            part.to(embeddings.weight.device)
        self.scoring_method = verified_method(language_model, scoring_method)

    def _require_language_model(self) -> Any:
        if self.language_model is None:
            what = "has no projectors yet: train it to stage 2 (`allmrec train --stage project`)"
            if self.config.llm_dim is not None:
                what = "was loaded or built without its LLM: use from_pretrained, or attach_language_model(llm)"
            raise CheckpointError(f"this model {what}")
        return self.language_model

    def train(self, mode: bool = True) -> "ALLMRecModel":
        """Set training mode for the projectors; what is frozen stays in eval mode, dropout off."""
        super().train(mode)
        self.cf_encoder.eval()
        if self.language_model is not None and not self._checkpoints_activations:
            self.language_model.eval()
        return self

    _checkpoints_activations = False

    def checkpoint_activations(self) -> None:
        """Trade time for memory in stage 2: recompute the LLM's activations in the backward pass.

        transformers only does so in train mode, so every dropout of the LLM is set to 0 first.
        """
        language_model = self._require_language_model()
        for module in language_model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        language_model.train()
        self._checkpoints_activations = True

    # -- vectors

    def item_vectors(self, item_indices: torch.Tensor) -> torch.Tensor:
        """Return joint embeddings `(..., d_joint)` of items: `e_i`, or `q_i` by the rule `config.item_embedding`.

        Args:
            item_indices: `(...)` catalogue indices from 1 to N; 0 gives what stands for padding.

        Raises:
            DataError: when one is out of range.
        """
        check_padded(item_indices, self.cf_encoder.num_items, "item_indices", look=not self.training)
        return self._item_vectors(item_indices)

    def _item_vectors(self, item_indices: torch.Tensor) -> torch.Tensor:
        if self.config.item_embedding == "random":
            return self._random_joint_embeddings()[item_indices]
        text = self.item_table.text_joint_embeddings[item_indices]
        if self.config.item_embedding == "text":
            return text
        vectors = self.aligner.encode_items(self.cf_encoder.item_embeddings[item_indices])
        if self.config.item_embedding == "cf":
            return vectors
        cold = self.item_table.interaction_counts[item_indices] < self.config.min_interactions
        return torch.where(cold.unsqueeze(-1), text, vectors)

    def _random_joint_embeddings(self) -> torch.Tensor:
        seed = self.config.item_embedding_seed
        if self._random_items is None or self._random_items[0] != seed:
            aligner = copy.deepcopy(self.aligner).cpu().double()
            joint = aligner.encode_items(self.cf_encoder.item_embeddings.detach().cpu().double())
            known = self.item_table.interaction_counts > 0
            self._random_items = (seed, random_joint_embeddings(joint.detach(), known, seed))
        table = self._random_items[1].to(self.item_table.text_joint_embeddings)
        self._random_items = (seed, table)
        return table

    def embed_prompts(
        self,
        input_ids: torch.Tensor,
        slot_ids: torch.Tensor,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the LLM reads, `(B, T, d_llm)`: its own token embeddings, and projected vectors in the slots.

        Args:
            input_ids: `(B, T)` token ids; what stands at a slot is not looked at.
            slot_ids: `(B, T)` `NO_SLOT`, `USER_SLOT`, or the catalogue index of the item whose vector stands there.
            history_ids: `(B, L)` left-padded histories for the CF encoder.
            history_mask: `(B, L)` True at real items.

        Raises:
            DataError: when a catalogue index is out of range.
        """
        embed = self._require_language_model().get_input_embeddings()
        embeds = embed(input_ids.masked_fill(slot_ids != NO_SLOT, 0))
        items, users = slot_ids > 0, slot_ids == USER_SLOT
        lowest, highest = torch.stack(slot_ids.aminmax()).tolist() if slot_ids.numel() else (NO_SLOT, NO_SLOT)
        check_bounds(0 if lowest == USER_SLOT else lowest, highest, self.cf_encoder.num_items, "slot_ids")
        if highest > 0:
            unique, inverse = torch.unique(slot_ids[items], return_inverse=True)
            with torch.no_grad():
                joint = self._item_vectors(unique)
            # A look-up whose gradient is summed in a fixed order; that of indexing is not, on several threads.
            projected = F.embedding(inverse, self.item_projector(joint))
            embeds = embeds.masked_scatter(items.unsqueeze(-1), projected.to(embeds.dtype))
        if lowest == USER_SLOT:
            with torch.no_grad():
                representations = self.cf_encoder.encode_users(history_ids, history_mask)
            rows = users.any(dim=1)
            projected = self.user_projector(representations[rows])
            embeds = embeds.masked_scatter(users.unsqueeze(-1), projected.to(embeds.dtype))
        return embeds

    # -- stage 2

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        slot_ids: torch.Tensor,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ALLMRecOutput:
        """Run the frozen LLM over prompts; with labels, the LM loss on the answers' tokens (eq. 9).

        Vocabulary logits are computed only from the first labelled position on, which is why batches are left-padded.

        Args:
            input_ids: `(B, T)` token ids.
            attention_mask: `(B, T)` True at real tokens.
            slot_ids: `(B, T)`, see `embed_prompts`.
            history_ids: `(B, L)` left-padded histories.
            history_mask: `(B, L)` True at real items.
            labels: `(B, T)` token ids of the answer, -100 elsewhere.
        """
        embeds = self.embed_prompts(input_ids, slot_ids, history_ids, history_mask)
        keep = 1
        if labels is not None:
            first = int((labels != -100).any(dim=0).int().argmax())
            keep = labels.shape[1] - first + 1
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask.long(),
            position_ids=(attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=keep,
        )
        loss = None
        if labels is not None:
            logits, wanted = output.logits[:, :-1], labels[:, -keep + 1 :]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten().to(logits.device), ignore_index=-100)
        return ALLMRecOutput(loss=loss, logits=output.logits, inputs_embeds=embeds)

    # -- ranking, retrieval, text

    def candidate_log_likelihoods(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        slot_ids: torch.Tensor,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
        answer_ids: torch.Tensor,
        answer_mask: torch.Tensor,
        method: str | None = None,
        seen_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the log-likelihood of every answer token after its prompt, `(B, C, A)`, 0 at padding.

        Takes gradients to the projectors where they are enabled; see `score` for ranking. `seen_ids`, which
        `history_tensors` returns for retrieval, are not looked at.
        """
        method = method or self.scoring_method
        if method not in METHODS:
            raise ALLMRecError(f"unknown scoring method {method!r}; known are {', '.join(METHODS)}")
        if method != self.scoring_method:
            reason = check_method(self._require_language_model(), method)
            if reason is not None:
                raise ALLMRecError(f"scoring method {method!r} cannot be used with this LLM: {reason}")
        embeds = self.embed_prompts(input_ids, slot_ids, history_ids, history_mask)
        return METHODS[method](self.language_model, embeds, attention_mask, answer_ids, answer_mask)

    @torch.no_grad()
    def score(self, candidate_ids: torch.Tensor, answer_mask: torch.Tensor, **batch: Any) -> torch.Tensor:
        """Score candidates by the LLM's log-likelihood of their titles.

        Args:
            candidate_ids: `(B, C)` catalogue indices, 0 at padding.
            answer_mask: `(B, C, A)` True at real answer tokens.
            **batch: The processor's other tensors, and optionally `method`.

        Returns:
            `(B, C)` log-likelihoods (natural log; the mean over tokens with `score_normalization="mean"`), `-inf` at
            padding. The order of the candidates in `candidate_ids` does not change a score.

        Raises:
            DataError: when a catalogue index is out of range.
        """
        check_padded(candidate_ids, self.cf_encoder.num_items, "candidate_ids")
        scores = self.candidate_log_likelihoods(answer_mask=answer_mask, **batch).sum(dim=-1)
        if self.config.score_normalization == "mean":
            scores = scores / answer_mask.sum(dim=-1).clamp(min=1)
        return scores.masked_fill(candidate_ids == 0, float("-inf"))

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        slot_ids: torch.Tensor,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
        **generation_kwargs: Any,
    ) -> torch.Tensor:
        """Let the LLM write after the prompt, as the paper's protocol does.

        Returns:
            `(B, new tokens)` token ids, without the prompt. `generation_kwargs` go to the LLM's own `generate`.
        """
        for unused in ("candidate_ids", "answer_ids", "answer_mask", "seen_ids"):
            generation_kwargs.pop(unused, None)
        embeds = self.embed_prompts(input_ids, slot_ids, history_ids, history_mask)
        return self.language_model.generate(
            inputs_embeds=embeds, attention_mask=attention_mask.long(), **{"do_sample": False, **generation_kwargs}
        )

    @torch.no_grad()
    def retrieve(
        self,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
        top_k: int = 20,
        exclude: torch.Tensor | None = None,
        seen_ids: torch.Tensor | None = None,
    ) -> RetrievalOutput:
        """Return the top items of the whole catalogue by the CF encoder; needs no LLM.

        Args:
            history_ids: `(B, L)` left-padded histories, the end that the CF encoder reads.
            history_mask: `(B, L)` True at real items.
            top_k: Items for each user.
            exclude: `(B, E)` catalogue indices never to return (0 excludes nothing); what the user has seen where not
                given.
            seen_ids: `(B, S)` items of the whole history, 0 at padding; `history_ids` where not given. The processor's
                `history_tensors` gives it.

        Raises:
            DataError: when a catalogue index is out of range.
        """
        if exclude is None:
            exclude = history_ids if seen_ids is None else seen_ids
        users = self.cf_encoder.encode_users(history_ids, history_mask)
        items, scores = self.cf_encoder.top_items(users, top_k, exclude=exclude)
        return RetrievalOutput(item_indices=items, scores=scores)

    # -- new items

    @torch.no_grad()
    def add_items(self, text_embeddings: torch.Tensor) -> list[int]:
        """Add items by their text alone, with no retraining; they can be histories, candidates and retrieval results.

        Each gets `q_i = f_T^enc(Q_i)` as joint embedding and a CF embedding decoded from it.

        Args:
            text_embeddings: `(k, d_text)` `Q_i`, from this checkpoint's text encoder.

        Returns:
            The k new catalogue indices; add the same items in the same order to the processor's catalogue.
        """
        if text_embeddings.ndim != 2 or text_embeddings.shape[1] != self.config.text_dim:
            raise ALLMRecError(
                f"text embeddings must be (k, d_text) with d_text = {self.config.text_dim}, got "
                f"{tuple(text_embeddings.shape)}; use this checkpoint's own text encoder"
            )
        first = self.cf_encoder.num_items + 1
        joint = self.aligner.encode_texts(text_embeddings.to(self.device, torch.float32))
        self.item_table.append(joint)
        self.cf_encoder.append_items(self.aligner.decode_items(joint))
        self._random_items = None
        return list(range(first, first + len(joint)))


def _drop_language_model(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}language_model.")]:
        del state_dict[key]


def _expect_no_language_model(module: Any, incompatible_keys: Any) -> None:
    missing: Sequence[str] = incompatible_keys.missing_keys
    incompatible_keys.missing_keys[:] = [key for key in missing if not key.startswith("language_model.")]
    module._random_items = None  # its scale is that of the weights
