"""Export a checkpoint for another runtime: load it, write the files, check them on real users, keep them or nothing."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration_allmrec import ALLMRecConfig
from ..data.storage import check_output, replaced_folder
from ..errors import ALLMRecError
from ..modeling_allmrec import ALLMRecModel
from ..part_sources import CHECKPOINT_PART, located
from ..processing_allmrec import ALLMRecProcessor
from .export_record import RECORD_FILE, digest_of_items, versions, write_record
from .export_users import MOST_USERS, ExportUser, export_users
from .graph_export import write_graphs
from .graph_runtimes import RUNTIMES
from .item_vectors import VectorTable, missing_package, ranked_users, vector_rankers
from .pgvector_files import write_pgvector
from .prompt_embeds import check_prompts, write_prompts
from .vector_indexes import INDEXES, write_index, write_items


@dataclass(frozen=True)
class ExportOptions:
    """What of a checkpoint is exported.

    Attributes:
        rankers: `cf`, `retrieval` or both; what the checkpoint has where empty. Not for `vllm`.
        with_text: Whether `onnx` and `openvino` hold the text encoder and the path of new items.
        prompts: The path of `vllm`: `letter` or `generate`.
        num_candidates: Candidates that are retrieved for a prompt, where the users bring none.
        num_permutations: Prompts of a user, with the candidates in other orders; for the path `letter`.
    """

    rankers: tuple[str, ...] = ()
    with_text: bool = True
    prompts: str = "letter"
    num_candidates: int = 20
    num_permutations: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.rankers, str):
            object.__setattr__(self, "rankers", (self.rankers,))


@dataclass(frozen=True)
class ExportFormat:
    """What an export needs.

    Attributes:
        packages: Modules that must be installed, and the extra that brings them.
        extra: The extra of this package.
        needs_llm: Whether the LLM is loaded, whatever ranks.
        versions: Packages whose versions the record names.
    """

    packages: tuple[str, ...] = ()
    extra: str | None = None
    needs_llm: bool = False
    versions: tuple[str, ...] = ()


FORMATS = {
    "faiss": ExportFormat(("faiss",), "vectors", versions=("faiss-cpu",)),
    "usearch": ExportFormat(("usearch",), "vectors", versions=("usearch",)),
    "pgvector": ExportFormat(),
    "onnx": ExportFormat(("onnx", "onnxscript", "onnxruntime"), "onnx", versions=("onnx", "onnxscript", "onnxruntime")),
    "openvino": ExportFormat(("openvino",), "openvino", versions=("openvino",)),
    "vllm": ExportFormat(needs_llm=True),
}


def check_format(format: str) -> ExportFormat:
    """Return what a format needs.

    Raises:
        ALLMRecError: when it is unknown, or a package of it is not installed.
    """
    if format not in FORMATS:
        raise ALLMRecError(f"unknown format {format!r} of an export; known are {', '.join(FORMATS)}")
    found = FORMATS[format]
    for package in found.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_package(package, str(found.extra), error) from error
    if format in RUNTIMES and importlib.util.find_spec("transformers.exporters") is None:
        raise ALLMRecError(f"graphs need a newer transformers: pip install 'allmrec-hf[{found.extra}]'")
    return found


def load_for_export(
    path: str | Path, format: str, rankers: Sequence[str] = (), llm: str | None = None, **loading: Any
) -> tuple[ALLMRecModel, ALLMRecProcessor]:
    """Load of a checkpoint what an export needs: the LLM only where the ranker `retrieval` or prompts ask for it.

    Args:
        path: Folder, Hub id or `demo`.
        format: One of `FORMATS`.
        rankers: Those to export; all that have vectors where empty.
        llm: An LLM in place of the one that the checkpoint names.
        **loading: Further arguments of `ALLMRecModel.from_pretrained`.
    """
    config = ALLMRecConfig.from_pretrained(located(str(path), CHECKPOINT_PART))
    wanted = FORMATS[format].needs_llm or "retrieval" in vector_rankers(config, list(rankers))
    if format in RUNTIMES:
        loading = {"dtype": "float32", **loading}
    model = ALLMRecModel.from_pretrained(path, language_model=(llm or "auto") if wanted else None, **loading)
    trusts = bool(loading.get("trust_remote_code"))
    return model, ALLMRecProcessor.from_pretrained(path, trust_remote_code=trusts)


def export_checkpoint(
    model: str | Path,
    format: str,
    output: str | Path,
    users: str | Path | None = None,
    data: str | Path | None = None,
    max_users: int = MOST_USERS,
    overwrite: bool = False,
    options: ExportOptions | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Export a checkpoint and return the record that stands beside the files as `export.json`.

    Every part is checked on real users: the top-10 of the written files must overlap with ours by 0.99 or more on the
    average, else the export is refused and nothing is written.

    Args:
        model: Run folder, Hub id or `demo`.
        format: One of `FORMATS`.
        output: The folder to write.
        users: A parquet file, or JSON lines, with the histories of the users that decide.
        data: Prepared data of the users, in place of a file.
        max_users: Users at most.
        overwrite: Replace an earlier export.
        options: What of the checkpoint is exported.
        **loading: `llm`, and arguments of `ALLMRecModel.from_pretrained` such as `text_encoder`.

    Raises:
        ALLMRecError: when the format is unknown, a package is missing, the output is taken, the checkpoint cannot be
            exported, or the gate is not passed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     record = export_checkpoint("demo", "pgvector", f"{folder}/demo", max_users=20)
        >>> record["parts"][0]["name"], record["parts"][0]["gate"]["overlap"]
        ('cf', 1.0)
    """
    check_format(format)
    check_output(Path(output), overwrite, RECORD_FILE)
    options = options or ExportOptions()
    loaded, processor = load_for_export(model, format, options.rankers, **loading)
    found = export_users(processor.catalog, model, users, data, max_users)
    return export_model(loaded, processor, format, output, found, overwrite, options)


