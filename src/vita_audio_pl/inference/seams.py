"""Are the joins of streamed audio audible? Spectral flux at the joins, and distance from decoding in one go."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vita_audio_pl.codecs import spectral

WINDOW_SECONDS, HOP_SECONDS = 0.016, 0.004
QUIETEST = 1e-4
"""Magnitudes below this count as silence, relative to a full-scale sine of about 1/4 of the window's length."""


def seam_flux(chunks: Sequence[NDArray[np.float32]], sample_rate: int) -> float:
    """Spectral flux at the joins of `chunks` relative to elsewhere; 1 or less: no click.

    Flux is the mean rise of log magnitudes from one 16 ms frame to the next, 4 ms later. A join's flux is the largest
    among the frames that contain it; elsewhere the largest of as many consecutive frames, except silence. Both are
    averaged.

    Raises:
        ValueError: there is no join, or too little audio around it.
    """
    wave = np.concatenate(list(chunks))
    joins = np.cumsum([len(chunk) for chunk in chunks])[:-1]
    joins = joins[(joins > 0) & (joins < len(wave))]
    size, hop = int(WINDOW_SECONDS * sample_rate), int(HOP_SECONDS * sample_rate)
    if len(joins) == 0 or len(wave) < 4 * size:
        raise ValueError("a seam needs two chunks and at least 64 ms of sound")
    starts = np.arange(0, len(wave) - size, hop)
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[starts] * np.hanning(size)
    levels = np.log(np.maximum(np.abs(np.fft.rfft(frames, axis=1)) / (size / 4), QUIETEST))
    flux = np.maximum(levels[1:] - levels[:-1], 0).mean(axis=1)
    heard = np.maximum(levels[1:], levels[:-1]).mean(axis=1) > np.log(QUIETEST) + 0.1
    around = size // hop + 1  # frames that contain a given sample
    first = np.clip(joins // hop - around, 0, len(flux) - around)
    near = first[:, None] + np.arange(around)
    at_join = [flux[frames].max() for frames in near if heard[frames].any()]
    free = heard.copy()
    free[near] = False
    blocks = [slice(i, i + around) for i in range(0, len(flux) - around, around)]
    elsewhere = [flux[block].max() for block in blocks if free[block].all()]
    if not at_join or not elsewhere:
        raise ValueError("there is silence around all joins, or everywhere else")
    return float(np.mean(at_join) / max(np.mean(elsewhere), 1e-9))


def log_mel_distance(
    first: NDArray[np.float32], second: NDArray[np.float32], sample_rate: int, n_mels: int = 80
) -> float:
    """Mean absolute difference of two waves' log-mel spectra, in nepers (1 neper = 8.7 dB); the longer wave is cut."""
    size, hop = int(0.032 * sample_rate), int(0.008 * sample_rate)
    filters = spectral.mel_filters(sample_rate, size, n_mels)
    length = min(len(first), len(second))
    window = torch.hann_window(size)

    def log_mel(wave: NDArray[np.float32]) -> torch.Tensor:
        spectrum = torch.stft(torch.from_numpy(wave[:length]), size, hop, window=window, return_complex=True).abs()
        return (filters.T @ spectrum).clamp(min=1e-3).log()

    return float((log_mel(first) - log_mel(second)).abs().mean())
