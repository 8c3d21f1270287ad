"""Readers: pairs from the file formats of this project and of related projects."""

from bigcircuit.data.readers.read import read_pairs

__all__ = ["read_pairs"]
