"""Turn taking: the incoming audio of a session, and where its turns begin and end."""

from collections.abc import AsyncIterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import TurnContent
from vita_audio_pl.serving.audio_input import TurnEncoder, VoiceActivity
from vita_audio_pl.serving.own_sound import OwnSound
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.session_settings import TurnDetection

_LATE = 0.1  # seconds of speech before it is detected


class TurnTaker:
    """Incoming audio of one session: encoded while it arrives, by push to talk or by turns that a detector finds.

    Attributes:
        rate: sample rate of the input, Hz.
        detection: how turns are found; None for push to talk.
        own: the answer's own audio, so that an answer does not interrupt itself.
    """

    def __init__(self, service: Service):
        self.rate = OUTPUT_RATE
        self.detection: TurnDetection | None = TurnDetection()
        self.own = OwnSound()
        self._service = service
        self._encoder: TurnEncoder | None = None
        self._activity: VoiceActivity | None = None
        self._recent: list[NDArray[np.float32]] = []  # audio before speech was detected
        self._heard = 0.0  # seconds received

    def set(self, rate: int, detection: TurnDetection | None) -> None:
        """Change the turn detection; an incomplete turn is dropped unless nothing changes."""
        if (rate, detection) == (self.rate, self.detection):
            return
        self.rate, self.detection = rate, detection
        self.clear()

    def clear(self) -> None:
        """Drop the current turn."""
        self._encoder, self._recent, self._activity = None, [], None

    def _detector(self, detection: TurnDetection) -> VoiceActivity:
        """Created with the first audio, since it loads a network."""
        return VoiceActivity(self.rate, detection.threshold, detection.silence_duration_ms / 1000, self.own)

    async def push(self, wave: NDArray[np.float32]) -> AsyncIterator[tuple[bool, int]]:
        """Add `(samples,)`; returns, for each turn that begins (True) or ends (False), the time in ms of received audio.

        Raises:
            UserError: too much at once, or too long a turn.
        """
        self._check_length(wave.size / self.rate)
        self._heard += wave.size / self.rate
        if self.detection is None:
            await self._encode(wave)
            return
        activity = self._activity = self._activity or self._detector(self.detection)
        if self._encoder is None:
            self._keep_recent(wave, self.detection.prefix_padding_ms / 1000 + _LATE)
        turns = await self._service.in_worker(partial(activity.push, wave))
        for began in turns:
            if began:
                wave = np.concatenate(self._recent) if self._recent else wave
                self._recent = []
                yield True, max(round(1000 * (self._heard - wave.size / self.rate)), 0)
            await self._encode(wave)
            wave = wave[:0]
            if not began:
                yield False, round(1000 * self._heard)
        if self._encoder is not None:
            await self._encode(wave)

    async def finish(self, least: float) -> TurnContent:
        """The turn as model input; the next one begins.

        Raises:
            UserError: it is shorter than `least` seconds.
        """
        encoder, self._encoder = self._encoder, None
        if encoder is None or not encoder.samples or encoder.seconds < least:
            raise UserError(f"the audio buffer has less than {max(least, 0.01) * 1000:.0f} ms; append audio first")
        said: TurnContent = await self._service.in_worker(encoder.finish)
        return said

    async def encode(self, wave: NDArray[np.float32]) -> TurnContent:
        """Add a whole turn `(samples,)`."""
        self._check_length(wave.size / self.rate)
        encoder = self._service.audio_input.turn_encoder(self.rate)
        await self._service.in_worker(lambda: encoder.push(wave))
        said: TurnContent = await self._service.in_worker(encoder.finish)
        return said

    async def _encode(self, wave: NDArray[np.float32]) -> None:
        encoder = self._encoder = self._encoder or self._service.audio_input.turn_encoder(self.rate)
        if not wave.size:
            return
        try:
            self._check_length(encoder.seconds + wave.size / self.rate)
        except UserError:
            self.clear()
            raise
        await self._service.in_worker(lambda: encoder.push(wave))

    def _check_length(self, seconds: float) -> None:
        limit = self._service.config.limits.audio_seconds
        if seconds > limit:
            raise UserError(f"a turn of {seconds:.1f} s is longer than the {limit:g} s allowed; it was cleared")

    def _keep_recent(self, wave: NDArray[np.float32], seconds: float) -> None:
        self._recent.append(wave)
        while len(self._recent) > 1 and sum(map(len, self._recent[1:])) > seconds * self.rate:
            del self._recent[0]
