"""The chain's script on a real SLURM: one preemption (`test_real_slurm_long.py` has more)."""

import pytest

from tests.cluster.conftest import CHAIN, Run
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE)]


def test_a_chain_goes_on_where_a_preempted_job_stopped(run: Run) -> None:
    first, second = jobs = run.chain("stage.steps=60", "callbacks.save_every=1000", stages=CHAIN[:2], PATH=run.warm)
    run.steps_pass("align", 3)
    run.preempt()
    told = run.slurm.job(first)
    assert (told["JobState"], told["Restarts"]) == ("PENDING", "1"), run.told(first)
    assert run.slurm.job(second)["JobState"] == "PENDING"
    [saved] = (run.stage("align") / "checkpoints").glob("step-*")  # none was due
    run.completes(jobs)
    said = run.told(first)
    assert f"SIGTERM: step {int(saved.stem[5:])} is saved" in said and f"resuming from {saved.name}" in said
    assert said.count("Exited with exit code 75") == 2 and "Traceback" not in said
    assert (run.stage("mtp1") / "model" / "model.safetensors").is_file()
    assert [run.slurm.job(job)["Restarts"] for job in jobs] == ["1", "0"]
