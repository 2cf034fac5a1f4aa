"""Real runs that are stopped, killed, or started twice: nothing stays behind, and what was done is kept."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]

TINY = (
    "data=spoken_world_smoke", "data.workers=2", "stage.rows_per_step=4", "trainer.rows_per_device=2", "n_heads=2",
    "decode_pattern=[1,2]", "logger=csv", "data.validation_rows=2", "callbacks.save_every=1000", "callbacks.log_every=1",
    "callbacks.samples.every_steps=0",
)  # fmt: skip
Ended = Callable[[Sequence[psutil.Process]], bool]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[subprocess.Popen[str], Path]]:
    """Starts `train` with a tiny model, and gives its process and the folder of its run; all share one small world."""
    folder = tmp_path_factory.mktemp("stopping")

    def start(name: str, *settings: str) -> tuple[subprocess.Popen[str], Path]:
        places = [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}", f"run_name={name}"]
        many = ["-m"] if "-m" in settings else []
        chosen = [setting for setting in settings if setting != "-m"]
        process = subprocess.Popen(
            [sys.executable, "-m", "vita_audio_pl.train", *many, *TINY, *places, *chosen],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return process, folder / "runs" / name

    return start


def training(process: subprocess.Popen[str], log: Path, after: int) -> list[psutil.Process]:
    """All processes of a run, once it has trained more than `after` steps."""
    wait_until(
        lambda: process.poll() is not None or (log.exists() and len(log.read_text().splitlines()) > after + 1), "steps"
    )
    assert process.poll() is None, process.communicate()[1][-3000:]
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def test_nothing_of_a_killed_chain_lives_and_one_that_is_told_to_leave_saves(start, ended: Ended) -> None:
    chain = ("stage=chain", "trainer=cpu_ddp", "trainer.devices=2", "stage.steps=100000")
    process, run = start("chain", *chain)
    log = run / "align" / "metrics.csv"
    everything = training(process, log, 2)
    assert len(everything) >= 1 + 2 + 2 * 2  # the chain, its stage's ranks, and their workers
    process.kill()  # it alone
    process.wait()
    killed = time.monotonic()
    assert ended(everything[1:])
    print(f"{time.monotonic() - killed:.2f} s after the kill the other {len(everything) - 1} processes had ended")

    process, _ = start("chain", *chain)  # no lease of the dead is in the way
    everything = training(process, log, len(log.read_text().splitlines()))
    process.terminate()  # it alone again
    told, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, error[-3000:]
    assert re.search(r"SIGTERM after step \d+: the current step is finished and saved", error)
    assert re.search(r"SIGTERM: step \d+ is saved", told) and "stage 'align' was stopped" in error
    assert "Traceback" not in error and ended(everything)
    assert list((run / "align" / "checkpoints").glob("step-*.ckpt"))


@pytest.mark.parametrize("how", ["a stage", "a sweep"])
def test_ctrl_c_is_a_sentence_and_status_130(start, ended: Ended, how: str) -> None:
    name = how.replace(" ", "-")
    sweep = ("-m", "seed=1,2") if how == "a sweep" else ()
    process, run = start(name, "stage=align", "stage.steps=100000", *sweep)
    everything = training(process, run / "align" / "metrics.csv", 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error[-3000:]
    assert re.findall(r"Ctrl-C .*", error) == re.findall(
        r"Ctrl-C after step \d+: the current step is finished and saved; rerun the same command to resume.*",
        error,
    )
    assert "Ctrl-C" in error and "Traceback" not in error and ended(everything)


def test_of_two_commands_for_one_run_one_trains_and_one_is_told_who_does(start) -> None:
    stage = ("stage=align", "stage.steps=30")
    both, [run, _] = zip(*(start("twice", *stage) for _ in range(2)), strict=True)
    said = [process.communicate(timeout=PATIENCE) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], [error[-2000:] for _, error in said]
    loser, winner = sorted(range(2), key=lambda number: both[number].returncode, reverse=True)
    error = said[loser][1]
    assert (
        f"in use by stage 'align' of twice (process {both[winner].pid} on " in error
        and "choose another run_name" in error
    )
    assert not list((run / "align").glob(".lease*")) and (run / "align" / "model").is_dir()
