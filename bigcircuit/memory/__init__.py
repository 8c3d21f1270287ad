"""Predict the memory of a rank, and the settings with which a run fits."""
