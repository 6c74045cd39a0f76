"""Training: one loop for all stages, and the stages themselves."""
