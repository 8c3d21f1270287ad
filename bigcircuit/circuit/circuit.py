"""The circuit file, format `bigcircuit/1`: one safetensors file that opens without this project.

`mask.<granularity>` is bool [L, n], `log_alpha.<granularity>` float32 [L, n]; rows are padded for layers of other widths
and the true widths are in the metadata. `ablation.<site>` holds the constants of ablations with constants, float32 [L, n], or
[L, T, n] for constants by position, the last of which is for all positions beyond; `ablation_deviation.<site>` the standard
deviations of noise, float32 [L, n]; `extra.<name>` node and edge scores of other tools. All metadata values are strings; structured
values are JSON. A file may leave out masks: they are derived from the other masks when the file is opened.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import DEFAULT, KINDS, TENSORS
from bigcircuit.circuit import overlap
from bigcircuit.circuit.card import PICTURE_FILE, check_card_is_free, circuit_card
from bigcircuit.circuit.combine import check_combinable, combined_metadata
from bigcircuit.circuit.folder import CIRCUIT_FILE, circuit_file
from bigcircuit.circuit.hub import download, is_hub_id, upload
from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.circuit.metadata import HASH_KEYS
from bigcircuit.circuit.model_check import check_ablation
from bigcircuit.circuit.nodes import NodeRow, hook_masks, kept_nodes, to_frame
from bigcircuit.circuit.picture import circuit_svg
from bigcircuit.circuit.validate import check_tensors, shapes_of
from bigcircuit.errors import UserError, first_line
from bigcircuit.gates.discretise import count
from bigcircuit.io.files import tensor_sha256, write_bytes, write_tensors
from bigcircuit.metrics.registry import Score, Scores
from bigcircuit.model.granularity import COUNTED, GRANULARITIES, LEAVES, LayerShape

FORMAT = "bigcircuit/1"


@dataclass(frozen=True, eq=False, repr=False)
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

    def save(self, path: str | Path) -> Path:
        """Write the file atomically, with a sha256 of every tensor in its metadata. `~` is the home folder. Returns the path."""
        path = Path(path).expanduser()
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file such as {path / 'circuit.safetensors'}")
        tensors = {f"mask.{name}": mask for name, mask in self.masks.items()}
        tensors |= {f"log_alpha.{name}": values for name, values in self.log_alpha.items()}
        for part, prefix in TENSORS.items():
            tensors |= {f"{prefix}.{site}": values for site, values in getattr(self, part).items()}
        tensors |= {f"extra.{name}": values for name, values in self.extra.items()}
        hashes = {name: tensor_sha256(tensor) for name, tensor in sorted(tensors.items())}
        write_tensors(path, tensors, {**self.metadata, "format": FORMAT, "sha256": json.dumps(hashes)})
        return path

    @classmethod
    def load(cls, path: str | Path, *, member: int | None = None) -> "Circuit":
        """Read and check a file, and complete its masks and widths.

        path: a circuit file, the folder of a run, or a folder that `save_pretrained` wrote. member: which circuit of a run with
        several. Raises UserError if the file is absent, of another format, damaged, or not as the format demands (see
        validate.py).
        """
        path = circuit_file(path, member)
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

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, member: int | None = None, token: str | None = None
    ) -> "Circuit":
        """Open a circuit of the hub, `organisation/name`, or of a file or folder as `load` does. Raises UserError."""
        if is_hub_id(str(name)):
            return cls.load(download(str(name), revision, token))
        return cls.load(name, member=member)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the circuit file, a card (README.md) and a picture into a folder, which is made if needed. Returns the folder.

        Raises UserError where the folder has a README.md that is no card.
        """
        folder = Path(folder).expanduser()
        check_card_is_free(folder / "README.md")
        self._write_folder(folder, folder.resolve().name)
        return folder

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str = "Upload circuit"
    ) -> str:
        """Upload circuit file, card and picture to a repository `organisation/name`, which is made if needed.

        token: by default that of `hf auth login`. Returns the address. Raises UserError if the hub refuses.
        """
        with TemporaryDirectory() as folder:
            self._write_folder(Path(folder), repo_id)
            return upload(Path(folder), repo_id, private, token, message)

    def _write_folder(self, folder: Path, where: str) -> None:
        kept, nodes = self.sizes(), count(self._every)
        nodes = {name: nodes[name] for name in kept}
        card = circuit_card(
            self.metadata, self.ablation_name, self.scores, kept, nodes, self.nodes("head"), where=where
        )
        write_bytes(folder / PICTURE_FILE, self.picture.encode())
        write_bytes(folder / "README.md", card.encode())
        self.save(folder / CIRCUIT_FILE)

    def sizes(self) -> dict[str, int]:
        """Count the kept nodes, by granularity and as `total` site neurons."""
        return count(self.masks)

    @property
    def shapes(self) -> list[LayerShape]:
        """Widths of the layers of its model."""
        return shapes_of(self._widths)

    @property
    def _widths(self) -> dict[str, list[int]]:
        wide = {name: [mask.shape[1]] * len(mask) for name, mask in self.masks.items()}
        return wide | json.loads(self.metadata.get("widths", "{}"))

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The kept heads as (layer, head), counted from 0."""
        return [(row.layer, row.place) for row in self.nodes("head")]

    @property
    def scores(self) -> Scores:
        """Held-out scores under the ablation that the circuit was found under: name -> Score; empty where none are known."""
        found = json.loads(self.metadata.get("scores", "{}"))
        found = found.get(self.ablation_name, found if "kl" in found else {})
        empty = dict.fromkeys(("min", "p5", "p95", "max"))
        return {name: Score(**{**empty, **values}) for name, values in found.items()}

    def nodes(self, granularity: str = "head") -> list[NodeRow]:
        """List the kept nodes of a granularity with their names, such as `L4H3`. Raises UserError for an unknown one."""
        if granularity not in self.masks:
            raise UserError(f"{granularity} is no granularity of this circuit; use any of {', '.join(self.masks)}")
        return kept_nodes(self.masks, self.shapes, granularity)

    def to_pandas(self, granularity: str = "head") -> Any:
        """Make a DataFrame of the kept nodes: name, granularity, layer, place, neurons, of."""
        return to_frame(self.nodes(granularity))

    def hook_names(self) -> dict[str, Tensor]:
        """What is kept by the names of TransformerLens' hooks: `blocks.0.attn.hook_z` -> bool [heads, head width], ..."""
        return hook_masks(self.masks, self.shapes)

    def applied(
        self, model: Any, *, corrupted_ids: Any = None, ablation: str | Ablation | None = None, any_model: bool = False
    ) -> AbstractContextManager[Any]:
        """Run the circuit instead of the whole model: `with circuit.applied(model) as masked: masked.generate(...)`.

        `masked` is the model itself; every call of it inside the context is masked, with or without a KV cache, and afterwards it
        is as before. Circuits may be applied within each other: what any of them closes is closed.

        model: a Hugging Face causal language model, or a PEFT model of one. corrupted_ids: for interchange ablation, the corrupted
        prompts of the next prompts [rows, tokens], as long as these and padded as these; or what the tokenizer returns for them.
        A continuation belongs to both. ablation: another than the one that the circuit was found under. any_model: do not compare
        the hashes of the model's files. Noise is that of a data set whose examples are the rows, counted from 0.
        Raises UserError if the model or the prompts do not fit.
        """
        from bigcircuit.circuit.apply import apply_circuit  # transformers takes seconds to load

        return apply_circuit(self.masks, self.metadata, self._asked(ablation), model, corrupted_ids, any_model)

    def under(self, ablation: str | Ablation) -> "Circuit":
        """The same nodes under another ablation, without the scores that it had under its own."""
        other = self._asked(ablation)
        known = {key: value for key, value in self.metadata.items() if key != "scores" and "ablation_" not in key}
        parts = {part: {site: _file_rows(c) for site, c in found.items()} for part, found in other.tensors().items()}
        blank: dict[str, dict[str, Tensor]] = {part: {} for part in TENSORS}
        return replace(self, metadata={**known, "ablation": other.name}, **{**blank, **parts})

    def _asked(self, ablation: str | Ablation | None) -> Ablation:
        """The ablation that is meant. Raises UserError for one without its tensors."""
        if isinstance(ablation, Ablation):
            check_ablation(ablation, self.masks, self.shapes)
            return ablation
        name = ablation or self.ablation_name
        if name not in KINDS:
            raise UserError(f"ablation {name} is not known; use any of {', '.join(KINDS)}")
        if name == self.ablation_name and self.ablation is not None:
            return self.ablation
        if KINDS[name].tensors:
            raise UserError(
                f"{name} ablation needs {' and '.join(KINDS[name].tensors)}, which the circuit does not hold; give them by "
                f'bigcircuit.Ablation("{name}", ...), or use ablation="zero"'
            )
        return Ablation(name)

    def jaccard(self, other: "Circuit", granularity: str = "total") -> float:
        """Nodes that both keep, divided by those that either keeps; `total` counts the neurons of attention, mixers and MLPs.

        Raises UserError for a granularity that one of them has no masks of, and for circuits of other models.
        """
        self._check_other(other)
        names = [granularity]
        if granularity == "total":
            names = [LEAVES[site] for site in COUNTED if LEAVES[site] in self.masks]
        elif not all(granularity in one.masks for one in (self, other)):
            raise UserError(
                f"{granularity} is no granularity of both circuits; use total or any of {', '.join(self.masks)}"
            )
        mine, others = (
            torch.cat([row for name in names for row in (circuit.masks[name].flatten(),)]) for circuit in (self, other)
        )
        return overlap.jaccard(mine, others)

    def __or__(self, other: "Circuit") -> "Circuit":
        """The neurons that either keeps, and the nodes above them."""
        return self._combined("union", other)

    def __and__(self, other: "Circuit") -> "Circuit":
        """The neurons that both keep, and the nodes above them."""
        return self._combined("intersection", other)

    def __sub__(self, other: "Circuit") -> "Circuit":
        """The neurons that this circuit keeps and the other does not, and the nodes above them."""
        return self._combined("difference", other)

    def _combined(self, operation: str, other: "Circuit") -> "Circuit":
        if not isinstance(other, Circuit):
            return NotImplemented
        self._check_other(other)
        if self.ablation_name != other.ablation_name:
            raise UserError(
                f"one circuit is under {self.ablation_name} and the other under {other.ablation_name} ablation; choose one with "
                f'circuit.under("{self.ablation_name}")'
            )
        masks = overlap.OPERATIONS[operation]([self.masks, other.masks], self.shapes)
        parents = [
            {"name": " ".join(filter(None, [one.metadata.get("task"), f"seed {one.metadata.get('seed', '?')}"])),
             "sha256": one._content} for one in (self, other)
        ]  # fmt: skip
        known = combined_metadata(operation, [self.metadata, other.metadata], parents, list(masks))
        shared = {part: getattr(self, part) for part in TENSORS if _same(getattr(self, part), getattr(other, part))}
        kept = shared if len(shared) == len(TENSORS) else {}  # constants of two parts that differ are measured again
        return Circuit(masks, {}, {**known, "ablation": self.ablation_name, "widths": json.dumps(self._widths)}, **kept)

    def _check_other(self, other: "Circuit") -> None:
        check_combinable(self.metadata, other.metadata, self.shapes[:] == other.shapes[:])

    @property
    def _content(self) -> str:
        """A hash of what the circuit computes: kept neurons, ablation and its constants."""
        tensors = {
            **leaves(self.masks),
            **{f"{part}.{k}": v for part in TENSORS for k, v in getattr(self, part).items()},
        }
        found = {name: tensor_sha256(tensor) for name, tensor in sorted(tensors.items())}
        return hashlib.sha256(json.dumps([self.ablation_name, found]).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether both keep the same neurons of the same model, and closed nodes output the same. Scores do not matter."""
        if not isinstance(other, Circuit):
            return NotImplemented
        models = [[one.metadata.get(key) for key in HASH_KEYS.values()] for one in (self, other)]
        return self._content == other._content and models[0] == models[1]

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        kept, nodes = self.sizes(), count(self._every)
        kl = self.scores.get("kl")
        parts = [
            f"{self.metadata.get('operation', '')} of circuits" if "operation" in self.metadata else "",
            f"{self.metadata.get('task') or 'no task'} in {self.metadata.get('model') or 'an unknown model'}",
            f"{kept['head']}/{nodes['head']} heads, {kept['mlp']}/{nodes['mlp']} MLPs",
            f"{kept['total']:,}/{nodes['total']:,} neurons",
            f"{self.ablation_name} ablation",
            f"KL {kl.mean:.3f}" if kl is not None and kl.mean is not None else "",
        ]
        return f"Circuit({', '.join(filter(None, parts))})"

    @property
    def _every(self) -> dict[str, Tensor]:
        """Masks of the whole model."""
        return {
            name: torch.arange(max(widths)) < torch.tensor(widths).unsqueeze(1)
            for name, widths in self._widths.items()
            if name in GRANULARITIES
        }

    @property
    def picture(self) -> str:
        """An SVG drawing: a row a layer, a cell a head and one for the MLP, the darker the more neurons are kept."""
        return circuit_svg(self.masks, self.shapes, repr(self))

    def _repr_html_(self) -> str:
        return f"<figure>{self.picture}<figcaption>{escape(repr(self))}</figcaption></figure>"


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(values, second[site]) for site, values in first.items())


def _file_rows(values: Tensor) -> Tensor:
    """Reshape tensors of one member, [1, L, 1 or T, n], to those of a file, [L, n] or [L, T, n]."""
    return (values[0, :, 0] if values.shape[2] == 1 else values[0]).float().cpu()


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _member_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshape tensors of a file, [L, n] or [L, T, n], to tensors of one member, [1, L, 1 or T, n]."""
    return {site: (c if c.ndim == 3 else c.unsqueeze(1)).unsqueeze(0) for site, c in tensors.items()}
