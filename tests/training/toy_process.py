"""A toy training in a process of its own, to be killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.patience import wait_until
from tests.warm_python import warm_python

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def train_in_a_process(folder: Path, *overrides: str, kill_when: Callable[[], bool] | None = None) -> int:
    """Trains a toy stage in a process of its own; its exit status. SIGKILL as soon as `kill_when()` holds."""
    python = warm_python() if kill_when is None else sys.executable
    command = [python, str(HERE / "train_toy.py"), str(folder), "run_name=toy", *overrides]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=HERE, start_new_session=True)

    def ended() -> bool:
        if kill_when is not None and kill_when():
            process.kill()
        return process.poll() is not None

    try:
        wait_until(ended, "the end of the training")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the ranks that it started, too
    return process.wait()
