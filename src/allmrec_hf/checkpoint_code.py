"""What a checkpoint needs so that transformers finds its classes without this package having been imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .files import written_whole

ENTRY_MODULE = "allmrec_remote"
_CLASSES = {
    "configuration_allmrec": "ALLMRecConfig",
    "modeling_allmrec": "ALLMRecModel",
    "processing_allmrec": "ALLMRecProcessor",
    "pipeline_recommendation": "RecommendationPipeline",
}
_SHIM = '''"""Entry for transformers' trust_remote_code=True: the code is the installed package allmrec-hf."""

from allmrec_hf import ALLMRecConfig, ALLMRecModel, ALLMRecProcessor, RecommendationPipeline

__all__ = ["ALLMRecConfig", "ALLMRecModel", "ALLMRecProcessor", "RecommendationPipeline"]
'''


def _exported_entry(cf_module: str) -> str:
    lines = ['"""Entry for transformers\' trust_remote_code=True: the code lies beside this file."""', ""]
    lines.append(f"from .{cf_module} import *")
    lines += [f"from .{module} import {name}" for module, name in _CLASSES.items()]
    return "\n".join([*lines, "", f"__all__ = {sorted(_CLASSES.values())!r}", ""])


def _update_json(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_checkpoint_code(directory: Path, export_code: bool, cf_module: str) -> None:
    """Write the entry module, and name it in `config.json`.

    Args:
        directory: A folder with `config.json`.
        export_code: False: the entry imports the installed package, and says `pip install allmrec_hf` where it is
            missing. True: the flat core of this package is copied, so that the checkpoint works without it.
        cf_module: The module of this package that holds the checkpoint's CF encoder, such as `cf_sasrec`.
    """
    auto_map = {
        "AutoConfig": f"{ENTRY_MODULE}.ALLMRecConfig",
        "AutoModel": f"{ENTRY_MODULE}.ALLMRecModel",
        "AutoProcessor": f"{ENTRY_MODULE}.ALLMRecProcessor",
    }
    task = {"impl": f"{ENTRY_MODULE}.RecommendationPipeline", "pt": ["AutoModel"], "type": "multimodal"}
    (directory / f"{ENTRY_MODULE}.py").write_text(
        _exported_entry(cf_module) if export_code else _SHIM, encoding="utf-8"
    )
    if export_code:
        for source in Path(__file__).parent.glob("*.py"):
            if not source.name.startswith("_"):
                shutil.copyfile(source, directory / source.name)
    _update_json(directory / "config.json", {"auto_map": auto_map, "custom_pipelines": {"recommendation": task}})
