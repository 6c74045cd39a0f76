"""Share a checkpoint: its model card (`card`) and its upload to the Hub (`publish`)."""
