"""Error classes whose messages say what is wrong, where, what is expected and what to do."""

from collections.abc import Sequence


class ALLMRecError(ValueError):
    """Base of every error caused by input; the command line reports it and exits with code 2."""


class DataError(ALLMRecError):
    """Interactions, items or candidates that cannot be used as given."""


class UnknownItemsError(DataError):
    """Items of a request that the catalogue does not know.

    Attributes:
        field: The field of the request that names them.
        items: Every one of them.
    """

    def __init__(self, message: str, field: str, items: Sequence[str]) -> None:
        super().__init__(message)
        self.field = field
        self.items = list(items)


class CheckpointError(ALLMRecError):
    """A checkpoint, base LLM, tokenizer or text encoder that is missing, damaged or of another model."""
