"""A random permutation of 0 .. n-1 that is computed, not stored."""

import hashlib

import numpy as np

_ROUNDS = 8


def permute(index: np.ndarray, n: int, *seed: int) -> np.ndarray:
    """Where a permutation of 0 .. n-1, chosen by `seed`, sends each of `index` [B] (int64 in, int64 out).

    A Feistel network is a bijection of 2^(2h) values whatever its round function; values that land outside n are sent
    through it again until they fall inside (cycle walking, Black and Rogaway 2002), which keeps it a bijection of n.
    The domain is below 4n, so few repetitions are needed. Memory is O(B) for any n.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.blake2b(repr((seed, n)).encode(), digest_size=8 * _ROUNDS).digest(), np.uint64)
    value = index.astype(np.uint64)
    if len(value) and int(value.max()) >= n:
        raise ValueError(f"index {int(value.max())} is not below n = {n}")
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = _feistel(value[outside], half, mask, keys)
        outside = outside[value[outside] >= n]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: np.uint64, mask: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right + key) & mask)
    return (left << half) | right


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
