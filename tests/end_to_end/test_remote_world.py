"""The commands with everything in a store: the same shards and the same weights as from folders, killed and gone on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.remote_stores import put, s3
from tests.patience import PATIENCE, wait_until
from vita_audio_pl.storage.places import place

TRAIN = (
    "stage=align", "stage.steps=6", "stage.rows_per_step=2", "n_heads=2", "decode_pattern=[1,2]", "logger=csv",
    "data.spoken_world=null", "stage.mixture=mix.yaml", "data.validation_rows=2", "data.workers=0",
    "callbacks.save_every=2", "callbacks.samples.every_steps=0",
)  # fmt: skip


def command(folder: Path, program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"vita_audio_pl.{program}", *arguments]


def run(folder: Path, program: str, *arguments: str) -> str:
    result = subprocess.run(
        command(folder, program, *arguments), cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def seldom(process: subprocess.Popen[bytes]) -> bool:
    """Leaves the store's thread its time; whether the process has ended."""
    time.sleep(1.0)
    return process.poll() is not None


@pytest.mark.slow
def test_prepared_to_s3_and_trained_from_s3_is_what_it_is_from_folders(
    smoke_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3(monkeypatch) as url:
        lab = place(url)
        for name in ("tokenizer", "codec"):
            put(smoke_world / name, lab / "mix" / name)
        for name in ("samples", "audio"):
            put(smoke_world / name, lab / "world" / name)
        (tmp_path / "mix.yaml").write_text("sources: {world_asr: {ratio: 1.0}}\n")
        prepare = [
            "source=world_asr", f"root={url}/world", f"shards={url}/mix/shards",
            f"tokenizer_folder={url}/mix/tokenizer", f"codec_folder={url}/mix/codec", f"cache={tmp_path}/cache", "executor.workers=1",
        ]  # fmt: skip
        killed = subprocess.Popen(command(tmp_path, "prepare", *prepare), cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_until(lambda: seldom(killed) or any((lab / "mix/shards").glob("world_asr/*")), "its first file", PATIENCE)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        run(tmp_path, "prepare", *prepare)
        for shard in smoke_world.glob("shards/world_asr*/*.tar"):
            assert (lab / "mix/shards" / shard.parent.name / shard.name).read_bytes() == shard.read_bytes()
        assert "2 of 2 ready" in run(tmp_path, "data", "status", f"data.shards={url}/mix/shards", *TRAIN[6:8])
        remote = [*TRAIN, f"data.shards={url}/mix/shards", f"data.cache={tmp_path}/cache"]
        run(tmp_path, "train", *TRAIN, f"data.shards={smoke_world}/shards", "run_name=here")
        first = subprocess.Popen(command(tmp_path, "train", *remote, "run_name=there"), cwd=tmp_path)
        wait_until(lambda: any(tmp_path.glob("runs/there/align/checkpoints/step-*")), "a checkpoint", PATIENCE)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        run(tmp_path, "train", *remote, "run_name=there")
        weights = [tmp_path / "runs" / name / "align/model/model.safetensors" for name in ("here", "there")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert "secret" not in "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*.yaml"))
