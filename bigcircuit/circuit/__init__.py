"""Circuits: the file, its checks, and circuits as sets of nodes."""
