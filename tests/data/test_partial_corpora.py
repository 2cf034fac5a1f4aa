"""Corpora of which a part is missing, as people have them on their disks: what is there is used, and what is not is told."""

import io
import shutil
from pathlib import Path

import pytest
from miniatures import MINIATURES
from miniatures.base import sound, write
from toy_corpus import toy_tokenizer

from vita_audio_pl.codecs import MelVQ, MelVQConfig, read_audio
from vita_audio_pl.data.options import ExecutorOptions, PrepareConfig
from vita_audio_pl.data.prepared import Manifest
from vita_audio_pl.data.readers import Unreadable, make_reader, read_part
from vita_audio_pl.errors import UserError
from vita_audio_pl.prepare import prepare


@pytest.fixture
def prepared(tmp_path: Path):
    """Prepares a miniature, of which `without` was not downloaded, and returns the folder of the shards."""
    toy_tokenizer().save(tmp_path / "tokenizer")
    waves = [read_audio(io.BytesIO(sound(1.0, hz=hz)), 16_000) for hz in (200, 300, 400)]
    MelVQ.fit(waves, MelVQConfig(codebook_size=16)).save(tmp_path / "codec")

    def make(source: str, *without: str, **options: object) -> Path:
        if not (tmp_path / source).exists():
            next(m for m in MINIATURES if m.source == source).make(tmp_path / source)
        for name in without:
            shutil.rmtree(tmp_path / source / name)
        prepare(
            PrepareConfig(
                source=source,
                root=str(tmp_path / source),
                shards=str(tmp_path / "shards"),
                tokenizer_folder=str(tmp_path / "tokenizer"),
                codec_folder=str(tmp_path / "codec"),
                executor=ExecutorOptions(workers=1),
                **options,  # type: ignore[arg-type]
            )
        )
        return tmp_path / "shards"

    return make


def test_what_was_not_downloaded_is_told_and_the_rest_is_prepared(prepared, capsys) -> None:
    shards = prepared("librispeech", "train-clean-360", "train-other-500", "dev-clean")
    told = capsys.readouterr().out
    missing = "no file matches train-clean-360/*/*/*.trans.txt, train-other-500/*/*/*.trans.txt"
    assert f"'librispeech' is prepared without a part of the corpus: {missing}\n" in told
    assert "there is no 'librispeech.dev': " in told and told.index("there is no") < told.index("is ready")
    assert Manifest.load(shards / "librispeech").samples == 1 and not (shards / "librispeech.dev").exists()
    assert "files that were not there | train-clean-360/" in (shards / "librispeech/card.md").read_text()
    with pytest.raises(UserError, match="no file matches dev-clean"):
        prepared("librispeech", split="dev")
    with pytest.raises(UserError, match="no file matches train-clean-100.*check where the corpus is"):
        prepared("librispeech", "train-clean-100", split="train")


def test_a_share_that_turns_out_empty_is_no_error(prepared, capsys) -> None:
    shards = prepared("emilia")
    assert Manifest.load(shards / "emilia").samples == 5
    assert "'emilia.dev' is not there for validation: no sample" in " ".join(capsys.readouterr().err.split())


def test_people_without_a_name_are_no_speaker(prepared) -> None:
    shards = prepared("gigaspeech", split="train")
    assert Manifest.load(shards / "gigaspeech").report["speakers"] == 0
    assert "| speakers | not given by the corpus |" in (shards / "gigaspeech/card.md").read_text()


def test_pointers_and_archives_that_are_still_packed_are_named(tmp_path: Path) -> None:
    write(tmp_path / "data/a.tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    reader = make_reader(tmp_path, "asr", {"kind": "webdataset", "files": ["data/*.tar"]}, "test")
    [found] = [sample for part in reader.parts() for sample in read_part(reader, part)]
    assert isinstance(found, Unreadable) and "run git lfs pull" in found.problem
    for archive, recording in (("wav/S0002.tar.gz", "wav/train/S0002/a.wav"), ("q_1.tar", "q_1/wav/a.wav")):
        write(tmp_path / archive, b"")
        with pytest.raises(UserError, match=f"there is no such audio file; .*{archive} may hold it: unpack it"):
            read_audio(tmp_path / recording, 16_000)
