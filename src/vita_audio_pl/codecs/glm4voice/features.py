"""Whisper's log-mel spectrogram on any device, with its normalisation apart, so that a stream can keep its own level."""

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples
HOP = 160  # samples, one frame
_QUIETEST = 1e-10
_RANGE = 8.0  # powers of ten kept below the loudest bin


def log_mel(waves: Tensor, n_mels: int) -> Tensor:
    """Base-10 logarithm of the mel powers, `(items, n_mels, samples / 160)`, of `waves: (items, samples) float32`."""
    spectrum = torch.stft(waves, N_FFT, HOP, window=_window(waves.device), center=True, return_complex=True)
    powers = spectrum[..., :-1].abs().square().contiguous()  # matmul is several times slower on a strided operand
    return (_filters(n_mels, waves.device) @ powers).clamp(min=_QUIETEST).log10()


def normalise(logs: Tensor) -> Tensor:
    """Whisper's input features: nothing more than 8 below each item's loudest bin, scaled."""
    return (torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - _RANGE) + 4.0) / 4.0


@lru_cache(maxsize=8)
def _window(device: torch.device) -> Tensor:
    return torch.hann_window(N_FFT, device=device)


@lru_cache(maxsize=8)
def _filters(n_mels: int, device: torch.device) -> Tensor:
    """Slaney triangles with area 1, `(n_mels, 201)`."""
    bank = mel_filter_bank(1 + N_FFT // 2, n_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T.copy()).to(device, torch.float32)
