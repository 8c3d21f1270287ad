"""Rows of trials as CSV and Parquet."""

import csv
import io

import pyarrow as pa
from pyarrow import parquet

from bigcircuit.results.trial_table import as_csv, as_parquet


def test_settings_of_several_kinds_have_a_column_too():
    rows = [{"a": 1, "b": None, "c": [1, 2], "d": "x"}, {"a": 0.5, "b": None, "c": None, "d": 3}]
    found = parquet.read_table(pa.BufferReader(as_parquet(list("abcd"), rows))).to_pydict()
    assert found == {"a": [1.0, 0.5], "b": [None, None], "c": [[1, 2], None], "d": ["x", "3"]}


def test_columns_without_a_value_have_the_type_of_later_values():
    names = ["step", "error", "kl", "exact_match", "kept.head", "train.lr"]
    schema = parquet.read_table(pa.BufferReader(as_parquet(names, [dict.fromkeys(names)]))).schema
    assert [str(field.type) for field in schema] == ["int64", "string", "double", "double", "int64", "null"]


def test_csv_has_empty_cells_and_json():
    rows = [{"a": None, "b": True, "c": [1, "x"]}, {"a": 0.5, "b": False, "c": "plain, text"}]
    assert as_csv(["a", "b", "c"], rows).decode() == ('a,b,c\n,true,"[1, ""x""]"\n0.5,false,"plain, text"\n')


def test_text_is_never_a_formula():
    cells = ["=1+1", "+x", "-x", "@sum(a)", "\t=1", "plain", "a=b", -0.5]
    rows = [{"=key": cell} for cell in cells]
    read = [row[0] for row in csv.reader(io.StringIO(as_csv(["=key"], rows).decode()))]
    assert read == ["'=key", "'=1+1", "'+x", "'-x", "'@sum(a)", "'\t=1", "plain", "a=b", "-0.5"]
