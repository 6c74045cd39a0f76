"""How many rows the LLM reads at once: within a budget of tokens, and within what the device's memory holds."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from .errors import ALLMRecError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BatchTooLargeError(ALLMRecError):
    """One row is more than the budget of tokens, or than the device's memory holds."""


def rows_within(lengths: Sequence[int], max_tokens: int | None) -> list[list[int]]:
    """Return rows in groups whose tokens, padding included, keep within a budget: similar lengths together.

    Args:
        lengths: Tokens of each row.
        max_tokens: The budget, rows times the longest of them; None puts all rows into one group in their order.

    Raises:
        BatchTooLargeError: when one row alone is more than the budget.

    Example:
        >>> rows_within([5, 9, 4, 2], max_tokens=10)
        [[3, 2], [0], [1]]
    """
    if max_tokens is None or not lengths:
        return [list(range(len(lengths)))] if lengths else []
    longest = max(lengths)
    if longest > max_tokens:
        raise BatchTooLargeError(
            f"a prompt with its answers has {longest:,} tokens, more than the {max_tokens:,} that are to be read at "
            f"once; give at least {longest:,} (max_tokens_per_batch, --max-tokens-per-batch), or fewer candidates"
        )
    groups: list[list[int]] = [[]]
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[row] > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory does not hold what was asked of it."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and should_reduce_batch_size(error))


class RowsAtOnce:
    """Run batches; where the device's memory does not hold one, run its halves, and no larger ones from then on.

    Attributes:
        most: The most rows of a batch, once one was too large.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def run(self, groups: Sequence[list[int]], call: Callable[[list[int]], T]) -> list[tuple[list[int], T]]:
        """Return the rows of each batch that was run and what `call` returned for them.

        Args:
            groups: Rows of each batch.
            call: Takes rows; what it returns must not depend on the other rows of its batch.

        Raises:
            BatchTooLargeError: when not even one row fits.
        """
        waiting, done = deque(groups), []
        while waiting:
            rows = waiting.popleft()
            if self.most is not None and len(rows) > self.most:
                waiting.extendleft(reversed([rows[i : i + self.most] for i in range(0, len(rows), self.most)]))
                continue
            found = self._tried(rows, call)
            if found is None:
                waiting.appendleft(rows)
            else:
                done.append((rows, found[0]))
        return done

    def collected(
        self, lengths: Sequence[int] | None, rows: int, max_tokens: int | None, call: Callable[[list[int]], Sequence[T]]
    ) -> list[T]:
        """Return what a call returns for each row, of as many rows at once as tokens and memory allow.

        Args:
            lengths: Tokens of each row; not looked at, and may be None, where there is no budget.
            rows: Their number.
            max_tokens: The budget.
            call: Takes rows, and returns one value for each.
        """
        results: dict[int, T] = {}
        for part, found in self.run(rows_within(lengths or [0] * rows, max_tokens), call):
            results |= zip(part, found, strict=True)
        return [results[row] for row in range(rows)]

    def _tried(self, rows: list[int], call: Callable[[list[int]], T]) -> tuple[T] | None:
        """Return the result in a tuple, or None where memory was short and fewer rows are to be tried."""
        from accelerate.utils.memory import clear_device_cache

        try:
            return (call(rows),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise BatchTooLargeError(
                    f"the device's memory does not hold the LLM and one prompt ({str(error).splitlines()[0][:200]}); "
                    "give fewer candidates, a smaller dtype or a device with more memory"
                ) from error
        first, self.most = self.most is None, len(rows) // 2
        clear_device_cache(garbage_collection=True)
        if first:
            logger.warning(
                "The device's memory does not hold %d users at once: %d or fewer from here on.", len(rows), self.most
            )
        return None
