"""An answer's own sound in the microphone, told from somebody who speaks.

A voice detector hears loudspeakers as well as people, however low they are. What comes back of an answer is what was sent, later and
lower: its correlation with that is near one, and falls as soon as somebody speaks over it. Rooms with much reverberation lower it,
too; there, echo cancellation in the client (browsers have one) is what keeps the answer out.
"""

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.serving.voice import Resampler

_RATE = 8_000
_IN_A_ROW = (
    3  # windows of the detector that the answer must not explain before somebody speaks: it notices first sounds early
)
_WINDOW = 0.256  # seconds that are compared
_LATE, _EARLY = 1.5, 0.1  # seconds by which what is heard lags behind what was sent; of either clock's inexactness
_HANGOVER = 0.5  # seconds
_ALIKE = 0.85  # correlation from which the answer explains what is heard: with noise 4 dB below it


class OwnSound:
    """What was sent of the last answer, against what comes in.

    Args:
        sent_rate: samples per second that go out; 16,000 come in.
    """

    def __init__(self, sent_rate: int):
        self._sent_rate = sent_rate
        self._recent = np.zeros(round(_WINDOW * _RATE), np.float32)
        self._clock = self._began = 0  # samples that came in: now, and when the answer's sound began
        self._sent: Resampler | None = None
        self._pieces: list[NDArray[np.float32]] = []
        self._explained = 0, 0.0  # clock and energy of what was explained last
        self._unexplained = 0  # windows since

    def begin(self) -> None:
        """Another answer begins to sound."""
        self._pieces, self._sent, self._began = [], Resampler(self._sent_rate, 2 * _RATE), self._clock
        self._unexplained = 0

    def send(self, wave: NDArray[np.float32]) -> None:
        """Takes `(samples,)` of the answer that go out."""
        if self._sent is not None:
            self._pieces.append(self._sent.push(wave))  # (samples,) at twice `_RATE`

    def hear(self, wave: NDArray[np.float32]) -> None:
        """Takes `(samples,)`, an even number, that come in; they are the clock."""
        new = _halved(wave)  # a resampler would hold back the last of them
        self._clock += new.size
        self._recent = np.concatenate([self._recent, new])[-self._recent.size :]

    def explains(self) -> bool:
        """Whether what came in last is the answer's own sound."""
        place, length = self._clock - self._began, self._recent.size
        first = place - length - round(_LATE * _RATE)
        sent = _halved(np.concatenate([np.empty(0, np.float32), *self._pieces]))
        reference = np.pad(sent, (max(-first, 0), 0))[max(first, 0) : max(-first, 0) + place + round(_EARLY * _RATE)]
        if sent.size == 0 or reference.size < length or not reference.any() or not self._recent.any():
            return False
        energy = float(np.dot(self._recent, self._recent))
        if _correlation(self._recent.astype(np.float64), reference.astype(np.float64)) >= _ALIKE:
            self._explained, self._unexplained = (self._clock, energy), 0
            return True
        # a detector goes on for a moment when a word has ended, and what is left of it may be noise
        when, level = self._explained
        if self._clock - when <= _HANGOVER * _RATE and energy <= level:
            return True
        self._unexplained += 1
        return self._unexplained < _IN_A_ROW and place < sent.size + round(_LATE * _RATE)


def _halved(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(samples,)` at half the rate, each the mean of two; the same for both sides, which is what a comparison needs."""
    halved: NDArray[np.float32] = wave[: wave.size // 2 * 2].reshape(-1, 2).mean(axis=1)
    return halved


def _correlation(heard: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Largest normalised correlation of `heard` with as long a part of `reference`, whatever the part's level and sign."""
    size = 1 << (reference.size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(reference, size) * np.fft.rfft(heard, size).conj(), size)
    product = product[: reference.size - heard.size + 1]
    energy = np.cumsum(np.concatenate([[0.0], reference**2]))
    parts = energy[heard.size :] - energy[: -heard.size]
    floor = 1e-6 * parts.max()  # silence explains nothing
    return float((np.abs(product) / np.sqrt(np.maximum(parts, floor) * (heard**2).sum())).max())
