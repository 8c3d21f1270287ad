"""Open files with one other tool: `python other_tools_open.py TOOL FOLDER`, run by the tool's own Python, see `other_tools.py`.

Prints one line of JSON: `version`, what was `opened`, and what was `seen`; an assertion that fails ends the process.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(sys.argv[2])
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
TENSORS = load_file(FOLDER / "expected.tensors")
CLOSE = 1e-5
"""Largest difference of logits, relative to the largest logit."""


def model_and_tokenizer() -> Any:
    """Load the base model afresh."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EXPECTED["model"], dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(EXPECTED["model"])


def difference(found: torch.Tensor, name: str) -> float:
    """Largest difference from the logits of the masked model, relative to the largest. Raises AssertionError above CLOSE."""
    value = float((found - TENSORS[name]).abs().max() / TENSORS[name].abs().max())
    assert value <= CLOSE, f"{name}: logits differ by {value:.2g}"
    return value


def open_transformer_lens() -> dict[str, str]:
    """Run hooks, and the dictionary of the file as hooks of its own, in a bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    from bigcircuit import Circuit
    from bigcircuit.convert.hooks import transformer_lens_hooks

    model, tokenizer = model_and_tokenizer()
    bridge = TransformerBridge.boot_transformers(EXPECTED["model"], hf_model=model, tokenizer=tokenizer, device="cpu")
    content = json.loads((FOLDER / "transformer-lens.json").read_text())
    worst = []
    with torch.no_grad():
        for spelling in (False, True):
            hooks = transformer_lens_hooks(Circuit.load(FOLDER / "zero.safetensors"), bridge=spelling)
            worst.append(difference(bridge.run_with_hooks(TENSORS["clean"], fwd_hooks=hooks), "zero"))
            _, cache = bridge.run_with_cache(TENSORS["corrupted"])
            hooks = transformer_lens_hooks(Circuit.load(FOLDER / "interchange.safetensors"), cache, bridge=spelling)
            worst.append(difference(bridge.run_with_hooks(TENSORS["clean"], fwd_hooks=hooks), "interchange"))
        masks = {name: torch.tensor(values).bool() for name, values in content["masks"].items()}

        def times(mask: torch.Tensor, value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 - the library's signature
            return value * mask.view(value.shape[2:])  # hook.name is the bridge's spelling, whichever name was given

        hooks = [(name, partial(times, mask)) for name, mask in masks.items()]
        by_file = bridge.run_with_hooks(TENSORS["clean"], fwd_hooks=hooks)
        worst.append(difference(by_file, "zero"))
    return {
        "version": importlib.metadata.version("transformer-lens"),
        "opened": "hooks in both spellings under two ablations; the dictionary of the file",
        "seen": f"logits of the masked model to {max(worst):.1g} of the largest",
    }


def open_nnsight() -> dict[str, str]:
    """Close nodes in a trace."""
    from nnsight import NNsight

    from bigcircuit import Circuit
    from bigcircuit.convert.hooks import apply_in_trace

    model, _ = model_and_tokenizer()
    plain = model(input_ids=TENSORS["clean"]).logits
    wrapped = NNsight(model)
    with torch.no_grad(), wrapped.trace(TENSORS["clean"]):
        apply_in_trace(Circuit.load(FOLDER / "zero.safetensors"), wrapped)
        logits = wrapped.output.logits.save()
    found = difference(logits, "zero")
    with torch.no_grad():
        assert torch.equal(model(input_ids=TENSORS["clean"]).logits, plain), "the model is as before"
    return {
        "version": importlib.metadata.version("nnsight"),
        "opened": "`apply_in_trace` in a trace",
        "seen": f"logits of the masked model to {found:.1g} of the largest; the plain model afterwards to the bit",
    }


def open_circuitkit() -> dict[str, str]:
    """Load the artefact and its scores."""
    import circuitkit

    path = str(FOLDER / "circuitkit.pt")
    removed, circuit = circuitkit.load_circuit(path), circuitkit.load_scores(path)
    kept = {_our_name(name) for name in set(circuit.scores) - set(removed)}
    assert kept == set(EXPECTED["kept"]), kept ^ set(EXPECTED["kept"])
    return {
        "version": importlib.metadata.version("circuitkit"),
        "opened": "`load_circuit`, `load_scores`",
        "seen": f"{len(circuit.scores)} scores, and the {len(kept)} kept nodes by the complement of its list",
    }


def _our_name(name: str) -> str:
    return f"m{name.removeprefix('MLP ')}" if name.startswith("MLP") else f"a{name[1:].replace('.', '.h')}"


def open_eap_ig() -> dict[str, str]:
    """Open both files of a graph."""
    from eap.graph import Graph

    by_json = Graph.from_json(str(FOLDER / "eap-ig.json"))
    by_pt = Graph.from_pt(str(FOLDER / "eap-ig-pt.pt"))
    assert torch.equal(by_json.in_graph.bool(), by_pt.in_graph.bool())
    assert torch.allclose(by_json.scores, by_pt.scores)
    kept = {name for name, node in by_json.nodes.items() if node.in_graph} - {"input", "logits"}
    assert kept == set(EXPECTED["kept"]), kept ^ set(EXPECTED["kept"])
    edges = by_pt.count_included_edges()
    by_pt.prune()
    left = by_pt.count_included_edges()
    return {
        "version": "(checkout)",
        "opened": "`Graph.from_json`, `Graph.from_pt`",
        "seen": f"the same {len(kept)} nodes and {edges} edges by both files; its prune() leaves {left} edges",
    }


def open_mib() -> dict[str, str]:
    """Take the top nodes of a submission at each size, as the evaluation of the track does it."""
    from eap.graph import Graph

    [path] = (FOLDER / "mib").rglob("importances.pt")
    graph = Graph.from_pt(str(path))
    scored = int(graph.nodes_scores.isfinite().sum())
    found = []
    for share in (0.05, 0.1, 0.2, 0.5, 1.0):
        graph.apply_topn(int(share * scored), absolute=True, level="node", prune=True)
        found.append(f"{share:g}: {graph.count_included_edges()}")
    return {
        "version": "(EAP-IG)",
        "opened": f"`{path.relative_to(FOLDER / 'mib')}`",
        "seen": f"{scored} scored nodes; edges by `apply_topn` at {', '.join(found)}",
    }


_VIEWER = """
const fs = require('fs'), vm = require('vm'), d3 = Object.assign({}, require('d3'), require('d3-jetpack'))
global.window = global; global.d3 = d3; global.document = {}; global.location = new URL('http://x/')
for (const file of ['util.js', 'attribution_graph/util-cg.js'])
  vm.runInThisContext(fs.readFileSync(process.argv[2] + '/' + file, 'utf8'))
