"""Rotary position embeddings whose frequencies depend on the longest row of a pass, and so on who shares the pass."""

from collections.abc import Mapping
from typing import Any


def frequency_switches(hf_config: Any) -> tuple[int, ...]:
    """Return the lengths, in tokens, above which a pass uses other rotary frequencies for all its rows; mostly there are none.

    transformers chooses between the two sets of factors of `longrope` by the longest row of a pass. Frequencies of `dynamic` NTK
    change above `max_position_embeddings`, and no pair may be longer than that.
    """
    parameters: Mapping[str, Any] = getattr(hf_config, "rope_parameters", None) or {}
    # A model with several kinds of layers has a mapping for each kind.
    kinds = [parameters] if "rope_type" in parameters else [kind for kind in parameters.values() if kind]
    found = {kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"}
    return tuple(sorted(found))
