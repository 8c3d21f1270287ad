"""A key that is given twice is refused with both lines; bases and merge keys work as before."""

import json
from pathlib import Path

import pytest

from bigcircuit.config.yaml_file import read_yaml
from bigcircuit.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train:\n  lr: 1\n  steps: 3\n  lr: 2\n", "key train.lr is given twice, in lines 2 and 4; remove one"),
        ("train: {lr: 1}\ntask: {}\ntrain: {lr: 2}\n", "key train is given twice, in lines 1 and 3; remove one"),
        ("train: {lr: 1, lr: 1}", "key train.lr is given twice in line 1; remove one"),
        (
            "population:\n  members:\n  - train.lr: 1\n  - train.lr: 1\n    train.lr: 2\n",
            "key population.members[1].train.lr is given twice, in lines 4 and 5; remove one",
        ),
        ("a: &a\n  b: 1\n  b: 2\nc: *a\n", "key a.b is given twice, in lines 2 and 3; remove one"),
        ("a: !!bool maybe\n", "not valid YAML ('maybe')"),
        ("extends: [1, 2]\n", "extends names a file or a list of files, not [1, 2]"),
        ("extends: &a [*a]\n", "{line 1}an anchor holds its own alias; write its content out"),
        ('extends: "\\0"\n', 'extends: "\\u0000" has a null character'),
        ('extends: "\\ud800"\n', 'extends: "\\ud800" is not UTF-8 text'),
        ("extends: 5\n", "extends names a file or a list of files, not 5"),
        ("extends: c.yaml\n", "extends {path}, which extends it; leave one out"),
        ("a: 2026-13-45\n", "not valid YAML (month must be in 1..12)"),
    ],
)
def test_mistakes_of_a_file_are_one_line(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {said.replace('{path}', str(path))}".replace(": {line 1}", " line 1: ")


def test_a_base_is_checked_as_well(tmp_path):
    (tmp_path / "base.yaml").write_text("train:\n  lr: 1\n\n  lr: 2\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\ntrain: {lr: 3}\n")
    with pytest.raises(UserError, match=r"base\.yaml: key train\.lr is given twice, in lines 2 and 4; remove one"):
        read_yaml(tmp_path / "c.yaml")


def test_a_key_that_replaces_one_of_a_base_or_of_a_merged_mapping_is_no_repetition(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {lr: 1, clip: 2}\n")
    (tmp_path / "c.yaml").write_text(
        "extends: base.yaml\nx: &x {lr: 3, steps: 4}\ny: {z: &z {<<: *x, lr: 5}}\ntrain: {<<: *z, <<: *x, steps: 6}\n"
    )
    read = read_yaml(tmp_path / "c.yaml")
    assert read["y"]["z"] == {"lr": 5, "steps": 4}
    assert read["train"]["steps"] == 6 and read["train"]["clip"] == 2 and read["train"]["lr"] in (3, 5)


RECORD = {"config": {"train": {"lr": 1e-05}, "output": "elsewhere"}, "command": [], "versions": {}}


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_run_folder_is_the_config_of_its_run(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    expected = {"train": {"lr": 1e-05}, "output": str(tmp_path)}
    assert read_yaml(tmp_path / name) == expected, "a float, which YAML would leave as text; the folder as it is found"
    (tmp_path / "c.yaml").write_text(f"extends: {tmp_path / name}\ntrain: {{steps: 3}}\n")
    assert read_yaml(tmp_path / "c.yaml") == {**expected, "train": {"lr": 1e-05, "steps": 3}}


def test_a_sweep_folder_is_the_config_of_its_sweep(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({**RECORD, "sweep": {"trials": 2}}))
    assert read_yaml(tmp_path) == {"train": {"lr": 1e-05}, "output": str(tmp_path), "sweep": {"trials": 2}}


def test_a_folder_without_a_run_and_a_config_of_that_name_are_what_they_are(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such config file"):
        read_yaml(tmp_path)
    (tmp_path / "config.json").write_text('{"train": {"lr": 1.5}}')
    assert read_yaml(tmp_path) == {"train": {"lr": 1.5}}


def test_files_that_extend_many_that_extend_many_are_refused(tmp_path):
    for level in range(9):
        (tmp_path / f"{level}.yaml").write_text(f"extends: [{', '.join([f'{level + 1}.yaml'] * 9)}]\n")
    (tmp_path / "9.yaml").write_text("train: {lr: 1}\n")
    with pytest.raises(UserError, match=r"0\.yaml extends more than 100 files, one counted as often as it is read$"):
        read_yaml(tmp_path / "0.yaml")


def test_a_file_without_end_is_refused():
    with pytest.raises(UserError, match=r"^/dev/zero: "):
        read_yaml(Path("/dev/zero"))
