"""The best checkpoint by a figure of validation outlives the last ones."""

import math

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.checkpoints.folders import best_checkpoint, complete_checkpoints, step_of
from vita_audio_pl.training.step.tally import Tally

STAGE = ("stage.steps=12", "callbacks.save_every=1", "callbacks.keep_last=2", "callbacks.validate_every=2")


def validations(monkeypatch, name: str, values: list[float]) -> None:
    """Let validations give these values of a figure, one after another."""
    read, seen = Tally.read, iter(values)

    def given(self, prefix, *arguments, **options):
        figures = read(self, prefix, *arguments, **options)
        return figures | {name: next(seen)} if prefix == name.rpartition("/")[0] else figures

    monkeypatch.setattr(Tally, "read", given)


@pytest.mark.parametrize(
    ("name", "values", "more"),
    [
        ("val/loss", [5.0, 3.0, math.nan, 4.0, 4.0, 3.0], ()),
        ("val/toy/accuracy_main", [0.1, 0.5, math.nan, 0.2, 0.2, 0.5], ()),
        ("val/toy/accuracy_main", [0.5, 0.1, math.nan, 0.2, 0.2, 0.1], ("callbacks.keep_best_when=lower",)),
    ],
)
def test_the_best_is_kept_beside_the_last(trained, monkeypatch, name, values, more):
    validations(monkeypatch, name, values)
    folder = trained("align", *STAGE, f"callbacks.keep_best_by={name}", *more)
    assert best_checkpoint(folder.checkpoints) == {"step": 4, "metric": name, "value": values[1]}
    assert [step_of(path) for path in complete_checkpoints(folder.checkpoints)] == [4, 11, 12]


def test_a_figure_that_validation_does_not_give_is_told_before_the_first_step(trained):
    for name, says in (
        ("val/los", "keep_best_by=val/los is not a validation metric; did you mean val/loss"),
        ("val/loss_head_0", "did you mean val/loss"),  # the stage has no heads
        ("val/toys/loss", "did you mean val/toy/loss"),
        ("train/loss", "is not a validation metric"),
    ):
        with pytest.raises(UserError, match=says):
            trained("align", f"callbacks.keep_best_by={name}")
    with pytest.raises(UserError, match="keep_best_by=val/loss: this stage has no held-out data"):
        trained("align", "callbacks.keep_best_by=val/loss", held_out=())


@pytest.mark.parametrize("keep", [1, 3, 0])
def test_the_last_are_kept(trained, keep):
    folder = trained("align", *STAGE, f"callbacks.keep_last={keep}")
    kept = [step_of(path) for path in complete_checkpoints(folder.checkpoints)]
    assert kept == list(range(13 - (keep or 12), 13)) and best_checkpoint(folder.checkpoints) is None
