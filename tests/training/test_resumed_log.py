"""The log of a run that was stopped and resumed is that of one which was not, at whatever step it was stopped."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from test_lightning_callbacks import AVERAGE
from toy_process import train_in_a_process

from tests.patience import wait_until
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.callbacks.lifecycle import HandOver
from vita_audio_pl.training.callbacks.monitor import Monitor
from vita_audio_pl.training.callbacks.speed import DATA, StepTimes
from vita_audio_pl.training.checkpoints.folders import STATE
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.step.module import SpeechLMModule

STEPS = 8
STAGE = (
    "stage.steps=8", "trainer.rows_per_device=2", "callbacks.log_every=3", "callbacks.validate_every=4",
    "callbacks.save_every=5", "callbacks.samples.every_steps=0",
)  # fmt: skip
CLOCKED = {
    "tokens_per_second", "samples_per_second", "audio_hours_per_second", "tflops_per_device", "data_wait_share",
    "checkpoint_wait_share", "memory_gib",
}  # fmt: skip
STOP = "+callbacks.extra.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:5}"


class Killed(BaseException):
    """Stands for a SIGKILL."""


def log_of(folder: StageFolder) -> list[dict[str, str]]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in CLOCKED} for row in csv.DictReader(file)]


def kill() -> None:
    raise Killed


def leave() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def at(owner: type, hook: str, step: int, do: Callable[[], None], patch: pytest.MonkeyPatch) -> list[int]:
    """Do something in a hook of this step; the list says how often it was done."""
    usual, done = getattr(owner, hook), []

    def disturbed(self, *given):
        module = self if owner is SpeechLMModule else given[1]
        if module.trainer.global_step == step:
            done.append(step)
            do()
        return usual(self, *given)

    patch.setattr(owner, hook, disturbed)
    return done


def validations(patch: pytest.MonkeyPatch) -> list[int]:
    """The steps of the validations from now on."""
    steps: list[int] = []
    patch.setattr(SpeechLMModule, "on_validation_start", lambda self: steps.append(self.trainer.global_step))
    return steps


LEAVES = [
    *(("training_step", step, f"leaves-{step}") for step in range(STEPS)),
    *(("on_validation_batch_end", step, f"cut-{step}") for step in (4, STEPS)),
]
# the signal is heard after the step: once all are done, the stage is handed over
LEFT = {"leaves-7": None, "cut-8": None}
MOMENTS = [
    *(
        pytest.param(SpeechLMModule, hook, step, leave, LEFT.get(name, SystemExit), id=name)
        for hook, step, name in LEAVES
    ),
    *(pytest.param(SpeechLMModule, "training_step", step, kill, Killed, id=f"killed-{step}") for step in (5, 7)),
    pytest.param(SpeechLMModule, "on_validation_batch_end", 8, kill, Killed, id="killed-in-the-last-validation"),
    pytest.param(HandOver, "on_train_end", 8, kill, Killed, id="killed-before-the-hand-over"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_in_a_process(folder, "stage=align", *STAGE, STOP) == 0
    return StageFolder(folder / "runs" / "toy" / "align")


@pytest.mark.parametrize(("owner", "hook", "step", "do", "ends"), MOMENTS)
def test_every_row_is_that_of_a_run_which_was_not_stopped(
    owner, hook, step, do, ends, undisturbed, trained, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(ends) if ends else nullcontext() as end:
        done = at(owner, hook, step, do, patch)
        trained("align", *STAGE, STOP)
    assert done and (ends is not SystemExit or end.value.code == 75)
    rows = log_of(trained("align", *STAGE, STOP))
    assert rows == log_of(undisturbed)
    assert [int(row["step"]) for row in rows] == [3, 4, 6, 8]
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True]


def test_a_cut_validation_of_averaged_weights_saves_those_that_train(trained, monkeypatch):
    """Lightning's callback has them swapped from the start of a validation to its end."""
    whole = trained("align", *STAGE, AVERAGE, "run_name=whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        at(SpeechLMModule, "on_validation_batch_end", 4, leave, patch)
        trained("align", *STAGE, AVERAGE)
    assert end.value.code == 75
    found = trained("align", *STAGE, AVERAGE)
    assert log_of(found) == log_of(whole)
    assert len({(folder.model / "model.safetensors").read_bytes() for folder in (found, whole)}) == 1


def test_a_checkpoint_of_an_earlier_version_has_had_its_validation(trained, monkeypatch, tmp_path):
    settings = (*STAGE, "callbacks.save_every=4")
    state = StageFolder(tmp_path / "runs" / "toy" / "align").checkpoints / "step-00000004.ckpt" / STATE
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at(SpeechLMModule, "training_step", 4, kill, patch)
        trained("align", *settings)
    wait_until(state.exists, "the checkpoint")
    write_sealed(state, {name: value for name, value in read_sealed(state).items() if name != "monitor"})
    validated = validations(monkeypatch)
    trained("align", *settings)
    assert validated == [8]


def test_a_validation_at_a_step_that_is_saved_in_it_runs_once(trained, monkeypatch):
    """The best checkpoint is saved after its validation, and knows of it."""
    settings = (*STAGE, "callbacks.keep_best_by=val/loss", "callbacks.save_every=100")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at(SpeechLMModule, "training_step", 4, kill, patch)
        trained("align", *settings)
    validated = validations(monkeypatch)
    trained("align", *settings)
    assert validated == [8]


def test_waits_since_the_last_entry_go_on_in_the_run_that_resumes():
    """A run that waited 3 s of 10 s for data and 1 s for a checkpoint is resumed, and waits 2 s and 3 s of 10 s more."""

    def started(state=None) -> tuple[Monitor, StepTimes, SimpleNamespace]:
        writer, times = SimpleNamespace(stalled=7.0), StepTimes()
        times.seconds[DATA] = 5.0  # before the first step, as that of the checkpoint
        monitor = Monitor(3, None, SimpleNamespace(peak_tflops=1.0), SimpleNamespace(skipped=0), writer)
        if state is not None:
            monitor.resume_from(state)
        trainer.profiler = times
        monitor.on_train_start(trainer, module)
        return monitor, times, writer

    trainer = SimpleNamespace(world_size=1)
    module = MagicMock(spec=SpeechLMModule, device=torch.device("cpu"))
    module.train_tally = SimpleNamespace(seconds=20.0, work=None, start_clock=lambda: None)
    monitor, times, writer = started()
    times.seconds[DATA] += 3.0
    writer.stalled += 1.0
    monitor, times, writer = started(json.loads(json.dumps(monitor.state())))
    times.seconds[DATA] += 2.0
    writer.stalled += 3.0
    for data, checkpoint in ((0.25, 0.2), (0.0, 0.0)):
        figures = monitor._speed(trainer, module)
        assert (figures["data_wait_share"], figures["checkpoint_wait_share"]) == pytest.approx((data, checkpoint))


def test_figures_go_on_under_another_number_of_ranks(undisturbed, tmp_path):
    """Ranks add up in another order: figures agree within 1e-5, and counts are the same."""
    two = ["trainer=cpu_ddp", "trainer.devices=2", "trainer.rows_per_device=1"]
    expected = {row["step"]: row for row in log_of(undisturbed)}
    assert train_in_a_process(tmp_path / "two", "stage=align", *STAGE, *two) == 0
    found = StageFolder(tmp_path / "two" / "runs" / "toy" / "align")
    for source, name, settings in ((undisturbed, "over", two), (found, "back", [])):
        folder = StageFolder(tmp_path / name / "runs" / "toy" / "align")
        shutil.copytree(source.checkpoints / "step-00000005.ckpt", folder.checkpoints / "step-00000005.ckpt")
        shutil.copy(source.root / MARK, folder.root / MARK)
        assert train_in_a_process(tmp_path / name, "stage=align", *STAGE, *settings) == 0
        [row] = [row for row in log_of(folder) if row["step"] == "6"]  # of steps 4 to 6
        for figure in ("train/loss", "train/loss_main", "train/accuracy_main"):
            assert float(row[figure]) == pytest.approx(float(expected["6"][figure]), rel=1e-5), figure
        assert row["padding_share"] == expected["6"]["padding_share"]
