"""Checkpoints on the node's own disk first: the shared folder has a whole one at any moment, and the newest is used."""

import errno
import os
import shutil
import signal
import threading

import pytest
from safetensors.torch import load_file
from toy_process import train_in_a_process

from tests.patience import PATIENCE
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.checkpoints import writer as checkpoint_writer
from vita_audio_pl.training.checkpoints.folders import complete_checkpoints, step_of
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.step.module import SpeechLMModule


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is tidied up."""


def steps(folder) -> list[int]:
    return [step_of(path) for path in complete_checkpoints(folder)]


def stop_after(monkeypatch, step: int, how) -> None:
    """Call `how()` in the step after `step`."""
    training_step = SpeechLMModule.training_step

    def stopped(self, batch, batch_idx):
        if self.trainer.global_step == step:
            how()
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(SpeechLMModule, "training_step", stopped)


def kill() -> None:
    raise Killed


@pytest.fixture
def stage(trained, tmp_path):
    """Trains align with a local folder; `here()` is the stage's on this node, `home` the shared one."""
    home = tmp_path / "runs" / "toy" / "align" / "checkpoints"

    def train(*overrides: str) -> StageFolder:
        local = (f"callbacks.local_checkpoints={tmp_path / 'nvme'}", "callbacks.save_every=1")
        return trained("align", *local, "callbacks.keep_last=2", *overrides)

    def here():
        (folder,) = (tmp_path / "nvme").glob("align-*")
        return folder

    train.home, train.here = home, here
    return train


def test_the_last_are_kept_on_both_sides_and_the_node_is_cleared_at_the_end(stage, trained, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            stage()
    assert steps(stage.here()) == steps(stage.home) == [4, 5]
    for name in ("part-00000.safetensors", "rng-00000.json", "state.json"):
        here, home = ((folder / "step-00000005.ckpt" / name).read_bytes() for folder in (stage.here(), stage.home))
        assert here == home
    folder = stage()
    assert steps(stage.home) == [5, 6] and not list((tmp_path / "nvme").iterdir())
    direct = trained("align", "run_name=direct")
    found, expected = (load_file(f.model / "model.safetensors") for f in (folder, direct))
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_kill_during_the_copy_loses_nothing(stage, monkeypatch, capsys):
    copy, copying, forever = checkpoint_writer.copy_open_file, threading.Event(), threading.Event()

    def slow(source, target):
        if "step-00000003" in str(target):
            copying.set()
            forever.wait()  # the process is dead to the shared folder from here on
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "copy_open_file", slow)
        stop_after(patch, 3, lambda: copying.wait() and kill())
        with pytest.raises(Killed):
            stage()
    assert steps(stage.home) == [1, 2] and steps(stage.here())[-1] == 3
    assert (stage.home / "step-00000003.ckpt.tmp").is_dir()

    begun = []
    stop_after(monkeypatch, 3, lambda: begun.append(steps(stage.home)))
    assert stage().finished
    assert begun == [[2, 3]] or begun == [[1, 2, 3]]
    assert "step-00000003.ckpt is newer on the nodes' own disks" in capsys.readouterr().out


def test_a_machine_without_the_local_folder_goes_on_from_the_shared_one(stage, monkeypatch, tmp_path):
    others = set(threading.enumerate())
    with monkeypatch.context() as patch:
        stop_after(patch, 4, kill)
        with pytest.raises(Killed):
            stage()
    for thread in set(threading.enumerate()) - others:  # a real kill would have ended it; here it outlives the run
        if thread.name == "checkpoint writer":
            thread.join(PATIENCE)
    shutil.rmtree(tmp_path / "nvme")
    assert steps(stage.home)
    assert stage("callbacks.save_every=100").finished


def test_what_a_node_kept_of_a_run_that_was_started_over_or_is_cut_is_not_used(stage, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            stage()
    old, kept = stage.here(), stage.home / "step-00000005.ckpt"
    shutil.rmtree(kept)
    (old / kept.name / "part-00000.safetensors").unlink()  # of another node's rank, say
    steps_begun: list[int] = []
    training_step = SpeechLMModule.training_step

    def noted(self, batch, batch_idx):
        steps_begun.append(self.trainer.global_step)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(SpeechLMModule, "training_step", noted)
    assert stage().finished and steps_begun == [4, 5]
    steps_begun.clear()
    assert stage("force=true").finished and steps_begun == list(range(6))
    assert not old.exists()


def test_a_full_shared_disk_stops_cleanly_and_the_local_checkpoint_is_not_lost(stage, monkeypatch, capsys):
    copy = checkpoint_writer.copy_open_file

    def full(source, target):
        if step_of(target.parent.with_suffix("")) >= 3:  # also those that are written before training hears of it
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "copy_open_file", full)
        with pytest.raises(
            UserError, match=r"nvme.* and then .*: the disk is full; the last good one is .*; free some space"
        ):
            stage("stage.steps=60")
    assert 3 in steps(stage.here())
    assert stage("stage.steps=60").finished
    assert "is newer on the nodes' own disks" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="callbacks.local_checkpoints=.* cannot be used on this node .*; give a folder"):
        trained("align", f"callbacks.local_checkpoints={tmp_path / 'file' / 'nvme'}")


@pytest.mark.slow
@pytest.mark.ci
def test_two_ranks_killed_while_they_copy_end_with_the_same_bits(tmp_path):
    settings = ("stage=align", "stage.steps=40", "callbacks.save_every=4", "trainer=ddp", "trainer.devices=2",
                "trainer.accelerator=cpu", "trainer.precision=32-true")  # fmt: skip
    killed = StageFolder(tmp_path / "killed" / "runs" / "toy" / "align")
    local = f"callbacks.local_checkpoints={tmp_path / 'nvme'}"
    for step in (8, 20, 32):
        here = lambda step=step: (  # noqa: E731  # a busy machine may not have copied one by then
            list((tmp_path / "nvme").glob(f"align-*/step-{step:08d}.ckpt")) and complete_checkpoints(killed.checkpoints)
        )
        assert train_in_a_process(tmp_path / "killed", *settings, local, kill_when=here) in (-signal.SIGKILL, 0)
        assert complete_checkpoints(killed.checkpoints)
    assert train_in_a_process(tmp_path / "killed", *settings, local) == 0
    assert train_in_a_process(tmp_path / "whole", *settings) == 0
    whole = StageFolder(tmp_path / "whole" / "runs" / "toy" / "align")
    weights = [(folder.model / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
