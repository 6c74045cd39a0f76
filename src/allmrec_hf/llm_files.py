"""Load and save a frozen LLM: whole, as an adapter over a base model, or with its own code."""

import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, __version__
from transformers.utils import cached_file

from .errors import CheckpointError
from .gguf_files import GGUFFacts, gguf_facts, gguf_path, no_such_gguf
from .llm_memory import check_memory, free_main_memory
from .part_sources import LANGUAGE_MODEL_PART, is_hub_id, located, one_line, require_found, require_own_weights
from .stored_values import json_value

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
"""Inside the folder of a saved LLM: its adapter, where it has one."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LOADING_OPTIONS = (
    *("attn_implementation", "device_map", "dtype", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "quantization_config", "torch_dtype"),
)
"""Arguments of `AutoModelForCausalLM.from_pretrained` that go to the LLM alone."""
OWN_OPTIONS = ("gguf_file", "gguf_packed", "check_memory")
"""Further ones, which `find_llm` and `load_llm_files` take."""
_OTHER_OPTIONS = (
    *("cache_dir", "code_revision", "force_download", "key_mapping", "local_files_only", "proxies"),
    *("subfolder", "token", "tp_plan", "trust_remote_code", "use_kernels", "use_safetensors", "variant"),
    *("experts_implementation", "low_cpu_mem_usage"),
)
_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")


class LLMSource(NamedTuple):
    """The sources of an LLM: `base` and `adapter` are folders or Hub ids, `where` their further arguments.

    Of an LLM in a GGUF file, `gguf` is that file's absolute path, and `base` holds what may be beside it.
    """

    base: str
    base_where: dict[str, Any]
    adapter: str | None = None
    adapter_where: dict[str, Any] = {}
    gguf: str | None = None

    @property
    def shown(self) -> str:
        """What messages call it."""
        return self.gguf or self.base


def find_llm(name: str, revision: str | None = None, gguf_file: str | None = None, **hub: Any) -> LLMSource:
    """Return where the LLM of an id or folder is; of an adapter (PEFT), also where its base is.

    Args:
        name: What `part_sources.located` returned.
        revision: Its revision on the Hub; of an adapter, the adapter's.
        gguf_file: Name of the GGUF file inside the folder or repository that holds the LLM.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: when it, or the base of an adapter, cannot be found.
        CheckpointError: when PEFT is not installed, or the adapter is of a kind that has no place beside vectors.
    """
    where = hub if revision is None else {**hub, "revision": revision}
    if gguf_file is not None:
        return _gguf_source(name, gguf_file, where)
    require_found(name, revision=revision, **hub)
    beside = Path(name) / ADAPTER_FOLDER
    if (beside / ADAPTER_CONFIG).is_file():  # written by `save_llm_files`
        return LLMSource(name, hub, str(beside), hub)
    file = cached_file(name, ADAPTER_CONFIG, **_quiet(where))
    if file is None:
        return LLMSource(name, where)
    if find_spec("peft") is None:
        raise CheckpointError(f"{name} is an adapter, which needs PEFT: pip install peft")
    config = _adapter_config(Path(file))
    if config.get("peft_type") in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"):
        raise CheckpointError(
            f"{name} is an adapter of the kind {config['peft_type']}, which puts tokens of its own before the prompt; "
            "LoRA and others that change the layers can be used"
        )
    folder = Path(name)
    if (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return LLMSource(name, where)  # a whole model and its adapter, which transformers joins
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{name} is an adapter whose {ADAPTER_CONFIG} names no base_model_name_or_path")
    try:
        base = located(base, LANGUAGE_MODEL_PART, folder if folder.is_dir() else None)
        of_base = hub if config.get("revision") is None else {**hub, "revision": config["revision"]}
        require_found(base, **of_base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"it is an adapter of the base {base}: {error}") from error
    return LLMSource(base, of_base, name, where)


def _adapter_config(path: Path) -> dict[str, Any]:
    """Return what an adapter says of itself.

    Raises:
        CheckpointError: when it is no JSON object.
    """
    try:
        config = json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable JSON ({error}); download or save the adapter again") from error
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str | None):
        raise CheckpointError(f"{path} is not the configuration of an adapter; download or save the adapter again")
    return config


def _gguf_source(name: str, gguf_file: str, where: dict[str, Any]) -> LLMSource:
    if Path(name).is_dir():
        return LLMSource(name, where, gguf=gguf_path(name, gguf_file))
    require_found(name, gguf_file, **where)
    file = cached_file(name, gguf_file, **_quiet(where))
    if file is None:
        try:
            files = HfApi(token=where.get("token")).list_repo_files(name, revision=where.get("revision"))
        except OSError:
            files = []
        raise FileNotFoundError(no_such_gguf(name, gguf_file, files))
    return LLMSource(name, where, gguf=str(Path(file).absolute()))


def _quiet(where: dict[str, Any]) -> dict[str, Any]:
    names = ("missing_entries", "connection_errors", "gated_repo")
    return {**where, **{f"_raise_exceptions_for_{name}": False for name in names}}


def load_llm_files(
    source: LLMSource,
    trust_remote_code: bool | None = None,
    gguf_packed: bool = False,
    check_memory: bool = True,
    **options: Any,
) -> Any:
    """Return a causal LM, its adapter injected where it has one.

    Args:
        source: Of `find_llm`.
        trust_remote_code: Run code that comes with the LLM; never asked for on a terminal.
        gguf_packed: Keep the weights of a GGUF file in their blocks where transformers has a kernel for them; else
            they are unpacked, in fp32 where no dtype is given.
        check_memory: Refuse an LLM that does not fit into memory before it is loaded.
        **options: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        CheckpointError: when a GGUF file cannot be read, weights are missing, or the LLM does not fit.
    """
    trust = bool(trust_remote_code)
    name, where, facts = source.base, source.base_where, None
    if source.gguf is not None:
        facts = gguf_facts(source.gguf)
        name, where = str(Path(source.gguf).parent), _gguf_arguments(source, gguf_packed, options)
        options.pop("quantization_config", None)
    if check_memory:
        require_memory(source, trust, facts, gguf_packed, options)
    require_own_weights(name, where.get("subfolder"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name, trust_remote_code=trust, output_loading_info=True, **where, **options
    )
    llm, info = loaded
    missing = sorted(set(map(str, info["missing_keys"])) & {key for key, _ in llm.named_parameters()})
    if missing and not has_adapter(llm):
        raise CheckpointError(
            f"{len(missing)} weights of {source.shown} are missing, such as {', '.join(missing[:3])}: it is damaged, "
            "or no causal LM"
        )
    if facts is not None:
        packed = any(parameter.dtype == torch.uint8 for parameter in llm.parameters())
        size = sum(parameter.nbytes for parameter in llm.parameters()) / 1e9
        how = "packed in their blocks" if packed else f"unpacked to {str(llm.dtype).removeprefix('torch.')}"
        logger.info("%s: the weights of %s are %s (%.2f GB).", facts.architecture, source.gguf, how, size)
    llm = _in_a_fast_dtype(llm, source.shown, options.get("dtype") in (None, "auto"))
    if source.adapter is not None:
        add_adapter(llm, source.adapter, **source.adapter_where)
    return llm


def _in_a_fast_dtype(llm: Any, name: str, free: bool) -> Any:
    """Return the LLM, in float32 where the processor has no instructions for its bfloat16 and nobody asked for a dtype.

    Args:
        llm: The LLM as loaded.
        name: Its name in messages.
        free: Whether no dtype was asked for.
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") != "x86_64" or known.get("avx512_bf16") or known.get("amx_bf16"):
        return llm
    if llm.dtype != torch.bfloat16 or llm.device.type != "cpu":
        return llm
    room, size = free_main_memory(), sum(parameter.nbytes for parameter in llm.parameters())
    fits = room is None or room > 2 * size
    what = f"{name} is in bfloat16, for which this processor has no instructions"
    if free and fits:
        logger.warning(
            "%s: it is loaded in float32, which takes twice the memory (%.1f GB) and is far faster; "
            "dtype=torch.bfloat16 (--llm.dtype bfloat16) keeps it.",
            what,
            2 * size / 1e9,
        )
        return llm.float()
    logger.warning(
        "%s: float32 (--llm.dtype float32, dtype=torch.float32) takes twice the memory (%.1f GB) and is far faster.",
        what,
        2 * size / 1e9,
    )
    return llm


