"""Fuzzing of everything that users and other tools hand in. By hand: `python -m tests.fuzz --inputs 10000`."""
