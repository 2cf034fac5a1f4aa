"""What takes minutes on a real SLURM: preemptions, cancelling, a lost node, the end of a job's time."""

import random
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from tests.cluster.conftest import CHAIN, SMALL_JOB, TWO_RANKS, Run, slowly
from tests.patience import PATIENCE
from tests.warm_python import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]


def test_ten_preemptions_of_a_chain_change_nothing(run: Run) -> None:
    settings, seed = ("stage.steps=150",), random.randrange(1000)
    rng = random.Random(seed)
    jobs = run.chain(*settings, stages=CHAIN, PATH=run.warm)
    for number in range(10):
        while (place := run.running(jobs)) < number * 4 // 10:  # all stages have their share
            time.sleep(0.5)
        stage = CHAIN[place]
        if number % 2:  # while it starts
            time.sleep(rng.uniform(0.0, 6.0))
        else:
            run.steps_pass(stage, rng.randrange(1, 30))
        print(f"seed {seed}: preempted in {stage} after {run.steps(stage)} steps", flush=True)
        run.preempt()
    run.completes(jobs)
    restarts = [int(run.slurm.job(job)["Restarts"]) for job in jobs]
    print(f"restarts of the four jobs: {restarts}")
    assert sum(restarts) == 10
    undisturbed = [warm_python(), "-m", "vita_audio_pl.train", *run.settings, *TWO_RANKS, *settings, "stage=chain"]
    subprocess.run([*undisturbed, "run_name=whole"], cwd=run.folder, check=True, timeout=PATIENCE)
    for stage in CHAIN:
        models = [run.folder / "runs" / name / stage / "model" / "model.safetensors" for name in ("real", "whole")]
        assert models[0].read_bytes() == models[1].read_bytes(), stage


def test_a_cancelled_chain_is_saved_stays_cancelled_and_goes_on_when_it_is_sent_again(run: Run) -> None:
    settings = ("stage.steps=100", "callbacks.save_every=1000")
    first, second = run.chain(*settings, stages=CHAIN[:2])
    run.steps_pass("align", 3)
    run.slurm.run("scancel", first)
    slowly(lambda: run.slurm.states(first, second) == ["CANCELLED", "CANCELLED"], "the end of both jobs")
    assert run.slurm.job(first)["Restarts"] == "0" and "SIGTERM: step" in run.told(first), run.told(first)
    again = run.chain(*settings, stages=CHAIN[:2])
    run.completes(again)
    assert "resuming from step-" in run.told(again[0])
    assert run.slurm.states(first, second) == ["CANCELLED", "CANCELLED"]


def test_a_job_whose_node_is_lost_goes_on_elsewhere_and_what_wakes_up_there_leaves(run: Run, ended) -> None:
    one = SMALL_JOB.replace("--nodes=2", "--nodes=1")
    job = run.job("stage=align", "trainer=cpu", "stage.steps=100000", options=one)
    run.steps_pass("align", 45)
    node = run.slurm.job(job)["BatchHost"]
    lost = run.slurm.lose_node(node)
    try:
        slowly(lambda: run.slurm.job(job)["Restarts"] == "1", "SLURM to miss the node")
        run.goes_on(job)
        slowly(lambda: "resuming from step-" in run.told(job), "the new start")
        assert run.slurm.job(job)["BatchHost"] != node
        run.steps_pass("align", 3)
        trained = [process for process in lost if "vita_audio_pl.train" in command_of(process)]
        for process in trained:
            process.resume()
        assert trained and ended([process for process in trained if "srun" not in process.name()])
        run.steps_pass("align", 45)
        assert run.slurm.job(job)["JobState"] == "RUNNING"
    finally:
        for process in lost:
            if process.is_running():
                process.resume()
        slowly(lambda: "down" not in run.slurm.run("sinfo", "--noheader", f"--nodes={node}", "--format=%T"), "the node")


def command_of(process: psutil.Process) -> str:
    """Empty where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_a_job_whose_time_is_over_is_warned_saves_and_goes_on(run: Run) -> None:
    options = SMALL_JOB.replace("--time=60", "--time=2 --signal=SIGUSR1@60")
    job = run.job("stage=align", *TWO_RANKS, "stage.steps=100000", "callbacks.save_every=100000", options=options)
    slowly(lambda: run.slurm.job(job)["Restarts"] == "1", "the warning")
    run.goes_on(job)
    slowly(lambda: "resuming from step-" in run.told(job), "the new start")
    assert "SIGUSR1: step" in run.told(job) and "TIME LIMIT" not in run.told(job)
