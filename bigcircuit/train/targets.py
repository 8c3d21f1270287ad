"""Sizes asked for: shares become numbers of nodes, and what cannot be met is refused."""

from collections.abc import Mapping, Sequence

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import ATTENTION, MLP, finest


def count_targets(members: Sequence[Config], nodes: Mapping[str, int]) -> tuple[Config, ...]:
    """Turn targets that are shares into numbers of nodes, rounded, one at least; nodes: as for `check_targets`.

    Raises UserError for targets that cannot be met.
    """
    counted = []
    for member in members:
        shares = {name: size for name, size in member.target.sizes().items() if isinstance(size, float)}
        counts = {f"target.{name}": max(1, round(share * nodes[name])) for name, share in shares.items()}
        counted.append(override(member, counts, "target") if counts else member)
    check_targets(counted, nodes)
    return tuple(counted)


def check_targets(members: Sequence[Config], nodes: Mapping[str, int]) -> None:
    """Check the sizes that members ask for; nodes: of the model, by granularity and as `total`.

    Raises UserError for a target above what the model has, or for targets that no circuit can meet together.
    """
    for member in members:
        sizes = member.target.sizes()
        for site in (ATTENTION, MLP) if "total" in sizes else ():
            if finest(member.gates.granularities, site) is None:
                raise UserError(
                    f"target.total counts attention and MLP neurons but gates.granularities has no gate on the {site} side; "
                    f"add {site} to it or ask for a size of what has gates"
                )
        for name, size in sizes.items():
            if size > nodes[name]:
                raise UserError(f"target.{name} is {size} but the model has {nodes[name]}; ask for fewer")
        for fine, coarse in (
            ("attention_neuron", "head"),
            ("head", "attention"),
            ("mlp_neuron", "mlp"),
            ("total", "head"),
        ):
            if fine in sizes and coarse in sizes and sizes[fine] < sizes[coarse]:
                raise UserError(
                    f"target.{fine} {sizes[fine]} is below target.{coarse} {sizes[coarse]}, and every {coarse} needs one; "
                    f"raise target.{fine} or lower target.{coarse}"
                )
