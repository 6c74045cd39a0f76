"""The model: a backbone, an aligner and two projectors around a frozen causal LM (A-LLMRec, arXiv 2404.11343)."""

import copy
import logging
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import nn
from torch.nn import functional as F

from .activations import let_layers_recompute, recompute_activations
from .aligner import ItemTextAligner
from .cf_encoder import build_cf_encoder, cf_config_from_dict
from .configuration_allmrec import ALLMRecConfig, Normalization
from .errors import ALLMRecError, CheckpointError
from .indices import check_bounds, check_padded
from .item_table import ItemTable, random_joint_embeddings
from .language_model import compile_layers, context_length, input_device, is_offloaded
from .language_model_checks import examine, fingerprint, recalled, record_of, require_same
from .language_model_passes import last_logits, padded_pass, token_embeddings, written_after
from .modeling_pretrained import ALLMRecPreTrainedModel
from .outputs import ALLMRecOutput, RetrievalOutput
from .projector import build_projector
from .prompt import NO_SLOT, USER_SLOT
from .retrieval_head import RetrievalHead
from .scoring import METHODS, check_method, check_on, fits_packed, tell_refused, unreached_limit, verified_method

logger = logging.getLogger(__name__)


class ALLMRecModel(ALLMRecPreTrainedModel):
    """Recommends with a frozen LLM that reads projected user and item vectors beside the titles.

    The constructor builds the light part only (backbone, aligner, projectors, item table); `from_pretrained` and
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
        rankers = config.rankers or {}
        whitened = rankers.get("text", {}).get("whitening") is not None
        num_words = rankers.get("words", {}).get("vocabulary")
        kept = (config.text_dim if "text" in rankers else None, whitened, num_words)
        self.item_table = ItemTable(cf_config.num_items, config.joint_dim, *kept)
        self.user_projector: Any = None  # a projector once the width of the LLM is known
        self.item_projector: Any = None
        if config.llm_dim is not None:
            self._build_projectors(config.llm_dim)
        self.retrieval_head: RetrievalHead | None = None
        if "retrieval" in (config.rankers or {}):
            self.retrieval_head = self.new_retrieval_head()
        self.language_model: Any = None
        self.scoring_method = "naive"
        self.pads_left = True  # whether the LLM reads left-padded prompts as it reads them alone
        self._context_length = 0  # of the LLM, in tokens
        self._unreached_limit: int | None = None  # of attention, in tokens, beyond which the method is yet unchecked
        self._refused_methods: dict[str, Any] = {}  # why, or None where a method may be used
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

    def keep_text_embeddings(
        self,
        text_embeddings: torch.Tensor,
        recency: float = 1.0,
        whitening: float | None = None,
        last_items: int | None = None,
    ) -> None:
        """Keep `(N + 1, d_text)` embeddings by the checkpoint's text encoder for the rankers `text` and `fusion`.

        The settings are those of `TextSimilarity`.
        """
        self.item_table.keep_texts(text_embeddings, whitening)
        window = {} if last_items is None else {"last_items": last_items}
        settings = {"recency": recency, "whitening": whitening, **window}
        self.config.rankers = {**(self.config.rankers or {}), "text": settings}

    def keep_words(self, texts: Sequence[str], recency: float = 1.0) -> None:
        """Keep the words of the N items' texts for the rankers `words` and `fusion`; see `SharedWords`."""
        settings = {"recency": recency, "vocabulary": self.item_table.keep_words(texts)}
        self.config.rankers = {**(self.config.rankers or {}), "words": settings}

    def new_retrieval_head(self) -> RetrievalHead:
        """Return a head of the ranker `retrieval` of the widths that the config names."""
        config: Any = self.config
        settings = config.rankers["retrieval"]
        widths = (self.cf_encoder.config.hidden_size, config.joint_dim, config.llm_dim, settings["state_dim"])
        return RetrievalHead(self.cf_encoder.num_items, *widths, settings["dim"])

    def get_input_embeddings(self) -> nn.Module:
        """Return what embeds `input_ids`: the LLM's token embeddings, or without an LLM the backbone's item table."""
        part = self.cf_encoder if self.language_model is None else self.language_model
        return part.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse: neither table may be exchanged, see `resize_token_embeddings`."""
        raise ALLMRecError(
            "the embeddings of an A-LLMRec model are not exchanged: the LLM is frozen, and items come by add_items"
        )

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the LLM's vocabulary stays as it is, and items are no tokens.

        Raises:
            ALLMRecError: always.
        """
        raise ALLMRecError(
            "an A-LLMRec model's embeddings are not resized: its prompts need no new token, and the projectors were "
            "trained for the LLM's vocabulary as it is; add items by model.add_items(text_embeddings, texts)"
        )

    # -- the frozen LLM

    def attach_language_model(
        self, language_model: Any, scoring_method: str = "auto", allow_other_llm: bool = False
    ) -> None:
        """Freeze a causal LM and make it this model's.

        Builds fresh projectors where the model has none yet, and remembers for which LLM. That the LLM is causal, how
        it pads and which one it is are tested on a few tokens; so are the fast scoring methods against the naive one,
        and the fastest equal one is used.

        Args:
            language_model: A causal LM with its weights.
            scoring_method: `"auto"`, `"tree"`, `"prefix_cache"` or `"naive"`.
            allow_other_llm: Attach an LLM of the right width even where the projectors were trained for another one,
                whose scores then mean little; the checkpoint goes on naming the LLM of its training.

        Raises:
            CheckpointError: when the LLM is not causal, takes no vectors, or is not the one that the projectors were
                trained for.
        """
        self._attach(language_model, scoring_method, allow_other_llm, loaded_here=False)

    def _attach(self, language_model: Any, scoring_method: str, allow_other_llm: bool, loaded_here: bool) -> None:
        """Attach an LLM; of one that was loaded here, what the checkpoint records of its checks is taken over."""
        language_model.requires_grad_(False)
        language_model.eval()
        config: Any = self.config
        record: Any = config.language_model_record if loaded_here and scoring_method == "auto" else None
        before = recalled(record, config.language_model_fingerprint, language_model)
        facts = before or examine(language_model)
        if self.config.llm_dim is None:
            self.config.llm_dim = facts.width
            text_config = copy.deepcopy(language_model.config)
            self.config.text_config = text_config
            text_config._name_or_path = ""  # base_model_name_or_path says where it comes from
            self._build_projectors(facts.width)
            for projector in (self.user_projector, self.item_projector):
                projector.apply(self._init_weights)
            self.config.language_model_fingerprint = fingerprint(language_model)
        elif before is None:
            require_same(config, language_model, facts.width, allow_other_llm)
        self.language_model = language_model
        self._no_split_modules = sorted({*(self._no_split_modules or []), *(language_model._no_split_modules or [])})
        device = input_device(language_model)
        if getattr(language_model, "hf_device_map", None) is not None:
            self.hf_device_map = language_model.hf_device_map
        elif is_offloaded(language_model):
            self.hf_device_map = {"": str(device)}  # so that nobody moves what has its weights elsewhere
        parts: tuple[nn.Module, ...] = (self.cf_encoder, self.aligner, self.item_table)
        for part in (*parts, self.user_projector, self.item_projector, self.retrieval_head):
            if part is not None:
                part.to(device)
        self.pads_left = facts.pads_left
        self._context_length = context_length(language_model)
        if before is not None:
            self.scoring_method, self._refused_methods = record["scoring_method"], dict(record["refused_methods"])
            tell_refused(self._refused_methods)
        else:
            self._refused_methods = {}
            self.scoring_method = verified_method(language_model, scoring_method, self._refused_methods)
        if before is None and scoring_method == "auto":
            found = (facts, self.scoring_method, self._refused_methods)
            config.language_model_record = record_of(language_model, *found)
        self._unreached_limit = None if self.scoring_method == "naive" else unreached_limit(language_model)

    def require_language_model(self) -> Any:
        """Return the LLM.

        Raises:
            CheckpointError: when the model has none.
        """
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
        if self.language_model is not None:
            self.language_model.eval()
            if mode and self._checkpoints_activations:
                let_layers_recompute(self.language_model)
        return self

    _checkpoints_activations = False

    def checkpoint_activations(self) -> None:
        """Trade time for memory in stage 2: recompute the LLM's activations in the backward pass.

        Raises:
            ALLMRecError: when the LLM cannot, or would compute something else than without.
        """
        recompute_activations(self.require_language_model())
        self._checkpoints_activations = True
        self.train(self.training)

    def compile_language_model(self, **options: Any) -> None:
        """Have `torch.compile` compile the LLM's layers at their next use; what they compute differs by rounding.

        Args:
            **options: Of `torch.compile`; the layers are compiled for inputs of any length.
        """
        compile_layers(self.require_language_model(), **options)

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

    @torch.no_grad()
    def encode_users(self, history_ids: torch.Tensor, history_mask: torch.Tensor) -> torch.Tensor:
        """Return the user representations `(B, d_cf)` of histories `(B, L)`, left-padded, by the CF encoder."""
        return self.cf_encoder.encode_users(history_ids, history_mask)

    def embed_prompts(
        self,
        input_ids: torch.Tensor,
        slot_ids: torch.Tensor,
        history_ids: torch.Tensor | None = None,
        history_mask: torch.Tensor | None = None,
        user_representations: torch.Tensor | None = None,
        projectors: tuple[nn.Module, nn.Module] | None = None,
    ) -> torch.Tensor:
        """Return what the LLM reads, `(B, T, d_llm)`: its own token embeddings, and projected vectors in the slots.

        Args:
            input_ids: `(B, T)` token ids; what stands at a slot is not looked at.
            slot_ids: `(B, T)` `NO_SLOT`, `USER_SLOT`, or the catalogue index of the item whose vector stands there.
            history_ids: `(B, L)` left-padded histories for the backbone.
            history_mask: `(B, L)` True at real items.
            user_representations: `(B, d_cf)`, what the histories come to, where `encode_users` was called already.
            projectors: Of users and of items; those of stage 2 where not given.

        Raises:
            DataError: when a catalogue index is out of range.
            CheckpointError: when a token is one that the LLM does not embed, such as one added to its tokenizer.
        """
        language_model = self.require_language_model()
        embeds = token_embeddings(language_model, input_ids.masked_fill(slot_ids != NO_SLOT, 0))
        items, users = slot_ids > 0, slot_ids == USER_SLOT
        user_projector, item_projector = projectors or (self.user_projector, self.item_projector)
        lowest, highest = torch.stack(slot_ids.aminmax()).tolist() if slot_ids.numel() else (NO_SLOT, NO_SLOT)
        check_bounds(0 if lowest == USER_SLOT else lowest, highest, self.cf_encoder.num_items, "slot_ids")
        if highest > 0:
            unique, inverse = torch.unique(slot_ids[items], return_inverse=True)
            with torch.no_grad():
                joint = self._item_vectors(unique)
            # A look-up whose gradient is summed in a fixed order; that of indexing is not, on several threads.
            projected = F.embedding(inverse, item_projector(joint))
            embeds = embeds.masked_scatter(items.unsqueeze(-1), projected.to(embeds.dtype))
        if lowest == USER_SLOT:
            if user_representations is None:
                if history_ids is None or history_mask is None:
                    raise ALLMRecError("prompts with a user's slot need history_ids and history_mask, or the users")
                user_representations = self.encode_users(history_ids, history_mask)
            projected = user_projector(user_representations[users.any(dim=1)])
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
            labels = labels.clone()
            labels[:, 0] = -100  # nothing stands before the first token that could predict it
            if not (labels != -100).any():
                raise ALLMRecError("labels are all -100, so there is no answer to learn; see training_batch")
            first = int((labels != -100).any(dim=0).int().argmax())
            keep = labels.shape[1] - first + 1
        logits = padded_pass(self._logits, embeds, attention_mask, keep, self.pads_left)
        loss = None
        if labels is not None:
            before, wanted = logits[:, :-1], labels[:, -keep + 1 :]
            loss = F.cross_entropy(before.flatten(0, 1).float(), wanted.flatten().to(logits.device), ignore_index=-100)
        return ALLMRecOutput(loss=loss, logits=logits, inputs_embeds=embeds)

    def _logits(self, keep: int, **inputs: torch.Tensor) -> torch.Tensor:
        return last_logits(self.language_model, keep, **inputs)

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
        user_representations: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the log-likelihood of every answer token after its prompt, `(B, C, A)`, 0 at padding.

        Takes gradients to the projectors where they are enabled; see `score` for ranking. `seen_ids`, which
        `history_tensors` returns for retrieval, are not looked at.
        """
        if method is not None and method not in METHODS:
            raise ALLMRecError(f"unknown scoring method {method!r}; known are {', '.join(METHODS)}")
        if method is not None and method != self.scoring_method:
            self.require_language_model()
            reason = self._reason_against(method)
            if reason is not None:
                raise ALLMRecError(f"scoring method {method!r} cannot be used with this LLM: {reason}")
        embeds = self.embed_prompts(input_ids, slot_ids, history_ids, history_mask, user_representations)
        return self.answer_log_likelihoods(embeds, attention_mask, answer_ids, answer_mask, method)

    def answer_log_likelihoods(
        self,
        prompt_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_ids: torch.Tensor,
        answer_mask: torch.Tensor,
        method: str | None = None,
    ) -> torch.Tensor:
        """Return what `candidate_log_likelihoods` does, of prompts that are embedded already.

        The method gives way to a slower one where it would not be right: `tree` where its packed row is longer than
        the LLM's context; any fast one that fails its check on the first prompt beyond a window that was too long to
        be checked at attach.

        Args:
            prompt_embeds: `(B, T, d_llm)`, left-padded, see `embed_prompts`.
            attention_mask: `(B, T)` True at real tokens.
            answer_ids: `(B, C, A)` right-padded token ids.
            answer_mask: `(B, C, A)` True at real tokens.
            method: The scoring method; the model's own where not given.
        """
        method = method or self.scoring_method
        inputs = (prompt_embeds, attention_mask, answer_ids, answer_mask)
        if method == "tree" and not fits_packed(attention_mask, answer_ids, answer_mask, self._context_length):
            method = "prefix_cache" if self._reason_against("prefix_cache") is None else "naive"
        longest = int(attention_mask.sum(dim=1).max()) + answer_ids.shape[-1]
        if method != "naive" and self._unreached_limit is not None and longest > self._unreached_limit:
            reason = check_on(self.language_model, method, inputs)
            if reason is not None:
                logger.warning("Scoring by %s is off for this LLM from here on: %s.", method, reason)
                self.scoring_method = method = "naive"
            self._unreached_limit = None
        return METHODS[method](self.language_model, *inputs)

    def _reason_against(self, method: str) -> str | None:
        """Tell why a method must not be used; it is checked once."""
        if method == self.scoring_method:
            return None
        if method not in self._refused_methods:
            self._refused_methods[method] = check_method(self.language_model, method)
        return self._refused_methods[method]

    @torch.no_grad()
    def score(
        self, candidate_ids: torch.Tensor, answer_mask: torch.Tensor, normalization: str | None = None, **batch: Any
    ) -> torch.Tensor:
        """Score candidates by the LLM's log-likelihood of their titles.

        Args:
            candidate_ids: `(B, C)` catalogue indices, 0 at padding.
            answer_mask: `(B, C, A)` True at real answer tokens.
            normalization: In place of the configuration's `score_normalization`.
            **batch: The processor's other tensors, and optionally `method`.

        Returns:
            `(B, C)` log-likelihoods (natural log; the mean over tokens with the normalization `"mean"`), `-inf` at
            padding. The order of the candidates in `candidate_ids` does not change a score.

        Raises:
            DataError: when a catalogue index is out of range.
            ALLMRecError: when the normalization is unknown.
        """
        if normalization not in (None, *get_args(Normalization)):
            raise ALLMRecError(f"normalization must be one of {list(get_args(Normalization))}, got {normalization!r}")
        check_padded(candidate_ids, self.cf_encoder.num_items, "candidate_ids")
        scores = self.candidate_log_likelihoods(answer_mask=answer_mask, **batch).sum(dim=-1)
        if (normalization or self.config.score_normalization) == "mean":
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
        options = {"do_sample": False, **generation_kwargs}
        return written_after(self.language_model, embeds, attention_mask, self.pads_left, **options)

    @torch.no_grad()
    def retrieve(
        self,
        history_ids: torch.Tensor,
        history_mask: torch.Tensor,
        top_k: int = 20,
        exclude: torch.Tensor | None = None,
        seen_ids: torch.Tensor | None = None,
        user_representations: torch.Tensor | None = None,
    ) -> RetrievalOutput:
        """Return the top items of the whole catalogue by the backbone; needs no LLM.

        Args:
            history_ids: `(B, L)` left-padded histories, the end that the backbone reads.
            history_mask: `(B, L)` True at real items.
            top_k: Items for each user.
            exclude: `(B, E)` catalogue indices never to return (0 excludes nothing); what the user has seen where not
                given.
            seen_ids: `(B, S)` items of the whole history, 0 at padding; `history_ids` where not given. The processor's
                `history_tensors` gives it.
            user_representations: `(B, d_cf)`, where `encode_users` was called already.

        Raises:
            DataError: when a catalogue index is out of range.
        """
        if exclude is None:
            exclude = history_ids if seen_ids is None else seen_ids
        if user_representations is None:
            user_representations = self.encode_users(history_ids, history_mask)
        items, scores = self.cf_encoder.top_items(user_representations, top_k, exclude=exclude)
        return RetrievalOutput(item_indices=items, scores=scores)

    # -- new items

    @torch.no_grad()
    def add_items(self, text_embeddings: torch.Tensor, texts: Sequence[str] | None = None) -> list[int]:
        """Add items by their text alone, with no retraining; they can be histories, candidates and retrieval results.

        Each gets `q_i = f_T^enc(Q_i)` as joint embedding and a CF embedding decoded from it, or, with a backbone of
        `text_components`, that of its text.

        Args:
            text_embeddings: `(k, d_text)` `Q_i`, from this checkpoint's text encoder.
            texts: The k texts that were encoded, for the ranker `words`, which finds nothing of items without.

        Returns:
            The k new catalogue indices; add the same items in the same order to the processor's catalogue.
        """
        if text_embeddings.ndim != 2 or text_embeddings.shape[1] != self.config.text_dim:
            raise ALLMRecError(
                f"text embeddings must be (k, d_text) with d_text = {self.config.text_dim}, got "
                f"{tuple(text_embeddings.shape)}; use this checkpoint's own text encoder"
            )
        if texts is None:
            texts = [""] * len(text_embeddings)
            if self.item_table.words is not None:
                logger.warning("items are added without their texts, so that the ranker `words` finds nothing of them")
        if len(texts) != len(text_embeddings):
            raise ALLMRecError(f"there are {len(texts)} texts for {len(text_embeddings)} text embeddings")
        first = self.cf_encoder.num_items + 1
        text_embeddings = text_embeddings.to(self.device, torch.float32)
        joint = self.aligner.encode_texts(text_embeddings)
        self.item_table.append(joint, text_embeddings, texts)
        self.cf_encoder.append_items(self.cf_encoder.new_items(text_embeddings, self.aligner.decode_items(joint)))
        if self.retrieval_head is not None:
            self.retrieval_head.append_items(len(joint))
        self._random_items = None
        return list(range(first, first + len(joint)))


def _drop_language_model(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in [key for key in state_dict if key.startswith(f"{prefix}language_model.")]:
        del state_dict[key]


def _expect_no_language_model(module: Any, incompatible_keys: Any) -> None:
    missing: Sequence[str] = incompatible_keys.missing_keys
    incompatible_keys.missing_keys[:] = [key for key in missing if not key.startswith("language_model.")]
    module._random_items = None  # its scale is that of the weights
