"""Signals at random moments of a chain, from its first line to its end, under three launchers.

Each ends with the status that docs/cluster.md states, what was said to be saved is what the next start resumes from, and in
the end the weights are those of a chain that was left alone, to the bit. `SIGNALS` (10) says how many, and `SEED` (1) decides
which and when.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import CLUSTER, SMALL_JOB
from tests.cluster.local_slurm import LocalSlurm
from tests.patience import PATIENCE
from tests.warm_python import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]

CHAIN, STEPS = ("align", "mtp1", "mtp10", "sft"), 24
SETTINGS = (
    "stage=chain", "scale=small", "trainer=cpu_ddp", "data=spoken_world_smoke", "data.workers=0", f"stage.steps={STEPS}",
    "stage.rows_per_step=2", "trainer.rows_per_device=1", "n_heads=2", "decode_pattern=[1,2]", "logger=csv",
    "data.validation_rows=2", "callbacks.save_every=3", "callbacks.log_every=1", "callbacks.validate_every=12",
    "callbacks.requeue=false", "paths.runs=runs",
)  # fmt: skip
MOMENTS = ("start", "start", "start", "steps", "steps", "steps", "save", "save", "hand-over", "hand-over")


class Launched:
    """A chain under way.

    Args:
        told: what its processes print.
        send: sends them a signal.
        listeners: of its processes that must have come to our first line.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", told: Path, send: Callable[[int], None], listeners: int = 1
    ) -> None:
        self.process, self.told, self.send, self.listeners = process, told, send, listeners


Launch = Callable[[Path, Path, str, str], Launched]
"""Starts the chain in a folder, with the data, under the name of a run and by the Python that are given."""


def started(folder: Path, command: list[str], environment: dict[str, str], told: Path) -> "subprocess.Popen[bytes]":
    own = environment | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    with told.open("wb") as out:
        return subprocess.Popen(command, cwd=folder, env=own, stdout=out, stderr=out, start_new_session=True)


def by_itself(folder: Path, data: Path, name: str, python: str) -> Launched:
    """The chain's own processes, and the ranks that Lightning starts."""
    command = [python, "-m", "vita_audio_pl.train", *SETTINGS, f"paths.data={data}", f"run_name={name}"]
    process = started(folder, command, dict(os.environ), folder / "told")
    return Launched(process, folder / "told", process.send_signal)


