"""A chain of stages that is killed twenty times, anywhere, ends with the weights of one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.patience import PATIENCE

CHAIN = ("align", "mtp1", "mtp10", "sft")
STEPS = 24
SETTINGS = (
    "stage=chain", "data=spoken_world_smoke", "data.workers=0", "run_name=killed", f"stage.steps={STEPS}",
    "stage.rows_per_step=2", "trainer.rows_per_device=1", "n_heads=2", "decode_pattern=[1,2]", "logger=csv",
    "data.validation_rows=2", "callbacks.save_every=3", "callbacks.log_every=1", "callbacks.validate_every=12",
)  # fmt: skip


def train(folder: Path, data: Path, kill_when: Callable[[], bool] = lambda: False) -> int:
    """Exit status of the chain; the chain and its stage's process are killed together once `kill_when()` holds."""
    command = [sys.executable, "-m", "vita_audio_pl.train", *SETTINGS, f"paths.data={data}", f"paths.runs={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if kill_when():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    return process.wait()


def moments(stage: Path, rng: random.Random) -> list[Callable[[], bool]]:
    """Five moments of a stage to be killed at: some time after its start, two steps, a save, the end."""

    def after(delay: float) -> Callable[[], bool]:
        until: list[float] = []

        def holds() -> bool:
            if not until and stage.exists():
                until.append(time.monotonic() + delay)
            return bool(until) and time.monotonic() > until[0]

        return holds

    def at_step(step: int) -> Callable[[], bool]:
        log = stage / "metrics.csv"
        return lambda: log.exists() and len(log.read_text().splitlines()) > step

    save = 3 * rng.randrange(2, STEPS // 6)  # between the two steps
    written = stage / "checkpoints" / f"step-{save:08d}.ckpt"
    return [
        after(rng.uniform(0.0, 1.5)),
        at_step(rng.randrange(1, 6)),
        lambda: written.with_name(f"{written.name}.tmp").exists() or written.exists(),
        at_step(rng.randrange(STEPS // 2, STEPS)),
        at_step(STEPS),
    ]


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
def test_twenty_kills_in_a_chain_change_nothing(tmp_path):
    data = tmp_path / "data"
    assert train(tmp_path / "whole", data) == 0
    rng = random.Random(1)
    killed = 0
    for stage in CHAIN:
        for moment in moments(tmp_path / "cut" / "killed" / stage, rng):
            killed += train(tmp_path / "cut", data, moment) == -signal.SIGKILL
    assert killed == 20
    assert train(tmp_path / "cut", data) == 0
    for stage in CHAIN:
        weights = [tmp_path / name / "killed" / stage / "model" / "model.safetensors" for name in ("whole", "cut")]
        assert weights[0].read_bytes() == weights[1].read_bytes(), stage
        assert not list((tmp_path / "cut" / "killed" / stage).rglob("*.tmp"))
