"""Property tests have no deadline: machines are shared."""

import time
from collections.abc import Callable, Sequence

import psutil
import pytest
from hypothesis import settings

settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")


@pytest.fixture
def ended() -> Callable[[Sequence[psutil.Process], float], bool]:
    """Whether all of these processes end within so many seconds; a zombie that nobody collects has ended."""

    def ended(processes: Sequence[psutil.Process], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while running := [process for process in processes if _runs(process)]:
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
                return False
            time.sleep(0.05)
        return True

    return ended


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
