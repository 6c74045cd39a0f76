"""The page on which people try a checkpoint (`allmrec space`), and the folder of a Hugging Face Space."""
