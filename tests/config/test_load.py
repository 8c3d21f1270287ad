"""One grammar for files, the command line and populations; every mistake is one line that helps."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bigcircuit.cli import parse_verb
from bigcircuit.config.load import dotted_keys, load, members, penalty_note
from bigcircuit.config.schema import Config
from bigcircuit.config.yaml_file import read_yaml
from bigcircuit.errors import UserError
from bigcircuit.sweep.config import load_sweep

ROOT = Path(__file__).parents[2]

BAD = {
    "unknown section": ("trainn: {steps: 5}", ["trainn is not a setting", "did you mean train"]),
    "unknown key": ("train: {stepz: 5}", ["train.stepz", "did you mean train.steps?"]),
    "key in the wrong section": ("gates: {lr: 0.1}", ["gates.lr", "did you mean ablation.lr or train.lr?"]),
    "text for a number": ("train: {steps: many}", ["train.steps", "integer", '"many"']),
    "negative steps": ("train: {steps: -1}", ["train.steps", "greater than or equal to 0"]),
    "negative learning rate": ("train: {lr: -1}", ["train.lr", "greater than 0"]),
    "fraction above one": ("train: {penalty_ramp: 1.5}", ["train.penalty_ramp", "less than or equal to 1"]),
    "infinite penalty": ("penalty: {head: .inf}\ngates: {granularities: [head]}", ["penalty.head", "finite"]),
    "negative penalty": ("penalty: {head: -2}", ["penalty.head", "greater than or equal to 0"]),
    "unknown granularity": ("gates: {granularities: [heads]}", ["gates.granularities", "'head'", '"heads"']),
    "granularity twice": ("gates: {granularities: [head, head]}", ["gates.granularities names one twice"]),
    "no granularity": ("gates: {granularities: []}", ["gates.granularities is empty"]),
    "penalty without its gates": ("penalty: {kv_group: 1}", ["penalty.kv_group is set", "add kv_group"]),
    "target without its gates": ("target: {mlp_output: 5}", ["target.mlp_output is set", "add mlp_output"]),
    "target of nothing": ("target: {total: 0}", ["target.total is 0; give a number of nodes (200), or a share"]),
    "half a neuron": ("target: {total: 1.5}", ["target.total is 1.5; give a number of nodes (200), or a share"]),
    "target of everything": ("target: {head: 100%}", ["target.head is 100%; give a number of nodes (200), or a share"]),
    "one node or all": (
        "target: {total: 1.0}",
        ["target.total is 1.0, which may be one node or all; write 1 for one node"],
    ),
    "target that is text": ("target: {head: few}", ["target.head is few; give a number of nodes (200), or a share"]),
    "targets and penalties: none": (
        "train: {steps: 5}",
        ["nothing asks for a small circuit: no target and no penalty is set; set target.total 0.1 for a tenth"],
    ),
    "targets and penalties: a member has none": (
        "population: {members: [{penalty.head: 1.0}, {train.seed: 3}]}",
        ["member 1: nothing asks for a small circuit"],
    ),
    "targets alone": (
        "train: {kl: 0}\ntarget: {total: 10}",
        ["nothing asks for the behaviour: train.kl and train.hinge are 0", "set train.kl to 1"],
    ),
    "a word for a list": ("gates: {granularities: head}", ["gates.granularities is a list and is written [a, b], not"]),
    "a word for a mapping": ("task: {columns: text}", ["columns is a mapping and is written {a: b}, not"]),
    "first gates outside the clamp": ("gates: {init: 6}", ["gates.init 6", "gates.clamp 5"]),
    "splits over one": ("task: {split: {train: 0.9}}", ["task.split", "add up to 1"]),
    "nothing to train on": ("task: {split: {train: 0, validation: 0.5}}", ["train and test must both be above 0"]),
    "pairs without a path": ("task: {name: pairs}", ["task.path is not set"]),
    "unknown ablation": (
        "ablation: {kind: resample}",
        ["ablation.kind", "'interchange', 'zero', 'mean', 'optimal' or 'noise'"],
    ),
    "unknown precision": ("model: {dtype: float8}", ["model.dtype", "'bfloat16'"]),
    "unknown tracker": ("tracking: {trackers: [mlflow]}", ["tracking.trackers", "'wandb'"]),
    "a list for a section": ("train: [1, 2]", ["train", "[1, 2]"]),
    "not a mapping": ("- 1\n- 2", ["a config is a mapping of sections, not a list"]),
    "empty file": ("", ["is empty", "configs/quickstart.yaml"]),
    "key given twice": ("train:\n  lr: 0.1\n  lr: 0.2", ["bad.yaml: key train.lr is given twice, in lines 2 and 3"]),
    "broken YAML": ("train: {steps: 5", ["line 1", "not valid YAML"]),
    "member sets what is shared": (
        "population: {members: [{train.batch_size: 4}]}",
        ["population.members[0]", "train.batch_size is shared"],
    ),
    "member with an unknown key": (
        "population: {members: [{train.stepz: 4}]}",
        ["members[0]", "did you mean train.steps?"],
    ),
    "member with a bad value": ("population: {members: [{train.lr: fast}]}", ["population.members[0]", "train.lr"]),
    "two kinds of population": (
        "population: {seeds: 3, members: [{train.seed: 1}]}",
        ["population.seeds is 3", "use one"],
    ),
    "base that is not there": ("extends: nowhere.yaml", ["nowhere.yaml: no such config file"]),
    "unknown task": ("task: {name: iou}", ["task.name 'iou' is not a task", "ioi"]),
    "model folder that is not there": ("model: {path: ./nowhere}", ["model.path ./nowhere: no such folder"]),
    "more than the model has": ("target: {head: 99}", ["target.head is 99 but the model has 32"]),
    "targets of what has no gates": (
        "gates: {granularities: [head]}\ntarget: {total: 100}",
        ["target.total", "no gate on the mlp side", "add mlp"],
    ),
    "targets that contradict": (
        "target: {head: 20, attention_neuron: 5}",
        ["target.attention_neuron 5", "target.head 20"],
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("embedded")  # libraries are loaded: what is timed is what comes after start-up
def test_bad_config_ends_in_one_helpful_line(tmp_path, name, capsys):
    from bigcircuit.cli import answer, run_check

    text, expected = BAD[name]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    start = time.process_time()
    code = answer(run_check, ["--config", str(path)])
    assert time.process_time() - start < 3  # seconds of this process, not of a busy machine
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    for words in expected:
        assert words in message
    if not any(word in name for word in ("task", "model", "targets", "base")):
        assert "bad.yaml" in message or "population.members" in message


def test_there_are_thirty_bad_configs():
    assert len(BAD) >= 30


SHIPPED = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.parent.name != "ray"]
"""Those of Ray's own formats are in test_ray_configs.py."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path):
    load_sweep(path, {}) if path.parent.name == "sweeps" else load(path)


