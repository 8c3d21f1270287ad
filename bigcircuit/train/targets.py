"""Sizes asked for: shares become numbers of nodes, and what cannot be met is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.forward import expert_neurons
from bigcircuit.model.granularity import COUNTED, EXPERT, LEAVES, counted_sites, finest
from bigcircuit.model.parameter_count import SharedParameters, shared_parameters
from bigcircuit.model.sites import FrozenModel


def count_targets(members: Sequence[Config], nodes: Mapping[str, int]) -> tuple[Config, ...]:
    """Turn targets that are shares into numbers of nodes, rounded, one at least; nodes: as for `check_targets`.

    Gates of kinds of nodes that the model has none of are left out. Raises UserError for targets that cannot be met.
    """
    counted = []
    for member in members:
        if member.target.parameters is not None and member.target.total is not None:
            raise UserError("target.parameters and target.total are both set; leave one out")
        shares = {name: size for name, size in member.target.sizes().items() if isinstance(size, float)}
        counts: dict[str, Any] = {
            f"target.{name}": max(1, round(share * nodes.get(name, 0))) for name, share in shares.items()
        }
        there = [name for name in member.gates.granularities if nodes.get(name, 0)]
        if len(there) < len(member.gates.granularities):
            counts["gates.granularities"] = _left(member, there)
        counted.append(override(member, counts, "target") if counts else member)
    check_targets(counted, nodes)
    return tuple(counted)


def shared_for(members: Sequence[Config], frozen: FrozenModel) -> list[list[SharedParameters]]:
    """List what the nodes of each layer use, where members ask for a share of the parameters; else an empty list."""
    if all(member.target.parameters is None for member in members):
        return []
    with_neurons = any("expert_neuron" in member.gates.granularities for member in members)
    return [shared_parameters(layer, with_neurons) for layer in frozen.layers]


def check_expert_neurons(members: Sequence[Config], frozen: FrozenModel) -> None:
    """Check that the experts of a model have neurons that can be closed, if they get gates. Raises UserError."""
    if not any("expert_neuron" in member.gates.granularities for member in members):
        return
    for layer in frozen.layers:
        if EXPERT in layer.sites and (why := expert_neurons.refusal(layer.sites[EXPERT])):
            raise UserError(f"gates.granularities has expert_neuron, and {why}; use expert in its place")


def _left(member: Config, there: list[str]) -> list[str]:
    """Gates of nodes that the model has. Raises UserError where others have a size or penalty, or where none are left."""
    asked = [f"target.{name}" for name in member.target.sizes() if name != "total"]
    asked += [f"penalty.{name}" for name, weight in member.penalty if weight]
    for name in asked:
        if name.partition(".")[2] not in there:
            raise UserError(f"{name} is set and the model has no such nodes; leave it out")
    if not there:
        raise UserError(
            f"gates.granularities is [{', '.join(member.gates.granularities)}] and the model has no such nodes"
        )
    return there


def check_targets(members: Sequence[Config], nodes: Mapping[str, int]) -> None:
    """Check the sizes that members ask for; nodes: of the model, by granularity and as `total`.

    Raises UserError for a target above what the model has, or for targets that no circuit can meet together.
    """
    for member in members:
        sizes = member.target.sizes()
        for site in COUNTED if "total" in sizes else ():
            names = member.gates.granularities
            if nodes.get(LEAVES[site], 0) and (site not in counted_sites(names) or finest(names, site) is None):
                raise UserError(
                    f"target.total counts attention, mixer and MLP neurons but gates.granularities has no gate on the {site} side; "
                    f"add {site} to it or ask for a size of what has gates"
                )
        for name in ("expert", "expert_neuron"):
            if sizes and nodes.get(name) and name in member.gates.granularities and name not in sizes:
                raise UserError(
                    f"target.{name} is not set and the model has {nodes[name]:,}, which target.total does not count; set it, or "
                    f"leave {name} out of gates.granularities to keep all open"
                )
        for name, size in sizes.items():
            if size > nodes.get(name, 0):
                raise UserError(f"target.{name} is {size} but the model has {nodes.get(name, 0)}; ask for fewer")
        for fine, coarse in (
            ("attention_neuron", "head"),
            ("head", "attention"),
            ("mlp_neuron", "mlp"),
            ("mixer_neuron", "mixer_head"),
            ("mixer_head", "mixer"),
            ("expert_neuron", "expert"),
            ("total", "head"),
        ):
            if fine in sizes and coarse in sizes and sizes[fine] < sizes[coarse]:
                raise UserError(
                    f"target.{fine} {sizes[fine]} is below target.{coarse} {sizes[coarse]}, and every {coarse} needs one; "
                    f"raise target.{fine} or lower target.{coarse}"
                )
