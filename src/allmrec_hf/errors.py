"""Error classes whose messages say what is wrong, where, what is expected and what to do."""

from collections.abc import Sequence

LONGEST_MESSAGE = 2000


class ALLMRecError(ValueError):
    """Base of every error caused by input; the command line reports it and exits with code 2.

    What a message quotes may be of any length: of a longer message than `LONGEST_MESSAGE` the middle is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        left_out = len(text) - LONGEST_MESSAGE
        if left_out <= 0:
            return text
        kept = LONGEST_MESSAGE // 2 - 50
        return f"{text[:kept]} [{left_out + 100:,} characters left out] {text[-kept:]}"


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
