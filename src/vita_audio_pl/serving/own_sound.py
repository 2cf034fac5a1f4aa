"""Tells an answer's own audio in the microphone from a person who speaks.

A voice activity detector also reacts to loudspeakers, however quiet. The echo of an answer is what was sent, later and
quieter: its correlation with it is close to 1, and drops as soon as somebody speaks over it. Strong reverberation
lowers it, too; then echo cancellation in the client (browsers have it) must remove the echo.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.serving.resampling import Resampler

_RATE = 8_000
# windows that the answer must not explain before a person counts as speaking: the detector reacts early to first sounds
_IN_A_ROW = 3
_WINDOW = 0.256  # seconds that are compared
_LATE, _EARLY = 1.5, 0.1  # seconds of delay between sending and hearing; and inaccuracy of either clock
_HANGOVER = 0.5  # seconds
_ALIKE = 0.85  # correlation from which the answer explains the input: with noise 4 dB below it


@dataclass
class _Answer:
    """The audio of one answer: an answer that begins replaces it whole, as another thread may be comparing with it."""

    resampler: Resampler
    began: int  # when, by the clock of incoming samples
    pieces: list[NDArray[np.float32]] = field(default_factory=list)  # (samples,) at twice `_RATE`
    unheard: list[NDArray[np.float32]] = field(default_factory=list)  # sent since: most answers are heard to the end
    unexplained: int = 0  # windows since the last explained one


class OwnSound:
    """Compares the input, at 16,000 Hz, with the audio of the last answer.

    One thread may `hear` and ask what `explains`, another one `begin` and `send`.
    """

    def __init__(self) -> None:
        self._recent = np.zeros(round(_WINDOW * _RATE), np.float32)
        self._clock = 0  # number of incoming samples
        self._answer: _Answer | None = None
        self._explained = 0, 0.0  # clock and energy of the last explained window

    def begin(self, rate: int) -> None:
        """Another answer starts playing, at `rate` Hz."""
        self._answer = _Answer(Resampler(rate, 2 * _RATE), self._clock)

    def send(self, wave: NDArray[np.float32]) -> None:
        """Add outgoing `(samples,)` of the answer."""
        if self._answer is not None:
            self._answer.unheard.append(wave)

    def hear(self, wave: NDArray[np.float32]) -> None:
        """Add incoming `(samples,)`, an even number; they are the clock."""
        new = _halved(wave)  # a resampler would hold back the last ones
        self._clock += new.size
        self._recent = np.concatenate([self._recent, new])[-self._recent.size :]

    def explains(self) -> bool:
        """Whether the latest input is the answer's own audio."""
        answer = self._answer  # read once: another may begin meanwhile
        if answer is None:
            return False
        while answer.unheard:
            answer.pieces.append(answer.resampler.push(answer.unheard.pop(0)))
        place, length = self._clock - answer.began, self._recent.size
        first = place - length - round(_LATE * _RATE)
        sent = _halved(np.concatenate([np.empty(0, np.float32), *answer.pieces]))
        reference = np.pad(sent, (max(-first, 0), 0))[max(first, 0) : max(-first, 0) + place + round(_EARLY * _RATE)]
        if sent.size == 0 or reference.size < length or not reference.any() or not self._recent.any():
            return False
        energy = float(np.dot(self._recent, self._recent))
        if _correlation(self._recent.astype(np.float64), reference.astype(np.float64)) >= _ALIKE:
            self._explained, answer.unexplained = (self._clock, energy), 0
            return True
        # a detector stays active for a moment after a word, when the rest may be noise
        when, level = self._explained
        if self._clock - when <= _HANGOVER * _RATE and energy <= level:
            return True
        answer.unexplained += 1
        return answer.unexplained < _IN_A_ROW and place < sent.size + round(_LATE * _RATE)


def _halved(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(samples,)` at half the rate, means of pairs; applied to both sides, which suffices for a comparison."""
    halved: NDArray[np.float32] = wave[: wave.size // 2 * 2].reshape(-1, 2).mean(axis=1)
    return halved


def _correlation(heard: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Largest normalised correlation of `heard` with an equally long part of `reference`, for any level and sign."""
    size = 1 << (reference.size - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(reference, size) * np.fft.rfft(heard, size).conj(), size)
    product = product[: reference.size - heard.size + 1]
    energy = np.cumsum(np.concatenate([[0.0], reference**2]))
    parts = energy[heard.size :] - energy[: -heard.size]
    floor = 1e-6 * parts.max()  # silence explains nothing
    return float((np.abs(product) / np.sqrt(np.maximum(parts, floor) * (heard**2).sum())).max())
