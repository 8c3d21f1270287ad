"""Search settings with Ray Tune: a trial owns a member of a population, not a model."""
