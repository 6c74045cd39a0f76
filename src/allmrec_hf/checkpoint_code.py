"""Write a checkpoint's code, its Auto class entries and its model card, and push it to the Hub."""

from __future__ import annotations

import ast
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .endpoint_handler import write_endpoint_files
from .errors import CheckpointError
from .files import written_whole
from .hub_upload import escape, upload
from .part_sources import DEMO
from .sharing import check_no_local_parts, check_no_machine_paths
from .stored_values import json_value

ENTRY_MODULE = "allmrec_remote"
README_FILE = "README.md"
CARD_DATA_FILE = "model_card.json"
EVAL_RESULTS_FILE = ".eval_results/allmrec-hf.yaml"
LANGUAGE_MODEL_FOLDER = "language_model"
TEXT_ENCODER_FOLDER = "text_encoder"
WEIGHT_PATTERNS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_CLASSES = {
    "configuration_allmrec": "ALLMRecConfig",
    "modeling_allmrec": "ALLMRecModel",
    "processing_allmrec": "ALLMRecProcessor",
    "pipeline_recommendation": "RecommendationPipeline",
}
_AUTO_MAP = {
    "AutoConfig": f"{ENTRY_MODULE}.ALLMRecConfig",
    "AutoModel": f"{ENTRY_MODULE}.ALLMRecModel",
    "AutoProcessor": f"{ENTRY_MODULE}.ALLMRecProcessor",
}
_TASK = {"impl": f"{ENTRY_MODULE}.RecommendationPipeline", "pt": ["AutoModel"], "type": "multimodal"}
_SHIM = '''"""Entry for transformers' trust_remote_code=True: the code is the installed package allmrec-hf."""

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, RecommendationPipeline

__all__ = ["ALLMRecConfig", "ALLMRecModel", "ALLMRecProcessor", "RecommendationPipeline"]
'''
_CARD = """# A-LLMRec recommender

{backbone} (collaborative filtering, {num_items:,} items) beside a frozen large language model
({llm}), joined by trained projections ([arXiv 2404.11343](https://arxiv.org/abs/2404.11343)).
{llm_note}

This card was generated when the model was saved. No evaluation is stored with this checkpoint.

## Usage

```python
import allmrec_hf
from transformers import pipeline

recommend = pipeline("recommendation", model=".")
recommend({{"history": recommend.processor.catalog.item_ids[:2]}}, top_k=10)
```

The catalogue of item ids is `recommend.processor.catalog`.
"""


# -- code


def _entry(classes: dict[str, str]) -> str:
    lines = ['"""Entry for transformers\' trust_remote_code=True: the code lies beside this file."""', ""]
    lines += [f"from .{module} import {name}" for module, name in sorted(classes.items())]
    return "\n".join([*lines, "", f"__all__ = {json.dumps(sorted(classes.values()))}", ""])


def needed_modules(entries: Iterable[str]) -> list[str]:
    """Return the modules of this flat folder that the entries import, themselves included, sorted."""
    needed: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                    waiting.append(node.module)
    return sorted(needed)


def _flat_module(cf_class: type) -> str:
    file = getattr(sys.modules.get(cf_class.__module__), "__file__", None)
    if file is None or Path(file).resolve().parent != Path(__file__).resolve().parent:
        raise CheckpointError(
            f"export_code=True copies this package's own code, but the backbone {cf_class.__name__} is defined in "
            f"{cf_class.__module__}; save with export_code=False, and import that module before loading"
        )
    return Path(file).stem


def update_json(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file, whole or not at all."""
    content = json_value(path.read_text(encoding="utf-8"))
    content.update(changes)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_checkpoint_code(
    directory: Path, export_code: bool, cf_class: type, values: Mapping[str, Any] | None = None
) -> None:
    """Write the entry module, named in `config.json`, and the handler of Inference Endpoints.

    Args:
        directory: A folder with `config.json`.
        export_code: False: the entry imports the installed package, and says `pip install allmrec_hf` where it is
            missing. True: the flat core of this package is copied, so that the checkpoint works without it.
        cf_class: The class of the checkpoint's backbone.
        values: What else `config.json` says in place of what is in it.

    Raises:
        CheckpointError: when the code of a backbone from outside this package is to be exported.
    """
    entry = _SHIM
    if export_code:
        classes = {**_CLASSES, _flat_module(cf_class): cf_class.__name__}
        entry = _entry(classes)
        for name in needed_modules(classes):
            shutil.copyfile(Path(__file__).parent / f"{name}.py", directory / f"{name}.py")
    (directory / f"{ENTRY_MODULE}.py").write_text(entry, encoding="utf-8")
    write_endpoint_files(directory, export_code)
    update_json(
        directory / "config.json",
        {
            **(values or {}),
            "auto_map": _AUTO_MAP,
            "code_exported": export_code,
            "custom_pipelines": {"recommendation": _TASK},
        },
    )


def name_processor_class(directory: Path) -> None:
    """Name the entry module in `processor_config.json`: transformers looks nowhere else for a processor's class."""
    auto_map = {"AutoProcessor": _AUTO_MAP["AutoProcessor"]}
    update_json(directory / "processor_config.json", {"auto_map": auto_map})


# -- weights


def check_weights_match_config(path: str, info: Mapping[str, Any]) -> None:
    """Check that loaded weights are those of the config beside them; transformers would leave others at random values.

    Args:
        path: Where they come from.
        info: The loading info of `from_pretrained`.

    Raises:
        CheckpointError: when tensors are missing, unexpected or of another shape.
    """
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, info[kind])) for kind in kinds if info[kind]}
    if wrong:
        counts = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, first {keys[:3]}" for kind, keys in wrong.items())
        raise CheckpointError(f"the weights of {path} are not those of its config.json: {counts}")


