"""What surrounds a run: progress, trackers, memory of the host."""
