"""Credentials in a URL open what they are for and are written nowhere."""

import sys
from pathlib import Path

import pytest

from vita_audio_pl import train

SHARDS = "http://name:SECRET@127.0.0.1:9/data/shards?X-Amz-Signature=TOKEN&X-Amz-Date=1"


def files_that_tell(folder: Path) -> list[str]:
    """Files below `folder` with a credential in them, by name or content; wandb's binary log is not compressed."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return [str(p) for p in found if any(s in p.read_bytes() or s in str(p).encode() for s in (b"SECRET", b"TOKEN"))]


def test_what_a_stage_writes_holds_no_credentials(trained, tmp_path, monkeypatch):
    given = [f"'data.shards=\"{SHARDS}\"'", "experiment.question='see https://SECRET@host/x?sig=TOKEN'"]
    monkeypatch.setattr(sys, "argv", ["train", *given, "stage=mtp1"])
    loggers = ["logger.wandb=offline", "logger.tensorboard=true"]
    folder = trained("align", "stage.steps=2", f'data.shards="{SHARDS}"', *given[1:], *loggers)
    assert "http://127.0.0.1:9/data/shards" in (folder.root / "config.yaml").read_text()
    assert list(folder.root.glob("wandb/offline-run-*/run-*.wandb")) and (folder.model / "manifest.json").is_file()
    assert files_that_tell(tmp_path) == []


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_neither_a_commands_error_nor_its_sweep_file_tells(tmp_path, monkeypatch, capsys, sweep):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["train", *sweep, "data=open_corpus", f'data.shards="{SHARDS}"'])
    with pytest.raises(SystemExit):
        train.main()
    said = "".join(capsys.readouterr())
    assert "SECRET" not in said and "TOKEN" not in said
    assert (tmp_path / "runs" / "multirun.yaml").is_file() == bool(sweep)
    if sweep:
        assert files_that_tell(tmp_path) == []
