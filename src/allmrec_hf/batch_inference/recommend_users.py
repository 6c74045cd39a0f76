"""Recommend for every row of a users file, in parts that a killed run is continued from."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..data.digests import digest_of
from ..durations import duration
from ..errors import ALLMRecError
from ..pipeline_recommendation import RecommendationPipeline
from ..ranker_built_in import ranker_class
from .part_making import make_part
from .parts_folder import PartsFolder
from .results import BatchSettings, PartRecommender
from .users_file import UsersFile

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
Load = Callable[[], RecommendationPipeline]
DEFAULT_ROWS_PER_PART = 2048
EVERY_S = 30.0
RETRIEVED = 20  # candidates of a user where none are given, the pipeline's default

_NOT_OF_THE_SCORES = ("_name_or_path", "transformers_version", "language_model_record")
_OF_PROMPTS = (
    *("prompt", "history_in_prompt", "max_history_length"),
    *("max_length", "max_title_characters", "max_title_tokens"),
)


@dataclass(frozen=True)
class Finished:
    """What a run comes to.

    Attributes:
        users: Rows of the output.
        without: Rows without recommendations; their `reason` says why.
        parts: Parts that this process and its workers made; the others were there.
        seconds: Time that these took.
    """

    users: int
    without: int
    parts: int
    seconds: float


class Progress:
    """Tell every half minute how many users are done, how fast, and how long the rest will take.

    Args:
        total: Rows in all.
        done: Rows that were done before.
        tell: Takes a line.
    """

    def __init__(self, total: int, done: int, tell: Callable[[str], None]) -> None:
        self.total, self.before, self.done, self.tell = total, done, done, tell
        self.started = self.told = time.monotonic()

    def add(self, users: int) -> None:
        """Count users that are done."""
        self.done += users
        now = time.monotonic()
        if now - self.told >= EVERY_S and self.done < self.total:
            self.told = now
            pace = (self.done - self.before) / max(now - self.started, 1e-9)
            left = duration((self.total - self.done) / pace)
            self.tell(f"{self.done:,} of {self.total:,} users, {pace:.3g} users/s, {left} left")


def checkpoint_digest(model: Any, processor: Any) -> str:
    """Return hexadecimal digits over all that a checkpoint's scores depend on, but for the weights of its LLM.

    Args:
        model: The model, with its LLM or without.
        processor: Its processor.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_SCORES}
    settings = {key: getattr(processor, key) for key in _OF_PROMPTS}
    found = hashlib.sha256(json.dumps([config, settings, processor.fingerprint], sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        values = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(memoryview(values.view(torch.uint8).numpy()))
    frame = processor.catalog.frame
    found.update(digest_of([frame["item_id"], frame["title"]]).encode())
    return found.hexdigest()[:32]


def recommend_users(
    users: Path,
    output: Path,
    load: Load,
    load_light: Callable[[], tuple[Any, Any]],
    settings: BatchSettings,
    llm: str | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    overwrite: bool = False,
    tell: Callable[[str], None] = logger.info,
) -> Finished:
    """Write a table with a row for each row of `users`, in their order.

    The rows are read and written a part at a time, into the folder `OUTPUT.parts`. Whenever the run ends early, the
    same call goes on with the parts that are missing, and the output is the same; only the batch size, the budget of
    tokens, the engine and the workers may differ then.

    Args:
        users: A parquet file, or a folder of them; see `UsersFile`.
        output: The parquet file to write.
        load: Returns the pipeline; called in each worker.
        load_light: Returns model and processor without the LLM, to tell checkpoints apart.
        settings: What is recommended.
        llm: The LLM where another than the checkpoint's is named and need not be the same.
        engine: `"local"`: this process. `"ray"`: workers of a Ray cluster that all see these files.
        workers: Of Ray; as many as the cluster has GPUs, else 1, where None.
        rows_per_part: Rows that are lost at most when a process dies, for each worker.
        overwrite: Replace a finished file, and drop the parts of another run.
        tell: Takes lines about the progress.

    Raises:
        ALLMRecError: when the files, the checkpoint or the settings do not allow it, or the disk is full; what is done
            stays.
    """
    whole = users.resolve()
    if whole in (output.resolve(), output.resolve().parent):  # the file itself, or a folder of which it would be a part
        raise ALLMRecError(f"the output {output} would be among the users {users}; give another --output")
    table = UsersFile(users)
    parts = PartsFolder(output, table.rows, rows_per_part)
    model, processor = load_light()
    record = {
        "input": table.digest,
        "checkpoint": checkpoint_digest(model, processor),
        "llm": llm,
        "top_k": settings.top_k,
        "ranker": _checked_ranker(model.config, settings),
        "num_permutations": settings.num_permutations,
    }
    del model, processor
    with parts.held(record, overwrite):
        missing = parts.missing()
        before = table.rows - sum(parts.span(number)[1] for number in missing)
        if before:
            tell(f"going on after {before:,} of {table.rows:,} users")
        started = time.monotonic()
        progress = Progress(table.rows, before, tell)
        if missing and engine == "ray":
            from .ray_engine import run_on_ray

            run_on_ray(table, parts, missing, load, settings, workers, progress.add)
        elif missing:
            recommender = PartRecommender(load(), settings)
            for number in missing:
                make_part(recommender, table, parts, number, progress.add)
        seconds = time.monotonic() - started
        without = parts.rows_without_recommendations()
        parts.join()
    return Finished(table.rows, without, len(missing), seconds)


def _checked_ranker(config: Any, settings: BatchSettings) -> str:
    """Return the ranker's name, where it can rank as many candidates as will be retrieved.

    Raises:
        ALLMRecError: when the checkpoint has no such ranker, or it takes fewer candidates.
    """
    name = settings.ranker or config.ranker
    kind = ranker_class(name, config)
    retrieved = max(settings.top_k, RETRIEVED)
    if not kind.ranks_catalogue and kind.max_candidates is not None and retrieved > kind.max_candidates:
        raise ALLMRecError(
            f"the ranker {name} takes {kind.max_candidates} candidates of a user at most, and top_k {settings.top_k} "
            "needs more; take a smaller --top-k or another --ranker"
        )
    return str(name)
