"""A page holds only small audio files below the folder of the file that names them, whatever rows name."""

import json
import os
import re

import pytest
from made_up_run import write_tone

from vita_audio_pl.reporting.run.listening import sound_of
from vita_audio_pl.reporting.run.page import run_page
from vita_audio_pl.reporting.run.result_page import write_result_pages
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.storage.recordings import LARGEST

SECRET = "c2VjcmV0"  # "secret" in base64, at the beginning of the file


@pytest.fixture
def named(tmp_path):
    """What rows may name, each with a word of the reason why it is not played."""
    folder, outside = tmp_path / "results", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (outside / "secret.wav").write_text("secret")
    (outside / "key").write_text("secret")
    (folder / "key").write_text("secret")
    (folder / "file.wav").symlink_to(outside / "secret.wav")
    (folder / "inner.wav").symlink_to(folder / "key")
    (folder / "folder").symlink_to(outside)
    (folder / "circle.wav").symlink_to(folder / "circle.wav")
    (folder / "audio.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    with open(folder / "huge.wav", "wb") as file:
        file.truncate(LARGEST + 1)
    (folder / "device.wav").symlink_to("/dev/zero")
    reasons = {
        "file.wav": "outside", "folder/secret.wav": "outside", "../outside/secret.wav": "outside",
        str(outside / "secret.wav"): "outside", "/etc/passwd": "outside", "device.wav": "outside",
        "audio/../../outside/secret.wav": "not there", "": "not an audio file", ".": "not an audio file", "key": "not an audio file",
        "inner.wav": "not an audio file", "audio.wav": "not a regular file", "pipe.wav": "not a regular file",
        "huge.wav": "8,388,609 bytes", "circle.wav": "not there", "missing.wav": "not there", "a\0.wav": "not there",
        "x" * 5000 + ".wav": "not there", "~/secret.wav": "not there", "file:///etc/passwd": "not there",
    }  # fmt: skip
    return folder, reasons | {value: "not there" for value in (3, None, 1.5, True)}


def test_nothing_but_audio_below_the_folder_is_read(named):
    folder, reasons = named
    for name, reason in reasons.items():
        sound = sound_of(folder, name)
        assert sound.uri == "" and reason in sound.problem and len(sound.problem) < 400, name
    for value in ([], {"a": "b"}, ["audio.wav"]):
        assert sound_of(folder, value).problem.endswith("is not there")
    for name in ("a.wav", "b/c.FLAC", "d e.mp3"):
        write_tone(folder / name)
        assert sound_of(folder, name).uri and sound_of(folder, str(folder / name)).uri
    (folder / "link.wav").symlink_to(folder / "b" / "c.FLAC")
    assert sound_of(folder, "link.wav").uri.startswith("data:audio/flac;base64,UklGR")


def test_pages_name_what_they_do_not_play(run, pictures, tmp_path):
    (tmp_path / "secret.wav").write_text("secret")
    place = run.folder / "eval" / run.bench
    (place / "link.wav").symlink_to(tmp_path / "secret.wav")
    rows_of = {path: path.read_text().split("\n")[:-1] for path in run.folder.rglob("*.jsonl")}
    assert any(path.name == "samples.jsonl" for path in rows_of)
    for path, lines in rows_of.items():
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row |= {"source": "link.wav", "spoken_reference": str(tmp_path / "secret.wav")}
            row |= {"audio": os.path.relpath(tmp_path / "secret.wav", path.parent)} if "audio" in row else {}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in place.glob("*/*/*/result.json"):
        extra = dict.fromkeys(("silent", "unfinished", "failed", "left_out"), 0)
        path.write_text(
            json.dumps(json.loads(path.read_text()) | extra | {"profile_differences": [], "limited_to": None})
        )
    html = run_page(RunFiles.read(run.folder, run.bench), "demo", pictures)
    assert SECRET not in html and html.count("<audio") == 1  # what the codec makes of the expected answer
    assert len(re.findall(r"not played: (?:\S*secret|link)\.wav lies outside", html)) > 10
    for page in write_result_pages(place):
        html = page.read_text()
        assert "<audio" not in html and html.count("not played: link.wav lies outside") == 3
