"""Circuits of other tools, converted to circuit files."""
