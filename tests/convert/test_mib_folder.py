"""What is said of a submission is what the leaderboard's evaluation makes of it.

The expectations were taken from the evaluation's own code (mttk/MIB-circuit-track-autoeval, June 2025).
"""

import pytest

from bigcircuit.convert.mib_folder import COLUMNS, check_columns, check_method, model_name, read_name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ioi_gpt2", ("ioi", "gpt2")),
        ("gpt2_ioi", ("ioi", "gpt2")),
        ("arc-easy_llama3", ("arc-easy", "llama3")),
        ("arc_challenge_gemma2", ("arc-challenge", "gemma2")),
        ("arithmetic-addition_qwen2.5", ("arithmetic-addition", "qwen2.5")),
        ("ioi_gpt2-medium", ("ioi", "gpt2")),  # goes by how names begin
        ("ioi_gpt2_llama3", ("ioi", "llama3")),  # the last match
        ("ioi_Qwen2.5-0.5B", ("ioi", None)),  # and by case
        ("ioi-gpt2", ("ioi", None)),
        ("my-ioi_gpt2", (None, "gpt2")),
        ("greater-than_gpt2", (None, "gpt2")),
    ],
)
def test_a_folder_is_taken_for_the_task_and_model_that_its_name_says(name, found):
    assert read_name(name) == found


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("gpt2", "gpt2"),
        ("Qwen2.5-0.5B", "qwen2.5"),
        ("gemma-2-2b", "gemma2"),
        ("Llama-3.1-8B", "llama3"),
        ("tiny", "tiny"),
    ],
)
def test_checkpoints_have_the_leaderboards_names(checkpoint, name):
    assert model_name(checkpoint) == name


def test_what_a_name_is_not_taken_for_is_told():
    assert all(not list(check_columns(task, model)) for task, models in COLUMNS.items() for model in models)
    [message] = check_columns("greater-than", "gpt2")
    assert "skips greater-than_gpt2: its columns are ioi on gpt2, qwen2.5, gemma2, llama3; mcqa on" in message
    [message] = check_columns("ioi", "gpt2-medium")
    assert "takes ioi_gpt2-medium for ioi on gpt2; name the folder otherwise" in message
    [message] = check_columns("arc-easy", "gpt2")
    assert "does not evaluate arc-easy on gpt2, but on gemma2, llama3" in message


def files(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_a_method_is_checked_as_a_whole(tmp_path):
    files(tmp_path / "ioi_gpt2", "importances.pt")
    [message] = check_method(tmp_path)
    assert "wants two tasks and two models; here task ioi and model gpt2 can be evaluated" in message
    files(tmp_path / "mcqa_qwen2.5", *(f"{share}.json" for share in range(9)))
    assert not list(check_method(tmp_path))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ((), "mcqa_llama3 needs one file of scores or 9 of circuits"),
        (("importances.safetensors",), "mcqa_llama3 needs one file of scores or 9 of circuits"),
        (("importances.pt", "README.md"), "mcqa_llama3 needs one file of scores or 9 of circuits"),
        (("importances.pt", "importances.json"), "has 2 files, which are taken for circuits; it needs 9"),
    ],
)
def test_files_that_are_not_evaluated_as_meant_are_told(tmp_path, names, problem):
    files(tmp_path / "ioi_gpt2", "importances.pt")
    files(tmp_path / "mcqa_llama3", *names)
    first, second = check_method(tmp_path)
    assert problem in first and "here task ioi and model gpt2" in second


def test_a_file_beside_the_folders_is_told(tmp_path):
    files(tmp_path, "ioi_gpt2.json")
    assert "ioi_gpt2.json is a file beside the folders" in next(check_method(tmp_path))
