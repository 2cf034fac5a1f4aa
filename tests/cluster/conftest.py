"""A cluster's worth of fixtures: a real SLURM on this machine, and runs of a tiny model by its jobs."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.local_slurm import LocalSlurm, local_slurm, why_not
from tests.patience import wait_until
from tests.warm_python import warm_python
from vita_audio_pl.assets import asset_dir

CLUSTER = asset_dir("experiments") / "cluster"
TINY = (
    "scale=small", "data=spoken_world_smoke", "data.workers=0", "stage.rows_per_step=2", "trainer.rows_per_device=1",
    "n_heads=2", "decode_pattern=[1,2]", "logger=csv", "data.validation_rows=2", "callbacks.save_every=20",
    "callbacks.log_every=1", "callbacks.validate_every=50",
)  # fmt: skip
TWO_RANKS = ("trainer=cpu_ddp",)
SMALL_JOB = "--nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --gpus-per-node=1 --time=60"
CHAIN = ("align", "mtp1", "mtp10", "sft")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    """A cluster of two nodes, whose jobs find this Python."""
    if reason := why_not():
        pytest.skip(reason)
    with local_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        cluster.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SBATCH_OPTIONS": SMALL_JOB,
            "OMP_NUM_THREADS": "1",
        }
        yield cluster


class Run:
    """One run of the tiny model in `folder`, by jobs of `slurm`."""

    def __init__(self, slurm: LocalSlurm, folder: Path, settings: Sequence[str]) -> None:
        self.slurm, self.folder, self.settings = slurm, folder, settings

    @property
    def warm(self) -> str:
        """PATH of jobs whose Python begins with everything imported."""
        return f"{Path(warm_python()).parent}:{self.slurm.environment['PATH']}"

    def stage(self, name: str) -> Path:
        return self.folder / "runs" / "real" / name

    def steps(self, stage: str) -> int:
        log = self.stage(stage) / "metrics.csv"
        return len(log.read_text().splitlines()) - 1 if log.exists() else 0

    def steps_pass(self, stage: str, steps: int) -> None:
        """Waits until the stage has trained so many more, or is finished."""
        until = self.steps(stage) + steps
        wait_until(lambda: self.steps(stage) >= until or (self.stage(stage) / "model").exists(), f"steps of {stage}")

    def chain(self, *settings: str, stages: Sequence[str], **environment: str) -> list[str]:
        """The jobs of a chain."""
        command = ("bash", str(CLUSTER / "chain.sh"), *self.settings, *TWO_RANKS, *settings)
        sent = self.slurm.run(*command, folder=self.folder, STAGES=" ".join(stages), **environment)
        return re.findall(r"job (\d+)", sent)

    def job(self, *settings: str, options: str = SMALL_JOB) -> str:
        """The job of one stage."""
        command = ("sbatch", "--parsable", *options.split(), str(CLUSTER / "stage.sbatch"), *self.settings, *settings)
        return self.slurm.run(*command, folder=self.folder).strip()

    def told(self, job: str) -> str:
        """What a job has printed."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{job}.log"))

    def preempt(self) -> None:
        """Sends a more urgent job, which needs all nodes, and waits for its end."""
        command = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
        urgent = self.slurm.run(*command, "--wrap=true").strip()
        slowly(lambda: self.slurm.job(urgent)["JobState"] == "COMPLETED", "the urgent job")

    def goes_on(self, *jobs: str) -> None:
        """What was put back into the queue need not wait for SLURM's two minutes."""
        for job in jobs:
            told = self.slurm.job(job)
            if told["JobState"] == "PENDING" and told["Reason"] == "BeginTime":
                self.slurm.start_now(job)

    def running(self, jobs: Sequence[str]) -> int:
        """Which of the jobs runs, once one does."""

        def one_runs() -> bool:
            self.goes_on(*jobs)
            self.none_failed(jobs)
            return "RUNNING" in self.slurm.states(*jobs)

        slowly(one_runs, "a running job")
        return self.slurm.states(*jobs).index("RUNNING")

    def none_failed(self, jobs: Sequence[str]) -> None:
        failed = {*self.slurm.states(*jobs)} & {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        assert not failed, "".join(self.told(job) for job in jobs)

    def completes(self, jobs: Sequence[str]) -> None:
        """Waits until all jobs have ended well."""

        def over() -> bool:
            self.goes_on(*jobs)
            self.none_failed(jobs)
            return {*self.slurm.states(*jobs)} == {"COMPLETED"}

        slowly(over, "the end of the chain")


@pytest.fixture
def run(slurm: LocalSlurm, smoke_world: Path, tmp_path: Path) -> Iterator[Run]:
    """A run in a folder of its own; no job of it is left."""
    yield Run(slurm, tmp_path, (*TINY, f"paths.data={smoke_world.parent}", "paths.runs=runs", "run_name=real"))
    if left := slurm.run("squeue", "--noheader", "--format=%i").split():
        slurm.run("scancel", *left)
    slowly(lambda: not slurm.run("squeue", "--noheader"), "the end of all jobs")


def slowly(holds: Callable[[], bool], what: str) -> None:
    """As `wait_until`, for what costs processes to ask."""

    def asked() -> bool:
        time.sleep(0.5)
        return holds()

    wait_until(asked, what, 900)
