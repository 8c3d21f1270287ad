"""Gates of a population: parametrisations, noise, and the one definition of a mask."""