def _gguf_arguments(source: LLMSource, packed: bool, options: dict[str, Any]) -> dict[str, Any]:
    if options.get("quantization_config") is not None:
        raise CheckpointError(
            f"{source.gguf} is a GGUF file, whose weights are quantized as they are; leave out quantization_config "
            "(--llm.load-in-8bit), or give the LLM's folder or Hub id with safetensors"
        )
    from transformers import GgufConfig  # checked by `gguf_facts`

    return {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=not packed)}


def require_memory(
    source: LLMSource,
    trust_remote_code: bool,
    facts: GGUFFacts | None,
    gguf_packed: bool,
    options: dict[str, Any],
    device: Any = None,
) -> None:
    """Refuse an LLM whose weights do not fit into memory, see `llm_memory.check_memory`.

    Args:
        source: Of `find_llm`.
        trust_remote_code: Run code that comes with it.
        facts: Of a GGUF file.
        gguf_packed: Whether its weights stay packed.
        options: Loading options.
        device: Where the LLM is put after loading.

    Raises:
        CheckpointError: when they do not fit.
    """
    dtype = options.get("dtype", options.get("torch_dtype"))
    if facts is not None:
        each = facts.file_bytes / facts.parameters if gguf_packed else _bytes_of(dtype, torch.float32)
        check_memory(source.shown, facts.parameters, each, options, device)
        return
    try:
        config = load_config(source, trust_remote_code)
        empty = empty_llm(config, trust_remote_code)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError):
        return  # loading says what is wrong
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    quantized = options.get("quantization_config") or getattr(config, "quantization_config", None)
    own = getattr(config.get_text_config(), "dtype", None) or torch.float32
    each = 0.5 if quantized is not None else _bytes_of(dtype, own)  # of quantized ones the least they can need
    check_memory(source.shown, parameters, each, options, device)


