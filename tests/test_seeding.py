"""Seeds made of keys."""

from bigcircuit.seeding import mix


def test_mix_has_no_collisions_on_a_grid():
    assert len({mix(a, b, c) for a in range(30) for b in range(30) for c in range(30)}) == 27_000
