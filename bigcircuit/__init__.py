"""bigcircuit: find circuits in large language models by training masks over frozen, sharded weights."""