def test_a_sweep_given_to_prune_is_sent_to_the_right_verb():
    with pytest.raises(UserError, match="`bigcircuit sweep`"):
        load(ROOT / "configs/sweeps/penalties.yaml")


def test_default_preset_is_the_schema():
    preset = read_yaml(ROOT / "configs/presets/default.yaml")
    assert Config.model_validate(preset) == Config()


def test_paper_preset_holds_the_published_settings():
    config = load(ROOT / "configs/presets/paper.yaml")
    assert config.gates.parametrisation == "straight_through"
    assert (config.gates.init - config.gates.init_spread, config.gates.init + config.gates.init_spread) == (2.5, 3.5)
    assert config.train.lr == 3e-2
    assert config.train.lr * config.train.lr_final == pytest.approx(1e-4, rel=0.02)
    assert config.train.penalty_ramp * config.train.steps == pytest.approx(1000)
    assert {weight for name, weight in config.penalty if name in config.gates.granularities} == {0.95}


def test_command_line_and_file_speak_the_same_keys(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {steps: 7, lr: 0.5}\nextends: base.yaml")
    (tmp_path / "base.yaml").write_text("train: {lr: 0.3, clip: 2.0}\ntask: {seed: 4}")
    words = [
        "--train.steps",
        "9",
        "--penalty.head=0.25",
        "--gates.granularities",
        "[head, mlp]",
        "--task.columns.clean",
        "x",
    ]
    config = load(path, parse_verb("prune", words).settings[Config])
    assert (config.train.steps, config.train.lr, config.train.clip, config.task.seed) == (9, 0.5, 2.0, 4)
    assert config.penalty.head == 0.25
    assert config.gates.granularities == ("head", "mlp")
    assert config.task.columns == {"clean": "x"}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load(again) == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.stepz", "5"], "did you mean train.steps?"),
        (["--train.steps"], "needs a value"),
        (["steps=5"], "is not an option"),
        (["--train.steps", "[1"], "not a valid value"),
    ],
)
def test_bad_words_on_the_command_line(words, expected):
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        parse_verb("prune", words)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target.total": "-5"}, "command line: target.total is -5; "),
        ({"train.lr": -1.0}, "command line: train.lr: "),
        ({"task.name": "pairs"}, "command line: task.name is pairs but task.path is not set"),
        ({"train.steps": 5}, "mine.yaml: train.clip: "),
    ],
)
def test_a_value_that_is_typed_is_not_blamed_on_the_file(tmp_path, overrides, message):
    path = tmp_path / "mine.yaml"
    path.write_text("target: {total: 10}" if message.startswith("command line") else "train: {clip: 0}")
    with pytest.raises(UserError) as error:
        load(path, overrides)
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_penalties_that_do_not_act_are_told():
    given = {"penalty.head": 1.0, "penalty.mlp_neuron": 2.0}
    said = ["{}: without effect where a target asks for the size; leave one out"]
    for targets, idle in (
        ({}, ""),
        ({"target.mlp_neuron": 50}, "penalty.mlp_neuron"),
        ({"target.total": 50}, "penalty.head, penalty.mlp_neuron"),
    ):
        found = penalty_note(members(load(None, {**given, **targets})))
        assert found == ([line.format(idle) for line in said] if idle else [])


