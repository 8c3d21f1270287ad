"""Fill the page template. All text is escaped by jinja2 and nothing is fetched from anywhere."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from bigcircuit.config import Config
from bigcircuit.evaluation.scores import mask_source
from bigcircuit.report.curves import curve
from bigcircuit.run_folder import RunFolder
from bigcircuit.storage import write_bytes
from bigcircuit.streams import Streams
from bigcircuit.tasks.batch import collate
from bigcircuit.tasks.data import TaskData

_EXAMPLES = 12


def write_report(
    folder: RunFolder,
    config: Config,
    summary: Mapping[str, Any],
    masks: Sequence[Mapping[str, Tensor]],
    metrics: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, str]],
    streams: Streams,
) -> None:
    """Render the page of a run: sizes, scores, the kept parts layer by layer, curves, example predictions, settings."""
    environment = Environment(
        loader=PackageLoader("bigcircuit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    members = [
        {
            "summary": row,
            "layers": layers(masks[index], streams),
            "curves": [
                curve(title, {label: _points(metrics, index, key) for label, key in lines.items()})
                for title, lines in _CURVES.items()
            ],
        }
        for index, row in enumerate(summary["members"])
    ]
    page = environment.get_template("page.html").render(
        summary=summary,
        members=members,
        examples=shown,
        config=json.dumps(config.model_dump(mode="json"), indent=2),
    )
    write_bytes(folder.report, page.encode())


_CURVES = {
    "KL (nats)": {"training, with gate noise": "kl", "validation, discretised": "validation.kl"},
    "site neurons open": {"expected": "open.total", "discretised": "validation.kept.total"},
}


def _points(metrics: Sequence[Mapping[str, Any]], member: int, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in metrics if row["member"] == member and key in row]


def layers(masks: Mapping[str, Tensor], streams: Streams) -> list[dict[str, Any]]:
    """For each layer the kept share of every head and of the MLP, and which neurons are kept."""
    rows = []
    for index, shape in enumerate(streams.frozen.shapes):
        neurons = masks["attention_neuron"][index, : shape.heads * shape.head_dim].view(shape.heads, shape.head_dim)
        mlp = masks["mlp_neuron"][index, : shape.intermediate]
        rows.append(
            {
                "index": index,
                "heads": [{"index": i, "kept": int(h.sum()), "of": shape.head_dim} for i, h in enumerate(neurons)],
                "mlp": {"kept": int(mlp.sum()), "of": shape.intermediate},
                "attention_neurons": [f"{i}.{j}" for i, j in neurons.nonzero().tolist()],
                "mlp_neurons": mlp.nonzero().flatten().tolist(),
            }
        )
    return rows


@torch.no_grad()
def predictions(streams: Streams, masks: Mapping[str, Tensor], data: TaskData, tokenizer: Any) -> list[dict[str, str]]:
    """What the full model, the circuit and its complement predict first on some held-out prompts."""
    chosen = data.splits["test"][:_EXAMPLES]
    batch = collate(chosen, full=False).to(streams.frozen.device)
    complement = {name: ~mask for name, mask in masks.items()}
    circuits = streams.masked(batch, mask_source([masks, complement], streams), 2)
    first = [batch.example_of_score.tolist().index(i) for i in range(len(chosen))]
    best = torch.cat([streams.reference(batch).unsqueeze(0), circuits])[:, first].argmax(-1).tolist()

    def show(token: int) -> str:
        return str(token) if tokenizer is None else tokenizer.decode([token])

    return [
        {
            "prompt": str(data.pairs[example.id].clean),
            "answer": show(example.answers[0][0]),
            "full": show(best[0][index]),
            "circuit": show(best[1][index]),
            "complement": show(best[2][index]),
        }
        for index, example in enumerate(chosen)
    ]
