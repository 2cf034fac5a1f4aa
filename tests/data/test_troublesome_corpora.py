"""One bad sample never stops a corpus: what can be used is used, the rest is counted, named and told."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer
from troublesome import CASES, CHATS, PYTHONS_WORDS, Case, kaldi

from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import Unreadable, make_reader
from vita_audio_pl.data.readers.base import read_part
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.text import AudioCodes, TextTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return toy_tokenizer()


def job_of(case: Case, folder: Path, tokenizer: TextTokenizer) -> TokenizeJob:
    (folder / "corpus").mkdir()
    for name, data in case.files.items():
        (folder / "corpus" / name).write_bytes(data)
    facts = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}
    reader = make_reader(folder / "corpus", case.task, case.reader, "the recipe")
    out = folder / "shards"
    return TokenizeJob("corpus", case.task, reader, tokenizer, LoudnessCodec, facts, load_audio, out)


def answers(source: PreparedSource, tokenizer: TextTokenizer) -> dict[str, tuple[str, float]]:
    """Last answer of each sample, and the seconds of its audio, by id; paths in ids without their folders."""
    found = {}
    for number in range(len(source)):
        sample = source.read(number)
        text, codes = "", 0
        for turn in sample.turns:
            pieces = [
                ("<|audio|>", s.codes.size) if isinstance(s, AudioCodes) else (tokenizer.decode(s.ids.tolist()), 0)
                for s in turn.segments
            ]
            codes += sum(size for _, size in pieces)
            text = "".join(piece for piece, _ in pieces)
        name = sample.id.rpartition("/")[2] if ":" in sample.id else sample.id
        assert name not in found
        found[name] = (text, codes / 12.5)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_can_be_used_is_used_and_the_rest_is_named(name: str, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    case = CASES[name]
    job = job_of(case, tmp_path, tokenizer)
    start = time.process_time()
    if case.used:
        manifest = prepare_source(job)
        assert manifest is not None and manifest.report["skipped"] == case.skipped
        found = answers(PreparedSource(job.out), tokenizer)
        assert {id: text for id, (text, _) in found.items()} == case.used
        assert {id: found[id][1] for id in case.seconds} == case.seconds
    else:
        with pytest.raises(UserError, match="no sample of 'corpus' could be used:\n"):
            prepare_source(job)
    assert time.process_time() - start < 10  # nothing takes long, however large
    named = [json.loads(line) for line in (job.out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    reasons = [line["reason"] for line in named]
    assert {reason: reasons.count(reason) for reason in reasons} == case.skipped
    for line in named:
        assert not line["reason"].startswith("unexpected") and "trace" not in line
        assert not PYTHONS_WORDS.search(line["problem"])
        assert line["where"][:50].rpartition("/")[2] in line["problem"] and len(line["problem"]) <= 1000


@pytest.mark.parametrize(
    ("kind", "ending", "options"),
    [
        ("jsonl", "jsonl", {}),
        ("table", "jsonl", CHATS),
        ("lines", "lst", {"line": "(?P<id>.*) (?P<text>.*)", "audio": "{id}"}),
        ("recordings", "json", {}),
        ("textgrid", "TextGrid", {"audio": "{list}.wav"}),
        ("webdataset", "tar", {}),
    ],
)
def test_what_is_matched_and_is_no_file_is_named_and_never_opened(
    kind: str, ending: str, options: dict[str, Any], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / f"pipe.{ending}")
    (tmp_path / f"circle.{ending}").symlink_to(f"circle.{ending}")
    (tmp_path / f"gone.{ending}").symlink_to(".git/annex/objects/gone")
    (tmp_path / f"folder.{ending}").mkdir()
    reader = make_reader(tmp_path, "asr", {**options, "kind": kind, "files": [f"*.{ending}"]}, "the recipe")
    found = [sample for part in reader.parts() for sample in read_part(reader, part)]
    assert all(isinstance(sample, Unreadable) and sample.reason == "damaged file" for sample in found)
    assert [sample.where for sample in found] == [f"{name}.{ending}" for name in ("circle", "gone", "pipe")]


def test_a_list_of_segments_that_is_a_link_to_nowhere_is_not_taken_for_none(tmp_path: Path) -> None:
    for name, data in kaldi(None).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "segments").symlink_to("gone")
    with pytest.raises(UserError, match="segments is a link to gone, where no file is"):
        make_reader(tmp_path, "asr", {"kind": "kaldi"}, "the recipe").parts()
