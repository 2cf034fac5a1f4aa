"""Training makes the data that can be made here, and a whole chain runs under torchrun."""

import sys

import pytest

from tests.spoken_world.test_build_world import TINY, make_tiny_known
from vita_audio_pl import train
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.spoken_world.sentences import LEXICONS
from vita_audio_pl.training.run_folder.manifest import StageManifest

SMALL = (
    "data=spoken_world_smoke", "data.workers=0", "run_name=tiny", "stage.steps=3", "stage.rows_per_step=2", "n_heads=2",
    "decode_pattern=[1,2]", "data.validation_rows=2",
)  # fmt: skip


def test_training_makes_its_data_where_nothing_was_before(tmp_path, monkeypatch):
    make_tiny_known(monkeypatch)
    monkeypatch.setitem(LEXICONS, "smoke", TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "stage=align", *SMALL, "codec.codebook_size=16", "logger=csv"])
    train.main()
    assert StageManifest.read(tmp_path / "runs/tiny/align/model").n_heads == 0
    assert len(PreparedSource(tmp_path / "data/spoken_world_smoke/shards/world_asr")) > 0


@pytest.mark.slow
def test_torchrun_takes_a_whole_chain(place):
    """torchrun's agent gives all processes one store, in which a second stage would find the first one's addresses."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    chain = ("stage=chain", "variant.stages=[align,mtp1]", "trainer=cpu_ddp", "logger=csv", "data.workers=0")
    told = place.run(*launcher, "-m", "vita_audio_pl.train", *SMALL, *chain, "run_name=torchrun")
    assert "stage 'align' is done" in told and "stage 'mtp1' is done" in told
