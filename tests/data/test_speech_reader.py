"""Long recordings without transcripts are cut where nobody speaks, alike each time, and written down by a recogniser."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer

from vita_audio_pl.config.component import Custom
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.readers import RawSample, Transcriber, Unreadable, make_reader, read_part
from vita_audio_pl.data.readers.speech import cut
from vita_audio_pl.data.recipe import parse_recipe
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import tokenize_job
from vita_audio_pl.spoken_world import synthesis

SENTENCES = ("the big red cow lives in the barn", "the girl has four cups", "the teacher sees the small dolphin")
GAP = 1.2  # seconds between them
CODEC = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}


class Timing:
    """A recogniser that writes how many tenths of a second it heard."""

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        assert sample_rate == 16_000 and all(wave.dtype == np.float32 for wave in waves)
        return [f"heard {round(10 * len(wave) / sample_rate)}" for wave in waves]


def timing(**facts: str) -> Transcriber:
    return Transcriber(Custom(f"{__name__}.Timing", {}), {"judge": "timing", **facts})


class Peak:
    """A recogniser that writes how loud what it heard is."""

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        return [f"{np.abs(wave).max():.4f}" for wave in waves]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[float, float]]]:
    """A recording of three sentences at 44.1 kHz in stereo, where each lies, one of noise, and one that is none."""
    root = tmp_path_factory.mktemp("talk")
    said = [wave.astype(np.float32) / 32768 for wave in synthesis.speak(list(SENTENCES), synthesis.Voice("en-us+m2"))]
    silence, wave, places = np.zeros(round(GAP * 16_000), np.float32), np.zeros(8000, np.float32), []
    for sentence in said:
        places.append((len(wave) / 16_000, (len(wave) + len(sentence)) / 16_000))
        wave = np.concatenate([wave, sentence, silence])

    both = soxr.resample(wave, 16_000, 44_100)
    soundfile.write(root / "talk.wav", np.stack([both, both], 1), 44_100)
    soundfile.write(root / "hum.wav", 0.01 * np.random.default_rng(0).normal(size=32_000), 16_000)
    (root / "broken.wav").write_bytes(b"RIFFnothing")
    return root, places


def recipe(**options: Any) -> Any:
    facts = {"description": "talk", "languages": ["en"], "licence": "none", "home": "here", "layout": "*.wav"}
    return parse_recipe("talk", {"task": "asr", **facts, "reader": {"kind": "speech", **options}}, "talk.yaml")


def test_a_recording_is_cut_in_its_pauses_and_written_down(
    corpus: tuple[Path, list[tuple[float, float]]], tmp_path: Path
) -> None:
    root, places = corpus
    job = tokenize_job(
        recipe(longest=4.0), "train", root=root, shards=tmp_path, tokenizer=toy_tokenizer(), codec_folder=None,
        transcriber=timing(), max_skipped=1.0,
    )  # fmt: skip
    job = replace(job, make_codec=LoudnessCodec, codec=CODEC)
    part = next(part for part in job.reader.parts() if part.name == "talk.wav")
    samples = [sample for sample in read_part(job.reader, part) if isinstance(sample, RawSample)]
    pieces = [(audio.start, audio.start + audio.seconds) for sample in samples for audio in sample.audios]  # type: ignore[union-attr,operator]
    assert len(pieces) == len(places)
    for (start, end), (begins, ends) in zip(pieces, places, strict=True):
        assert begins - 0.5 < start <= begins + 0.15 and ends - 0.25 <= end < ends + 0.5
    assert [s.transcript for s in samples] == [f"heard {round(10 * (end - start))}" for start, end in pieces]
    manifest = prepare_source(job)
    assert manifest is not None and manifest.samples == 3
    assert manifest.report["skipped"] == {"no speech": 1, "damaged file": 1}
    assert json.loads((job.out / "card.json").read_text())["transcripts"] == {"judge": "timing"}
    again = read_part(job.reader, part)
    assert [s.conversation for s in again if isinstance(s, RawSample)] == [s.conversation for s in samples]


@pytest.mark.parametrize("channel", [0, 1])
def test_one_channel_is_cut_and_heard_where_one_is_chosen(tmp_path: Path, channel: int) -> None:
    first, second = (
        w.astype(np.float32) / 32768 for w in synthesis.speak(list(SENTENCES[:2]), synthesis.Voice("en-us"))
    )
    gap = np.zeros(32_000, np.float32)
    left = np.concatenate([gap, first, gap, 0 * second, gap])
    right = np.concatenate([gap, 0 * first, gap, second / 4, gap])
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], 1), 16_000)
    reader = recipe(channel=channel).open(tmp_path, transcriber=Transcriber(Custom(f"{__name__}.Peak", {}), {}))
    [sample] = read_part(reader, reader.parts()[0])
    assert isinstance(sample, RawSample)
    [audio] = sample.audios
    begins = 2 + channel * (len(first) / 16_000 + 2)
    assert abs(audio.start - begins) < 0.5 and audio.channel == channel  # type: ignore[union-attr]
    assert float(sample.transcript) == pytest.approx(np.abs((left, right)[channel]).max(), rel=0.02)
    missing = recipe(channel=2).open(tmp_path, transcriber=timing())
    [left_out] = read_part(missing, missing.parts()[0])
    assert isinstance(left_out, Unreadable) and "there is no channel 2; it has 2" in left_out.problem


def test_pieces_are_as_long_as_they_may_be_and_names_follow_from_all_that_decides(
    corpus: tuple[Path, list[tuple[float, float]]],
) -> None:
    root, _ = corpus
    with pytest.raises(UserError, match="judge=whisper"):
        recipe().open(root).parts()
    with pytest.raises(UserError, match="no option 'transcriber'"):
        recipe(transcriber={"_target_": "os.system"}).open(root)
    with pytest.raises(UserError, match="shortest must be below longest"):
        recipe(longest=0.5).open(root)
    for longest in (0.21, 0.25):  # these would be cut into pieces of nothing, without end
        with pytest.raises(UserError, match="no room to cut"):
            recipe(longest=longest, shortest=0.1).open(root)
    assert len(cut(np.ones(100, np.float32), 0.3, 0.01, 0.3, 0.5)) > 10
    with pytest.raises(UserError, match="in place of channel: each give channel: 0"):
        recipe(channel="each").open(root)
    identities = {
        recipe(**options).open(root, transcriber=timing(**facts)).parts()[0].identity
        for options in ({}, {"longest": 4.0}, {"pause": 0.5}, {"lower": True})
        for facts in ({}, {"model": "other"})
    }
    assert len(identities) == 8
    reader = make_reader(root, "asr", {"kind": "speech", "files": ["talk.wav"]}, "test", transcriber=timing())
    assert len(list(read_part(reader, reader.parts()[0]))) == 1  # all of it fits into 28 s


def test_speech_without_a_pause_is_cut_where_it_sounds_least_like_speech() -> None:
    chances = np.full(1000, 0.9, np.float32)  # 32 s
    chances[[260, 600]] = 0.6
    pieces = cut(chances, 12.0, 1.0, 0.3, 0.5)
    assert pieces[0][0] == 0 and pieces[-1][1] == 32.0
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(1.0 <= end - start <= 12.0 for start, end in pieces)
    assert {260 * 0.032, 600 * 0.032} <= {end for _, end in pieces}
    rng = np.random.default_rng(0)
    for _ in range(200):
        chances = np.repeat(rng.random(rng.integers(1, 60)), rng.integers(1, 40)).astype(np.float32)
        pieces = cut(chances, 3.0, 0.3, 0.2, 0.5)
        ends = [at for piece in pieces for at in piece]
        assert ends == sorted(ends) and all(0.3 <= end - start <= 3.0 + 1e-6 for start, end in pieces)
        assert not pieces or (pieces[0][0] >= 0 and pieces[-1][1] <= len(chances) * 0.032 + 1e-6)
