"""How many rows of a batch go through the module at once, where the device's memory does not hold all of them."""

from __future__ import annotations

import logging

from ..errors import ALLMRecError
from ..rows_at_once import is_out_of_memory
from .batches import Share
from .task import StageTask, rows_of

logger = logging.getLogger(__name__)


class BatchLimit:
    """Cut batches to what memory held; the losses of the parts are weighed, so the gradient is the whole batch's.

    Attributes:
        most: Rows at once, once a batch was too large.
        tried: Rows of the pass that is being made.
        binding: The other processes wait for this pass, so it cannot be made anew.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.tried = 0
        self.binding = False

    def applied(self, task: StageTask, group: list[Share]) -> list[Share]:
        """Return the batches of a step in parts that are not too large."""
        if self.most is None:
            return group
        cut: list[Share] = []
        for batch, weight, examples in group:
            parts = task.smaller(batch, self.most) if weight else [batch]
            if len(parts) == 1:
                cut.append((parts[0], weight, examples))
            else:
                cut += [(part, task.loss_weight(part), rows_of(part, task.of_batch)) for part in parts]
        return cut

    def lower(self, task: StageTask, error: Exception) -> None:
        """Halve the rows at once after a pass failed for want of memory, and say so the first time.

        Raises:
            Exception: the error, where it is another one.
            ALLMRecError: when a batch cannot be cut further.
        """
        if not is_out_of_memory(error):
            raise error
        if self.tried < 2 or not (task.rows_add_up and task.may_be_cut) or self.binding:
            raise ALLMRecError(
                f"stage {task.name}: the device's memory does not hold {self._what(task)} "
                f"({str(error).splitlines()[0][:200]}); {self._advice(task)}"
            ) from error
        if self.most is None:
            logger.warning(
                "stage %s: the device's memory does not hold %d rows at once: %d or fewer from here on; the gradient "
                "stays that of the whole batch.",
                task.name,
                self.tried,
                self.tried // 2,
            )
        self.most = self.tried // 2

    def _what(self, task: StageTask) -> str:
        if self.tried < 2:
            return "one row"
        return f"a batch of {self.tried} rows" + ("" if self.binding else ", which this loss does not let be cut")

    def _advice(self, task: StageTask) -> str:
        name = task.name
        return (
            f"give a smaller --{name}.per-device-train-batch-size, --{name}.gradient-checkpointing where the stage has "
            "it, a smaller dtype or a device with more memory"
        )
