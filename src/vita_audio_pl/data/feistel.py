"""A seeded order of `range(n)` that is computed, not stored: a Feistel network with cycle walking."""

import hashlib

import numpy as np

LARGEST = 2**32  # positions are 32-bit words
_ROUNDS = 6


class Permutation:
    """A keyed permutation of `range(n)`; computing part of it costs only that part.

    The network works on the smallest power of two that holds `n`; an image outside `range(n)` is sent through again
    until it falls inside (at most twice on average).

    Args:
        n: size of the range, 1 to 2**32.
        key: what the order depends on; any values with a stable `repr` (seed, source name, epoch, ...).
    """

    def __init__(self, n: int, *key: object):
        if not 1 <= n <= LARGEST:
            raise ValueError(f"a permutation has 1 to {LARGEST} elements, not {n}")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._low_bits = np.uint32(bits // 2)
        self._low_mask = np.uint32((1 << (bits // 2)) - 1)
        self._high_mask = np.uint32((1 << (bits - bits // 2)) - 1)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=4 * _ROUNDS).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u4").astype(np.uint32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Elements at `positions: (m,) integer` in `range(n)`, as `(m,) uint32`."""
        image = self._network(np.asarray(positions).astype(np.uint32))
        outside = np.flatnonzero(image >= self.n) if self.n < LARGEST else np.empty(0, np.intp)
        while len(outside):
            walked = self._network(image[outside])
            image[outside] = walked
            outside = outside[walked >= self.n]
        return image

    def _network(self, word: np.ndarray) -> np.ndarray:
        low, high = word & self._low_mask, word >> self._low_bits
        for number, key in enumerate(self._round_keys):
            if number % 2:
                low ^= _mix(high, key) & self._low_mask
            else:
                high ^= _mix(low, key) & self._high_mask
        return (high << self._low_bits) | low


def _mix(word: np.ndarray, key: np.uint32) -> np.ndarray:
    """32-bit hash of each `word` (multiply and shift, wrapping)."""
    mixed = (word + key) * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA77)
    mixed ^= mixed >> np.uint32(13)
    return mixed
