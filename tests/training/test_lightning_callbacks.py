"""Lightning's own callbacks, taken by their class path, end a stage early and average its weights; runs go back when asked."""

import re

import pytest
from safetensors.torch import load_file
from test_best_checkpoint import validations

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.callbacks.lifecycle import HandOver
from vita_audio_pl.training.checkpoints.folders import BAD, checkpoints, complete_checkpoints, step_of
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.step.module import SpeechLMModule

OFTEN = ("callbacks.save_every=1", "callbacks.keep_last=0")
STOP = "+callbacks.extra.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:2}"
AVERAGE = "+callbacks.extra.average={_target_:lightning.pytorch.callbacks.WeightAveraging}"


class Killed(BaseException):
    """Stands for a SIGKILL."""


def killed_in_step(step: int, patch) -> None:
    training_step = SpeechLMModule.training_step

    def stopped(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise Killed
        return training_step(self, batch, batch_idx)

    patch.setattr(SpeechLMModule, "training_step", stopped)


def steps(folder: StageFolder, *kinds: str) -> list[int]:
    return [step_of(path) for path in checkpoints(folder.checkpoints, *kinds)]


def weights(folder: StageFolder) -> bytes:
    return (folder.model / "model.safetensors").read_bytes()


def test_early_stopping_ends_the_stage_and_hands_it_over_also_when_killed_in_between(trained, monkeypatch, tmp_path):
    stage = ("run_name=early", *OFTEN, STOP, "stage.steps=12", "callbacks.validate_every=2")

    def killed(self, trainer, module):
        raise Killed

    with monkeypatch.context() as patch:
        validations(patch, "val/loss", [3.0, 4.0, 5.0])
        patch.setattr(HandOver, "on_train_end", killed)
        with pytest.raises(Killed):
            trained("align", *stage)
    folder = StageFolder(tmp_path / "runs" / "early" / "align")
    assert not folder.finished and steps(folder, ".ckpt")[-1] == 6
    killed_in_step(6, monkeypatch)  # no step is done any more
    assert trained("align", *stage).finished
    assert StageManifest.read(folder.model).steps == 6


def test_what_a_callback_watches_is_there_in_time_or_told_before_the_first_step(trained, tmp_path):
    """Lightning itself finds it out at the first validation, by default the stage's end."""
    stop = STOP.replace("patience:2", "patience:1")
    for wrong, says in (
        (
            [stop.replace("val/loss", "val/los"), "callbacks.validate_every=2"],
            r"stop\.monitor=val/los is not .* val/loss",
        ),
        (
            [stop.replace("val/loss", "val_loss"), "callbacks.validate_every=2"],
            r"stop\.monitor=val_loss is not .* val/loss",
        ),
        ([stop], r"callbacks\.extra\.stop could not stop before .*: give callbacks\.validate_every"),
        # a callback of Lightning's logs no figure, so that of the best checkpoint is checked beside it
        (
            [stop, "callbacks.validate_every=2", "callbacks.keep_best_by=val/los"],
            "keep_best_by=val/los is not .* val/loss",
        ),
    ):
        with pytest.raises(UserError, match=says):
            trained("align", "run_name=watched", *wrong)
    with pytest.raises(UserError, match="monitor=val/loss is not .*; this stage has no held-out data"):
        trained("align", "run_name=watched", stop, "callbacks.validate_every=2", held_out=())
    assert not (tmp_path / "runs" / "watched").exists()


def test_averaged_weights_are_handed_over_and_survive_a_kill(trained, monkeypatch, tmp_path):
    plain = trained("align", "run_name=plain")
    whole = trained("align", "run_name=whole", AVERAGE)
    with monkeypatch.context() as patch:
        killed_in_step(4, patch)
        with pytest.raises(Killed):
            trained("align", "run_name=killed", *OFTEN, AVERAGE)
    killed = trained("align", "run_name=killed", *OFTEN, AVERAGE)
    assert weights(killed) == weights(whole) != weights(plain)
    assert any(
        name.startswith("average/")
        for name in load_file(complete_checkpoints(killed.checkpoints)[-1] / "part-00000.safetensors")
    )
    with pytest.raises(
        UserError, match="callbacks.extra.average averages whole weights, and trainer=fsdp2 shards them"
    ):
        trained("align", "run_name=sharded", AVERAGE, "trainer=fsdp2", "trainer.devices=1", "trainer.accelerator=cpu")


def test_a_run_goes_back_to_the_step_that_is_asked_for_once(trained, monkeypatch, capsys, tmp_path):
    whole = trained("align", "run_name=whole", *OFTEN)
    folder = StageFolder(tmp_path / "runs" / "back" / "align")

    def killed_at(step: int, *more: str) -> str:
        with monkeypatch.context() as patch:
            killed_in_step(step, patch)
            with pytest.raises(Killed):
                trained("align", "run_name=back", *OFTEN, *more)
        return capsys.readouterr().out

    killed_at(5)
    with pytest.raises(
        UserError, match=r"callbacks.resume_from_step=9: .* has no checkpoint of that step; there are 1, 2, 3"
    ):
        trained("align", "run_name=back", *OFTEN, "callbacks.resume_from_step=9")
    assert "resuming from step-00000002.ckpt" in killed_at(4, "callbacks.resume_from_step=2")
    assert 3 in steps(folder, BAD)
    told = killed_at(5, "callbacks.resume_from_step=2")
    assert "rolled back to step 2 before" in told and re.search(r"resuming from step-0000000[34]\.ckpt", told)
    assert weights(trained("align", "run_name=back", *OFTEN)) == weights(whole)
    # a finished stage says how, rather than nothing
    again = ("run_name=back", *OFTEN, "callbacks.resume_from_step=1")
    capsys.readouterr()
    trained("align", *again)
    assert "is finished" in (told := capsys.readouterr().out) and "to go back to step 1, move this folder away" in told
    folder.model.rename(tmp_path / "away")
    assert weights(trained("align", *again)) == weights(whole)
    assert "resuming from step-00000001.ckpt" in capsys.readouterr().out
    trained("align", *again)
    assert "go back" not in capsys.readouterr().out  # a job that is started again
