"""Interactions and items: reading, validating, filtering, splitting, sampling candidates and keeping the result."""
