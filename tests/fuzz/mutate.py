"""Mutators: random damage and odd values, drawn from a generator that the caller seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

ODD_TEXTS = (
    "", " ", "[INST] [/INST]", "[/x", ":cat:", "\x1b[2J", "\0", "\ud800", "../../x", "/", ".", "~", "x" * 300, "é" * 200, "null",
    "nan", "1e300", "-1", "0x10", "{}", "[", "*a", "&a [*a]", "!!int x", "2026-13-45", "{{7*7}}", "<script>", "$x$", "a\nb", "=1+1",
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 1, 2**31, 2**63, 10**30, 10**9, 0.5, -0.0, 1e-320, 1e300, float("nan"), float("inf"), -float("inf"), True, False,
)  # fmt: skip
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\r",
    b"\xef\xbb\xbf",
    b"\x1b[2J",
    b"9" * 5000,
    b"[" * 3000,
    b'"',
    b"PK\x03\x04",
)


def odd_value(random: Random, depth: int = 2) -> Any:
    """Draw a value that hardly any field expects."""
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(ODD_TEXTS)
    if kind < 5:
        return random.choice(ODD_NUMBERS)
    if kind == 5 or depth == 0:
        return random.choice([None, [], {}, [[]], [None]])
    inner = [odd_value(random, depth - 1) for _ in range(random.randrange(4))]
    return inner if kind == 6 else {str(random.choice(ODD_TEXTS)): one for one in inner}


def damaged_bytes(random: Random, content: bytes) -> bytes:
    """Damage bytes in one to four places: overwritten, removed, repeated, cut off, or with odd ones put in."""
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(content) + 1)
        end = min(len(content), start + random.choice([1, 1, 4, 40, 400]))
        piece = random.choice([
            b"", bytes([random.randrange(256)]), random.choice(ODD_BYTES), content[start:end] * 2, random.randbytes(4),
        ])  # fmt: skip
        content = content[:start] if random.random() < 0.1 else content[:start] + piece + content[end:]
    return content


def damaged_json(random: Random, value: Any) -> Any:
    """Change parsed JSON in one to three places: values replaced by odd ones or values from elsewhere, keys and entries removed."""
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return odd_value(random)
        where, key = random.choice(places)
        change = random.randrange(6)
        if change == 0:
            del where[key]
        elif change == 1 and isinstance(where, dict):
            where[random.choice(ODD_TEXTS)] = where.pop(key)
        elif change == 2:
            other, name = random.choice(places)
            where[key] = json.loads(json.dumps(other[name]))
        elif change == 3 and isinstance(where[key], (int, float)):
            where[key] = random.choice(ODD_NUMBERS)
        else:
            where[key] = odd_value(random)
    return value


def _places(value: Any) -> Any:
    """List the places of parsed JSON: (container, key or index)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def as_json(random: Random, value: Any) -> bytes:
    """Write JSON, now and then damaged once more."""
    content = json.dumps(value).encode()
    return damaged_bytes(random, content) if random.random() < 0.2 else content


def damaged_one(random: Random, paths: Sequence[Path]) -> Path:
    """Damage one of several files; JSON mostly as JSON. Returns its path."""
    path = random.choice(sorted(paths))
    content = path.read_bytes()
    if path.suffix == ".json" and random.random() < 0.8:
        path.write_bytes(as_json(random, damaged_json(random, json.loads(content))))
    elif path.suffix == ".jsonl" and random.random() < 0.8:
        lines = [json.loads(line) for line in content.splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in damaged_json(random, [lines])[:1] or [[]]))
    else:
        path.write_bytes(damaged_bytes(random, content))
    return path


def words_of(random: Random, options: Sequence[str], values: Sequence[str]) -> list[str]:
    """Draw words of a command line: options, values, and odd ones of both."""
    found: list[str] = []
    for _ in range(random.randint(0, 5)):
        option = random.choice(options) if random.random() < 0.8 else random.choice(ODD_TEXTS)
        value = random.choice(values) if random.random() < 0.5 else str(random.choice([*ODD_TEXTS, *ODD_NUMBERS]))
        found += random.choice([[f"--{option}", value], [f"--{option}={value}"], [f"--{option}"], [value]])
    return [word.replace("\0", "0") for word in found]  # no operating system hands on a null byte
