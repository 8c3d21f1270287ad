"""Forward passes of a frozen model with masks at its sites."""
