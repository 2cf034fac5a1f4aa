"""The log of a run that was stopped and resumed is that of one which was not, at whatever step it was stopped."""

import csv
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest
from toy_process import train_in_a_process

from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.callbacks.lifecycle import HandOver
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


def at(owner: type, hook: str, step: int, do: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Do something in a hook of this step."""
    usual = getattr(owner, hook)

    def disturbed(self, *given):
        module = self if owner is SpeechLMModule else given[1]
        if module.trainer.global_step == step:
            do()
        return usual(self, *given)

    patch.setattr(owner, hook, disturbed)


MOMENTS = [
    *(pytest.param(SpeechLMModule, "training_step", step, leave, id=f"leaves-{step}") for step in range(STEPS)),
    *(pytest.param(SpeechLMModule, "on_validation_batch_end", step, leave, id=f"cut-{step}") for step in (4, 8)),
    *(pytest.param(SpeechLMModule, "training_step", step, kill, id=f"killed-{step}") for step in (5, 7)),
    pytest.param(SpeechLMModule, "on_validation_batch_end", 8, kill, id="killed-in-the-last-validation"),
    pytest.param(HandOver, "on_train_end", 8, kill, id="killed-before-the-hand-over"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_in_a_process(folder, "stage=align", *STAGE, STOP) == 0
    return StageFolder(folder / "runs" / "toy" / "align")


@pytest.mark.parametrize(("owner", "hook", "step", "do"), MOMENTS)
def test_every_row_is_that_of_a_run_which_was_not_stopped(owner, hook, step, do, undisturbed, trained, monkeypatch):
    with monkeypatch.context() as patch, suppress(Killed, SystemExit):
        at(owner, hook, step, do, patch)
        trained("align", *STAGE, STOP)
    rows = log_of(trained("align", *STAGE, STOP))
    assert rows == log_of(undisturbed)
    assert [int(row["step"]) for row in rows] == [3, 4, 6, 8]
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False, True]


def test_a_validation_at_a_step_that_is_saved_in_it_runs_once(trained, monkeypatch):
    """The best checkpoint is saved after its validation, and knows of it."""
    settings = (*STAGE, "callbacks.keep_best_by=val/loss", "callbacks.save_every=100")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at(SpeechLMModule, "training_step", 4, kill, patch)
        trained("align", *settings)
    validated = []
    monkeypatch.setattr(SpeechLMModule, "on_validation_start", lambda self: validated.append(self.trainer.global_step))
    trained("align", *settings)
    assert validated == [8]


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
