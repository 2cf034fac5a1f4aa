"""A left-over rank variable is named before anything is written; what launchers really set is understood."""

import threading
from types import SimpleNamespace

import pytest

from tests.patience import PATIENCE
from vita_audio_pl import train
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.settings import TrainerConfig
from vita_audio_pl.training.stage import launch
from vita_audio_pl.training.stage.launch import rank_of_launch

ONE, TWO = TrainerConfig(name="cpu"), TrainerConfig(name="cpu_ddp", devices=2)
FOUR = TrainerConfig(name="ddp", devices=2, num_nodes=2)
STARTED = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
TORCHRUN = STARTED | {"RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("trainer", "environment", "rank"),
    [
        (ONE, {}, 0),
        (ONE, {"RANK": "0", "LOCAL_RANK": "0"}, 0),
        (ONE, TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, 0),
        (ONE, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 0),  # in a batch script, beside what srun starts
        (TWO, {}, 0),
        (TWO, TORCHRUN, 1),
        (TWO, STARTED | {"NODE_RANK": "0"}, 1),
        (TWO, SRUN, 1),
        (TWO, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, 0),
        (FOUR, STARTED | {"NODE_RANK": "1", "WORLD_SIZE": "4"}, 3),
        (FOUR, TORCHRUN | {"GROUP_RANK": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 3),
    ],
)
def test_launches_are_understood(trainer, environment, rank):
    assert rank_of_launch(trainer, environment) == rank


@pytest.mark.parametrize(
    ("trainer", "environment", "says"),
    [
        (ONE, {"RANK": "1"}, "^RANK=1 makes .* trainer=cpu is for one process: unset RANK"),
        (ONE, {"LOCAL_RANK": "2"}, "^LOCAL_RANK=2 makes"),
        (ONE, {"SLURM_PROCID": "3"}, "^SLURM_PROCID=3 makes"),
        (ONE, {"WORLD_SIZE": "2"}, "^WORLD_SIZE=2 says .* trainer=cpu is for 1 .* unset WORLD_SIZE"),
        (ONE, {"RANK": "one"}, "^RANK=one is not a rank"),
        (ONE, TORCHRUN, "torchrun started 2 processes, and trainer=cpu is for 1"),
        (ONE, SRUN, "SLURM started 2 processes, and trainer=cpu is for 1"),
        (TWO, {"RANK": "0"}, "^RANK=0 makes .* what else a launcher sets is missing"),
        (TWO, {"SLURM_PROCID": "1"}, "^SLURM_PROCID=1 makes"),
        (TWO, {"LOCAL_RANK": "0"}, "^LOCAL_RANK=0 says .* WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        (TWO, {"TORCHELASTIC_RUN_ID": "none"}, "torchrun started this process, but RANK, .* is not set"),
        (TWO, TORCHRUN | {"WORLD_SIZE": "3"}, "torchrun started 3 processes, and trainer=cpu_ddp is for 2"),
        (TWO, SRUN | {"RANK": "0"}, "^RANK=0 makes .* says otherwise"),
        (ONE, {"NODE_RANK": "1"}, "^NODE_RANK=1 is not .* trainer=cpu, which has 1 x 1: unset NODE_RANK"),
        (ONE, {"GROUP_RANK": "2"}, "^GROUP_RANK=2 is not"),
        (TWO, {"NODE_RANK": "1"}, "^NODE_RANK=1 is not .* which has 1 x 2"),
        (TWO, STARTED | {"LOCAL_RANK": "0", "NODE_RANK": "3"}, "^NODE_RANK=3 is not"),
        (TWO, TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "1"}, "^NODE_RANK=1 is not"),
        (
            TWO,
            STARTED | {"LOCAL_RANK": "5"},
            "^LOCAL_RANK=5 says .* more .* than the 2 of trainer=cpu_ddp: .* trainer.devices and",
        ),
        (
            FOUR,
            TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            "^LOCAL_WORLD_SIZE=4 says that torchrun .* trainer.num_nodes",
        ),
        (FOUR, SRUN | {"SLURM_NTASKS": "4", "SLURM_LOCALID": "2"}, "^SLURM_LOCALID=2 says that SLURM started more"),
    ],
)
def test_what_is_left_over_or_incomplete_is_named(trainer, environment, says):
    with pytest.raises(UserError, match=says):
        rank_of_launch(trainer, environment)


def test_a_rank_whose_others_do_not_come_says_so(monkeypatch, capfd):
    """A process group waits for half an hour; that others may be late is no reason to refuse them."""
    monkeypatch.setenv("RANK", "0")
    told = threading.Event()
    monkeypatch.setattr(launch, "print_now", lambda sentence: (print(sentence), told.set()))
    for trainer, waits in ((TWO, True), (ONE, False)):
        strategy = SimpleNamespace(setup_environment=lambda waits=waits: told.wait(PATIENCE if waits else 0))
        launch.warn_while_waiting(strategy, trainer, after=0)
        strategy.setup_environment()
        assert ("still waiting for the other ranks of 2; where RANK=0" in capfd.readouterr().out) is waits
        told.clear()


def test_the_command_refuses_before_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.argv", ["train", "stage=align"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: RANK=1 makes this process")
    assert not list(tmp_path.iterdir())
