"""Share a checkpoint: its model card (`card`), what is wrong with one (`card_check`), and its upload (`publish`)."""
