"""Windows of random text for tiny models."""

import torch

from bigcircuit.config.text import TextConfig
from bigcircuit.data.pair import Example
from bigcircuit.data.text import samples, windows_of_corpus


def random_windows(lengths=(9, 14, 5), window: int = 8, stride: int | None = None) -> list[Example]:
    """Cut documents of random tokens, of these lengths, into windows."""
    generator = torch.Generator().manual_seed(5)
    documents = [tuple(torch.randint(3, 96, (n,), generator=generator).tolist()) for n in lengths]
    return windows_of_corpus(samples(documents), TextConfig(window=window, stride=stride), "random")
