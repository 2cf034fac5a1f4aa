"""The best checkpoint by a figure of validation outlives the last ones."""

import pytest

from vita_audio_pl.training.checkpoints import best_checkpoint, complete_checkpoints, step_of

STAGE = ("stage.steps=12", "callbacks.save_every=1", "callbacks.keep_last=2", "callbacks.validate_every=2")


def test_the_best_is_kept_beside_the_last(trained, monkeypatch):
    from vita_audio_pl.training.tally import Tally

    read, seen = Tally.read, []

    def with_a_dip(self, prefix, *arguments, **options):
        figures = read(self, prefix, *arguments, **options)
        if prefix == "val":
            seen.append([5.0, 3.0, 4.0, 4.0, 4.0, 4.0][len(seen)])
            figures["val/loss"] = seen[-1]
        return figures

    monkeypatch.setattr(Tally, "read", with_a_dip)
    folder = trained("align", *STAGE, "callbacks.keep_best_by=val/loss")
    assert best_checkpoint(folder.checkpoints) == {"step": 4, "metric": "val/loss", "value": 3.0}
    assert [step_of(path) for path in complete_checkpoints(folder.checkpoints)] == [4, 11, 12]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_are_kept(trained, keep):
    folder = trained("align", *STAGE, f"callbacks.keep_last={keep}")
    kept = [step_of(path) for path in complete_checkpoints(folder.checkpoints)]
    assert kept == list(range(13 - keep, 13)) and best_checkpoint(folder.checkpoints) is None