def test_members_differ_only_where_asked():
    config = load(None, {"population.members": [{"train.seed": 3}, {"penalty.head": 0.5, "target.total": 9}]})
    first, second = members(config)
    assert (first.train.seed, first.penalty.head, first.target.total) == (3, 0.0, None)
    assert (second.train.seed, second.penalty.head, second.target.total) == (0, 0.5, 9)
    assert [m.train.seed for m in members(load(None, {"population.seeds": 3, "train.seed": 5}))] == [5, 6, 7]


def test_every_setting_has_a_docstring():
    from pydantic import BaseModel

    def undocumented(section: type[BaseModel], prefix=""):
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                yield from undocumented(info.annotation, f"{prefix}{name}.")
            elif not info.description:
                yield prefix + name

    assert list(undocumented(Config)) == []


def run(*words):
    return subprocess.run([sys.executable, "-m", "bigcircuit", *words], capture_output=True, text=True, cwd=ROOT)


def test_help_shows_every_setting():
    done = run("prune", "--help", "all")
    assert done.returncode == 0
    for key in dotted_keys():
        assert f"--{key}  " in done.stdout, key
    for words in ("Share of the steps before any penalty acts.", "one of float32, bfloat16, float16, default float32"):
        assert words in " ".join(done.stdout.split())


def test_verbs_as_a_user_types_them():
    assert "did you mean check?" in run("chek").stderr
    assert run("chek").returncode == 2
    assert run("tasks").stdout.count("greater_than") == 1
    shown = run("tasks", "--task.name", "ioi").stdout
    assert "gave" in shown
    assert "torch" in run("env").stdout
    checked = run("check", "--config", "configs/quickstart.yaml")
    assert checked.returncode == 0, checked.stderr
    for words in ("site neurons", "1,792", "activations and gradients", "the config is valid"):
        assert words in checked.stdout


def test_a_typo_is_answered_before_torch_is_loaded():
    code = (
        "import sys; from bigcircuit.cli import answer, run_prune; answer(run_prune, ['--trin.steps', '3']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert "did you mean train.steps?" in done.stderr


def test_check_needs_no_weights(tmp_path, capsys):
    from bigcircuit.cli import answer, run_check
    from bigcircuit.model.load import EMBEDDED as PATH

    shutil.copytree(PATH, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    assert (
        answer(run_check, ["--model.path", str(tmp_path / "model"), "--task.size", "40", "--target.total", "9%"]) == 0
    )
    assert "the config is valid" in capsys.readouterr().out


def test_public_names_are_what_they_say():
    import bigcircuit

    assert all(getattr(getattr(bigcircuit, name), "__name__", name) == name for name in bigcircuit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        bigcircuit.__getattr__("prun")
