"""Options of `evaluate` and `compare`."""

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.circuit.overlap import OPERATIONS
from bigcircuit.evaluation.config import ComparisonSettings, EvaluationSettings


def test_all_and_each_name_once():
    every = EvaluationSettings()
    assert every.rankings == ("learned", *BASELINES)
    assert EvaluationSettings(methods="all,random").rankings == every.rankings
    assert EvaluationSettings(methods="none").rankings == ()
    assert EvaluationSettings(ablations="zero,all").ablations == tuple(KINDS)
    assert ComparisonSettings(save="all").save == tuple(OPERATIONS)
