"""What `allmrec recommend --users` does: a parquet file of users in, one of recommendations out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .loading import checkpoint_of_all_stages, load_pipeline
from .options import emit, say, setup_process, stderr

if TYPE_CHECKING:
    from ..pipeline_recommendation import RecommendationPipeline

Engine = Literal["local", "ray"]
UsersOption = Annotated[
    Path | None,
    typer.Option(help="Millions of requests: a parquet file or folder with a column history (or titles) of lists."),
]
EngineOption = Annotated[
    Engine, typer.Option(help="With --users: this process, or the workers of a Ray cluster (extra `ray`).")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="With --engine ray: workers, each with the model; by default one for each GPU, or one."),
]
RowsPerPartOption = Annotated[
    int, typer.Option(min=1, help="With --users: rows of a part, which are lost at most when a process dies.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="With --users: replace a finished output, drop parts of another run.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens that the LLM reads at once, padding included; of --batch-size users it reads so."),
]


def recommend_for_users(
    users: Path,
    output: Path | None,
    model: str | None,
    loading: dict[str, Any],
    settings: dict[str, Any],
    engine: Engine,
    workers: int | None,
    rows_per_part: int,
    overwrite: bool,
    json_output: bool,
) -> None:
    """Recommend for every row of a users file.

    Args:
        users: The file or folder.
        output: The file to write.
        model: Folder, Hub id or `demo`.
        loading: Further arguments of `loading.load_pipeline`.
        settings: Of `BatchSettings`.
        engine: `local` or `ray`.
        workers: Of Ray.
        rows_per_part: Rows of a part.
        overwrite: Whether to replace what is there.
        json_output: Print JSON alone on standard output.
    """
    from ..batch_inference.recommend_users import recommend_users
    from ..batch_inference.results import BatchSettings
    from ..errors import DataError

    if output is None:
        raise DataError("--users needs --output FILE.parquet, where the recommendations go")
    backbone_module = _backbone_module()
    found = recommend_users(
        users,
        output,
        _loader(model, loading, backbone_module),
        partial(_without_llm, model, loading),
        BatchSettings(**settings),
        llm=loading["llm"] if loading["allow_other_llm"] else None,
        engine=engine,
        workers=workers,
        rows_per_part=rows_per_part,
        overwrite=overwrite,
        tell=lambda line: stderr.print(f"recommend: {line}", markup=False, soft_wrap=True),
    )
    if json_output:
        emit({"users": found.users, "without_recommendations": found.without, "output": str(output)})
        return
    without = f", {found.without:,} without recommendations (their reason says why)" * bool(found.without)
    say(f"{found.users:,} users{without}. Written to {output}.")


def _loader(model: str | None, loading: dict[str, Any], module: str | None) -> Callable[[], RecommendationPipeline]:
    return partial(_loaded, model, loading, module)


def _loaded(model: str | None, loading: dict[str, Any], module: str | None) -> RecommendationPipeline:
    """Return the pipeline; in a worker's process too, where nothing is set up yet."""
    if module is not None:
        from ..training.pretrained_backbone import import_backbone_module

        import_backbone_module(module)
    setup_process()
    return load_pipeline(model, **loading)


def _without_llm(model: str | None, loading: dict[str, Any]) -> tuple[Any, Any]:
    """Return the light part of a model, and its processor."""
    from ..modeling_allmrec import ALLMRecModel
    from ..processing_allmrec import ALLMRecProcessor

    trust = loading["trust_remote_code"]
    with checkpoint_of_all_stages(model) as path:
        light = ALLMRecModel.from_pretrained(path, language_model=None, trust_remote_code=trust)
        return light, ALLMRecProcessor.from_pretrained(path, trust_remote_code=trust)


def _backbone_module() -> str | None:
    """Return the module of `allmrec --backbone-module`, which workers import too."""
    import click

    context = click.get_current_context(silent=True)
    found = context.find_root().params.get("backbone_module") if context is not None else None
    return found if isinstance(found, str) else None
