"""A world is built once, whole, and the same everywhere, however often the building is killed."""

import dataclasses
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import prepare_spoken_world
from vita_audio_pl.spoken_world import World, build_world, plan, synthesis
from vita_audio_pl.spoken_world import build as building
from vita_audio_pl.spoken_world.sentences import LEXICONS, SMOKE
from vita_audio_pl.storage.owned import MARK, Owned

TINY = dataclasses.replace(
    SMOKE, colours=("red",), animals=SMOKE.animals[:3], people=("girl",), counts=(2, 3), train_statements=2,
    held_out={"fact": (1, 1), "story": (1, 1), "statement": (1, 1)},
)  # fmt: skip


def make_tiny_known(patch: pytest.MonkeyPatch) -> None:
    """Few sentences, and one speed and pitch per voice, so that few runs of espeak-ng speak them."""
    patch.setitem(LEXICONS, "tiny", TINY)
    patch.setattr(plan, "SPEEDS", (165,))
    patch.setattr(plan, "PITCHES", (50,))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_tiny_known(monkeypatch)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> str:
    """What the tiny world's content hash must be."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny_known(patch)
        return build_world(tmp_path_factory.mktemp("tiny"), "tiny").info["content"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[Path, int]:
    """When each file and folder was changed last; a folder also by a file that was made in it and removed."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_what_is_written_is_what_the_samples_ask_for(tmp_path):
    reports = []
    world = build_world(tmp_path, "tiny", progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (world.info["audio"]["files"],) * 2
    used = set()
    for name, count in world.info["samples"].items():
        rows = [json.loads(line) for line in world.samples(*name.split(".")).read_text().splitlines()]
        assert len(rows) == count
        used |= {path for row in rows for path in row["audios"]}
    assert used == {name for name in files(tmp_path) if name.startswith("audio/")}
    for path in used:
        wave, rate = soundfile.read(tmp_path / path)
        assert rate == 16_000 and wave.ndim == 1 and 0.5 < len(wave) / rate < 5 and np.abs(wave).max() > 0.2
    assert world.info["programs"].keys() == {"espeak-ng", "flite"}
    assert files(tmp_path) - used - {f"samples/{name}.jsonl" for name in world.info["samples"]} == {
        "world.json", "grammar.jsgf", "words.txt", MARK,
    }  # fmt: skip


def test_it_does_not_depend_on_workers_and_a_second_call_does_nothing(tmp_path, content, monkeypatch):
    world = build_world(tmp_path, "tiny", workers=1)
    assert world.info["content"] == content
    before = times(tmp_path)
    monkeypatch.setenv("PATH", "")  # nothing has to be spoken any more
    assert build_world(tmp_path, "tiny") == world == World.load(tmp_path)
    assert times(tmp_path) == before


@pytest.mark.parametrize("call", [0, 2, 4])
def test_killed_at_any_renaming_it_is_not_taken_for_whole_and_ends_the_same(tmp_path, content, monkeypatch, call):
    Owned.claim(tmp_path, building.WORLD)
    (tmp_path / "audio/mine").mkdir(parents=True)  # what others keep in the folder stays
    (tmp_path / "audio/mine/precious.flac").write_text("precious")
    calls = 0
    replace = os.replace

    def dies(*paths):
        nonlocal calls
        calls += 1
        if calls > call:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(building.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            build_world(tmp_path, "tiny")
        with pytest.raises(UserError, match="holds no finished spoken world"):
            World.load(tmp_path)
    assert build_world(tmp_path, "tiny").info["content"] == content
    assert (tmp_path / "audio/mine/precious.flac").exists() and not list(tmp_path.glob("*.partial"))


def build_until_killed(folder: Path) -> None:
    """Speaks one sentence at a time, and none after the first few."""
    make_tiny_known(pytest.MonkeyPatch())
    building._UTTERANCES_A_RUN = 1
    build_world(folder, "tiny", workers=1, progress=lambda done, total: done >= 3 and time.sleep(PATIENCE))


def test_killed_while_speaking_it_starts_again(tmp_path, content):
    process = multiprocessing.get_context("fork").Process(target=build_until_killed, args=(tmp_path,))
    process.start()
    wait_until(lambda: list(tmp_path.glob(".building*/audio/*/*.flac")), "the first sentence")
    process.kill()
    process.join()
    assert build_world(tmp_path, "tiny").info["content"] == content
    assert not list(tmp_path.glob("*.partial"))


def test_lost_files_are_made_again(tmp_path, content):
    build_world(tmp_path, "tiny")
    next(tmp_path.glob("audio/*/*.flac")).rename(tmp_path / "audio/other.flac")
    with pytest.raises(UserError, match="holds no finished spoken world"):
        World.load(tmp_path)
    assert build_world(tmp_path, "tiny").info["content"] == content and (tmp_path / "audio/other.flac").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    for name in ("audio/song.flac", "samples/a.jsonl", "shards/mine.tar", "words.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = files(tmp_path)
    for prepare in (build_world, prepare_spoken_world):
        with pytest.raises(UserError, match=f"{tmp_path} is not a spoken world that this program made .*give an empty"):
            prepare(tmp_path, "tiny")
    assert files(tmp_path) == before


def test_what_was_made_for_other_settings_is_left_for_the_runs_that_need_it(tmp_path):
    build_world(tmp_path, "tiny")
    (tmp_path / "prepared.json").write_text('{"codebook_size": 16}')
    (tmp_path / "codec").mkdir()
    with pytest.raises(UserError, match=r"codebook_size is 16 there and 512 here.*data.world_folder=DIR"):
        prepare_spoken_world(tmp_path, "tiny")
    assert (tmp_path / "codec").is_dir()


def test_another_world_in_the_folder_is_left_alone(tmp_path):
    build_world(tmp_path, "tiny")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"'seed': 0.*, not .*'seed': 1.*delete it or choose another folder"):
        build_world(tmp_path, "tiny", seed=1)
    with pytest.raises(UserError, match="no size 'huge'; choose one of full, smoke"):
        build_world(tmp_path, "huge")
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        build_world(tmp_path, "tiny")
    (tmp_path / "world.json").write_text('{"name": "other"}')
    with pytest.raises(UserError, match="does not describe a spoken world"):
        build_world(tmp_path, "tiny")
    assert files(tmp_path) == before


def test_a_missing_or_failing_program_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in ("espeak-ng", "flite"):
        with pytest.raises(
            UserError, match=f"{program}.*is not installed; install it with 'apt-get install {program}'"
        ):
            build_world(tmp_path / "world", "tiny")
        fake = tmp_path / program
        fake.write_text(
            '#!/bin/sh\ncase "$1" in --version) echo "eSpeak 9.9";; *) echo "no such voice" >&2; exit 3;; esac\n'
        )
        fake.chmod(0o755)
    with pytest.raises(UserError, match="espeak-ng failed: no such voice"):
        build_world(tmp_path / "world", "tiny")
    with pytest.raises(UserError, match="flite failed: no such voice"):
        synthesis.speak(["two cups"], plan.ASSISTANT)


def test_the_assistants_voice_is_cut_and_says_its_version(monkeypatch):
    said = synthesis.speak(["two cups", "the big red cow lives in the barn"], plan.ASSISTANT)
    assert [wave.dtype for wave in said] == [np.int16] * 2 and len(said[0]) < len(said[1])
    for wave in said:
        assert np.abs(wave).max() > 3000 and np.abs(wave[:300]).max() < 200 > np.abs(wave[-800:]).max()
    assert all(synthesis.version_of(program)[0].isdigit() for program in ("espeak-ng", "flite"))
    silent = bytes(24) + (16_000).to_bytes(4, "little") + bytes(3200)
    monkeypatch.setattr(synthesis, "_run", lambda *command: silent)
    with pytest.raises(UserError, match="flite does not speak 'two cups' in the voice flite-rms"):
        synthesis.speak(["two cups"], plan.ASSISTANT)


def test_sentences_that_cannot_be_cut_apart_are_spoken_one_by_one(monkeypatch):
    voice = synthesis.Voice("en-us+f2")
    sentences = ["the big red cow", "two cups", "where does it live"]
    cut = synthesis.cut_at_breaks
    monkeypatch.setattr(synthesis, "cut_at_breaks", lambda samples, rate: cut(samples, rate)[:1])
    alone = synthesis.speak(sentences, voice)
    assert len(alone) == 3 and len({len(wave) for wave in alone}) == 3
    monkeypatch.setattr(synthesis, "cut_at_breaks", lambda samples, rate: [])
    with pytest.raises(UserError, match="does not speak 'the big red cow' as one sentence"):
        synthesis.speak(sentences, voice)
