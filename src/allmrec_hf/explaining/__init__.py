"""What decided a recommendation, in figures: contributions, nearest words, a picture; and free-text tasks."""
