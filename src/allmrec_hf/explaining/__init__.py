"""Explain a recommendation in figures: contributions, nearest words, a picture; and answer free-text tasks."""
