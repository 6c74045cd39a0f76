"""How a checkpoint is written and read: the light part, and beside it the frozen LLM and the text encoder."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .checkpoint_code import write_checkpoint_code
from .configuration_allmrec import ALLMRecConfig
from .errors import CheckpointError
from .files import folder_written_whole
from .item_table import ItemTable

logger = logging.getLogger(__name__)

LANGUAGE_MODEL_FOLDER = "language_model"
TEXT_ENCODER_FOLDER = "text_encoder"
_LANGUAGE_MODEL_KWARGS = (
    "attn_implementation",
    "device_map",
    "dtype",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "torch_dtype",
)
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token")


class ALLMRecPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to initialise, save and load the light part."""

    config_class = ALLMRecConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ItemTable):
            init.zeros_(module.text_joint_embeddings)
            init.zeros_(module.interaction_counts)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: `save_pretrained` writes what a checkpoint needs to be found again."""

    language_model: Any
    model_card: str | None = None
    """Text of the checkpoint's README.md; saved with the model."""
    _text_encoder: Any = None
    _source: tuple[str, dict[str, Any]] | None = None

    def attach_language_model(self, language_model: Any, scoring_method: str = "auto") -> None:
        """Freeze a causal LM and make it this model's."""
        raise NotImplementedError

    def _require_language_model(self) -> Any:
        raise NotImplementedError

    @property
    def text_encoder(self) -> Any:
        """The `SentenceTransformer` of stage 1; loaded when first asked for, from the checkpoint or its origin.

        Raises:
            CheckpointError: when the checkpoint names none or it cannot be found.
        """
        if self._text_encoder is None:
            from sentence_transformers import SentenceTransformer  # heavy, and needed for new texts only

            where = self.config.text_encoder_name_or_path
            if self.config.text_encoder_included and self._source is not None:
                path, hub = self._source
                config_file = str(cached_file(path, "config.json", **hub))
                where = str(Path(config_file).parent / TEXT_ENCODER_FOLDER)
                if not Path(where).is_dir() and not Path(path).is_dir():
                    kwargs = {
                        key: hub[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in hub
                    }
                    where = snapshot_download(path, allow_patterns=f"{TEXT_ENCODER_FOLDER}/*", **kwargs)
                    where = str(Path(where) / TEXT_ENCODER_FOLDER)
            if where is None:
                raise CheckpointError(
                    "this checkpoint names no text encoder; set model.text_encoder to the one of stage 1"
                )
            try:
                self._text_encoder = SentenceTransformer(where, device="cpu")
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot load the text encoder {where!r}: {error}") from error
        return self._text_encoder

    @text_encoder.setter
    def text_encoder(self, text_encoder: Any) -> None:
        self._text_encoder = text_encoder

    # -- files

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        include_llm: bool | None = None,
        export_code: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a light checkpoint: everything but the LLM, in safetensors and JSON, whole or not at all.

        Args:
            save_directory: A folder; files of the same names are replaced.
            include_llm: Also write the LLM, to `language_model/`; by default as the loaded checkpoint had it.
            export_code: Copy the package's core into the folder, so that `trust_remote_code=True` works without it.
            push_to_hub: Upload afterwards, to `repo_id` or the folder's name.
        """
        include_llm = self.config.language_model_included if include_llm is None else include_llm
        if include_llm:
            self._require_language_model()
        if self.config.text_encoder_included:
            _ = self.text_encoder
        self.config.language_model_included = include_llm
        with folder_written_whole(save_directory) as folder:
            super().save_pretrained(str(folder), **kwargs)
            write_checkpoint_code(folder, export_code, type(self.cf_encoder).__module__.rpartition(".")[2])
            if include_llm:
                self.language_model.save_pretrained(str(folder / LANGUAGE_MODEL_FOLDER))
            if self.config.text_encoder_included:
                self.text_encoder.save_pretrained(str(folder / TEXT_ENCODER_FOLDER))
            if self.model_card is not None:
                (folder / "README.md").write_text(self.model_card, encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, include_llm=include_llm, export_code=export_code)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload ALLMRecModel",
        **save_kwargs: Any,
    ) -> str:
        """Save to a temporary folder and upload it, model card included; `save_kwargs` go to `save_pretrained`.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_kwargs)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        return str(commit)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: Any = None,
        language_model: Any = "auto",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the light part in fp32, then the frozen LLM, and join them.

        Args:
            pretrained_model_name_or_path: A folder or a Hub repository.
            config: An `ALLMRecConfig` to use instead of the saved one.
            language_model: `"auto"` loads the LLM that the checkpoint names; None loads none; a causal LM is attached;
                a string is an LLM to load instead (of the same width and vocabulary).
            output_loading_info: Return the loading info too, as transformers does.
            **kwargs: `dtype`, `device_map`, `quantization_config`, `attn_implementation`, `max_memory` and `offload_*`
                go to the LLM; the rest goes to transformers.

        Raises:
            CheckpointError: when a file is missing, damaged or of another model, or the LLM cannot be found.
        """
        path = str(pretrained_model_name_or_path)
        llm_kwargs = {key: kwargs.pop(key) for key in _LANGUAGE_MODEL_KWARGS if key in kwargs}
        hub = {key: kwargs[key] for key in _HUB_KWARGS if kwargs.get(key)}
        revision = {"revision": kwargs["revision"]} if kwargs.get("revision") else {}
        if config is not None and getattr(config, "_attn_implementation_internal", None):
            llm_kwargs.setdefault("attn_implementation", config._attn_implementation_internal)
        kwargs.pop("trust_remote_code", None)
        try:
            loaded: Any = super().from_pretrained(
                path, *model_args, config=config, output_loading_info=True, dtype=torch.float32, **kwargs
            )
        except SafetensorError as error:
            raise CheckpointError(
                f"the weights of {path} are damaged ({error}); download or save them again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot load the checkpoint {path}: {error}") from error
        except RuntimeError as error:
            raise CheckpointError(f"the weights of {path} do not fit its config.json: {error}") from error
        model, info = loaded
        wrong = {
            name: sorted(map(str, info[name]))
            for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info[name]
        }
        if wrong:
            counts = "; ".join(
                f"{len(keys)} {name.replace('_', ' ')}, first {keys[:3]}" for name, keys in wrong.items()
            )
            raise CheckpointError(f"the weights of {path} are not those of its config.json: {counts}")
        model._source = (path, {**hub, **revision})
        card = cached_file(path, "README.md", _raise_exceptions_for_missing_entries=False, **hub, **revision)
        if card is not None:
            model.model_card = Path(card).read_text(encoding="utf-8")
        if isinstance(language_model, str) and model.config.llm_dim is not None:
            language_model = model._load_language_model(language_model, path, {**llm_kwargs, **hub}, revision)
        elif isinstance(language_model, str):
            language_model = None  # trained to stage 1 only: there is no LLM to load
        if language_model is not None:
            model.attach_language_model(language_model)
        model.eval()
        return (model, info) if output_loading_info else model

    def _load_language_model(self, name: str, path: str, kwargs: dict[str, Any], revision: dict[str, Any]) -> Any:
        if name == "auto" and self.config.language_model_included:
            name, where = path, {"subfolder": LANGUAGE_MODEL_FOLDER, **revision}
        elif name == "auto":
            if self.config.base_model_name_or_path is None:
                raise CheckpointError(f"{path} names no base LLM; pass language_model=, or None to load without it")
            name, where = self.config.base_model_name_or_path, {}
            if self.config.base_model_revision is not None:
                where["revision"] = self.config.base_model_revision
        else:
            where = {}
        try:
            return AutoModelForCausalLM.from_pretrained(name, **where, **kwargs)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the base LLM {name!r} of this checkpoint cannot be loaded: {error}. Check the name, your access "
                "to it and the network; or pass language_model= (a path, an id or a loaded LM) to from_pretrained"
            ) from error
