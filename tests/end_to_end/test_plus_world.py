"""The small spoken world in its Plus form: a tiny encoder of SenseVoice's shape, trained with the model."""

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.test_variants import composed
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.train import train


@pytest.mark.slow
@pytest.mark.ci
def test_the_spoken_world_is_prepared_with_its_audio_and_the_encoder_learns(smoke_world, tmp_path, monkeypatch):
    world, stage = tmp_path / "data" / smoke_world.name, tmp_path / "runs/plus/align"
    shutil.copytree(smoke_world, world)
    monkeypatch.chdir(tmp_path)
    train(
        composed(
            "variant=vita_audio_plus_boost", "data=spoken_world_smoke", "run_name=plus", "stage.steps=30",
            "stage.rows_per_step=4", "data.workers=0", "data.validation_rows=2", "callbacks.validate_every=10",
            "callbacks.progress_bar=false", "callbacks.log_every=10", "logger=csv",
        )
    )  # fmt: skip
    assert PreparedSource(world / "shards_with_audio/world_asr", with_audio=True).read_clips(0)[0].size > 1600
    assert not PreparedSource(world / "shards/world_asr").manifest.audio_shards  # the discrete variants' own stay
    with (stage / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[-1] < losses[0] - 0.3
    start, end = load_file(world / "speech_input/model.safetensors"), load_file(stage / "model/model.safetensors")
    assert all(not torch.equal(end[f"model.audio_model.model.{name}"], value) for name, value in start.items())
