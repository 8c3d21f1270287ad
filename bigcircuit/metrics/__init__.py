"""Scores of circuits."""
