"""One part of a run: read its users, recommend, write."""

from __future__ import annotations

from collections.abc import Callable

from .parts_folder import PartsFolder
from .results import PartRecommender
from .users_file import UsersFile


def make_part(
    recommender: PartRecommender,
    table: UsersFile,
    parts: PartsFolder,
    number: int,
    count: Callable[[int], None] | None = None,
) -> None:
    """Recommend for the users of a part and write it.

    Args:
        recommender: Recommends.
        table: The users.
        parts: Where the part goes.
        number: Of the part.
        count: Called with numbers of users that are done.
    """
    parts.write(number, recommender.table(table.read(*parts.span(number)), count))
