"""Spectra for a vocoder-free codec: mel frames of a wave, and a wave from mel frames (NNLS, then Griffin-Lim).

Frames are `4 * hop` samples long with a Hann window, so that squared windows add up to a constant everywhere. Frame j is
centred on hop j: it reaches 1.5 hops to either side of it. Outside a wave there is silence.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

OVERLAP = 4
_WINDOWS_ADD_UP_TO = 1.5  # sum of squared periodic Hann windows, four hops to a window
_MOST_FRAMES = 2048  # at a time: many short waves share a call, and a long one needs no more memory


@cache
def hann(hop: int) -> Tensor:
    """Periodic Hann window, `(4 * hop,)`."""
    return torch.hann_window(OVERLAP * hop, periodic=True)


@cache
def _synthesis_window(hop: int) -> Tensor:
    return hann(hop) / _WINDOWS_ADD_UP_TO


@cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular filters on Slaney's mel scale over 0 Hz to Nyquist, each summing to 1: `(n_fft // 2 + 1, n_mels)`.

    Raises:
        ValueError: the bands are narrower than the spectrum's resolution, so that one catches nothing.
    """
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(min=0.0)
    sums = triangles.sum(axis=0)
    if (sums == 0).any():
        raise ValueError(f"{n_mels} mel bands are too many for a window of {n_fft} samples at {sample_rate} Hz")
    return torch.from_numpy(triangles / sums).float()


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * math.log(6.4) / 27))


def mel_frames(waves: list[Tensor], hop: int, filters: Tensor) -> Tensor:
    """Mel amplitudes of all waves, one after the other; a full-scale sine has a peak amplitude of about 1/2.

    Args:
        waves: each `(frames * hop,) float32`.
        filters: from `mel_filters`.

    Returns:
        `(total frames, n_mels)`.
    """
    margin = (OVERLAP - 1) * hop // 2
    window = hann(hop) / hann(hop).sum()
    parts, gathered = [], []
    for wave in waves:
        for frames in torch.nn.functional.pad(wave, (margin, margin)).unfold(0, OVERLAP * hop, hop).split(_MOST_FRAMES):
            gathered.append(frames)
            if sum(map(len, gathered)) >= _MOST_FRAMES:
                parts.append(torch.fft.rfft(torch.cat(gathered) * window).abs() @ filters)
                gathered = []
    if gathered:
        parts.append(torch.fft.rfft(torch.cat(gathered) * window).abs() @ filters)
    return torch.cat(parts)


def cosines(size: int, count: int) -> Tensor:
    """The `count` slowest cosines over `size` places, of length 1 and at right angles: `(size, count)`."""
    waves = torch.cos(math.pi / size * (torch.arange(size) + 0.5)[:, None] * torch.arange(count))
    out: Tensor = waves / waves.norm(dim=0)
    return out


def amplitudes(wave: Tensor, hop: int) -> Tensor:
    """Spectral amplitudes in the frames and on the scale of `mel_frames`: `(frames * hop,)` to `(frames, bins)`."""
    margin = (OVERLAP - 1) * hop // 2
    frames = torch.nn.functional.pad(wave, (margin, margin)).unfold(0, OVERLAP * hop, hop)
    spectra: Tensor = torch.fft.rfft(frames * (hann(hop) / hann(hop).sum())).abs()
    return spectra


def invert_mel(mel: Tensor, filters: Tensor, iterations: int = 60) -> Tensor:
    """Non-negative spectra whose mel amplitudes come nearest to `mel` (accelerated projected gradient).

    Args:
        mel: `(frames, n_mels)` amplitudes.
        filters: `(bins, n_mels)`.

    Returns:
        `(frames, bins)`, no negative entry.
    """
    step = 1.0 / float(torch.linalg.matrix_norm(filters, ord=2)) ** 2
    spectrum: Tensor = (mel @ torch.linalg.pinv(filters)).clamp(min=0.0)
    ahead, momentum = spectrum, 1.0
    for _ in range(iterations):
        following = (ahead - step * (ahead @ filters - mel) @ filters.T).clamp(min=0.0)
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / faster * (following - spectrum)
        spectrum, momentum = following, faster
    return spectrum


def overlap_add(spectra: Tensor, hop: int) -> Tensor:
    """Waves of complex spectra: `(batch, frames, bins)` to `(batch, (frames + 3) * hop)`."""
    batch, count, _ = spectra.shape
    size, around = OVERLAP * hop, OVERLAP - 1
    frames = spectra.new_zeros((batch, count + 2 * around, size), dtype=torch.float32)  # with silent ones around
    torch.mul(torch.fft.irfft(spectra, n=size), _synthesis_window(hop), out=frames[:, around : around + count])
    # of each hop the parts of the frames that reach it: the last one's first, ..., the first one's last
    steps = frames.stride(0), size, size - hop, 1
    parts = frames.as_strided((batch, count + around, OVERLAP, hop), steps, around * hop)
    return parts.sum(dim=2).view(batch, -1)


