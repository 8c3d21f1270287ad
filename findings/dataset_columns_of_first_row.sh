#!/usr/bin/env bash
# Dataset.from_list, from_generator and map drop a field that the first row lacks, for all rows; the same rows as JSON keep it.
#
# Guess: the columns are those of all rows, with None where a row lacks one, however the rows come in; rows that do not fit are refused.
# What happens (datasets 5.2.0): the columns are those of the FIRST row, silently: from_list, from_generator and what a function returns
# in map. Where the first row has the field and a later one lacks it, from_list puts None and map raises KeyError. Inside a nested
# dictionary, and by load_dataset("json"), the fields of all rows are kept.
# Consequence: pairs with optional answers or notes lose them by the order of the rows; give every row all keys, or pass features=.
#
# Output seen: columns of the rows {a: 1}, {a: 2, b: 3}
#   datasets 5.2.0
#   from_list: a; the other way round: a b
#   from_generator: a
#   map that returns b for the second row: a; for the first row: KeyError
#   nested in a dictionary: a b
#   load_dataset("json"): a b
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 numpy==2.4.6
cat > columns.py <<'PYTHON'
import json

import datasets
from datasets import Dataset, load_dataset

ROWS = [{"a": 1}, {"a": 2, "b": 3}]


def columns(data):
    return " ".join(data.column_names)


def given(place):
    try:
        return columns(Dataset.from_list([{"a": 1}, {"a": 2}]).map(lambda row: {"b": 3} if row["a"] == place else {}))
    except KeyError as error:
        return type(error).__name__


def rows():
    yield from ROWS


with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in ROWS)
nested = Dataset.from_list([{"row": row} for row in ROWS])
print("datasets", datasets.__version__)
print(f"from_list: {columns(Dataset.from_list(ROWS))}; the other way round: {columns(Dataset.from_list(ROWS[::-1]))}")
print(f"from_generator: {columns(Dataset.from_generator(rows, cache_dir='cache'))}")
print(f"map that returns b for the second row: {given(2)}; for the first row: {given(1)}")
print(f"nested in a dictionary: {' '.join(nested[1]['row'])}")
print(f'load_dataset("json"): {columns(load_dataset("json", data_files="rows.jsonl", split="train", cache_dir="cache"))}')
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" columns.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'SEEN'
datasets 5.2.0
from_list: a; the other way round: a b
from_generator: a
map that returns b for the second row: a; for the first row: KeyError
nested in a dictionary: a b
load_dataset("json"): a b
SEEN
