"""Error classes whose messages say what is wrong, where, what is expected and what to do."""


class ALLMRecError(ValueError):
    """Base of every error caused by input; the command line reports it and exits with code 2."""


class DataError(ALLMRecError):
    """Interactions, items or candidates that cannot be used as given."""


class CheckpointError(ALLMRecError):
    """A checkpoint, base LLM, tokenizer or text encoder that is missing, damaged or of another model."""
