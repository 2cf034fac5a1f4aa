"""A bad state never takes the place of a good one, and what cannot be read is not the end of a run."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from bit_flips import flipped, some_bits
from poison import plant, poison, poison_where
from safetensors.torch import load_file

from tests.patience import wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.callbacks import guard
from vita_audio_pl.training.checkpoints.folders import (
    BAD,
    DOUBT,
    GOOD,
    REASON,
    checkpoints,
    complete_checkpoints,
    step_of,
)
from vita_audio_pl.training.checkpoints.parts import damage, open_checkpoint, read_state, weights_of_checkpoint
from vita_audio_pl.training.checkpoints.restore import newest_usable
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.stage.train import train_stage
from vita_audio_pl.training.step.module import SpeechLMModule

UNTIED = "model.tie_word_embeddings=false"


def weights(folder: StageFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.model / "model.safetensors")


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors.values())


def names(folder: StageFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.glob("step-*"))


@pytest.fixture
def folder(tmp_path) -> StageFolder:
    return StageFolder(tmp_path / "runs" / "toy" / "align")


class Killed(BaseException):
    """Stands for a SIGKILL."""


def stop_at(step: int, patch, how) -> None:
    training_step = SpeechLMModule.training_step

    def stopped(self, batch, batch_idx):
        if self.trainer.global_step == step:
            how()
        return training_step(self, batch, batch_idx)

    patch(SpeechLMModule, "training_step", stopped)


def killed_once(checkpoint: Path, step: int, patch) -> None:
    """Kill the run in the step after `step`, when the checkpoint is written."""

    def kill():
        wait_until(checkpoint.exists, "the checkpoint")
        raise Killed

    stop_at(step, patch, kill)


def test_a_weight_that_is_not_finite_never_displaces_the_only_good_checkpoint(trained, monkeypatch, capsys, folder):
    plant(3, monkeypatch.setattr, "model.norm.weight")
    steps = ("callbacks.save_every=1", "callbacks.keep_last=1", "stage.steps=12", "callbacks.guard.bad_steps=3")
    assert trained("align", *steps).finished
    assert "restored weights and moments of step-00000003.ckpt" in capsys.readouterr().out
    assert all_finite(weights(folder))
    [last] = complete_checkpoints(folder.checkpoints)
    assert step_of(last) == 12 and all_finite(load_file(last / "part-00000.safetensors"))
    bad = checkpoints(folder.checkpoints, BAD)
    assert step_of(bad[0]) == 4 and "weight/model.norm.weight" in (bad[0] / REASON).read_text()


def test_what_no_gradient_shows_is_found_at_hand_over_and_the_same_command_goes_on(trained, monkeypatch, folder):
    stage = ("callbacks.save_every=3", UNTIED)
    with monkeypatch.context() as patch:
        plant(3, patch.setattr)
        with pytest.raises(UserError, match=r"model.embed_tokens.weight.* resumes from step-00000003.ckpt"):
            trained("align", *stage)
    assert not folder.finished and names(folder) == ["step-00000003.ckpt", "step-00000006.bad"]
    assert all_finite(weights(trained("align", *stage)))


def test_a_checkpoint_that_is_not_finite_takes_the_run_back_to_the_good_one(trained, monkeypatch, capsys, folder):
    plant(3, monkeypatch.setattr)
    assert trained("align", "callbacks.save_every=2", "stage.steps=40", UNTIED).finished
    assert "step 4 was saved with values that are not finite in weight/model.embed_tokens" in capsys.readouterr().out
    assert "step-00000004.bad" in names(folder) and all_finite(weights(folder))


def test_a_cut_validation_says_that_a_step_is_saved_only_if_it_is(trained, monkeypatch, capsys, folder):
    """What was saved just before the validation was not finite: the run goes back before it leaves."""
    stage = ("callbacks.save_every=2", "callbacks.validate_every=4", UNTIED)
    with monkeypatch.context() as patch:
        plant(3, patch.setattr)
        patch.setattr(SpeechLMModule, "on_validation_batch_end", lambda self, *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            trained("align", *stage)
    told = capsys.readouterr().out
    assert "restored weights and moments of step-00000002.ckpt" in told and "step 4 is saved" in told
    assert names(folder) == ["step-00000002.ckpt", "step-00000004.bad", "step-00000004.doubt"]
    assert all_finite(load_file(folder.checkpoints / "step-00000004.doubt" / "part-00000.safetensors"))
    assert all_finite(weights(trained("align", *stage)))
    assert "resuming from step-00000004.doubt" in capsys.readouterr().out


def test_a_run_preempted_in_doubt_goes_on_as_if_it_had_not_been(trained, monkeypatch, tmp_path):
    stage = ("callbacks.save_every=3", "callbacks.guard.bad_steps=3")
    bad = {3, 4, 5}
    with monkeypatch.context() as patch:
        poison(bad, patch.setattr)
        whole = trained("align", "run_name=whole", "stage.steps=9", *stage)
    with monkeypatch.context() as patch:
        poison(bad, patch.setattr)
        stop_at(4, patch.setattr, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            trained("align", "run_name=cut", "stage.steps=9", *stage)
    cut = StageFolder(tmp_path / "runs" / "cut" / "align")
    assert names(cut) == ["step-00000003.ckpt", "step-00000005.doubt"]
    with monkeypatch.context() as patch:
        poison(bad, patch.setattr)
        trained("align", "run_name=cut", "stage.steps=9", *stage)
    assert (whole.model / "model.safetensors").read_bytes() == (cut.model / "model.safetensors").read_bytes()
    assert complete_checkpoints(whole.checkpoints)[-1].name == "step-00000009.ckpt"


def test_a_checkpoint_that_does_not_help_is_set_apart_and_the_one_before_it_does(trained, monkeypatch, folder):
    returns: list[int] = []
    restore = guard.restore_newest

    def noted(*arguments, **options):
        found = restore(*arguments, **options)
        returns.append(found.step)
        return found

    monkeypatch.setattr(guard, "restore_newest", noted)
    poison_where(lambda trainer: trainer.global_step >= 4 and returns[-1:] != [2], monkeypatch.setattr)
    stage = ("callbacks.save_every=2", "callbacks.guard.bad_steps=2", "stage.steps=12")
    assert trained("align", *stage).finished
    assert returns == [4, 2]
    assert [path.name for path in checkpoints(folder.checkpoints, BAD)] == ["step-00000004.bad"]


@pytest.fixture(scope="module")
def of_two_steps(tmp_path_factory):
    """Checkpoint folder of a run, with steps 2 and 4."""
    root = tmp_path_factory.mktemp("two")
    config = toy.toy_config(root / "runs", "stage=align", "stage.steps=4", "callbacks.save_every=2")
    return StageFolder(train_stage(config, toy.toy_data(root / "world")).parent).checkpoints


class OneRank:
    """What is asked of a trainer and its strategy."""

    is_global_zero, world_size = True, 1
    strategy = property(lambda self: self)

    def broadcast(self, value):
        return value

    def barrier(self, name):
        pass


def read_all(checkpoint):
    """Reads every element, as ranks that restore it do together."""
    checkpoint.read(
        (key, 0, torch.empty(pieces[-1].stop, dtype=torch.float32)) for key, pieces in checkpoint.pieces.items()
    )


def found_in(place: Path, *kinds: str) -> Path | None:
    checkpoint = newest_usable(OneRank(), place, *kinds, read=read_all)
    return None if checkpoint is None else checkpoint.path


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def nul_tail(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def of_another_step(path):
    path.write_text(path.read_text().replace('"step": 4', '"step": 1000000000'))


DAMAGES = [
    ("part-00000.safetensors", damage)
    for damage in (cut, lambda path: path.unlink(), lambda path: path.write_bytes(b""))
] + [
    (name, damage)
    for name in ("state.json", "rng-00000.json")
    for damage in (cut, nul_tail, lambda path: path.unlink(), lambda path: path.write_bytes(b""),
                   lambda path: path.write_text("{}"), lambda path: path.write_text("[" * 100_000),
                   lambda path: path.write_text('{"python": [3, [1], null]}'))
] + [("state.json", of_another_step)]  # fmt: skip


def test_of_damaged_checkpoints_the_one_before_is_used_and_it_is_said(of_two_steps, tmp_path, capsys):
    for number, (name, spoil) in enumerate(DAMAGES):
        place = tmp_path / str(number)
        shutil.copytree(of_two_steps, place)
        spoil(place / "step-00000004.ckpt" / name)
        try:
            found = found_in(place, GOOD, DOUBT)
        except UserError as error:
            assert "format" in str(error)  # of another version: refused, and left where it is
            continue
        told = capsys.readouterr().out
        assert found == place / "step-00000002.ckpt", (number, name)
        assert told.startswith("step-00000004.ckpt is damaged: ") and name in told
        assert (place / "step-00000004.bad" / REASON).read_text().strip() in told


@pytest.mark.parametrize("name", ["part-00000.safetensors", "part-00000.json", "rng-00000.json", "state.json"])
def test_no_flipped_bit_of_a_checkpoint_is_restored(of_two_steps, name):
    checkpoint = of_two_steps / "step-00000004.ckpt"
    for bit in some_bits(checkpoint / name, 14):
        with flipped(checkpoint / name, bit):
            assert name in (damage(checkpoint) or "")
            with pytest.raises(ValueError, match=name):
                read_all(open_checkpoint(checkpoint))
    assert damage(checkpoint) is None


def test_a_checkpoint_of_another_version_is_refused_and_left_where_it_is(of_two_steps, tmp_path):
    shutil.copytree(of_two_steps, place := tmp_path / "older")
    path = place / "step-00000004.ckpt" / "state.json"
    path.write_text(json.dumps({**read_state(path.parent), "format": 2}))
    with pytest.raises(UserError, match="has format 2; this version reads 3: use the version that wrote it"):
        found_in(place, GOOD)
    assert len(complete_checkpoints(place)) == 2


def test_a_machine_out_of_file_handles_is_no_damage(of_two_steps, tmp_path, monkeypatch):
    def none_left(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    shutil.copytree(of_two_steps, place := tmp_path / "copy")
    for opens in ("training.checkpoints.parts.read_sealed", "storage.checksums.os.pread"):
        with monkeypatch.context() as patch:
            patch.setattr(f"vita_audio_pl.{opens}", none_left)
            with pytest.raises(UserError, match="Too many open files"):
                found_in(place, GOOD, DOUBT)
        assert len(complete_checkpoints(place)) == 2


def test_any_cut_or_overwritten_checkpoint_is_read_or_named(of_two_steps, tmp_path):
    rng = np.random.default_rng(0)
    place = tmp_path / "mutated"
    for _ in range(25):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(of_two_steps, place)
        path = place / "step-00000004.ckpt" / rng.choice(["part-00000.safetensors", "state.json", "rng-00000.json"])
        data = bytearray(path.read_bytes())
        at = int(rng.integers(len(data)))
        if rng.random() < 0.5:
            del data[at:]
        else:
            data[at : at + 9] = rng.bytes(len(data[at : at + 9]))
        path.write_bytes(data)
        try:
            assert found_in(place, GOOD) in complete_checkpoints(place)
        except UserError as error:
            assert "format" in str(error)


def test_a_run_whose_last_checkpoint_is_cut_goes_on_from_the_one_before(trained, monkeypatch, capsys, tmp_path):
    whole = trained("align", "run_name=whole", "callbacks.save_every=2")
    folder = StageFolder(tmp_path / "runs" / "cut" / "align")
    with monkeypatch.context() as patch:
        killed_once(folder.checkpoints / "step-00000004.ckpt", 5, patch.setattr)
        with pytest.raises(Killed):
            trained("align", "run_name=cut", "callbacks.save_every=2")
    cut(folder.checkpoints / "step-00000004.ckpt" / "part-00000.safetensors")
    trained("align", "run_name=cut", "callbacks.save_every=2")
    assert "resuming from step-00000002.ckpt" in capsys.readouterr().out
    assert (whole.model / "model.safetensors").read_bytes() == (folder.model / "model.safetensors").read_bytes()
    assert names(folder) == ["step-00000004.bad", "step-00000004.ckpt", "step-00000006.ckpt"]


def test_a_run_without_a_checkpoint_that_can_be_read_is_not_started_over_unasked(trained, monkeypatch, folder):
    stage = ("callbacks.save_every=2",)
    with monkeypatch.context() as patch:
        killed_once(folder.checkpoints / "step-00000002.ckpt", 3, patch.setattr)
        with pytest.raises(Killed):
            trained("align", *stage)
    (folder.checkpoints / "step-00000002.ckpt" / "state.json").write_text("")
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the checkpoints .*step-00000002.bad.* force=true"):
            trained("align", *stage)
    assert json.loads((folder.root / "identity.json").read_text())
    assert trained("align", *stage, "force=true").finished


def test_the_last_checkpoint_has_the_weights_that_are_handed_over_or_is_refused(of_two_steps):
    handed_over = load_file(of_two_steps.parent / "model" / "model.safetensors")
    found = weights_of_checkpoint(of_two_steps / "step-00000004.ckpt")
    assert found and all(value.read().equal(handed_over[name]) for name, value in found.items())
    part = of_two_steps / "step-00000004.ckpt" / "part-00000.safetensors"
    with flipped(part, 4 * part.stat().st_size), pytest.raises(UserError, match="cannot be used: .*are not what was"):
        [value.read() for value in weights_of_checkpoint(part.parent).values()]
