"""Sharing: the model card of a checkpoint (`card`) and the way to the Hub (`publish`)."""
