"""Make the parts on a Ray cluster: Ray Data gives part numbers to actors, each of which holds the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ALLMRecError
from ..pipeline_recommendation import RecommendationPipeline
from .part_making import make_part
from .parts_folder import PartsFolder
from .results import BatchSettings, PartRecommender
from .users_file import UsersFile

MOST_BLOCKS = 4096  # what Ray hands out at once: a part each, or a few where there are very many


class PartMaker:
    """An actor: loads the model once, and makes the parts whose numbers it is given.

    Args:
        users: The users file.
        output: The output.
        rows_per_part: Rows of a part.
        load: Returns the pipeline.
        settings: What is recommended.
    """

    def __init__(
        self,
        users: Path,
        output: Path,
        rows_per_part: int,
        load: Callable[[], RecommendationPipeline],
        settings: BatchSettings,
    ) -> None:
        self.table = UsersFile(users)
        self.parts = PartsFolder(output, self.table.rows, rows_per_part)
        self.load, self.settings = load, settings
        self.recommender: PartRecommender | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make parts, and return how many users each has; one that is there already is left as it is.

        An error that a user can mend is returned as its text: Ray would wrap it in a traceback of its own.
        """
        numbers = [int(number) for number in batch["part"]]
        error = ""
        try:
            self.recommender = self.recommender or PartRecommender(self.load(), self.settings)
            for number in numbers:
                if not self.parts.path(number).exists():
                    make_part(self.recommender, self.table, self.parts, number)
        except ALLMRecError as raised:
            error = str(raised)
        users = [self.parts.span(number)[1] for number in numbers]
        return {"users": np.array(users), "error": np.array([error] * len(numbers), dtype=object)}


def run_on_ray(
    table: UsersFile,
    parts: PartsFolder,
    missing: list[int],
    load: Callable[[], RecommendationPipeline],
    settings: BatchSettings,
    workers: int | None,
    count: Callable[[int], None],
) -> None:
    """Make the missing parts on the cluster that `RAY_ADDRESS` names, or on one that is started here.

    An actor that dies is started again, and the parts that it had not written are made again.

    Args:
        table: The users; all workers must see its files, and the folder of the parts.
        parts: The parts.
        missing: Numbers of the parts to make.
        load: Returns the pipeline.
        settings: What is recommended.
        workers: Actors; as many as the cluster has GPUs, else one, where None.
        count: Called with numbers of users that are done.

    Raises:
        ALLMRecError: when Ray is not installed, or a worker cannot go on.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ALLMRecError(
            'the engine ray needs Ray: pip install "allmrec-hf[ray]"; --engine local needs nothing'
        ) from error

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    rows, blocks = [{"part": number} for number in missing], min(len(missing), MOST_BLOCKS)
    numbers = ray.data.from_items(rows, override_num_blocks=blocks)
    made = numbers.map_batches(
        PartMaker,
        fn_constructor_args=(table.path.absolute(), parts.output.absolute(), parts.rows_per_part, load, settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers or max(1, gpus), len(missing))),
        num_gpus=1 if gpus else 0,
    )
    try:
        for row in made.iter_rows():
            if row["error"]:
                raise ALLMRecError(_with_hint(row["error"], parts))
            count(int(row["users"]))
    except RayError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ALLMRecError(_with_hint(f"a worker of Ray could not go on: {reason}", parts)) from error


def _with_hint(reason: str, parts: PartsFolder) -> str:
    return reason if parts.continued in reason else f"{reason}. {parts.continued}"
