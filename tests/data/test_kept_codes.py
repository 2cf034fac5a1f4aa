"""No wave is encoded twice: within a part, and by sources that have the same recordings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from miniatures.base import sound, write_tar
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer

from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import make_reader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.preparation import load_audio
from vita_audio_pl.text import TextTokenizer

CODEC = {
    "name": "loudness",
    "build": "counting",  # a process keeps the codec that it made for these facts, and other tests have made one
    "fingerprint": "loudness-1",
    "codes_per_second": 12.5,
    "codebook_size": N_CODES,
}
encoded: list[int] = []


@dataclass(frozen=True)
class CountingCodec(LoudnessCodec):
    """Notes how long the waves are that it encodes."""

    seen: list[int] = field(default_factory=lambda: encoded)

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.seen.extend(map(len, waves))
        return super().encode(waves)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two tars: a speaker with three utterances, and another with two; in all, five different waves."""
    for tar, seconds in (("a", (0.5, 0.6, 0.7)), ("b", (0.8, 0.9))):
        members = {}
        for number, length in enumerate(seconds):
            said = {"text": f"number {number}", "speaker": tar}
            members |= {f"{tar}{number}.json": json.dumps(said).encode(), f"{tar}{number}.wav": sound(length, 8000)}
        write_tar(tmp_path / f"corpus/{tar}.tar", members)
    encoded.clear()
    return tmp_path / "corpus"


def job(root: Path, shards: Path, source: str, tokenizer: TextTokenizer, **options: object) -> TokenizeJob:
    task = "asr" if source == "asr" else "tts"
    reader = make_reader(root, task, {"kind": "webdataset", "text": "json", **options}, "test")
    return TokenizeJob(
        source, task, reader, tokenizer, CountingCodec, CODEC, load_audio, shards / source, codes=shards / "codes"
    )


def codes_of(job: TokenizeJob) -> list[list[int]]:
    source = PreparedSource(job.out)
    segments = [s for n in range(len(source)) for turn in source.read(n).turns for s in turn.segments]
    return [s.codes.tolist() for s in segments if hasattr(s, "codes")]


def test_a_wave_is_encoded_once_whatever_is_made_of_it(root: Path, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    prompted = job(root, tmp_path / "shards", "prompted", tokenizer, speaker_prompt=True)
    prepare_source(prompted)
    assert sorted(encoded) == [4000, 4800, 5600, 6400, 7200]  # though each utterance but the last is a voice, too
    for source in ("plain", "asr"):
        prepare_source(job(root, tmp_path / "shards", source, tokenizer))
    assert len(encoded) == 5
    apart = job(root, tmp_path / "apart", "prompted", tokenizer, speaker_prompt=True)
    prepare_source(replace(apart, codes=None))
    assert len(encoded) == 10 and codes_of(apart) == codes_of(prompted)


@pytest.mark.parametrize("damage", ["cut", "flipped", "another codec"])
def test_damaged_codes_and_those_of_another_codec_are_never_used(root: Path, tmp_path: Path, damage: str) -> None:
    tokenizer = toy_tokenizer()
    first = job(root, tmp_path / "shards", "plain", tokenizer)
    prepare_source(first)
    second = job(root, tmp_path / "shards", "asr", tokenizer)
    for path in (tmp_path / "shards/codes").iterdir():
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[-20] ^= 1
        path.write_bytes(data if damage != "cut" else data[:-3])
    if damage == "another codec":
        second = replace(second, codec={**CODEC, "dtype": "bfloat16"})
    prepare_source(second)
    assert len(encoded) == 10 and codes_of(first) == codes_of(second)
