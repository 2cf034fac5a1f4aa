"""How long tests wait for what has to come: long enough for any machine, so that no verdict hangs on its load."""

import time
from collections.abc import Callable

PATIENCE = 3600
"""Seconds after which a process hangs; every limit of a subprocess is this one, and pytest's own (`timeout`)."""


def wait_until(holds: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for what another process or thread does.

    Raises:
        AssertionError: it did not come.
    """
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not in {patience} s"
        time.sleep(0.005)