def analyse(waves: Tensor, hop: int) -> Tensor:
    """Complex spectra of `waves: (batch, (frames + 3) * hop)`: `(batch, frames, bins)`."""
    out: Tensor = torch.fft.rfft(waves.unfold(1, OVERLAP * hop, hop) * hann(hop))
    return out


def griffin_lim(magnitudes: Tensor, hop: int, iterations: int, phases: Tensor, known: Tensor | None = None) -> Tensor:
    """Waves whose spectra have the given magnitudes (fast Griffin-Lim, Perraudin et al. 2013).

    Args:
        magnitudes: `(batch, frames, bins)`.
        phases: unit complex numbers to start from, same shape.
        known: `(batch, samples)`, the beginning of the waves where it is settled already; it is kept as it is.

    Returns:
        `(batch, (frames + 3) * hop)`; 1.5 hops at either end lie outside the framed span.
    """
    momentum = 0.99
    wave = ahead = _with_start(overlap_add(magnitudes * phases, hop), known)
    for _ in range(iterations):
        spectra = analyse(ahead, hop)
        lengths = torch.from_numpy(np.abs(spectra.numpy()))  # torch's takes several times as long
        scale = torch.div(magnitudes, lengths.clamp_(min=1e-12), out=lengths)
        following = _with_start(overlap_add(spectra.mul_(scale), hop), known)
        # Of the waves: analysis is linear, and their spectra are four times as large
        ahead = torch.lerp(wave, following, 1 + momentum)
        wave = following
    return wave


def _with_start(waves: Tensor, known: Tensor | None) -> Tensor:
    if known is not None:
        waves[:, : known.shape[1]] = known
    return waves


def unit(spectra: Tensor) -> Tensor:
    """Complex numbers scaled to length 1; 1 where they are 0."""
    lengths = spectra.abs()
    return torch.where(lengths > 1e-12, spectra / lengths.clamp(min=1e-12), 1.0)


def first_phases(frames: int, bins: int) -> Tensor:
    """Unit phases that let every bin's sinusoid run on from frame to frame: `(frames, bins) complex64`."""
    return _turns(bins).repeat(-(-frames // OVERLAP), 1)[:frames]


def running_phases(magnitudes: Tensor, start: Tensor | None = None) -> Tensor:
    """Unit phases that let the sinusoid at every peak of the magnitudes run on (Beauregard et al. 2015, single pass).

    A peak's frequency is read between the bins, and the bins around it go with it. From these phases a few rounds of Griffin-Lim
    come as near to the magnitudes as many do from `first_phases`.

    Args:
        magnitudes: `(frames, bins)`.
        start: `(bins,)` unit complex numbers, the phases of the first frame where they are known.

    Returns:
        `(frames, bins) complex64`.
    """
    rows = magnitudes.numpy()
    n_frames, n_bins = rows.shape
    peaks = np.zeros(rows.shape, bool)
    np.logical_and(rows[:, 1:-1] >= rows[:, :-2], rows[:, 1:-1] > rows[:, 2:], out=peaks[:, 1:-1])
    peaks[0, 0] = True  # so that there is one
    at = np.flatnonzero(peaks)
    frame, bins = np.divmod(at, n_bins)
    below, top, above = np.log(rows.ravel()[np.stack((at - 1, at, at + 1))].clip(1e-9, 1e30))
    off = (0.5 * (below - above) / np.minimum(below - 2 * top + above, np.float32(-1e-6))).clip(-0.5, 0.5)
    # A bin belongs to the nearest peak of its frame
    first = np.where(frame[1:] > frame[:-1], frame[1:] * n_bins, (at[1:] + at[:-1]) // 2 + 1)
    sizes = np.diff(first, prepend=0, append=rows.size)
    half_hop = np.repeat(((bins + off) / (2 * OVERLAP)).astype(np.float32), sizes).reshape(rows.shape)  # in turns
    steps = torch.zeros(n_frames, n_bins)
    if start is not None:
        steps[0] = start.angle() / (2 * math.pi)
    halves = torch.from_numpy(half_hop)
    torch.add(halves[1:], halves[:-1], out=steps[1:])
    phases = steps.cumsum(0).numpy()  # numpy's takes three times as long along columns
    # Frames begin at their window's edge, not at its middle: neighbouring bins of a sinusoid are half a turn apart
    turns = phases.ravel()[at] + np.float32(0.5) * (bins % 2)
    angles = ((turns - np.floor(turns)) * (2 * math.pi)).astype(np.float32)
    units = np.empty(len(at), np.complex64)
    units.real, units.imag = np.cos(angles), np.sin(angles)
    running = np.repeat(units, sizes).reshape(rows.shape)
    running[:, 1::2] *= -1
    out = torch.from_numpy(running)
    if start is not None:
        out[0] = start
    return out


@cache
def _turns(bins: int) -> Tensor:
    """Of the first frames, after which they repeat."""
    turns = (torch.arange(OVERLAP)[:, None] * torch.arange(bins)) % OVERLAP
    return torch.tensor([1, 1j, -1, -1j], dtype=torch.complex64)[turns]
