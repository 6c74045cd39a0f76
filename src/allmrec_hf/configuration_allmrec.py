"""The configuration: that of the backbone, that of the frozen LLM, and the widths of the networks between them."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .cf_encoder import cf_config_from_dict
from .errors import CheckpointError

Normalization = Literal["sum", "mean", "calibrated", "vector_gain"]


@strict
class ALLMRecConfig(PreTrainedConfig):
    """Configuration of `ALLMRecModel` (A-LLMRec, arXiv 2404.11343).

    Args:
        cf_config: Configuration of the backbone, as an object or a dict with its `model_type`.
        text_config: Configuration of the frozen LLM; None where no stage had one.
        joint_dim: d_joint, width of the joint collaborative-text space (the paper's d', 128).
        text_dim: d_text, width of the text encoder's embeddings.
        llm_dim: d_llm, width of the LLM's input embeddings; None where no stage had one.
        base_model_name_or_path: Where the frozen LLM comes from: a Hub id, the path of a folder, or `demo`. In a file
            a path inside the checkpoint starts with `./`; where the checkpoint carries the LLM, `./NAME` is what its
            folder was called.
        base_model_revision: Its revision on the Hub.
        base_model_gguf_file: Name of the GGUF file in that folder or repository that the LLM is; None for safetensors.
        base_model_gguf_packed: Whether its weights stay packed where transformers has a kernel for them.
        language_model_included: Whether the checkpoint carries the LLM in `language_model/`.
        language_model_adapter: Whether the LLM that it carries has an adapter, in `language_model/adapter/`.
        text_encoder_name_or_path: The text encoder that stage 1 started from, in the same spelling.
        text_encoder_included: Whether the checkpoint carries the (fine-tuned) text encoder in `text_encoder/`.
        item_embedding: Which joint embedding stands for an item: `"cf"` `e_i`, `"text"` `q_i`, `"auto"` `q_i` for items
            that were a target of the backbone's training fewer than `min_interactions` times, else `e_i`; `"random"`
            (an ablation) a seeded random vector of the scale of `e_i`, see `item_table.random_joint_embeddings`.
        min_interactions: See `item_embedding`.
        item_embedding_seed: Seed of the random vectors.
        projector: What maps a user or item vector into the LLM: `"mlp"` (the paper), `"linear"` or `"resampler"`.
        projector_tokens: K, learned queries of the resampler; the other projectors have none.
        score_normalization: What the ranker `likelihood` ranks by: `"sum"` the log-likelihood of a title, `"mean"` its
            mean over the tokens, `"calibrated"` its sum minus that after the same prompt without the user,
            `"vector_gain"` minus that after the same prompt without the vectors of user and history.
        ranker: What ranks where nothing else is asked for, see `ranker_built_in.RANKERS`.
        rankers: What rankers need to be built again, by name, such as the widths of `retrieval` and the weights of
            `fusion`; a ranker that needs nothing is not named.
        tokenizer_fingerprint: Hash of the vocabulary that the prompts were trained with.
        language_model_fingerprint: What tells the LLM that the projectors were trained for from others of its width,
            see `language_model_checks.fingerprint`; checkpoints made before have none.
        language_model_record: What the checks of that LLM found when it was last attached, and under which
            circumstances, see `language_model_checks.recalled`.
        in_training: Parts of the data beside the training part that it was trained on, `"validation"` and `"test"`, see
            `ALLMRecTrainer.refit`.
        code_exported: Whether the checkpoint carries this package's core, so that it loads without the package.

    Example:
        >>> from allmrec_hf import ALLMRecConfig, SASRecConfig
        >>> config = ALLMRecConfig(cf_config=SASRecConfig(num_items=100), joint_dim=64)
        >>> config.cf_config.num_items
        100
    """

    model_type = "a-llmrec"
    sub_configs = {"cf_config": AutoConfig, "text_config": AutoConfig}

    cf_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    joint_dim: int = 128
    text_dim: int = 768
    llm_dim: int | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_gguf_file: str | None = None
    base_model_gguf_packed: bool = False
    language_model_included: bool = False
    language_model_adapter: bool = False
    text_encoder_name_or_path: str | None = None
    text_encoder_included: bool = False
    item_embedding: Literal["cf", "text", "auto", "random"] = "auto"
    min_interactions: int = 1
    item_embedding_seed: int = 0
    projector: Literal["mlp", "linear", "resampler"] = "mlp"
    projector_tokens: int = 8
    score_normalization: Normalization = "sum"
    ranker: str = "likelihood"
    rankers: dict | None = None
    tokenizer_fingerprint: str | None = None
    language_model_fingerprint: dict | None = None
    language_model_record: dict | None = None
    in_training: list | None = None
    code_exported: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn the sub-configurations' saved form into objects."""
        if isinstance(self.cf_config, dict):
            self.cf_config = cf_config_from_dict(self.cf_config)
        elif self.cf_config is None:
            self.cf_config = cf_config_from_dict({"model_type": "allmrec-sasrec"})
        if isinstance(self.text_config, dict):
            values = dict(self.text_config)
            model_type = values.pop("model_type", None)
            if model_type is None:
                raise CheckpointError("text_config has no model_type; it must be the configuration of a causal LM")
            self.text_config = _text_config(model_type, values)
        if not __name__.startswith("transformers_modules."):
            # The package registers the task; this key would make transformers ask for remote code. The copy of this
            # file that a checkpoint carries has nothing but the key.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: `save_pretrained` writes what a checkpoint needs to be found again."""


def _text_config(model_type: str, values: dict[str, Any]) -> PreTrainedConfig:
    """Return the LLM's configuration; of a type that transformers does not know (code of its own), the values alone."""
    if model_type in CONFIG_MAPPING:
        return AutoConfig.for_model(model_type, **values)
    config_class: Any = type("ForeignConfig", (PreTrainedConfig,), {"model_type": model_type})
    return config_class(**values)
