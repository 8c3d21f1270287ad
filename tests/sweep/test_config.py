"""What a sweep's file may say, and how mistakes are answered."""

import pytest

from bigcircuit.cli import answer, run_sweep
from bigcircuit.errors import UserError
from bigcircuit.sweep.config import gate_settings, is_known_ahead, load_sweep, shared_settings, shares_data


def searched(tmp_path, section):
    path = tmp_path / "s.yaml"
    path.write_text(section)
    return load_sweep(path, {})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sweep: {trials: 2}", "sweep.space: name at least one setting to search"),
        (
            "sweep: {space: {train.lr: {uniform: [.nan, 1]}}}",
            "sweep.space.train.lr: uniform.0: input should be a finite number",
        ),
        ("sweep: {space: {train.lr: [.nan]}}", "sweep.space is nan, which is no number that float32 holds"),
        ("sweep: {space: {train.lr: {uniform: [0, 1.0e+300]}}}", "uniform is 1e+300, which is no number"),
        (
            "sweep: {space: {train.seed: {integer: [0, 1%s]}}}" % ("0" * 30),
            "sweep.space.train.seed: integer is beyond 64 bits",
        ),
        ("sweep: {space: {train: {lr: [1]}, train.lr: [2]}}", "sweep.space: train.lr is given twice; remove one"),
        ("sweep: {space: {1: [2]}}", "sweep.space: 1 is no text, so not a setting"),
        (
            f"sweep: {{search: grid, space: {{train.lr: &a {list(range(50))}, train.kl: *a, train.clip: *a}}}}",
            "sweep.space has 125,000 combinations; list fewer values, or set sweep.search to random",
        ),
        (
            "{target: {total: 100}, sweep: {space: {penalty.head: [1, 2]}}}",
            "sweep.space has penalty.head, which is without effect because a target asks for the size (target.total); leave",
        ),
        (
            "sweep: {trials: 1000000000, space: {train.lr: [1]}}",
            "sweep.trials: input should be less than or equal to 100000",
        ),
        ("sweep: {seed: 4294967296, space: {train.lr: [1]}}", "sweep.seed: input should be less than 4294967296"),
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


def test_penalties_beside_targets_are_searched_where_targets_are(tmp_path):
    for section in (
        "{target: {total: 100}, sweep: {space: {penalty.head: [1, 2], target.total: [null, 100]}}}",
        "{target: {mlp_neuron: 100}, sweep: {space: {penalty.head: [1, 2]}}}",
    ):
        assert len(searched(tmp_path, section).settings.space["penalty.head"]) == 2


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


def test_a_trial_is_a_run_of_its_own_in_the_folder_of_the_sweep(tmp_path):
    sweep = searched(
        tmp_path,
        f"{{output: {tmp_path}/s, train: {{lr: 0.5}}, target: {{total: 9}}, sweep: {{space: {{train.seed: [1, 2]}}}}}}",
    )
    config = sweep.trial_config({"train.seed": 2}, 7)
    assert (config.output, config.train.lr, config.train.seed) == (f"{tmp_path}/s/trials/007", 0.5, 2)
    with pytest.raises(UserError, match="trial 7: train.lr"):
        sweep.trial_config({"train.lr": -1}, 7)


def test_trials_share_model_and_pairs_where_only_settings_of_members_differ(tmp_path):
    sweep = searched(tmp_path, "{penalty: {head: 1}, sweep: {space: {train.seed: [1, 2]}}}")
    plain = sweep.trial_config({}, 0)
    for changed in ({"train.lr": 0.7}, {"penalty.head": 3.0}, {"gates.parametrisation": "hard_concrete"}):
        assert shared_settings(sweep.trial_config(changed, 1)) == shared_settings(plain), changed
    for changed in ({"task.size": 40}, {"ablation.kind": "zero"}, {"train.batch_size": 4}):
        assert shared_settings(sweep.trial_config(changed, 1)) != shared_settings(plain), changed
    gates = {
        gate_settings(sweep.trial_config({"gates.parametrisation": name}, 1))
        for name in ("straight_through", "hard_concrete")
    }
    assert len(gates) == 2, "these share the model and no pass"


def test_sizes_that_are_searched_may_be_shares(tmp_path):
    sweep = searched(tmp_path, "sweep: {space: {target.total: [0.1, 25%, 200, null], penalty.head: {integer: [0, 2]}}}")
    sizes = [
        sweep.trial_config({"target.total": size}, 0).target.total for size in sweep.settings.space["target.total"][:3]
    ]
    assert sizes == [0.1, 0.25, 200]
    assert sweep.trial_config({"target.total": None, "penalty.head": 2}, 3).target.sizes() == {}
    with pytest.raises(UserError, match="nothing asks for a small circuit: no target and no penalty is set"):
        sweep.trial_config({"target.total": None, "penalty.head": 0}, 3)


@pytest.mark.parametrize(
    ("section", "shares", "known"),
    [
        ("{space: {train.lr: [0.1]}, search: grid}", True, True),
        ("{space: {task.size: [40, 80]}, search: random}", False, True),
        ("{space: {model.path: [a, b]}, search: grid, scheduler: asha}", False, False),
        ("{space: {train.lr: [0.1]}, search: optuna}", True, False),
    ],
)
def test_what_is_known_before_the_first_trial(tmp_path, section, shares, known):
    settings = searched(tmp_path, f"sweep: {section}").settings
    assert (shares_data(settings), is_known_ahead(settings)) == (shares, known)
