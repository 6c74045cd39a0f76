"""How a checkpoint is written and read: the light part, and beside it the frozen LLM and the text encoder."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .checkpoint_code import (
    CARD_DATA_FILE,
    LANGUAGE_MODEL_FOLDER,
    README_FILE,
    TEXT_ENCODER_FOLDER,
    generated_card,
    leftovers,
    push_saved,
    refuse_other_weights,
    remove_leftovers,
    replaced_on_the_hub,
    write_checkpoint_code,
)
from .configuration_allmrec import ALLMRecConfig
from .errors import CheckpointError
from .files import folder_written_whole
from .item_table import ItemTable

logger = logging.getLogger(__name__)

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
_DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, StrictDataclassError)
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token")
_PUSH_ARGUMENTS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


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
    """Text of the checkpoint's README.md; where None, a card with what the config knows is generated."""
    _card_data: bytes | None = None
    _text_encoder: Any = None
    _source: tuple[str, dict[str, Any]] | None = None

    def attach_language_model(
        self, language_model: Any, scoring_method: str = "auto", allow_other_llm: bool = False
    ) -> None:
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
            try:  # heavy, needed for new texts only, and no requirement of exported code
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise CheckpointError("new texts need `pip install sentence-transformers`") from error
            where = self.config.text_encoder_name_or_path
            if where is None and not self.config.text_encoder_included:
                raise CheckpointError(
                    "this checkpoint names no text encoder; give the one of stage 1 to model.attach_text_encoder"
                )
            try:
                if self.config.text_encoder_included and self._source is not None:
                    where = self._fetch_text_encoder(*self._source)
                self.attach_text_encoder(SentenceTransformer(where, device="cpu"))
            except _DAMAGED as error:
                raise CheckpointError(f"cannot load the text encoder {where!r}: {error}") from error
        return self._text_encoder

    @staticmethod
    def _fetch_text_encoder(path: str, hub: dict[str, Any]) -> str:
        if Path(path).is_dir():
            folder = Path(path) / TEXT_ENCODER_FOLDER
        else:
            folder = Path(snapshot_download(path, allow_patterns=f"{TEXT_ENCODER_FOLDER}/*", **hub))
            folder /= TEXT_ENCODER_FOLDER
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} has no folder {TEXT_ENCODER_FOLDER}/, which its config.json promises")
        return str(folder)

    def attach_text_encoder(self, text_encoder: Any) -> None:
        """Make a `SentenceTransformer` this model's; it is no sub-module, so it is in no state dict."""
        object.__setattr__(self, "_text_encoder", text_encoder)

    # -- files

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        include_llm: bool | None = None,
        export_code: bool | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a light checkpoint: everything but the LLM, in safetensors and JSON, whole or not at all.

        Args:
            save_directory: A folder; files of the same names are replaced, weights and exported code of an earlier
                checkpoint are removed.
            include_llm: Also write the LLM, to `language_model/`; by default as it was last loaded or saved.
            export_code: Copy the package's core into the folder, so that `trust_remote_code=True` works without it;
                by default as it was last loaded or saved.
            push_to_hub: Upload afterwards, to `repo_id` or the folder's name.
            **kwargs: Arguments of `push_to_hub`; the rest goes to transformers, such as `max_shard_size`.
        """
        if not kwargs.get("is_main_process", True):
            return
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        include_llm = self.config.language_model_included if include_llm is None else include_llm
        export_code = self.config.code_exported if export_code is None else export_code
        if include_llm:
            self._require_language_model()
        if self.config.text_encoder_included:
            _ = self.text_encoder
        if self.language_model is not None and not include_llm and self.config.base_model_name_or_path is None:
            logger.warning(
                "The saved checkpoint will not find its LLM again: set config.base_model_name_or_path, or save with "
                "include_llm=True."
            )
        self.config.language_model_included, self.config.code_exported = include_llm, export_code
        directory = Path(save_directory)
        needed = (self.config.base_model_name_or_path, self.config.text_encoder_name_or_path)
        with folder_written_whole(save_directory) as folder:
            super().save_pretrained(str(folder), **kwargs)
            write_checkpoint_code(folder, export_code, type(self.cf_encoder))
            if include_llm:
                self.language_model.save_pretrained(str(folder / LANGUAGE_MODEL_FOLDER))
            if self.config.text_encoder_included:
                self.text_encoder.save_pretrained(str(folder / TEXT_ENCODER_FOLDER))
            (folder / README_FILE).write_text(self.model_card or self._generated_card(), encoding="utf-8")
            if self.model_card is not None and self._card_data is not None:
                (folder / CARD_DATA_FILE).write_bytes(self._card_data)
            written = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
            stale = leftovers(directory, written, needed)
        remove_leftovers(directory, stale)
        if push_to_hub:
            save = {"include_llm": include_llm, "export_code": export_code}
            self.push_to_hub(repo_id or directory.name, **hub, **save, **kwargs)

    def _generated_card(self) -> str:
        config = self.config
        backbone, num_items = config.cf_config.model_type, config.cf_config.num_items
        return generated_card(config.base_model_name_or_path, backbone, num_items, config.language_model_included)

    def _read_card(self, path: str, hub: dict[str, Any]) -> None:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        card, data = (cached_file(path, name, **quiet, **hub) for name in (README_FILE, CARD_DATA_FILE))
        if card is not None:
            text = Path(card).read_text(encoding="utf-8", errors="replace")
            self.model_card = None if text == self._generated_card() else text  # a generated one is generated anew
        if data is not None:
            self._card_data = Path(data).read_bytes()

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Save to a temporary folder and upload it in one commit, model card included.

        Args:
            repo_id: `namespace/name`; made where it does not exist. Weights of an earlier push are replaced.
            **kwargs: `private`, `token`, `revision` (a branch, made where it does not exist), `commit_message`,
                `commit_description`, `create_pr`; the rest goes to `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            ALLMRecError: when the id is malformed, or the Hub refuses.
        """
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        hub.setdefault("commit_message", "Upload ALLMRecModel")
        return push_saved(
            lambda folder: self.save_pretrained(folder, **kwargs), repo_id, replaced=replaced_on_the_hub(), **hub
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: Any = None,
        language_model: Any = "auto",
        output_loading_info: bool = False,
        allow_other_llm: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the light part in fp32, then the frozen LLM, and join them.

        Args:
            pretrained_model_name_or_path: A folder or a Hub repository.
            config: An `ALLMRecConfig` to use instead of the saved one.
            language_model: `"auto"` loads the LLM that the checkpoint names; None loads none; a causal LM is attached;
                a string names where to load the LLM from instead.
            output_loading_info: Return the loading info too, as transformers does.
            allow_other_llm: Take an LLM that is not the one of the training, see `attach_language_model`.
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
        if config is None and not kwargs.get("subfolder"):
            cls._check_model_type(path, {**hub, **revision})
        try:
            loaded: Any = super().from_pretrained(
                path, *model_args, config=config, output_loading_info=True, dtype=torch.float32, **kwargs
            )
        except SafetensorError as error:
            raise CheckpointError(
                f"the weights of {path} are damaged ({error}); download or save them again"
            ) from error
        except (OSError, StrictDataclassError) as error:
            raise CheckpointError(f"cannot load the checkpoint {path}: {error}") from error
        except RuntimeError as error:
            raise CheckpointError(f"the weights of {path} do not fit its config.json: {error}") from error
        model, info = loaded
        refuse_other_weights(path, info)
        if getattr(model.config, "_commit_hash", None):
            revision = {"revision": model.config._commit_hash}  # all files of one state of the repository
        model._source = (path, {key: value for key, value in {**hub, **revision}.items() if key != "force_download"})
        model._read_card(*model._source)
        if isinstance(language_model, str) and model.config.llm_dim is not None:
            language_model = model._load_language_model(language_model, path, {**llm_kwargs, **hub}, revision)
        elif isinstance(language_model, str):
            language_model = None  # trained to stage 1 only: there is no LLM to load
        if language_model is not None:
            model.attach_language_model(language_model, allow_other_llm=allow_other_llm)
        model.eval()
        return (model, info) if output_loading_info else model

    @staticmethod
    def _check_model_type(path: str, hub: dict[str, Any]) -> None:
        try:
            file = str(cached_file(path, "config.json", **hub))
            found = json.loads(Path(file).read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"cannot load the checkpoint {path}: {error}") from error
        if found != ALLMRecConfig.model_type:
            raise CheckpointError(
                f"{path} is a checkpoint of the model type {found!r}, not {ALLMRecConfig.model_type!r}; load it with "
                "AutoModel, or give the folder or id of an A-LLMRec model"
            )

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
        except (*_DAMAGED, ImportError) as error:
            raise CheckpointError(
                f"the base LLM {name!r} of this checkpoint cannot be loaded: {error}. Check the name, your access "
                "to it and the network; or pass language_model= (a path, an id or a loaded LM) to from_pretrained"
            ) from error
