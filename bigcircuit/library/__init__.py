"""The library: the run of `bigcircuit prune` from Python, on objects that people already have."""
