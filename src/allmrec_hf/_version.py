"""The version of allmrec-hf; any module may import it."""

__version__ = "0.1.0"
