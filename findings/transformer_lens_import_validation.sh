#!/usr/bin/env bash
# `import transformer_lens` changes which config.json files transformers accepts in the whole process.
#
# Guess: importing a library that one does not use leaves what other libraries do alone.
# What happens (transformer-lens 4.3.0, transformers 5.24.0): transformers refuses a whole number where a config's field is a float
# (rms_norm_eps 1, initializer_range 1) with StrictDataclassFieldValidationError. transformer_lens replaces the check of
# huggingface_hub when it is imported; afterwards such configs are built, saved and loaded by transformers, and no other process without
# the import opens the folder.
# Consequence: a notebook that imports it writes folders that a server refuses; test what you export in a fresh process.
#
# Output seen:
#   transformer-lens 4.3.0, transformers 5.24.0
#   initializer_range 1: StrictDataclassFieldValidationError before the import, accepted after it
#   vocab_size "64": StrictDataclassFieldValidationError before the import, StrictDataclassFieldValidationError after it
#   folder saved after the import, opened without it: StrictDataclassFieldValidationError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==4.3.0 transformers==5.24.0 torch==2.13.0
cat > imported.py <<'PYTHON'
import sys
from importlib.metadata import version

from transformers import AutoConfig, LlamaConfig


def outcome(function, *args, **settings):
    try:
        function(*args, **settings)
    except Exception as error:
        return type(error).__name__
    return "accepted"


CASES = {"initializer_range 1": {"initializer_range": 1}, 'vocab_size "64"': {"vocab_size": "64"}}
if sys.argv[1:] == ["open"]:
    print("folder saved after the import, opened without it:", outcome(AutoConfig.from_pretrained, "config"))
else:
    before = {what: outcome(LlamaConfig, **settings) for what, settings in CASES.items()}
    import transformer_lens  # noqa: F401

    print(", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "transformers")))
    for what, settings in CASES.items():
        print(f"{what}: {before[what]} before the import, {outcome(LlamaConfig, **settings)} after it")
    LlamaConfig(initializer_range=1).save_pretrained("config")
PYTHON
for what in "" open; do HF_HUB_OFFLINE=1 "$folder/venv/bin/python" imported.py $what 2> errors || { cat errors; exit 1; }; done > output
cat output
diff output - <<'SEEN'
transformer-lens 4.3.0, transformers 5.24.0
initializer_range 1: StrictDataclassFieldValidationError before the import, accepted after it
vocab_size "64": StrictDataclassFieldValidationError before the import, StrictDataclassFieldValidationError after it
folder saved after the import, opened without it: StrictDataclassFieldValidationError
SEEN
