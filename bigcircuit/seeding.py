"""Derive seeds from keys, so that each use of randomness has its own stream of random numbers."""

_MASK = (1 << 64) - 1


def mix(*keys: int) -> int:
    """Hash integers to a 64-bit seed (splitmix64 finaliser, Steele et al. 2014, applied to one key after the other)."""
    state = 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