def export_model(
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    format: str,
    output: str | Path,
    users: Sequence[ExportUser],
    overwrite: bool = False,
    options: ExportOptions | None = None,
) -> dict[str, Any]:
    """Export a model that is loaded; see `export_checkpoint`.

    Args:
        model: The model.
        processor: Its processor.
        format: One of `FORMATS`.
        output: The folder to write.
        users: Real users, see `export_users`.
        overwrite: Replace an earlier export.
        options: What of the model is exported.
    """
    needs = check_format(format)
    processor.check_fits(None, model.cf_encoder.num_items)
    options = options or ExportOptions()
    names = vector_rankers(model.config, list(options.rankers))
    with replaced_folder(Path(output), overwrite, RECORD_FILE) as folder, torch.no_grad():
        if format == "vllm":
            parts = _write_prompts(folder, model, processor, users, options)
        elif format in RUNTIMES:
            parts = write_graphs(folder, format, model, processor, users, names, options.with_text)
        else:
            parts = _write_vectors(folder, format, model, processor, users, names)
        record = {
            "format": format,
            "backbone": model.cf_encoder.config.model_type,
            "num_items": len(processor.catalog),
            "items_sha256": digest_of_items(processor.catalog),
            "versions": versions(("torch", "transformers", *needs.versions)),
            "parts": parts,
        }
        write_record(folder, record)
    return record


def _write_vectors(
    folder: Path,
    format: str,
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    users: Sequence[ExportUser],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Write the vectors of rankers as indexes or for a database."""
    parts = []
    for name in names:
        compared = ranked_users(name, model, processor, [user.history for user in users])
        table = VectorTable.of(compared.ranker)
        if format in INDEXES:
            parts.append(write_index(INDEXES[format], folder, table, compared))
        else:
            parts.append(write_pgvector(folder, table, processor.catalog, compared))
    if format in INDEXES:
        write_items(folder, processor.catalog)
    return parts


def _write_prompts(
    folder: Path,
    model: ALLMRecModel,
    processor: ALLMRecProcessor,
    users: Sequence[ExportUser],
    options: ExportOptions,
) -> list[dict[str, Any]]:
    if options.rankers:
        raise ALLMRecError("--ranker names whose vectors or graphs are exported; prompts are chosen by --prompts")
    how = (options.prompts, options.num_candidates, options.num_permutations)
    check_prompts(model, *how)
    return write_prompts(folder, model, processor, users, *how)
