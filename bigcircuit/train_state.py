"""What training changes: gates, Adam moments, dual variables and the best validated gates of every member."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bigcircuit.checkpoint import State
from bigcircuit.gates.population import Population
from bigcircuit.penalty import Duals


@dataclass
class Best:
    """The gates of the best validated step so far."""

    objective: float = float("inf")
    step: int = 0
    log_alpha: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TrainState:
    """All of it; one optimizer group, one set of duals and one best a member."""

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
        return list(self.population.parameters())

    @classmethod
    def new(cls, population: Population, nodes: dict[str, int]) -> "TrainState":
        """State at step 0."""
        groups = [{"params": list(member.parameters()), "lr": 0.0} for member in population.members]
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
            for name, parameter in member.log_alpha.items():
                moments = self.optimizer.state.get(parameter, {})
                tensors[f"{index}.log_alpha.{name}"] = parameter.detach()
                if moments:
                    tensors[f"{index}.exp_avg.{name}"] = moments["exp_avg"]
                    tensors[f"{index}.exp_avg_sq.{name}"] = moments["exp_avg_sq"]
                    updates = int(moments["step"])
                if best.log_alpha:
                    tensors[f"{index}.best.{name}"] = best.log_alpha[name]
            data["members"].append(
                {
                    "step": member.step,
                    "updates": updates,
                    "lr": self.optimizer.param_groups[index]["lr"],
                    "duals": duals.value,
                    "best": [best.objective, best.step],
                }
            )
        return State(tensors, data, dict(base))

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Continue exactly where `export` was called; the population must be of the same config."""
        self.step, self.validated = state.data["step"], state.data["validated"]
        for index, saved in enumerate(state.data["members"]):
            member = self.population.members[index]
            member.step, self.duals[index].value = saved["step"], dict(saved["duals"])
            self.optimizer.param_groups[index]["lr"] = saved["lr"]
            objective, step = saved["best"]
            self.best[index] = Best(objective, step)
            for name, parameter in member.log_alpha.items():
                parameter.copy_(state.tensors[f"{index}.log_alpha.{name}"])
                if saved["updates"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(saved["updates"])),
                        "exp_avg": state.tensors[f"{index}.exp_avg.{name}"].to(parameter.device),
                        "exp_avg_sq": state.tensors[f"{index}.exp_avg_sq.{name}"].to(parameter.device),
                    }
                if step:
                    self.best[index].log_alpha[name] = state.tensors[f"{index}.best.{name}"].to(parameter.device)
