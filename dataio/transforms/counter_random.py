"""Random numbers as a pure function of (seed, stream, index): the same on every machine, forever.

SplitMix64's finaliser over a mixed key (Steele, Lea, Flood 2014). Two rounds are enough for
sampling and augmentation; this is no cryptography.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64."""
    values = (values ^ (values >> np.uint64(30))) * _A
    values = (values ^ (values >> np.uint64(27))) * _B
    return values ^ (values >> np.uint64(31))


def bits(seed: int, stream: int | np.ndarray, index: np.ndarray) -> np.ndarray:
    """Draw a random uint64 for each index (any integer array), independent between streams.

    `stream` may be an array that broadcasts with `index`: one call for many streams is far
    cheaper than many calls.
    """
    key = mix(_key(stream) * GOLDEN + mix(_key(seed) + GOLDEN))
    return mix(mix(np.asarray(index).astype(np.uint64) * GOLDEN + key) + key)


def _key(number: int | np.ndarray) -> np.ndarray:
    """Wrap an integer to uint64, as an array: numpy then wraps overflow without a warning."""
    if isinstance(number, int | np.integer):
        return np.array([int(number) & 0xFFFFFFFFFFFFFFFF], np.uint64)
    return np.asarray(number).astype(np.uint64)


def uniform(seed: int, stream: int | np.ndarray, index: np.ndarray) -> np.ndarray:
    """Draw a float64 in [0, 1) for each index, with 53 random bits."""
    return (bits(seed, stream, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(
    seed: int, stream: int | np.ndarray, index: np.ndarray, bound: np.ndarray | int
) -> np.ndarray:
    """Draw an int64 in [0, bound) for each index; the bias is below bound / 2^53."""
    drawn = (uniform(seed, stream, index) * bound).astype(np.int64)
    return np.minimum(drawn, np.asarray(bound, np.int64) - 1)


def permutation(seed: int, stream: int | np.ndarray, n: int) -> np.ndarray:
    """Shuffle range(n): the stable argsort of n random keys; of streams (k, 1), k shuffles."""
    return np.argsort(bits(seed, stream, np.arange(n)), kind="stable")
