"""The circuit file, format `bigcircuit/1`: one safetensors file that opens without this project.

`mask.<granularity>` is bool [L, n], `log_alpha.<granularity>` float32 [L, n]; rows are padded for layers of other widths
and the true widths are in the metadata. `ablation.<site>` holds the constants of ablations with constants, float32 [L, n], or
[L, T, n] for constants by position, the last of which is for all positions beyond; `ablation_deviation.<site>` the standard
deviations of noise, float32 [L, n]; `extra.<name>` node and edge scores of other tools. All metadata values are strings; structured
values are JSON. A file may leave out masks: they are derived from the other masks when the file is opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import DEFAULT, KINDS, TENSORS
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.validate import check_tensors, shapes_of
from bigcircuit.errors import UserError, first_line
from bigcircuit.gates.discretise import count
from bigcircuit.io.files import tensor_sha256, write_tensors

FORMAT = "bigcircuit/1"


@dataclass(frozen=True)
class Circuit:
    """A circuit: the kept nodes of a model, the ablation of the others, and where both come from."""

    masks: Mapping[str, Tensor]
    """Granularity -> bool [L, n]."""
    log_alpha: Mapping[str, Tensor]
    """Granularity -> float32 [L, n], as trained; empty for circuits that were not trained."""
    metadata: Mapping[str, str]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Site -> output of closed nodes, float32 [L, n] or [L, T, n]; empty for ablations without constants."""
    deviations: Mapping[str, Tensor] = field(default_factory=dict)
    """Site -> standard deviation of the output of closed nodes, float32 [L, n]; empty for ablations without noise."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Scores of nodes and edges of the tool that the circuit was converted from, see `convert/graph.py`."""

    @property
    def ablation_name(self) -> str:
        """Name of the ablation that the circuit was found under; the default kind where the file does not say."""
        return self.metadata.get("ablation", DEFAULT)

    @property
    def ablation(self) -> Ablation | None:
        """The ablation that the circuit was found under, for Streams; None where the file does not hold the tensors of its kind."""
        wanted = KINDS[self.ablation_name].tensors
        constants, deviations = (_member_rows(getattr(self, part)) if part in wanted else None for part in TENSORS)
        return Ablation(self.ablation_name, constants, deviations) if {} not in (constants, deviations) else None

    def save(self, path: Path) -> None:
        """Write the file atomically, with a sha256 of every tensor in its metadata."""
        tensors = {f"mask.{name}": mask for name, mask in self.masks.items()}
        tensors |= {f"log_alpha.{name}": values for name, values in self.log_alpha.items()}
        for part, prefix in TENSORS.items():
            tensors |= {f"{prefix}.{site}": values for site, values in getattr(self, part).items()}
        tensors |= {f"extra.{name}": values for name, values in self.extra.items()}
        hashes = {name: tensor_sha256(tensor) for name, tensor in sorted(tensors.items())}
        write_tensors(path, tensors, {**self.metadata, "format": FORMAT, "sha256": json.dumps(hashes)})

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read and check a file, and complete its masks and widths.

        Raises UserError if the file is absent, of another format, damaged, or not as the format demands (see validate.py).
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata, names = dict(file.metadata() or {}), file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such circuit file") from error
        except (
            Exception
        ) as error:  # safetensors and torch raise many kinds, such as for types of numbers that torch lacks
            raise UserError(
                f"{path}: not a readable safetensors file ({first_line(error)}); restore it from a copy"
            ) from error
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{path}: format is {metadata.get('format')!r}, expected {FORMAT!r}; `bigcircuit convert` reads others"
            )
        widths = check_tensors(tensors, metadata, str(path))
        complete = complete_masks(_strip(tensors, "mask."), shapes_of(widths))
        masks = {name: mask for name, mask in complete.items() if name in widths}
        known = {**metadata, "widths": json.dumps(widths)}
        parts = {part: _strip(tensors, f"{prefix}.") for part, prefix in TENSORS.items()}
        return cls(masks, _strip(tensors, "log_alpha."), known, **parts, extra=_strip(tensors, "extra."))

    def sizes(self) -> dict[str, int]:
        """Count the kept nodes, by granularity and as `total` site neurons."""
        return count(self.masks)


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _member_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshape tensors of a file, [L, n] or [L, T, n], to tensors of one member, [1, L, 1 or T, n]."""
    return {site: (c if c.ndim == 3 else c.unsqueeze(1)).unsqueeze(0) for site, c in tensors.items()}
