"""A tokenizer as GGUF has it: tokens with scores and types, merges, and the name of the pre-tokenizer.

It is read as transformers opens it, which is what a model is measured with: for some classes transformers takes vocabulary and
merges alone from tokenizer.json, and normalizer and pre-tokenizer from the class (findings/tokenizer_json_overruled.sh).
"""

import json
from typing import Any, NamedTuple

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Types of tokens in GGUF."""
_SPACE = "\u2581"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {_LETTERS + r"|\p{N}{1,3}" + _REST: "llama-bpe", _LETTERS + r"|\p{N}" + _REST: "qwen2"}
"""Pattern by which text is split before byte-level merges -> its name in llama.cpp."""


class GgufTokenizer(NamedTuple):
    """A tokenizer in GGUF's terms."""

    model: str
    """`llama` (merges by score) or `gpt2` (byte-level merges)."""
    tokens: list[str]
    types: list[int]
    scores: list[float]
    """Empty for `gpt2`."""
    merges: list[str]
    """Empty for `llama`."""
    pre: str
    add_bos: bool


def read_tokenizer(tokenizer: Any | None, vocabulary: int) -> GgufTokenizer | str:
    """Read a model's tokenizer, None where it has none. vocabulary: rows of the embeddings.

    Returns the reason in words where GGUF has no such tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "the model has no tokenizer.json"
    content = json.loads(backend.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, and GGUF takes BPE"
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [_NORMAL] * vocabulary
    added = {one["content"]: (one["id"], one["special"]) for one in content["added_tokens"]}
    for token, number in {**model["vocab"], **{token: number for token, (number, _) in added.items()}}.items():
        if number >= vocabulary:
            return f"token {token!r} has number {number}, beyond the {vocabulary} rows of the embeddings"
        tokens[number] = token
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    marks_spaces = _marks_spaces(content["normalizer"], content["pre_tokenizer"])
    # With byte-level merges nothing is unknown, and classes name their end token there.
    unknown = model.get("unk_token") or (marks_spaces and getattr(tokenizer, "unk_token", None))
    for token, (number, special) in added.items():
        # What is added and not special is found in texts before anything is merged.
        types[number] = (_UNKNOWN if token == unknown else _CONTROL) if special else _USER_DEFINED
    add_bos = _adds_first_token(content)
    if marks_spaces:
        places = {left + right: place for place, (left, right) in reversed(list(enumerate(merges)))}
        for number, token in enumerate(tokens):
            if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
                types[number] = _BYTE
        # What is merged first has the highest score; pieces that nothing merges to come after all others.
        scores = [-float(places.get(token, len(merges))) for token in tokens]
        return GgufTokenizer(
            model="llama", tokens=tokens, types=types, scores=scores, merges=[], pre="default", add_bos=add_bos
        )
    normalizer = (content["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp has none for byte-level merges; most text is NFC as it is
        return f"its normalizer is {normalizer}, and llama.cpp has none"
    pre = _pre_tokenizer(content["pre_tokenizer"])
    if pre is None:
        return "llama.cpp has no name for its pre-tokenizer"
    spelled = [" ".join(pair) for pair in merges]
    return GgufTokenizer(model="gpt2", tokens=tokens, types=types, scores=[], merges=spelled, pre=pre, add_bos=add_bos)


def _marks_spaces(normalizer: Any, pre_tokenizer: Any) -> bool:
    """Whether a space is put in front of the text and all spaces become one character, as SentencePiece does it.

    transformers' own class for Llama does it in a pre-tokenizer, others in normalizers.
    """
    if pre_tokenizer is not None:
        marks = pre_tokenizer["type"] == "Metaspace" and pre_tokenizer["replacement"] == _SPACE
        return (
            marks and normalizer is None and pre_tokenizer["prepend_scheme"] != "never" and not pre_tokenizer["split"]
        )
    steps = (normalizer or {}).get("normalizers", [])
    return [step["type"] for step in steps] == ["Prepend", "Replace"] and steps[1].get("content") == _SPACE


def _pre_tokenizer(pre: Any) -> str | None:
    if pre is None:
        return None
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if [step["type"] for step in steps] == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if [step["type"] for step in steps] == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        return _PRE_TOKENIZERS.get(steps[0]["pattern"].get("Regex", ""))
    return None


def _adds_first_token(content: Any) -> bool:
    """Whether a special token is put in front of every text."""
    post = content["post_processor"] or {}
    steps = post.get("processors", [post])
    return any(
        step.get("single", [{}])[0].get("SpecialToken") for step in steps if step.get("type") == "TemplateProcessing"
    )
