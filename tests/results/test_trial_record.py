"""trial.json: keys that stay as they are in the file, and records of trials that have begun."""

import json

import pytest

from bigcircuit.errors import UserError
from bigcircuit.io.files import write_json
from bigcircuit.results.trial_record import TrialRecord, read_trial_records, trial_folders

KEYS = [
    "number", "drawn", "settings", "status", "error", "step", "steps", "seconds", "updates", "at_stake", "validation", "let_on",
    "lost",
]  # fmt: skip


def test_the_file_has_the_same_keys_as_ever():
    record = TrialRecord(3, {"train.lr": 0.1}, {"train.lr": 0.2}, open_updates=4, decided_step=6, retry_on_resume=True)
    written = record.as_json()
    assert list(written) == KEYS
    assert (written["at_stake"], written["let_on"], written["lost"]) == (4, 6, True)


def test_what_is_written_is_read_again(tmp_path):
    settings = {"train.lr": 0.1, "gates.granularities": ["head", "mlp"]}
    record = TrialRecord(
        number=3,
        drawn=settings,
        settings=settings,
        status="running",
        step=5,
        steps=9,
        seconds=1.25,
        updates=7,
        open_updates=4,
        validation={"validation.kl": 0.5, "step": 5},
        decided_step=3,
        retry_on_resume=True,
    )
    write_json(tmp_path / "trials/003/trial.json", record.as_json())
    assert read_trial_records(tmp_path) == [record]


def test_a_file_without_keys_that_are_newer_is_read(tmp_path):
    write_json(tmp_path / "trials/000/trial.json", {"number": 0, "drawn": {}, "settings": {}})
    (record,) = read_trial_records(tmp_path)
    assert (record.status, record.open_updates, record.decided_step, record.ended) == ("waiting", 0, 0, False)


@pytest.mark.parametrize("part", ["drawn", "settings"])
def test_a_key_that_is_no_setting_is_named(tmp_path, part):
    content = {"number": 0, "drawn": {}, "settings": {}} | {part: {"train.lr": 0.1, "x/../../../escaped": 1}}
    write_json(tmp_path / "trials/000/trial.json", content)
    with pytest.raises(UserError, match=r"trial\.json: x/\.\./\.\./\.\./escaped is not a setting"):
        read_trial_records(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"number": 0, "drawn": {}, "settings": {}, "other": 1}'])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "trials/000/trial.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_trial_records(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and f"remove {path.parent} to run this trial again" in said


def test_a_folder_without_a_file_has_not_begun(tmp_path):
    (tmp_path / "trials/000").mkdir(parents=True)
    (tmp_path / "trials/000/.trial.json.tmp").write_text("half")
    (tmp_path / "trials/notes").mkdir()
    (tmp_path / "trials/notes/a.json").write_text("{}")
    assert trial_folders(tmp_path) == [] == read_trial_records(tmp_path)


def test_records_are_sorted_by_number_beyond_three_digits(tmp_path):
    for number in (1000, 999, 2):
        record = TrialRecord(number, {}, {})
        write_json(tmp_path / f"trials/{number:03d}/trial.json", json.loads(json.dumps(record.as_json())))
    assert [record.number for record in read_trial_records(tmp_path)] == [2, 999, 1000]
