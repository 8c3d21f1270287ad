"""Services of a run: progress, trackers, memory of the host."""
