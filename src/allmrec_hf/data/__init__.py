"""Read, validate, filter and split interactions and items, sample candidates and store the result."""
