"""Save and load a checkpoint: the light part, and beside it the frozen LLM and the text encoder."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .checkpoint_code import (
    CARD_DATA_FILE,
    EVAL_RESULTS_FILE,
    LANGUAGE_MODEL_FOLDER,
    README_FILE,
    TEXT_ENCODER_FOLDER,
    check_weights_match_config,
    generated_card,
    leftovers,
    push_saved,
    remove_leftovers,
    replaced_on_the_hub,
    write_checkpoint_code,
)
from .configuration_allmrec import ALLMRecConfig
from .errors import CheckpointError
from .files import finish_interrupted_write, folder_written_whole
from .gguf_files import split_gguf
from .item_table import ItemTable
from .llm_files import (
    ADAPTER_FOLDER,
    LOADING_OPTIONS,
    OWN_OPTIONS,
    LLMSource,
    find_llm,
    has_adapter,
    load_llm_files,
    save_llm_files,
)
from .part_sources import (
    CHECKPOINT_PART,
    LANGUAGE_MODEL_PART,
    TEXT_ENCODER_PART,
    TransportError,
    located,
    one_line,
    recorded,
    require_found,
    require_own_weights,
    stored,
)
from .stored_values import json_value

logger = logging.getLogger(__name__)

_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token")
_PUSH_ARGUMENTS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


class ALLMRecPreTrainedModel(PreTrainedModel):
    """The hooks of transformers that initialise, save and load the light part."""

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
    _eval_results: bytes | None = None
    _text_encoder: Any = None
    _source: tuple[str, dict[str, Any]] | None = None
    _encoder_carried: bool = False  # by the checkpoint that this model was loaded from
    _trusts_code: bool = False  # given by who loads, never stored

    def attach_language_model(
        self, language_model: Any, scoring_method: str = "auto", allow_other_llm: bool = False
    ) -> None:
        """Freeze a causal LM and make it this model's."""
        raise NotImplementedError

    def _attach(self, language_model: Any, scoring_method: str, allow_other_llm: bool, loaded_here: bool) -> None:
        """Attach an LLM; of one that was loaded here, what the checkpoint records of its checks is taken over."""
        raise NotImplementedError

    def require_language_model(self) -> Any:
        """Return the LLM; the model implements it."""
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
            name = self.config.text_encoder_name_or_path
            if name is None and not self._encoder_carried:
                raise CheckpointError(
                    "this checkpoint names no text encoder; give the one of stage 1 to model.attach_text_encoder"
                )
            try:
                if self._encoder_carried and self._source is not None:
                    where = self._fetch_text_encoder(*self._source)
                else:
                    where = located(str(name), TEXT_ENCODER_PART, self._folder)
                    require_found(where)
                trust = self._trusts_code
                self.attach_text_encoder(SentenceTransformer(where, device="cpu", trust_remote_code=trust))
            except Exception as error:  # of any class: its parts are of several libraries
                raise CheckpointError(
                    f"cannot load the text encoder {name!r} of this checkpoint: {one_line(error)}. Pass text_encoder= "
                    "(a path, an id or a loaded SentenceTransformer) to from_pretrained, --text-encoder on the command "
                    "line"
                ) from error
        return self._text_encoder

    @property
    def _folder(self) -> Path | None:
        """The folder that this model was loaded from, where it was one."""
        if self._source is None or not Path(self._source[0]).is_dir():
            return None
        return Path(self._source[0]) / self._source[1].get("subfolder", "")

    @staticmethod
    def _fetch_text_encoder(path: str, hub: dict[str, Any]) -> str:
        hub = dict(hub)
        inner = Path(hub.pop("subfolder", "")) / TEXT_ENCODER_FOLDER
        if Path(path).is_dir():
            folder = Path(path) / inner
        else:
            folder = Path(snapshot_download(path, allow_patterns=f"{inner.as_posix()}/*", **hub)) / inner
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} has no folder {inner.as_posix()}/, which its config.json promises")
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
            self.require_language_model()
        if self.config.text_encoder_included:
            _ = self.text_encoder
        base = self._light_base() if not include_llm else self.config.base_model_name_or_path
        if self.language_model is not None and not include_llm and base is None:
            logger.warning(
                "The saved checkpoint will not find its LLM again: set config.base_model_name_or_path, or save with "
                "include_llm=True."
            )
        if base != self.config.base_model_name_or_path:  # the LLM that the checkpoint carried, a plain folder
            self.config.base_model_gguf_file, self.config.base_model_gguf_packed = None, False
        self.config.base_model_name_or_path = base
        self.config.language_model_included, self.config.code_exported = include_llm, export_code
        self.config.language_model_adapter = include_llm and has_adapter(self.language_model)
        directory = Path(save_directory)
        needed = (self.config.base_model_name_or_path, self.config.text_encoder_name_or_path)
        encoder_included = self.config.text_encoder_included
        names = {
            "base_model_name_or_path": stored(base, LANGUAGE_MODEL_PART, directory, include_llm),
            "text_encoder_name_or_path": stored(needed[1], TEXT_ENCODER_PART, directory, encoder_included),
        }
        with folder_written_whole(save_directory) as folder:
            super().save_pretrained(str(folder), **kwargs)
            write_checkpoint_code(folder, export_code, type(self.cf_encoder), names)
            if include_llm:
                save_llm_files(self.language_model, folder / LANGUAGE_MODEL_FOLDER)
            if encoder_included:  # without a card: it would name where the encoder started from, such as a folder here
                self.text_encoder.save_pretrained(str(folder / TEXT_ENCODER_FOLDER), create_model_card=False)
            (folder / README_FILE).write_text(self.model_card or self._generated_card(), encoding="utf-8")
            if self.model_card is not None and self._card_data is not None:
                (folder / CARD_DATA_FILE).write_bytes(self._card_data)
                if self._eval_results is not None:
                    (folder / EVAL_RESULTS_FILE).parent.mkdir()
                    (folder / EVAL_RESULTS_FILE).write_bytes(self._eval_results)
            written = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
            stale = leftovers(directory, written, needed)
        remove_leftovers(directory, stale)
        if push_to_hub:
            save = {"include_llm": include_llm, "export_code": export_code}
            self.push_to_hub(repo_id or directory.name, **hub, **save, **kwargs)

    def _light_base(self) -> str | None:
        """Return where a light checkpoint of this model finds its LLM; None where that is not known."""
        name = self.config.base_model_name_or_path
        if name is None or not name.startswith("./") or Path(name).is_dir():
            return name
        folder = self._folder  # `./NAME` says what the LLM's folder was called when a checkpoint took the LLM in
        carried = None if folder is None else folder / LANGUAGE_MODEL_FOLDER
        return recorded(str(carried), LANGUAGE_MODEL_PART) if carried is not None and carried.is_dir() else None

    def _generated_card(self) -> str:
        config = self.config
        backbone, num_items = config.cf_config.model_type, config.cf_config.num_items
        return generated_card(config.base_model_name_or_path, backbone, num_items, config.language_model_included)

    def _read_card(self, path: str, hub: dict[str, Any]) -> None:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        names = (README_FILE, CARD_DATA_FILE, EVAL_RESULTS_FILE)
        try:
            card, data, results = (cached_file(path, name, **quiet, **hub) for name in names)
        except TransportError:  # a connection that breaks is no reason to have no model
            return
        if card is not None:
            text = Path(card).read_text(encoding="utf-8", errors="replace")
            self.model_card = None if text == self._generated_card() else text  # a generated one is generated anew
        if data is not None:
            self._card_data = Path(data).read_bytes()
            self._eval_results = None if results is None else Path(results).read_bytes()

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
        text_encoder: Any = None,
        trust_remote_code: bool | None = None,
        output_loading_info: bool = False,
        allow_other_llm: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the light part in fp32, then the frozen LLM, and join them.

        Args:
            pretrained_model_name_or_path: A folder, a Hub repository, or `demo`.
            config: An `ALLMRecConfig` to use instead of the saved one.
            language_model: `"auto"` loads the LLM that the checkpoint names; None loads none; a causal LM is attached;
                a string is an LLM to load instead: the same one at another place, a folder, a Hub id or a GGUF file.
                What is saved afterwards names that place.
            text_encoder: A `SentenceTransformer`, or its id or path, instead of the one that the checkpoint names.
            trust_remote_code: Run code that comes with the LLM or the text encoder; refused where not given, never
                asked for on a terminal and never stored.
            output_loading_info: Return the loading info too, as transformers does.
            allow_other_llm: Take an LLM that is not the one of the training, see `attach_language_model`.
            **kwargs: `dtype`, `device_map`, `quantization_config`, `attn_implementation`, `max_memory` and `offload_*`
                go to the LLM, and so do `gguf_file` (its name in the folder or repository), `gguf_packed` and
                `check_memory` (False: load an LLM that seems too large all the same); the rest, such as `subfolder`
                and `revision`, goes to transformers.

        Raises:
            CheckpointError: when a file is missing, damaged or of another model, or the LLM cannot be found.
        """
        given = {"config": config, "language_model": language_model, "text_encoder": text_encoder}
        given["allow_other_llm"] = allow_other_llm
        path = str(pretrained_model_name_or_path)
        model, info = cls._loaded(path, *model_args, trust=bool(trust_remote_code), **given, **kwargs)
        return (model, info) if output_loading_info else model

    @classmethod
    def _loaded(
        cls,
        path: str,
        *model_args: Any,
        config: Any,
        language_model: Any,
        text_encoder: Any,
        trust: bool,
        allow_other_llm: bool,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        llm_kwargs = {key: kwargs.pop(key) for key in (*LOADING_OPTIONS, *OWN_OPTIONS) if key in kwargs}
        hub = {key: kwargs[key] for key in _HUB_KWARGS if kwargs.get(key)}
        within = {key: kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
        if config is not None and getattr(config, "_attn_implementation_internal", None):
            llm_kwargs.setdefault("attn_implementation", config._attn_implementation_internal)
        try:
            path = located(path, CHECKPOINT_PART)
            require_own_weights(path, within.get("subfolder"))
            if finish_interrupted_write(Path(path) / within.get("subfolder", "")) and config is not None:
                config = ALLMRecConfig.from_pretrained(
                    path, **hub, **within
                )  # what was read before is of an older save
            if config is None:
                require_found(path, **hub, **within)
        except FileNotFoundError as error:
            raise CheckpointError(f"cannot load the checkpoint {path}: {one_line(error)}") from error
        if config is None:
            cls._check_model_type(path, {**hub, **within})
        try:
            loaded: Any = super().from_pretrained(
                path, *model_args, config=config, output_loading_info=True, dtype=torch.float32, **kwargs
            )
        except SafetensorError as error:
            raise CheckpointError(
                f"the weights of {path} are damaged ({error}); download or save them again"
            ) from error
        except CheckpointError:
            raise
        except (OSError, ValueError, StrictDataclassError, TransportError) as error:  # ValueError: a file's name
            raise CheckpointError(f"cannot load the checkpoint {path}: {one_line(error)}") from error
        except RuntimeError as error:
            raise CheckpointError(f"the weights of {path} do not fit its config.json: {one_line(error)}") from error
        model, info = loaded
        check_weights_match_config(path, info)
        if getattr(model.config, "_commit_hash", None):
            within["revision"] = model.config._commit_hash  # all files of one state of the repository
        model._source = (path, {**{key: value for key, value in hub.items() if key != "force_download"}, **within})
        model._trusts_code, model._encoder_carried = trust, model.config.text_encoder_included
        model._read_card(*model._source)
        if isinstance(text_encoder, str):
            model.config.text_encoder_name_or_path = recorded(text_encoder, TEXT_ENCODER_PART)
            model._encoder_carried = False
        elif text_encoder is not None:
            model.attach_text_encoder(text_encoder)
        named = isinstance(language_model, str)
        if isinstance(language_model, str) and model.config.llm_dim is None:
            if language_model != "auto":
                raise CheckpointError(
                    f"this checkpoint has no part that was trained for an LLM, so it does not take {language_model}; "
                    "leave it out (--llm, language_model=)"
                )
            language_model = None
        elif isinstance(language_model, str):
            language_model = model._load_language_model(language_model, {**hub, **within}, llm_kwargs)
        if language_model is not None:
            model._attach(language_model, "auto", allow_other_llm, loaded_here=named)
        model.eval()
        return model, info

    @staticmethod
    def _check_model_type(path: str, hub: dict[str, Any]) -> None:
        try:
            file = cached_file(path, "config.json", **hub)
            if file is None:
                raise FileNotFoundError("it has no config.json")
            found = json_value(Path(file).read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError, TransportError) as error:
            raise CheckpointError(f"cannot load the checkpoint {path}: {one_line(error)}") from error
        if found != ALLMRecConfig.model_type:
            raise CheckpointError(
                f"{path} is a checkpoint of the model type {found!r}, not {ALLMRecConfig.model_type!r}; load it with "
                "AutoModel, or give the folder or id of an A-LLMRec model"
            )

    def _load_language_model(self, wanted: str, hub: dict[str, Any], options: dict[str, Any]) -> Any:
        name = self.config.base_model_name_or_path if wanted == "auto" else wanted
        options = dict(options)
        gguf_file, packed = options.pop("gguf_file", None), options.pop("gguf_packed", None)
        packed = self.config.base_model_gguf_packed if packed is None else bool(packed)
        try:
            if wanted == "auto" and self.config.language_model_included:
                source = self._carried_llm()
            elif name is None:
                raise FileNotFoundError("its config.json names none")
            else:
                revision = self.config.base_model_revision if wanted == "auto" else None
                hub = {key: value for key, value in hub.items() if key in _HUB_KWARGS}
                if wanted == "auto":
                    gguf_file = gguf_file or self.config.base_model_gguf_file
                else:
                    name, gguf_file = split_gguf(wanted, gguf_file)
                name = located(name, LANGUAGE_MODEL_PART, self._folder)
                source = find_llm(name, revision, gguf_file, **hub)
            llm = load_llm_files(source, self._trusts_code, gguf_packed=packed, **options)
        except Exception as error:  # of any class: its parts are of several libraries
            of = "of this checkpoint " if wanted == "auto" else ""
            raise CheckpointError(
                f"the base LLM {name!r} {of}cannot be loaded: {one_line(error)}. Check the name, your access to it "
                "and the network; or pass language_model= (a path, an id or a loaded LM) to from_pretrained, --llm on "
                "the command line"
            ) from error
        if wanted != "auto":
            self.config.base_model_revision = None
        if wanted != "auto" or not self.config.language_model_included:  # as it is called wherever the process runs
            known = name if wanted == "auto" or gguf_file is not None else wanted
            self.config.base_model_name_or_path = recorded(str(known), LANGUAGE_MODEL_PART)
            self.config.base_model_gguf_file = gguf_file
            self.config.base_model_gguf_packed = packed and gguf_file is not None
        return llm

    def _carried_llm(self) -> LLMSource:
        path, where = self._source if self._source is not None else ("", {})
        inner = f"{where['subfolder']}/{LANGUAGE_MODEL_FOLDER}" if where.get("subfolder") else LANGUAGE_MODEL_FOLDER
        adapter = f"{inner}/{ADAPTER_FOLDER}" if self.config.language_model_adapter else None
        base = {**where, "subfolder": inner}
        return LLMSource(path, base, path if adapter else None, {**where, "subfolder": adapter} if adapter else {})
