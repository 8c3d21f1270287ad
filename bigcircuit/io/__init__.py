"""Files: atomic writes, run directory, checkpoints."""
