"""Files that a person names: new ones, or regular ones that are replaced whole; devices, pipes and folders are refused."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from vita_audio_pl.codecs import write_wav
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.sinks import _GrowingWav
from vita_audio_pl.storage.files import check_own, output_file, write_output


def growing(path: Path) -> None:
    sink = _GrowingWav(path, 16_000)
    sink.write(np.zeros(160, np.float32))
    sink.close()


WRITERS = {
    "bytes": lambda path: write_output(path, b"new"),
    "sound": lambda path: write_wav(path, np.zeros(160), 16_000),
    "growing sound": growing,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("there", ["folder", "pipe", "socket", "device", "link to a device"])
def test_what_is_no_regular_file_is_refused_and_left(writer, there, tmp_path):
    path = tmp_path / "out.wav"
    match there:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(str(path))
        case "device":
            path = Path("/dev/null")
        case "link to a device":
            path.symlink_to("/dev/null")
    before = os.lstat(path).st_mode
    with pytest.raises(UserError, match="output is .*(a folder|a device, a pipe or a socket): give the name of a file"):
        WRITERS[writer](path)
    assert os.lstat(path).st_mode == before and len(list(tmp_path.iterdir())) == (there != "device")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_replaced_by_a_new_one_and_links_stay(writer, tmp_path):
    target, other, link = tmp_path / "folder/old", tmp_path / "other", tmp_path / "link"
    target.parent.mkdir()
    target.write_text("old")
    os.link(target, other)  # whoever has the old file open keeps it
    link.symlink_to(target)
    WRITERS[writer](link)
    assert link.is_symlink() and target.read_bytes() != b"old" and other.read_text() == "old"
    WRITERS[writer](tmp_path / "new/folder/file")
    assert (tmp_path / "new/folder/file").is_file() and len(list(tmp_path.rglob("*"))) == 7


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)  # as on a read-only file system
    with pytest.raises(UserError, match=f"output is .*a.wav, and {tmp_path} cannot be written: choose another folder"):
        output_file(tmp_path / "a.wav")
    assert output_file(tmp_path / "b" / "a.wav").name == "a.wav"


def test_a_file_that_nobody_named_is_replaced_only_where_it_is_ours(tmp_path):
    check_own(tmp_path / "card.md", "made by us")
    (tmp_path / "ours.md").write_text("a card, made by us")
    check_own(tmp_path / "ours.md", "made by us")
    (tmp_path / "theirs.md").write_text("notes")
    (tmp_path / "folder.md").mkdir()
    for name in ("theirs.md", "folder.md"):
        with pytest.raises(UserError, match=f"{name} is there, and this program did not write it"):
            check_own(tmp_path / name, "made by us")