# -- what an earlier checkpoint left in the folder


def _included(directory: Path) -> set[str]:
    """Return which folders and code a checkpoint says it carries; nothing where it is no checkpoint of ours."""
    try:
        config = json_value((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(config, dict) or config.get("model_type") != "a-llmrec":
        return set()
    flags = {
        LANGUAGE_MODEL_FOLDER: config.get("language_model_included"),
        TEXT_ENCODER_FOLDER: config.get("text_encoder_included"),
        "code": config.get("code_exported"),
        "card": True,
    }
    return {name for name, carried in flags.items() if carried}


def leftovers(directory: Path, written: set[str], kept: Iterable[str | None] = ()) -> list[Path]:
    """Return files of an earlier checkpoint that a new one does not replace, and that would shadow or bloat it.

    Weights under other names (sharded or not); the LLM, the text encoder and exported code where the earlier
    checkpoint carried them; the numbers of its model card. Files that are no checkpoint's are never named.

    Args:
        directory: The folder, before the new checkpoint is moved into it.
        written: The new checkpoint's files, as relative POSIX paths.
        kept: Folders that hold something else that is still needed, such as a base LLM.
    """
    carried = _included(directory)
    patterns = [*WEIGHT_PATTERNS]
    for folder in (LANGUAGE_MODEL_FOLDER, TEXT_ENCODER_FOLDER):
        used = any(path and Path(path).resolve() == (directory / folder).resolve() for path in kept)
        if folder in carried and not used:
            patterns.append(f"{folder}/**/*")
    if "card" in carried:
        patterns += [CARD_DATA_FILE, EVAL_RESULTS_FILE]
    if "code" in carried:
        patterns += [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_")]
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.relative_to(directory).as_posix() not in written)


def remove_leftovers(directory: Path, files: Sequence[Path]) -> None:
    """Delete files, and the folders inside `directory` that they leave empty."""
    for path in files:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == directory or any(folder.iterdir()):
                break
            folder.rmdir()


# -- the card of a model that has none


def generated_card(base_model: str | None, backbone: str, num_items: int, language_model_included: bool = False) -> str:
    """Return the model card of a checkpoint of which only its configuration is known.

    Args:
        base_model: Id or path of the frozen LLM; of a path only the last part is shown.
        backbone: The backbone's `model_type`.
        num_items: N.
        language_model_included: Whether the checkpoint carries the LLM.
    """
    repository, llm = None, "none yet"
    if base_model is not None:
        try:
            validate_repo_id(base_model)
            repository = None if base_model == DEMO or Path(base_model).exists() else base_model
        except HFValidationError:
            pass
        llm = escape(base_model) if repository else f"{escape(PureWindowsPath(base_model).name)}, a local folder"
    elif language_model_included:
        llm = "of unrecorded origin"
    note = "The checkpoint does not carry the language model; loading fetches it under its own id and licence."
    if base_model is None:
        note = "No language model is recorded: give one to `from_pretrained` as `language_model=`."
    if language_model_included:
        note = "The checkpoint carries the language model's weights."
    data = ModelCardData(
        base_model=repository,
        library_name="allmrec-hf",
        pipeline_tag="recommendation",
        tags=["a-llmrec", "recommendation", "collaborative-filtering"],
    )
    text = _CARD.format(backbone=escape(backbone.removeprefix("allmrec-")), num_items=num_items, llm=llm, llm_note=note)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").content


# -- to the Hub

_REMEDIES = {
    "llm": "pass include_llm=True, or set config.base_model_name_or_path to the id of the same LLM on the Hub",
    "text_encoder": "set config.text_encoder_included = True, or config.text_encoder_name_or_path to its id on the Hub",
}


def push_saved(save: Callable[[str], Any], repo_id: str, **options: Any) -> str:
    """Save to a temporary folder and upload it in one commit; the repository is made where it does not exist.

    Args:
        save: Writes the files into the folder it is given.
        repo_id: `namespace/name`.
        **options: Passed to `hub_upload.upload`, such as `private`, `token`, `revision` and `commit_message`.

    Returns:
        The address of the commit.

    Raises:
        ALLMRecError: when the id is malformed, the Hub refuses or cannot be reached, a text file names a path of this
            machine, or the LLM or text encoder of a light checkpoint lies in a folder of this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        _name_repository(Path(folder), repo_id)
        check_no_local_parts(Path(folder), _REMEDIES)
        check_no_machine_paths(Path(folder), (path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")))
        return upload(Path(folder), repo_id, **options)[1]


def _name_repository(folder: Path, repo_id: str) -> None:
    """Let the card's example load the repository in place of the folder that the card lies in."""
    readme = folder / README_FILE
    if not readme.exists():
        return
    text = readme.read_text(encoding="utf-8")
    named = text.replace('model="."', f"model={json.dumps(repo_id)}")
    if named != text:
        readme.write_text(named, encoding="utf-8")
        if (folder / CARD_DATA_FILE).exists():
            update_json(folder / CARD_DATA_FILE, {"repo_id": repo_id})


def replaced_on_the_hub() -> list[str]:
    """Return patterns of a model's files that a new push replaces even under other names."""
    patterns = [*WEIGHT_PATTERNS, f"{LANGUAGE_MODEL_FOLDER}/*", f"{TEXT_ENCODER_FOLDER}/*"]
    return patterns + [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_")]
