"""Read clean/corrupted pairs from the files of this project and of its neighbours."""

from bigcircuit.data.readers.read import read_pairs

__all__ = ["read_pairs"]
