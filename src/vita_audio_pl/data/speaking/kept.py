"""Synthesised audio, stored as FLAC under a hash of text and voice, so that a restart synthesises nothing twice.

`<folder>/ab/<32 hex digits>.flac`, at the voice's own rate, 16 bits. An unreadable file is made again.
"""

import errno
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import soundfile

from vita_audio_pl.config.component import Custom
from vita_audio_pl.data.read_ahead import BROKEN_AUDIO
from vita_audio_pl.data.readers.base import AudioFile, AudioRef, LeftOut, ToSpeak
from vita_audio_pl.data.speaking.voices import NOT_SPOKEN, Voice, VoiceSettings, voice_facts
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.owned import Kind, Owned
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.remote_file import Unreachable

FOLDER = ".spoken"
"""Folder beside the sources' shards; the default."""

_KIND = Kind("folder of spoken texts", ("*/*.flac",))
_LOUDEST_SILENCE = 1e-4  # relative to full scale, as for recordings
# consecutive failures after which the voice itself is at fault: at its first texts, and later
_FIRST, _IN_A_ROW = 20, 500
_AWAY = 10.0  # seconds before an unavailable voice is tried again: by then all threads have seen the error

Load: TypeAlias = Callable[[AudioRef, int, float], np.ndarray]


@dataclass(frozen=True)
class KeptSpeech:
    """Loads recordings as a job does, and synthesised audio from the folder, synthesising it first if necessary.

    Attributes:
        load: loads recordings.
        voice: settings of the voice.
        facts: everything that its audio depends on; a worker whose voice has other facts does not synthesise.
        folder: folder of the audio.
    """

    load: Load
    voice: VoiceSettings | Custom
    facts: Mapping[str, Any]
    folder: Place

    def __call__(self, audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
        """See `AudioLoader`.

        Raises:
            LeftOut: it cannot be synthesised, is silent, or longer than `max_seconds`.
            OSError: the voice is not available (`errors.is_machine_fault`).
        """
        if not isinstance(audio, ToSpeak):
            return self.load(audio, sample_rate, max_seconds)
        path = self.path(audio.text)
        with _LOCKS[int(path.stem[:2], 16)]:  # a text that occurs in two samples is synthesised once
            kept = self._kept(path, sample_rate, max_seconds)
            if kept is None:
                sound = _flac(*_speaker_of(self).speak(audio.text))
                if not path.parent.is_dir():
                    Owned.claim(self.folder, _KIND)
                    path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, sound, flush=False)
                kept = self.load(AudioFile(path), sample_rate, max_seconds)
        return kept

    def kept(self, text: str, sample_rate: int) -> np.ndarray | None:
        """Stored audio of a text; None if there is none."""
        return self._kept(self.path(text), sample_rate, float("inf"))

    def path(self, text: str) -> Place:
        """File of a text's audio."""
        known = json.dumps([text, self.facts], sort_keys=True).encode()
        name = hashlib.sha256(known).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.flac"

    def _kept(self, path: Place, sample_rate: int, max_seconds: float) -> np.ndarray | None:
        if not path.is_file():
            return None
        try:
            return self.load(AudioFile(path), sample_rate, max_seconds)
        except LeftOut as problem:
            if problem.reason == BROKEN_AUDIO:
                return None
            raise


class _Speaker:
    """A voice and its failures."""

    def __init__(self, kept: KeptSpeech):
        try:
            self._voice: Voice = kept.voice.build()
            facts = voice_facts(kept.voice)
        except UserError as error:  # affects every text, so no sample is left out for it
            raise Unreachable(errno.ENOTCONN, str(error), "the voice") from error
        if facts != kept.facts:
            raise Unreachable(errno.ENOTCONN, f"it is {facts} here, and was {kept.facts}", "the voice")
        self._spoke, self._failed = False, 0
        self._away: Unreachable | None = None
        self._ask_again = 0.0  # on the clock of `time.monotonic`

    def speak(self, text: str) -> tuple[np.ndarray, int]:
        if self._away is not None and time.monotonic() < self._ask_again:
            raise self._away
        try:
            return self._speak(text)
        except Unreachable as error:
            self._away, self._ask_again = error, time.monotonic() + _AWAY
            raise

    def _speak(self, text: str) -> tuple[np.ndarray, int]:
        try:
            wave, rate = self._voice.speak(text)
            wave = np.asarray(wave, np.float32)
            if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
                raise LeftOut(NOT_SPOKEN, "the voice gave no samples that can be used")
            if float(np.abs(wave - wave.mean()).max()) < _LOUDEST_SILENCE:
                raise LeftOut(NOT_SPOKEN, "the voice gave only silence")
        except Exception as error:
            if is_machine_fault(error):
                raise
            self._failed += 1
            if self._failed >= (_IN_A_ROW if self._spoke else _FIRST):
                raise Unreachable(
                    errno.ENOTCONN,
                    f"{self._failed} texts in a row were not spoken, the last: {error!s:.300}",
                    "the voice",
                ) from error
            raise
        self._spoke, self._failed = True, 0
        return wave, rate


_LOCKS = [threading.Lock() for _ in range(256)]
_speakers: dict[str, _Speaker] = {}
_building = threading.Lock()


def _speaker_of(kept: KeptSpeech) -> _Speaker:
    """This process's voice."""
    key = json.dumps(kept.facts, sort_keys=True)
    with _building:
        if key not in _speakers:
            _speakers[key] = _Speaker(kept)
        return _speakers[key]


def _flac(wave: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
