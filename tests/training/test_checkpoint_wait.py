"""How long training waits for checkpoints, in seconds of the processor, which no other program's load changes."""

import time

import pytest
import toy

from tests.patience import PATIENCE
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.stage.train import train_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE)]

SIZES = (
    "model.hidden_size=512", "model.intermediate_size=1536", "model.num_attention_heads=8", "model.num_key_value_heads=4",
    "model.num_hidden_layers=6", "stage.rows_per_step=4", "trainer.rows_per_device=4", "callbacks.samples.every_steps=0",
    "callbacks.validate_every=1000", "trainer.threads=1",
)  # fmt: skip


def test_training_waits_for_at_most_a_fiftieth_at_one_save_in_fifty_steps(tmp_path, monkeypatch):
    """19 million parameters, 226 MB a save, steps of 128 tokens alone: copying and computing both grow with the model."""
    save, prepare = CheckpointWriter.save, CheckpointWriter.prepare
    waited, began, stalled = [], [], []

    def timed(self, *what, **more):
        start = time.thread_time()
        save(self, *what, **more)
        waited.append(time.thread_time() - start)
        stalled.append(self.stalled)

    def noted(self, trainer):
        prepare(self, trainer)
        began.extend((time.thread_time(), time.perf_counter()))

    monkeypatch.setattr(CheckpointWriter, "save", timed)
    monkeypatch.setattr(CheckpointWriter, "prepare", noted)
    config = toy.toy_config(tmp_path / "runs", "stage=align", "stage.steps=101", "callbacks.save_every=50", *SIZES)
    train_stage(config, toy.toy_data(tmp_path / "world"))
    computed, seconds = time.thread_time() - began[0], time.perf_counter() - began[1]
    share = sum(waited[:2]) / computed  # the last save is at the last step, when nothing waits for it
    print(
        f"waited {sum(waited[:2]):.2f} of {computed:.1f} CPU s ({share:.2%}); by the clock {stalled[1] / seconds:.2%}"
    )
    assert len(waited) == 3 and 0 < share <= 0.02
