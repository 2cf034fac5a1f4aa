"""State of the random generators, as plain lists of numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's global generators, and of every GPU's."""
    version, internal, gauss = random.getstate()
    # declared as if the kind might stand in the place of the keys
    kind, keys, *rest = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True))
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back to a `rng_state()`; a GPU count that changed leaves the GPUs' as they are."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(each, dtype=torch.uint8) for each in state["cuda"]])


def check_rng_state(state: dict[str, Any]) -> None:
    """Refuse what `restore_rng_state` could not restore; the generators stay as they are.

    Raises:
        ValueError: it is no `rng_state()`.
    """
    try:
        version, internal, gauss = state["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(torch.tensor(state["torch"], dtype=torch.uint8))
        if not isinstance(state["cuda"], list):
            raise TypeError("the GPUs' states are not a list")
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What runs inside may draw as it likes: training's own numbers are the same as without it."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng_state(state)
