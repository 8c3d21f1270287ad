"""Scores of nodes by gradients and other rankings."""
