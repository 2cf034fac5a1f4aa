"""Streams of `mel_vq`: codes of audio that arrives bit by bit, and audio of codes."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vita_audio_pl.codecs import spectral
from vita_audio_pl.codecs.unit_selection import Trail

if TYPE_CHECKING:
    from vita_audio_pl.codecs.mel_vq import MelVQ


STREAM_ROUNDS = 0.3
"""Rounds of Griffin-Lim in a stream, as a share of those of whole decoding."""


class Context(NamedTuple):
    """What the spectra of the next codes of a stream depend on: the last codes `(n,)`, and the speech that is followed."""

    codes: Tensor = torch.zeros(0, dtype=torch.int64)
    trail: Trail = Trail()


class MelVQEncodeStream:
    """Codes of a wave that arrives bit by bit, each as soon as the 1.5 hops behind it are heard: those of the whole wave.

    Attributes:
        changed: codes handed out that later audio would give otherwise; none ever.
    """

    changed = 0

    def __init__(self, codec: "MelVQ") -> None:
        self._codec = codec
        self._wave = np.empty(0, np.float32)  # from one code before the first that is not handed out, if there is one
        self._before = 0  # codes at its beginning that are there for their overlap alone

    def push(self, wave: np.ndarray) -> np.ndarray:
        """Takes `wave: (samples,) float` and returns the codes that became final, `(n,) int32`."""
        self._wave = np.concatenate((self._wave, np.asarray(wave, np.float32)))
        size, reach = self._codec.config.samples_per_code, (spectral.OVERLAP - 1) * self._codec.config.hop // 2
        ready = (len(self._wave) - reach) // size
        if ready <= self._before:
            return np.empty(0, np.int32)
        codes = self._codec.encode([self._wave[: ready * size + reach]])[0][self._before : ready]
        self._wave, self._before = self._wave[(ready - 1) * size :], 1
        return codes

    def finish(self) -> np.ndarray:
        """Returns the codes still held back, the last one filled up with silence."""
        if len(self._wave) <= self._before * self._codec.config.samples_per_code:
            return np.empty(0, np.int32)
        return self._codec.encode([self._wave])[0][self._before :]


class MelVQStream:
    """Griffin-Lim in steps: samples once returned are fixed, and what follows is fitted to them, so no seam is heard.

    From running phases, few rounds come as near to the spectra as `decode`. 1.5 hops are held back until the next codes come.
    """

    def __init__(self, codec: "MelVQ") -> None:
        self._codec = codec
        self.context = Context()
        self._magnitudes = torch.zeros(0, codec.config.bins)  # of the last frames, as many as overlap the next one
        self._settled = torch.zeros(0)  # samples from the beginning of those frames to the beginning of the next
        self._held_back = torch.zeros(0)
        self._finished = False

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Takes `codes: (n,) integer`; returns the samples now final, `(samples,) float32`."""
        return next(self._codec.push_streams([self], [codes]))

    def taken(self, codes: np.ndarray) -> Tensor:
        """The codes, checked."""
        if self._finished:
            raise ValueError("mel_vq: this stream is finished; start another with decode_stream()")
        return self._codec._checked(codes)

    def sound(self, spectra: Tensor, context: Context) -> np.ndarray:
        """The samples that become final with the next spectra `(frames, bins)`, `(samples,) float32`."""
        self.context = context
        if not len(spectra):
            return np.zeros(0, np.float32)
        hop, iterations = self._codec.config.hop, math.ceil(STREAM_ROUNDS * self._codec.config.griffin_lim_iterations)
        edge = (spectral.OVERLAP - 1) * hop // 2
        beginning = len(self._settled) == 0
        magnitudes = torch.cat([self._magnitudes, spectra])
        start = None if beginning else spectral.unit(spectral.analyse(self._settled[None], hop)[0, 0])
        phases = spectral.running_phases(magnitudes, start)
        known = None if beginning else self._settled[None]
        wave = spectral.griffin_lim(magnitudes[None], hop, iterations, phases[None], known)[0]
        end = len(magnitudes) * hop  # where the next frame will begin
        final = wave[edge if beginning else len(self._settled) : end]
        self._magnitudes, self._settled = magnitudes[-spectral.OVERLAP :], wave[end - spectral.OVERLAP * hop : end]
        self._held_back = wave[end : end + edge]
        return final.clamp(-1, 1).numpy().copy()

    def finish(self) -> np.ndarray:
        """Returns the samples held back, `(samples,) float32`."""
        self._finished = True
        held_back, self._held_back = self._held_back, torch.zeros(0)
        return held_back.clamp(-1, 1).numpy().copy()
