"""After an out-of-memory a run goes on with other performance settings, and says so."""

import json
import os
import signal

import pytest
from lightning.pytorch.callbacks import Callback
from toy import toy_config, toy_data

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.stage.train import train_stage


def test_a_run_goes_on_with_other_performance_settings_and_records_it(tmp_path, capsys):
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit):
        stop = f"+callbacks.extra.stop={{_target_:{__name__}.StopAt,step:2}}"
        train_stage(toy_config(runs, stop, "callbacks.save_every=2"), toy_data(tmp_path))
    capsys.readouterr()
    changed = ("objective.chunk_rows=7", "model.activation_checkpointing=all", "trainer.rows_per_device=2")
    model = train_stage(toy_config(runs, *changed, "callbacks.save_every=2"), toy_data(tmp_path))
    told = capsys.readouterr().out
    assert "resuming from step-" in told and "objective.chunk_rows: 512 -> 7" in told and "bits may differ" in told
    (line,) = [json.loads(line) for line in (model.parent / "changes.jsonl").read_text().splitlines()]
    assert line["step"] == 2 and set(line["changed"]) == {setting.partition("=")[0] for setting in changed}
    with pytest.raises(UserError, match="holds another run: stage.learning_rate"):
        train_stage(toy_config(runs, "stage.learning_rate=5e-3"), toy_data(tmp_path))


class StopAt(Callback):
    """Has the run preempted in an optimiser step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