def _bytes_of(dtype: Any, own: Any) -> int:
    """Return the bytes of a number of a dtype, by name or itself; of None and `auto`, of the LLM's own."""
    found = own if dtype in (None, "auto") else dtype
    if isinstance(found, str):
        found = getattr(torch, found.removeprefix("torch."), torch.float32)
    return found.itemsize if isinstance(found, torch.dtype) else 2


def add_adapter(llm: Any, name: str, **where: Any) -> None:
    """Inject the adapter of a folder or Hub id into a causal LM.

    Args:
        llm: The LM that the adapter was trained for.
        name: Folder or Hub id.
        **where: `subfolder`, `revision`, `token` and the like.

    Raises:
        CheckpointError: when the adapter lacks weights, or its weights do not fit the LM.
    """
    if find_spec("peft") is None:
        raise CheckpointError(f"the LLM of {name} has an adapter, which needs PEFT: pip install peft")
    info = llm.load_adapter(name, adapter_kwargs=dict(where))
    wrong = sorted(map(str, {*info.missing_keys, *info.mismatched_keys}))
    if wrong:
        raise CheckpointError(f"the adapter {name} does not fit its base: {len(wrong)} tensors, first {wrong[:3]}")


def load_tokenizer(source: LLMSource, trust_remote_code: bool | None = None) -> Any:
    """Return the tokenizer of an LLM: the adapter's where that has one, else the base's."""
    trust = bool(trust_remote_code)
    name, where = source.base, source.base_where
    files = ("tokenizer_config.json", "tokenizer.json")
    if source.gguf is not None:
        if gguf_facts(source.gguf).has_tokenizer:
            folder = str(Path(source.gguf).parent)
            try:
                return AutoTokenizer.from_pretrained(folder, gguf_file=source.gguf, trust_remote_code=trust)
            except (ValueError, KeyError) as error:
                raise _unread(source.gguf, error) from error
        if not any(cached_file(name, file, **_quiet(where)) for file in files):
            raise CheckpointError(
                f"{source.gguf} has no tokenizer, and none lies beside it; put the tokenizer.json of the LLM into its "
                "folder, or give a GGUF file with its vocabulary"
            )
    if source.adapter is not None and any(
        cached_file(source.adapter, file, **_quiet(source.adapter_where)) for file in files
    ):
        name, where = source.adapter, source.adapter_where
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust, **where)


