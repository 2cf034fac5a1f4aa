"""A stage's folder has one writer."""

from pathlib import Path

import pytest

from vita_audio_pl.storage.lease import InUse
from vita_audio_pl.training.run_folder.layout import StageFolder


def times(folder: Path) -> dict[Path, int]:
    """When each file and folder was changed last; a folder also by a file that was made in it and removed."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_run_that_somebody_trains_is_left_alone_also_by_force_and_a_finished_one_is_only_read(trained, tmp_path):
    folder = StageFolder(tmp_path / "runs" / "toy" / "align")
    with folder.held("stage 'align' of toy"):
        before = times(folder.root)
        for force in ("force=false", "force=true"):
            with pytest.raises(InUse, match="in use by stage 'align' of toy .*, or choose another run_name"):
                trained("align", force)
        assert times(folder.root) == before
    assert trained("align").finished
    before = times(folder.root)
    assert trained("align").finished and times(folder.root) == before
    assert trained("align", "force=true").finished
    assert not list(folder.root.glob(".lease*"))
