"""What training changes: gates, Adam moments, dual variables and the best validated gates of every member."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigcircuit.checkpoint import State
from bigcircuit.gates.population import Population
from bigcircuit.penalty import Duals


@dataclass
class Best:
    """The gates of the best validated step so far, and the constants they were validated with."""

    objective: float = float("inf")
    step: int = 0
    log_alpha: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    """By site, float32 [L, n]; empty unless they are learned."""


@dataclass
class TrainState:
    """All of it; one set of duals and one best a member. Optimizer groups: one a member for its gates, then, under optimal
    ablation, one a member for its constants."""

    population: Population
    optimizer: torch.optim.Adam
    duals: list[Duals]
    best: list[Best]
    step: int = 0
    """Updates made by the run; a member with fewer steps than the longest stops earlier."""
    validated: int = 0
    """The step of the last validation."""

    @property
    def gates(self) -> list[torch.nn.Parameter]:
        """log_alpha of all members and granularities, in a fixed order."""
        return [gate for member in self.population.members for gate in member.log_alpha.values()]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that is trained, gates and learned constants, in a fixed order."""
        return list(self.population.parameters())

    @classmethod
    def new(cls, population: Population, nodes: dict[str, int]) -> "TrainState":
        """State at step 0."""
        kinds = [[m.log_alpha for m in population.members], [m.offset for m in population.members if m.offset]]
        groups = [{"params": list(one.values()), "lr": 0.0} for kind in kinds for one in kind]
        duals = [Duals(member.config, nodes) for member in population.members]
        return cls(population, torch.optim.Adam(groups), duals, [Best() for _ in population.members])

    def export(self, base: Mapping[str, str]) -> State:
        """Tensors and plain data that `restore` needs, beside the hashes of what the run stands on.

        Noise and the order of the data are functions of seeds and steps, so no generator has a state of its own.
        """
        tensors: dict[str, Tensor] = {}
        data: dict[str, Any] = {"step": self.step, "validated": self.validated, "members": []}
        for index, (member, duals, best) in enumerate(zip(self.population.members, self.duals, self.best, strict=True)):
            updates = 0
            for name, parameter in member.named_parameters():
                moments = self.optimizer.state.get(parameter, {})
                tensors[f"{index}.{name}"] = parameter.detach()
                if moments:
                    tensors[f"{index}.exp_avg.{_short(name)}"] = moments["exp_avg"]
                    tensors[f"{index}.exp_avg_sq.{_short(name)}"] = moments["exp_avg_sq"]
                    updates = int(moments["step"])
            tensors |= {f"{index}.best.{name}": values for name, values in best.log_alpha.items()}
            tensors |= {f"{index}.best_constants.{site}": values for site, values in best.constants.items()}
            data["members"].append(
                {
                    "step": member.step,
                    "updates": updates,
                    "lr": self.optimizer.param_groups[index]["lr"],
                    "duals": duals.value,
                    "best": [best.objective, best.step],
                }
            )
        for site, centre in self.population.centre.items():
            tensors |= {f"constants.centre.{site}": centre, f"constants.spread.{site}": self.population.spread[site]}
        return State(tensors, data, dict(base))

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Continue exactly where `export` was called; the population must be of the same config."""
        self.step, self.validated = state.data["step"], state.data["validated"]
        for index, saved in enumerate(state.data["members"]):
            member = self.population.members[index]
            member.step, self.duals[index].value = saved["step"], dict(saved["duals"])
            self.optimizer.param_groups[index]["lr"] = saved["lr"]
            for name, parameter in member.named_parameters():
                parameter.copy_(state.tensors[f"{index}.{name}"])
                if saved["updates"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(saved["updates"])),
                        "exp_avg": state.tensors[f"{index}.exp_avg.{_short(name)}"].to(parameter.device),
                        "exp_avg_sq": state.tensors[f"{index}.exp_avg_sq.{_short(name)}"].to(parameter.device),
                    }
            found = partial(_below, state.tensors, device=self.gates[0].device)
            self.best[index] = Best(*saved["best"], found(f"{index}.best."), found(f"{index}.best_constants."))
        self.population.centre = _below(state.tensors, "constants.centre.", self.gates[0].device)
        self.population.spread = _below(state.tensors, "constants.spread.", self.gates[0].device)


def _short(name: str) -> str:
    """The name of a parameter of a member without the word that all gates share."""
    return name.removeprefix("log_alpha.")


def _below(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
