"""The commands of the README on the smallest spoken world: prepared, trained and handed over with nothing there before."""

import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from vita_audio_pl.models.released import load_released
from vita_audio_pl.training.manifest import StageManifest

SMALL = (
    "data=spoken_world_smoke", "data.workers=0", "run_name=tiny", "stage.steps=3", "stage.rows_per_step=2", "n_heads=2",
    "decode_pattern=[1,2]", "data.validation_rows=2",
)  # fmt: skip


def test_one_command_prepares_trains_and_hands_over_all_stages(tmp_path):
    def train(*arguments: str) -> str:
        command = [sys.executable, "-m", "vita_audio_pl.train", *SMALL, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    told = train("stage=mtp1", "with_parents=true")
    assert "[1/1] stage align" in told and "stage 'mtp1' is done" in told

    told = train("stage=chain", "logger=csv")
    assert "[2/4] stage mtp1 of tiny is finished" in told and "stage 'sft' is done" in told

    run = tmp_path / "runs" / "tiny"
    assert [StageManifest.read(run / stage / "model").n_heads for stage in ("align", "mtp1", "mtp10", "sft")] == [
        0,
        1,
        2,
        2,
    ]
    assert load_released(run / "sft" / "model").n_heads == 2
    assert list((run / "mtp1").glob("wandb/offline-run-*")) and list((run / "mtp1" / "tensorboard").iterdir())


@pytest.mark.slow
def test_torchrun_takes_a_whole_chain(smoke_demo):
    """torchrun's agent gives all processes one store, in which a second stage would find the first one's addresses."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    chain = ("stage=chain", "variant.stages=[align,mtp1]", "trainer=cpu_ddp", "logger=csv", "data.workers=0")
    told = smoke_demo.run(*launcher, "-m", "vita_audio_pl.train", *SMALL, *chain, "run_name=torchrun")
    assert "stage 'align' is done" in told and "stage 'mtp1' is done" in told