const data = JSON.parse(fs.readFileSync(process.argv[3])), metadata = data.metadata
utilCg.formatData(data, {pruningThreshold: metadata.node_threshold, pinnedIds: []}).then(found => console.log(JSON.stringify({
  nodes: found.nodes.length, links: found.links.length, streams: found.byStream.length,
  joined: found.links.every(d => d.sourceNode && d.targetNode), logit: found.nodes.find(d => d.feature_type == 'logit').logitPct,
}))).catch(error => { console.error(error); process.exit(1) })
"""


def open_circuit_tracer() -> dict[str, str]:
    """Check the graph by the tool's models, serve it by its server, and have the viewer's own script prepare it."""
    import circuit_tracer.frontend.local_server as server_module
    from circuit_tracer.frontend.graph_models import Model

    content = json.loads((FOLDER / "circuit-tracer.json").read_text())
    graph = Model.model_validate(content)
    server = server_module.serve(data_dir=str(FOLDER), port=8765)
    try:
        for path in ("/graph_data/circuit-tracer.json", "/data/graph-metadata.json", "/index.html"):
            with urllib.request.urlopen(f"http://127.0.0.1:8765{path}") as answer:
                assert answer.status == 200, path
    finally:
        server.stop()
    assets = Path(server_module.__file__).parent / "assets"
    script = FOLDER / "viewer.js"
    script.write_text(_VIEWER)
    words = ["node", str(script), str(assets), str(FOLDER / "circuit-tracer.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert not done.returncode, done.stderr[-400:]
    drawn = json.loads(done.stdout.splitlines()[-1])
    assert (drawn["nodes"], drawn["links"]) == (len(graph.nodes), len(graph.links)), drawn
    assert drawn["joined"] and drawn["logit"] == 1
    return {
        "version": importlib.metadata.version("circuit-tracer"),
        "opened": "its models of a graph, its server, the script of its viewer under node",
        "seen": f"all {drawn['nodes']} nodes and {drawn['links']} links are drawn, in {drawn['streams']} rows",
    }


def open_llama_cpp() -> dict[str, str]:
    """Continue prompts greedily with llama.cpp, and compare tokens and log-probabilities with those of the masked model.

    Keys and values are kept in float32: llama.cpp keeps them in float16 by default, which moves log-probabilities by up to .03. It
    looks GELU (Gemma) up in a table of float16.
    """
    import xllamacpp

    same, count, largest = {}, 0, {"exact": 0.0, "gemma": 0.0}
    for name in ("zero", "mean", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        params = xllamacpp.CommonParams()
        params.model.path = str(FOLDER / f"gguf-{name}" / "model.gguf")
        params.n_ctx, params.cpuparams.n_threads, params.warmup = 512, 1, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        server, expected, chosen = xllamacpp.Server(params), TENSORS[f"text.{name}"], TENSORS[f"chosen.{name}"]
        kind, same[name] = "gemma" if name.startswith("gemma") else "exact", 0
        for row, (prompt, continued) in enumerate(zip(TENSORS["clean"].tolist(), expected.tolist(), strict=True)):
            asked = {"prompt": prompt, "n_predict": len(continued), "temperature": 0.0, "ignore_eos": True}
            answer = server.handle_completions({**asked, "cache_prompt": False, "logprobs": chosen.shape[-1]})
            steps = answer["choices"][0]["logprobs"]["content"]
            equal = sum(1 for _ in _equal([one["id"] for one in steps], continued))
            same[name] += equal
            for expect, step in zip(chosen[row], steps[: equal + 1], strict=False):
                off = (abs(one["logprob"] - float(expect[one["id"]])) for one in step["top_logprobs"])
                largest[kind] = max(largest[kind], *off)
        count = expected.numel()
        assert same[name] == count, f"{name}: {same[name]} of {count} tokens are the same"
    assert largest["exact"] < 1e-3 and largest["gemma"] < 0.1, f"log-probabilities differ by {largest}"
    return {
        "version": f"(xllamacpp {importlib.metadata.version('xllamacpp')})",
        "opened": "`export --format gguf` under zero ablation, with constants as biases, of a Qwen2, Qwen3, Gemma 2 and Gemma 3",
        "seen": f"{', '.join(map(str, same.values()))} of {count} greedy tokens are those of the masked model; all "
        f"log-probabilities to {largest['exact']:.1g}, of Gemma to {largest['gemma']:.1g}, with keys and values in float32",
    }


def _equal(found: list[int], expected: list[int]) -> Any:
    """Yield the tokens up to the first that differs."""
    for one, other in zip(found, expected, strict=False):
        if one != other:
            return
        yield one


OPENERS = {
    "transformer-lens": open_transformer_lens,
    "nnsight": open_nnsight,
    "circuitkit": open_circuitkit,
    "eap-ig": open_eap_ig,
    "mib": open_mib,
    "circuit-tracer": open_circuit_tracer,
    "llama.cpp": open_llama_cpp,
}
"""Tool -> function that opens its files."""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(OPENERS[sys.argv[1]]()) + "\n")
