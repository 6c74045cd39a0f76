"""The version of allmrec-hf, a leaf that anything may import."""

__version__ = "0.1.0"
