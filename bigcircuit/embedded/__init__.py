"""The small model that comes with the package."""

from pathlib import Path

PATH = Path(__file__).parent / "model"
"""Folder of the model, in transformers format."""