def load_config(source: LLMSource, trust_remote_code: bool | None = None) -> Any:
    """Return the config of an LLM.

    Raises:
        CheckpointError: when transformers cannot read its architecture from a GGUF file.
    """
    if source.gguf is not None:
        gguf_facts(source.gguf)
        try:
            return AutoConfig.from_pretrained(str(Path(source.gguf).parent), gguf_file=source.gguf)
        except (ValueError, KeyError) as error:
            raise _unread(source.gguf, error) from error
    return AutoConfig.from_pretrained(source.base, trust_remote_code=bool(trust_remote_code), **source.base_where)


def _unread(path: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} holds an LLM of the architecture {gguf_facts(path).architecture!r}, which transformers {__version__} "
        f"cannot read from a GGUF file, or whose tokenizer it cannot ({one_line(error)}); give the LLM's folder or Hub "
        "id with safetensors"
    )


def empty_llm(config: Any, trust_remote_code: bool | None = None, attn_implementation: str | None = None) -> Any:
    """Return a causal LM without weights, on the device `meta`, to learn its shapes from.

    Raises:
        ValueError: when transformers has no causal LM for the config.
        ImportError: when its attention needs a package that is not installed.
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=bool(trust_remote_code), **options)


# -- options


def check_llm_options(options: dict[str, Any], config: Any = None) -> None:
    """Check loading options that cannot work, before anything is trained.

    Args:
        options: For `AutoModelForCausalLM.from_pretrained`.
        config: The LLM's config, whose fields are options too.

    Raises:
        CheckpointError: when one is unknown, a dtype cannot be computed with, or a device is not there.
    """
    unknown = sorted(name for name in options if name not in (*LOADING_OPTIONS, *_OTHER_OPTIONS))
    unknown = [name for name in unknown if config is None or not hasattr(config, name)]
    if unknown and config is not None:
        raise CheckpointError(f"unknown options of the LLM {unknown}; known are {', '.join(LOADING_OPTIONS)}")
    for name in ("dtype", "torch_dtype"):
        dtype = options.get(name)
        word = str(dtype).removeprefix("torch.")
        if dtype is not None and word not in _DTYPES:
            known = isinstance(getattr(torch, word, None), torch.dtype)
            problem = f"an LLM cannot compute in the dtype {word!r}" if known else f"there is no dtype {word!r}"
            hint = "; to quantize, use --llm.load-in-8bit or quantization_config" if known else ""
            raise CheckpointError(f"{problem}; use {', '.join(_DTYPES)}{hint}")
    device_map = options.get("device_map")
    if isinstance(device_map, dict):
        for device in device_map.values():
            if device != "disk":
                _check_device(device)
    elif device_map is not None and device_map not in _DEVICE_MAPS:
        _check_device(device_map)
    quantization = options.get("quantization_config")
    if "BitsAndBytes" in type(quantization).__name__ and find_spec("bitsandbytes") is None:
        raise CheckpointError("quantization needs bitsandbytes: pip install 'allmrec-hf[quantization]'")


def _check_device(given: Any) -> None:
    try:
        device = torch.device("cuda", given) if type(given) is int else torch.device(given)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"device_map {given!r} is no device; use {', '.join(_DEVICE_MAPS)}, cpu, or a device such as cuda:0"
        ) from error
    if device.type == "cpu":
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = 0 if accelerator is None or accelerator.type != device.type else torch.accelerator.device_count()
    if (device.index or 0) >= found:
        raise CheckpointError(
            f"device_map {str(given)!r}: this machine's PyTorch has {found} devices of the type {device.type!r}; use "
            "cpu or auto"
        )


# -- writing


def has_adapter(llm: Any) -> bool:
    """Tell whether PEFT layers are injected into an LLM."""
    return getattr(llm, "peft_config", None) is not None and bool(
        getattr(llm, "_hf_peft_config_loaded", False) or _is_peft_model(llm)
    )


def _is_peft_model(llm: Any) -> bool:
    return hasattr(llm, "get_base_model") and hasattr(llm, "peft_config")


def save_llm_files(llm: Any, folder: str | os.PathLike[str]) -> None:
    """Write a causal LM; of one with an adapter the base, and the adapter beside it in `adapter/`.

    Raises:
        CheckpointError: when its adapters cannot be told from its base: merged ones, several at once, or learned
            tokens before the prompt; or when its weights are packed as in a GGUF file.
    """
    folder = Path(folder)
    if type(getattr(llm, "hf_quantizer", None)).__name__ == "GgufHfQuantizer" and any(
        parameter.dtype == torch.uint8 for parameter in llm.parameters()
    ):
        raise CheckpointError(
            "the LLM's weights are packed as in its GGUF file, which cannot be written: load it unpacked "
            "(gguf_packed=False), or save with include_llm=False, which names the file"
        )
    if not has_adapter(llm):
        llm.save_pretrained(str(folder))
        return
    try:  # no requirement of exported code
        from peft import get_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise CheckpointError("an LLM with an adapter needs PEFT: pip install peft") from error
    active = llm.active_adapters() if callable(llm.active_adapters) else llm.active_adapters
    active = [active] if isinstance(active, str) else list(active)
    layers = [module for module in llm.modules() if isinstance(module, BaseTunerLayer)]
    if len(active) != 1 or getattr(llm.peft_config[active[0]], "is_prompt_learning", False):
        raise CheckpointError(
            f"the LLM has the adapters {active}; one adapter that changes the layers can be saved with it: merge them "
            "(merge_and_unload), or save with include_llm=False"
        )
    if any(layer.merged or layer.disable_adapters for layer in layers):
        raise CheckpointError(
            "the LLM's adapter is merged or disabled, so base and adapter cannot be told apart: call "
            "merge_and_unload() or unmerge it before the LLM is saved"
        )
    adapter = active[0]
    base = llm.get_base_model() if _is_peft_model(llm) else llm
    weights = {name: value.contiguous() for name, value in get_peft_model_state_dict(llm, adapter_name=adapter).items()}
    if not _is_peft_model(llm):
        weights = {f"base_model.model.{name}": value for name, value in weights.items()}
    # Else transformers writes the adapter alone, under the adapter's names.
    plain = {"_hf_peft_config_loaded": False, "_weight_conversions": None}
    before = {name: getattr(base, name, plain[name]) for name in plain}
    try:
        for name, value in plain.items():
            if before[name] is not value and not _is_peft_model(llm):
                setattr(base, name, value)
        base.save_pretrained(str(folder), state_dict=_base_state(base))
    finally:
        for name, value in before.items():
            if getattr(base, name, value) is not value:
                setattr(base, name, value)
    (folder / ADAPTER_FOLDER).mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    llm.peft_config[adapter].save_pretrained(str(folder / ADAPTER_FOLDER))
    _name_base(folder / ADAPTER_FOLDER / ADAPTER_CONFIG)


def _name_base(path: Path) -> None:
    """Let the adapter's config name the base beside it, where it named a folder of this machine."""
    config = json_value(path.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base or not is_hub_id(base) or Path(base).is_dir():
        config["base_model_name_or_path"] = ".."
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _base_state(base: Any) -> dict[str, torch.Tensor]:
    """Return the state dict that an LLM had before PEFT layers were injected."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError as error:
        raise CheckpointError("an LLM with an adapter needs PEFT: pip install peft") from error
    own = {BaseTunerLayer: "base_layer", AuxiliaryTrainingWrapper: "original_module"}
    wrapped = {
        name: inner for name, module in base.named_modules() for kind, inner in own.items() if isinstance(module, kind)
    }
    state: dict[str, torch.Tensor] = {}
    for key, value in base.state_dict().items():
        parts = key.split(".")
        owners = [".".join(parts[:end]) for end in range(1, len(parts)) if ".".join(parts[:end]) in wrapped]
        for owner in reversed(owners):
            rest = key[len(owner) + 1 :]
            inner = f"{wrapped[owner]}."
            if not rest.startswith(inner):
                break
            key = f"{owner}.{rest[len(inner) :]}"
        else:
            state[key] = value
    return state
