"""Circuits that other tools have found, as circuit files."""
