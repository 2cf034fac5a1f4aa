"""The vocoder's excitation: sines at the pitch and its harmonics where there is voice, noise elsewhere."""

import math

import torch
from torch import Tensor, nn

from vita_audio_pl.codecs.glm4voice.settings import VocoderSettings


class HarmonicSource(nn.Module):
    """Source of a neural source-filter model (arXiv 1904.12088): harmonics mixed into one wave by a learned layer."""

    def __init__(self, settings: VocoderSettings):
        super().__init__()
        self.settings = settings
        self.l_linear = nn.Linear(settings.harmonics, 1)

    def forward(self, pitch: Tensor, phases: Tensor, noise: Tensor, cycles: Tensor | None = None) -> Tensor:
        """Source `(items, 1, frames * samples_per_frame)`.

        Args:
            pitch: `(items, frames)` Hz.
            phases: `(items, harmonics, 1)` radians; the fundamental's is taken as 0.
            noise: `(items, harmonics, frames * samples_per_frame)` standard normal.
            cycles: `(items, harmonics, 1)` run before the first sample, for a source that goes on; None for none.
        """
        settings = self.settings
        per_sample = pitch[:, None, :].repeat_interleave(settings.samples_per_frame, dim=2)
        run = (per_sample * _numbers(settings, pitch) / settings.sample_rate).cumsum(dim=2)
        if cycles is not None:
            run = run + cycles
        phases = torch.cat((torch.zeros_like(phases[:, :1]), phases[:, 1:]), dim=1)
        sines = settings.sine_amplitude * torch.sin(2 * math.pi * run.remainder(1.0) + phases)
        voiced = (per_sample > settings.voiced_threshold).to(pitch.dtype)
        noise_level = settings.noise_level * voiced + settings.sine_amplitude / 3 * (1 - voiced)
        waves = sines * voiced + noise_level * noise
        return torch.tanh(self.l_linear(waves.transpose(1, 2))).transpose(1, 2)

    def cycles_after(self, pitch: Tensor, cycles: Tensor) -> Tensor:
        """Cycles run after the frames of `pitch: (items, frames)`, `(items, harmonics, 1)` in [0, 1)."""
        seconds = self.settings.samples_per_frame / self.settings.sample_rate
        run = pitch.double().sum(dim=1)[:, None, None] * seconds * _numbers(self.settings, pitch)
        return (cycles + run).remainder(1.0).to(pitch.dtype)

    def draw(self, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random phases and noise of one item on the CPU, in the order in which the published vocoder draws them."""
        harmonics = self.settings.harmonics
        phases = torch.rand(1, harmonics, 1, generator=generator) * (2 * math.pi) - math.pi
        noise = torch.randn(1, harmonics, frames * self.settings.samples_per_frame, generator=generator)
        return phases, noise


def _numbers(settings: VocoderSettings, like: Tensor) -> Tensor:
    return torch.arange(1, settings.harmonics + 1, device=like.device, dtype=like.dtype)[:, None]
