"""What a sweep's file may say, how mistakes are answered, and what a dry run reckons."""

import pytest

from bigcircuit.cli import answer, run_sweep
from bigcircuit.config.load import load
from bigcircuit.errors import UserError
from bigcircuit.sweep.config import load_sweep
from bigcircuit.sweep.time_estimate import TimeEstimate


def searched(tmp_path, section):
    path = tmp_path / "s.yaml"
    path.write_text(section)
    return load_sweep(path, {})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sweep: {trials: 2}", "sweep.space: name at least one setting to search"),
        ("sweep: {space: {}}", "sweep.space: name at least one setting to search"),
        (
            "sweep: {space: {penalty: {head: {log_uniform: [a, 2]}}}}",
            'sweep.space.penalty.head: log_uniform.0: input should be a valid number, unable to parse string as a number, not "a"',
        ),
        (
            "sweep: {space: {penalty.head: {uniform: [3, 1]}}}",
            "sweep.space.penalty.head: uniform [3, 1]: give the lowest",
        ),
        (
            "sweep: {space: {train.lr: [0.1]}, search: optuna, scheduler: pbt}",
            "sweep.search is optuna and sweep.scheduler",
        ),
        (
            "{tracking: {trackers: [tensorboard]}, sweep: {space: {train.lr: [0.1]}}}",
            "tracking.trackers is set, and a sweep",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_key(tmp_path, section, said):
    with pytest.raises(UserError) as caught:
        searched(tmp_path, section)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "function-after" not in str(caught.value)


def test_help_names_options_as_they_are_typed(capsys):
    with pytest.raises(SystemExit):
        answer(run_sweep, ["--help"])
    said = capsys.readouterr().out
    assert "--sweep.workers  int, default none" in said and "--sweep.space  mapping of str to" in said
    assert "--workers" not in said and ")]" not in said


def test_a_fresh_sweep_has_the_next_free_name(tmp_path):
    sweep = searched(tmp_path, f"{{output: {tmp_path}/s, sweep: {{space: {{train.lr: [0.1]}}}}}}")
    assert sweep.fresh().config.output == f"{tmp_path}/s"
    (tmp_path / "s").mkdir()
    assert sweep.fresh().config.output == f"{tmp_path}/s-2"


def test_time_is_reckoned_with_the_passes_that_updates_take():
    pace = TimeEstimate(start=10.0, update=2.0, validation=0.0, ending=0.0, members=4)

    def of(steps, **settings):
        return load(None, {"train.steps": steps, **{key.replace("__", "."): value for key, value in settings.items()}})

    assert pace.sweep([of(5)] * 4, 4) == pytest.approx(10 + 5 * 2)
    assert pace.sweep([of(5)] * 6, 4) == pytest.approx(10 + 5 * 2 + 5 * 2 * (1 + 2 * 2) / (1 + 2 * 4))
    assert pace.sweep([of(5), of(5), of(5), of(8)], 4) == pytest.approx(10 + 5 * 2 + 3 * 2 * 3 / 9)
    alone = pace.sweep([of(5, ablation__kind="zero")], 4)
    assert alone == pytest.approx(10 + 5 * 2 / 4), "no corrupted stream to share"
