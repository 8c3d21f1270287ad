"""Points that no other point dominates."""

from hypothesis import given
from hypothesis import strategies as st

from bigcircuit.results.pareto import dominates, pareto


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.1, 0.25, 1.0, 2.0])), max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    found = pareto(points)
    by_definition = [
        i for i, (size, kl) in enumerate(points) if not any(
            (s <= size and k <= kl) and (s < size or k < kl) for s, k in points)
    ]  # fmt: skip
    assert sorted(found) == by_definition
    assert [points[i] for i in found] == sorted(points[i] for i in found)
    assert all(any(dominates(points[j], points[i]) for j in found) for i in set(range(len(points))) - set(found))
