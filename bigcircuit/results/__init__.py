"""Read what runs, evaluations and sweeps wrote. No weights are loaded."""
