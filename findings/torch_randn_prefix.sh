#!/usr/bin/env bash
# torch.randn from a seeded CPU generator is not a stream: the first numbers of a longer draw are not those of a shorter one.
#
# Guess: with the same seed, randn(20)[:17] == randn(17), as it is for rand, so noise for a padded batch agrees with noise for the
# same rows without padding. What happens (torch 2.13.0, CPU, float32, and the same in float64):
#  - below 16 numbers another formula is used than from 16 on: randn(15) has no number in common with randn(16)[:15];
#  - a draw whose length is no multiple of 16 draws its LAST 16 numbers a second time: of randn(17) only the first number is that
#    of randn(64), of randn(40) the first 24 are;
#  - so four draws of 10 are not one draw of (4, 10), although the generator is the same; with rand both hold.
# Consequence: noise that must not depend on padding or on the split of a batch needs a counter-based formula of its own, or rand.
#
# Output seen:
#   torch 2.13.0
#   randn(15) == randn(16)[:15]: 0 of 15 equal
#   randn(17) == randn(64)[:17]: 1 of 17 equal
#   randn(40) == randn(64)[:40]: 24 of 40 equal
#   randn(48) == randn(64)[:48]: 48 of 48 equal
#   rand(17) == rand(64)[:17]: 17 of 17 equal
#   four randn(10) == randn(4, 10): False; four rand(10) == rand(4, 10): True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__.split("+")[0])
expected = {("randn", 15, 16): 0, ("randn", 17, 64): 1, ("randn", 40, 64): 24, ("randn", 48, 64): 48, ("rand", 17, 64): 17}


def drawn(name, *shape, dtype=torch.float32):
    return getattr(torch, name)(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


for (name, short, long), wanted in expected.items():
    for dtype in (torch.float32, torch.float64):
        equal = int((drawn(name, short, dtype=dtype) == drawn(name, long, dtype=dtype)[:short]).sum())
        assert equal == wanted, (name, short, long, dtype, equal)
    print(f"{name}({short}) == {name}({long})[:{short}]: {equal} of {short} equal")


def in_parts(name):
    generator = torch.Generator().manual_seed(3)
    parts = torch.stack([getattr(torch, name)(10, generator=generator) for _ in range(4)])
    return torch.equal(parts, drawn(name, 4, 10))


found = in_parts("randn"), in_parts("rand")
assert found == (False, True), found
print(f"four randn(10) == randn(4, 10): {found[0]}; four rand(10) == rand(4, 10): {found[1]}")
PYTHON
