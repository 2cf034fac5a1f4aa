"""Epochs are another way to say steps: one of the two is given, and a run that was begun keeps the number it found."""

from types import SimpleNamespace

import pytest
import yaml

from vita_audio_pl.config.component import plain
from vita_audio_pl.errors import UserError
from vita_audio_pl.notebook import train_config
from vita_audio_pl.training.run_folder.identity import decisive_settings
from vita_audio_pl.training.run_folder.layout import CONFIG, stage_folder
from vita_audio_pl.training.stage.data import steps_of_epochs


def test_a_run_keeps_the_steps_that_its_epochs_were_when_it_began(tmp_path):
    given = (f"paths.runs={tmp_path}", "stage=align", "stage.epochs=1.5")
    config, rows = train_config(*given), {"an epoch": 100}
    data = SimpleNamespace(steps_of=lambda epochs: round(epochs * rows["an epoch"]))
    config.stage.steps = steps_of_epochs(config, 1.5, data)
    assert config.stage.steps == 150
    folder = stage_folder(config, "align").root
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(plain(config)))
    rows["an epoch"] = 99  # something was quarantined
    assert steps_of_epochs(train_config(*given), 1.5, data) == 150
    assert steps_of_epochs(train_config(*given), 2.0, data) == 198
    assert steps_of_epochs(train_config(*given, "force=true"), 1.5, data) == 148
    said_in_steps = train_config(*given[:2], "stage.steps=150")
    assert decisive_settings(plain(said_in_steps)) == decisive_settings(plain(config))


def test_steps_and_epochs_are_not_given_together():
    for two in (("stage.steps=7", "stage.epochs=1"), ("per_stage.mtp1.steps=7", "per_stage.mtp1.epochs=1")):
        with pytest.raises(UserError, match="stage.epochs=1 and stage.steps=7 both say how long the stage trains"):
            train_config("stage=mtp1", *two)
    with pytest.raises(UserError, match="stage.epochs is 0"):
        train_config("stage=mtp1", "stage.epochs=0")
    assert train_config("stage=mtp1", "per_stage.mtp1.epochs=2", "per_stage.align.steps=7").stage.epochs == 2
