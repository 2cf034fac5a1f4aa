"""Single flipped bits, as a bad disk, cable or memory leaves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file, in place."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """A file with one bit flipped, and as it was again afterwards."""
    flip(path, bit)
    try:
        yield
    finally:
        flip(path, bit)


def some_bits(path: Path, n: int, seed: int = 0) -> list[int]:
    """`n` bits of a file, the first and the last among them."""
    bits = 8 * path.stat().st_size
    inner = np.random.default_rng([seed, bits]).choice(bits, n - 2, replace=False)
    return [0, bits - 1, *inner.tolist()]
