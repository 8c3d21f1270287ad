"""Training state: gates, Adam moments, dual variables and the best validated gates of every member."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigcircuit.gates.members import Member
from bigcircuit.gates.population import Population
from bigcircuit.io.checkpoint import SavedState
from bigcircuit.train.adam_moments import export_moments, restore_moments
from bigcircuit.train.penalty import Duals
from bigcircuit.train.weight_copy import WeightCopy


@dataclass
class Best:
    """The gates of the best validated step so far, and the constants they were validated with."""

    objective: float = float("inf")
    step: int = 0
    log_alpha: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    """By site, float32 [L, n]; empty unless they are learned."""


@dataclass
class MemberState:
    """A member with its optimizer, duals and best gates: all that moves with it from one population to another.

    Noise and the order of the data are functions of seeds and steps, so no generator has a state of its own.
    """

    member: Member
    optimizer: torch.optim.Adam
    """A group for its gates, then, under optimal ablation, one for its constants."""
    duals: Duals
    best: Best = field(default_factory=Best)

    @classmethod
    def new(cls, member: Member, nodes: dict[str, int]) -> "MemberState":
        """Make the state at step 0; nodes: of the model, by granularity and as `total`."""
        kinds = [list(kind.values()) for kind in (member.log_alpha, member.offset) if kind]
        optimizer = torch.optim.Adam([{"params": parameters, "lr": 0.0} for parameters in kinds])
        return cls(member, optimizer, Duals(member.config, nodes))

    @property
    def lr(self) -> float:
        """The learning rate of the last update of its gates."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def finished(self) -> bool:
        """Whether the member has made all its updates."""
        return self.member.step >= self.member.config.train.steps

    @property
    def done(self) -> float:
        """Share of the member's updates that is made, 0 to 1."""
        return self.member.done

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Collect the tensors and plain data that `restore` needs."""
        tensors: dict[str, Tensor] = {}
        updates = 0
        for name, parameter in self.member.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors[name] = parameter.detach()
            tensors |= export_moments(self.optimizer, parameter, _short(name))
            if moments:
                updates = int(moments["step"])
        tensors |= {f"best.{name}": values for name, values in self.best.log_alpha.items()}
        tensors |= {f"best_constants.{site}": values for site, values in self.best.constants.items()}
        best = [self.best.objective, self.best.step]
        data = {"step": self.member.step, "updates": updates, "lr": self.lr, "duals": self.duals.value, "best": best}
        return tensors, data

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Restore the state that `export` collected, of a member with the same granularities."""
        self.member.step, self.duals.value = data["step"], dict(data["duals"])
        self.optimizer.param_groups[0]["lr"] = data["lr"]
        device = next(self.member.parameters()).device
        for name, parameter in self.member.named_parameters():
            parameter.copy_(tensors[name])
            restore_moments(self.optimizer, parameter, _short(name), tensors, data["updates"])
        objective, step = data["best"]
        gates, constants = (_below(tensors, prefix, device) for prefix in ("best.", "best_constants."))
        self.best = Best(objective, step, gates, constants)


def metric_rows(
    member_states: Sequence[MemberState], step: int, columns: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Make rows of metrics.jsonl, one a member; columns: name -> one value a member."""
    return [
        {"step": step, "member": index, "lr": member_state.lr}
        | {f"dual.{name}": value for name, value in member_state.duals.value.items()}
        | {name: values[index] for name, values in columns.items()}
        for index, member_state in enumerate(member_states)
    ]


@dataclass
class TrainState:
    """State of all members of a run, and the population that they form in a pass."""

    population: Population
    member_states: Sequence[MemberState]
    step: int = 0
    """Updates made by the run; a member with fewer steps than the longest stops earlier."""
    validated: int = 0
    """Step of the last validation."""
    weights: WeightCopy | None = None
    """Copied weights that learn along; None without `train.weight_lr`."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters, gates, learned constants and copied weights, in a fixed order."""
        return [*self.population.parameters(), *(self.weights.parameters if self.weights else ())]

    def weights_in_model(self) -> AbstractContextManager[None]:
        """Put copied weights into the model inside the context; does nothing without them."""
        return self.weights.in_model() if self.weights else nullcontext()

    @classmethod
    def new(cls, population: Population, nodes: dict[str, int], weights: WeightCopy | None = None) -> "TrainState":
        """Make the state at step 0."""
        return cls(population, [MemberState.new(member, nodes) for member in population.members], weights=weights)

    def export(self, base: Mapping[str, str]) -> SavedState:
        """Collect the tensors and plain data that `restore` needs, with the fingerprint of the run."""
        tensors: dict[str, Tensor] = {}
        data: dict[str, Any] = {
            "step": self.step,
            "validated": self.validated,
            "threads": torch.get_num_threads(),
            "members": [],
        }
        for index, member_state in enumerate(self.member_states):
            own, plain = member_state.export()
            tensors |= {f"{index}.{name}": values for name, values in own.items()}
            data["members"].append(plain)
        for site, centre in self.population.centre.items():
            tensors |= {f"constants.centre.{site}": centre, f"constants.spread.{site}": self.population.spread[site]}
        if self.weights:
            tensors |= {f"weights.{name}": values for name, values in self.weights.export().items()}
        return SavedState(tensors, data, dict(base))

    def restore(self, state: SavedState) -> None:
        """Restore the state that `export` collected, for a population of the same config."""
        self.step, self.validated = state.data["step"], state.data["validated"]
        device = self.population.device
        for index, (member_state, plain) in enumerate(zip(self.member_states, state.data["members"], strict=True)):
            member_state.restore(_below(state.tensors, f"{index}.", device), plain)
        self.population.centre = _below(state.tensors, "constants.centre.", device)
        self.population.spread = _below(state.tensors, "constants.spread.", device)
        if self.weights:
            self.weights.restore(_below(state.tensors, "weights.", device), self.step)


def _short(name: str) -> str:
    """Name of a member's parameter without the prefix that all gates share."""
    return name.removeprefix("log_alpha.")


def _below(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Select the tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
