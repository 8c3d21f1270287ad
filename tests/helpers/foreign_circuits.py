"""One circuit of a small model as the files of other tools hold it."""

from bigcircuit.model.granularity import LayerShape

LAYERS, HEADS, WIDTH, HEAD_DIM, FFN = 3, 4, 16, 4, 24
SHAPES = [LayerShape(HEADS, 2, HEAD_DIM, FFN, WIDTH)] * LAYERS
SIZES = {
    "gpt2": {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "n_inner": FFN, "n_positions": 16},
    "llama": {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
    },
}
TOKENS = {"vocab_size": 32, "bos_token_id": None, "eos_token_id": None}
NAMES = ["input", *(name for i in range(LAYERS) for name in [*(f"a{i}.h{h}" for h in range(HEADS)), f"m{i}"])]

KEPT = {
    "input->a0.h1<v>",
    "input->m0",
    "a0.h1->m0",
    "m0->a1.h2<q>",
    "m0->a2.h3<k>",
    "a1.h2->m2",
    "m2->logits",
    "a2.h3->logits",
}
LOOSE = {"input->a0.h0<q>", "a1.h0->logits", "m0->m1"}
"""Edges to nowhere, or from nowhere."""
KEPT_NODES = {"a0.h1", "m0", "a1.h2", "a2.h3", "m2"}


def place(name: str) -> tuple[int, bool]:
    return (-1, True) if name == "input" else (int(name[1:].split(".")[0]), name[0] == "m")


def graph(edges=KEPT | LOOSE, marked=KEPT_NODES, **cfg) -> dict:
    """Make a graph of every node and edge, in the shape and order of EAP-IG's to_json. edges, marked: those in the graph."""
    readers = [f"a{i}.h{h}<{letter}>" for i in range(LAYERS) for letter in "qkv" for h in range(HEADS)] + [
        f"m{i}" for i in range(LAYERS)
    ]
    every = [f"{w}->{r}" for r in readers for w in NAMES if place(w) < place(r.split("<")[0])] + [
        f"{w}->logits" for w in NAMES
    ]
    assert edges <= set(every)
    return {
        "cfg": {"n_layers": LAYERS, "n_heads": HEADS, "parallel_attn_mlp": False, "d_model": WIDTH} | cfg,
        "nodes": {name: {"in_graph": name in {"input", *marked}} for name in NAMES} | {"logits": {"in_graph": True}},
        "edges": {name: {"score": 0.5, "in_graph": name in edges} for name in every},
    }


def pruned_edges(edges, group: int, embeds: str) -> list[list[str]]:
    """List the same edges as Edge-Pruning does; keys and values by key/value head. group: query heads a key/value head."""
    made = []
    for edge in sorted(edges):
        writer, reader = edge.replace("logits", "resid_post").split("->")
        if reader.endswith(">"):
            head, letter = reader[:-3], reader[-2]
            layer, number = head.split(".h")
            reader = f"{head}.q" if letter == "q" else f"{layer}.h{int(number) // group}.{letter}"
        made.append([embeds if writer == "input" else writer, reader])
    return made