def by_torchrun(folder: Path, data: Path, name: str, python: str) -> Launched:
    """torchrun's agent takes the Python that it runs in, whichever is given."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["bash", str(CLUSTER / "torchrun.sh"), *SETTINGS, f"paths.data={data}", f"run_name={name}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = started(folder, command, os.environ | {"PATH": path, "GPUS": "2", "PORT": str(port)}, folder / "told")
    return Launched(process, folder / "told", process.send_signal)


def by_srun(slurm: LocalSlurm) -> Launch:
    def launch(folder: Path, data: Path, name: str, python: str) -> Launched:
        told = folder / "told"
        told.touch()
        options = ["--wait", f"--output={told}", "--open-mode=truncate", "--job-name=signals", *SMALL_JOB.split()]
        command = [
            "sbatch",
            *options,
            str(CLUSTER / "stage.sbatch"),
            *SETTINGS,
            f"paths.data={data}",
            f"run_name={name}",
        ]
        path = f"{Path(python).parent}:{slurm.environment['PATH']}"
        process = started(folder, command, slurm.environment | {"PATH": path}, folder / "sent")

        def send(number: int) -> None:
            slurm.run("scancel", f"--signal={number}", "--name=signals")  # to the tasks, as at a warning

        return Launched(process, told, send, listeners=2)

    return launch


def listening(name: str) -> int:
    """Processes of a run that look after SIGTERM, as they do from our first line on."""
    found = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if {"vita_audio_pl.train", f"run_name={name}"} <= {*process.cmdline()} and process.name() != "srun":
                status = Path(f"/proc/{process.pid}/status").read_text()
                caught = int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)
                found += caught >> (signal.SIGTERM - 1) & 1
    return found


def wait_for(moment: str, run: Path, launched: Launched, rng: random.Random) -> None:
    """Returns at a moment of the chain, or when it has ended."""

    def current() -> Path:
        return run / next((stage for stage in CHAIN if not (run / stage / "model").exists()), CHAIN[-1])

    def steps() -> int:
        log = current() / "metrics.csv"
        return len(log.read_text().splitlines()) - 1 if log.exists() else 0

    def holds_once(holds: Callable[[], bool], pause: float = 0.002) -> None:
        while launched.process.poll() is None and not holds():
            time.sleep(pause)

    holds_once(lambda: listening(run.name) >= launched.listeners, 0.1)
    if moment == "start":
        time.sleep(rng.uniform(0.0, 9.0))
        return
    before, more = steps(), rng.randrange(1, 6)
    if moment == "steps":
        holds_once(lambda: steps() >= min(before + more, STEPS - 1))
    elif moment == "save":
        holds_once(lambda: any((current() / "checkpoints").glob("step-*.tmp")))
    else:
        holds_once(lambda: steps() >= STEPS)
    time.sleep(rng.uniform(0.0, 0.2))


def check_end(number: int, status: int, told: str, torchrun: bool) -> None:
    """The status is the one that the page promises."""
    assert "this is a bug" not in told, told[-4000:]
    ended_before = status == 0
    saved, at_once = "rerun the same command to resume" in told, "stopped" in told
    assert ended_before or saved or at_once or torchrun, (number, status, told[-4000:])
    if torchrun:
        assert status in (0, 1), (status, told[-4000:])
    else:
        allowed = {signal.SIGINT: {130}, signal.SIGUSR1: {75}, signal.SIGTERM: {75, 143}}[signal.Signals(number)]
        assert status in allowed | {0}, (number, status, told[-4000:])
        if status == 143:
            assert "is saved" not in told, told[-4000:]


@pytest.mark.parametrize("launcher", ["chain", "torchrun", "srun"])
def test_signals_change_nothing(launcher, request, smoke_world, tmp_path):
    launch: Launch = {"chain": by_itself, "torchrun": by_torchrun}.get(launcher) or by_srun(
        request.getfixturevalue("slurm")
    )
    seed, wanted = (int(os.environ.get(name, usual)) for name, usual in (("SEED", "1"), ("SIGNALS", "10")))
    rng = random.Random(f"{seed} {launcher}")
    data, tally = smoke_world.parent, Counter()
    whole = by_itself(tmp_path, data, "whole", warm_python())
    assert whole.process.wait(PATIENCE) == 0, whole.told.read_text()[-4000:]
    for first in range(0, wanted, len(MOMENTS)):  # a chain is over after so many
        name, saved = f"signalled-{first}", 0
        run = tmp_path / "runs" / name
        for moment in rng.sample(MOMENTS, min(len(MOMENTS), wanted - first)):
            number = rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
            # imports take longest of all, and are done again only where a signal may come in them
            launched = launch(tmp_path, data, name, sys.executable if moment == "start" else warm_python())
            wait_for(moment, run, launched, rng)
            launched.send(number)
            status = launched.process.wait(PATIENCE)
            told = launched.told.read_text(errors="replace")
            print(f"seed {seed}, {launcher}: {number.name} at {moment}: {status}", flush=True)
            check_end(number, status, told, launcher == "torchrun")
            resumed = [int(step) for step in re.findall(r"resuming from step-(\d+)", told)]
            assert not (resumed and saved) or resumed[0] == saved, told[-4000:]
            said = [int(step) for step in re.findall(r"step (\d+) is saved", told)]
            saved = said[-1] if said else saved if not resumed else 0
            tally[status] += 1
        assert launch(tmp_path, data, name, warm_python()).process.wait(PATIENCE) == 0
        for stage in CHAIN:
            models = [tmp_path / "runs" / run / stage / "model" / "model.safetensors" for run in (name, "whole")]
            assert models[0].read_bytes() == models[1].read_bytes(), stage
        assert not (tmp_path / "runs" / "errors").exists() and not list(run.rglob("*.tmp"))
    print(f"seed {seed}, {launcher}: statuses {dict(tally)}, all weights bit-equal")
    shutil.rmtree(tmp_path / "runs")
