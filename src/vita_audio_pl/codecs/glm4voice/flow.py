"""Codes to mel spectrogram by conditional flow matching: encoder, stretching to frames, ODE, training loss."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio_pl.codecs.glm4voice.conformer import BlockCausalEncoder
from vita_audio_pl.codecs.glm4voice.estimator import VelocityEstimator
from vita_audio_pl.codecs.glm4voice.settings import FlowSettings
from vita_audio_pl.foreign.weights import load_strict, read_weights


class CodesToMel(nn.Module):
    """The decoder's first half; mel frames are natural-log magnitudes, 22.05 kHz, 256 samples each."""

    def __init__(self, settings: FlowSettings):
        super().__init__()
        self.settings = settings
        self.input_embedding = nn.Embedding(settings.vocabulary, settings.embedding_size)
        self.spk_embed_affine_layer = nn.Linear(settings.speaker_size, settings.n_mels)
        self.encoder = BlockCausalEncoder(settings.encoder)
        self.encoder_proj = nn.Linear(settings.encoder.width, settings.n_mels)
        self.length_regulator = _LengthRegulator(settings.n_mels, settings.regulator_convolutions)
        self.decoder = ConditionalFlow(settings)

    @classmethod
    def load(cls, settings: FlowSettings, path: Path) -> "CodesToMel":
        """Loads the public `flow.pt`; a UserError says what is wrong with it."""
        with torch.device("meta"):
            flow = cls(settings)
        load_strict(flow, read_weights(path), path)
        return flow.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder_proj.weight.dtype

    def code_states(self, codes: Tensor) -> Tensor:
        """What each code says about the mel, `(items, n, n_mels)`, of `codes: (items, n)`; negative codes count as 0."""
        out: Tensor = self.encoder_proj(self.encoder(self.input_embedding(codes.clamp(min=0))))
        return out

    def mean(self, states: Tensor, code_of_frame: Tensor) -> Tensor:
        """Mean of the mel, `(items, n_mels, frames)`: the states of `code_of_frame: (frames,)`, smoothed."""
        out: Tensor = self.length_regulator(states[:, code_of_frame].transpose(1, 2))
        return out

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker condition `(items, n_mels)` of `embedding: (items, speaker_size)`; zeros stand for no speaker."""
        # in float32: half precision would round the smallest norm to 0, and no speaker would be 0 / 0
        out: Tensor = self.spk_embed_affine_layer(F.normalize(embedding.float(), dim=1).to(self.dtype))
        return out

    def forward(
        self,
        codes: Tensor,
        code_of_frame: Tensor,
        noise: Tensor,
        *,
        prompt: Tensor | None = None,
        embedding: Tensor | None = None,
        steps: int = 10,
        guidance: float | None = None,
    ) -> Tensor:
        """Mel frames after those of the prompt, `(items, n_mels, frames - prompt frames)` float32.

        Args:
            codes: `(items, n)` int64, those of the prompt first.
            code_of_frame: `(frames,)` int64, the code that each frame belongs to.
            noise: `(items, n_mels, frames)`, where the flow starts.
            prompt: `(items, n_mels, prompt frames)`, mel that is known already.
            embedding: `(items, speaker_size)`; None for the public decoder's neutral voice.
            steps: Euler steps; guidance: None for the checkpoint's own.
        """
        mean = self.mean(self.code_states(codes), code_of_frame)
        if embedding is None:
            embedding = mean.new_zeros(len(mean), self.settings.speaker_size)
        condition = torch.zeros_like(mean)
        known = 0 if prompt is None else prompt.shape[-1]
        if prompt is not None:
            condition[..., :known] = prompt
        guidance = self.settings.guidance if guidance is None else guidance
        mel = self.decoder.solve(noise, mean, self.speaker(embedding), condition, steps, guidance)
        return mel[..., known:]


def stretched(codes: int, frames: int, device: torch.device) -> Tensor:
    """The code that each of `frames` frames belongs to, `(frames,)` int64, as nearest interpolation has it."""
    places = torch.arange(frames, dtype=torch.float32, device=device) * torch.tensor(codes / frames, device=device)
    return places.floor().long().clamp(max=codes - 1)


class _LengthRegulator(nn.Module):
    def __init__(self, n_mels: int, convolutions: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv1d(n_mels, n_mels, 3, padding=1), nn.GroupNorm(1, n_mels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(n_mels, n_mels, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def _cosine(u: Tensor) -> Tensor:
    """Time of the flow at the share `u` of the way."""
    return 1 - torch.cos(u * 0.5 * math.pi)


class ConditionalFlow(nn.Module):
    """Carries noise to mel along the estimated velocity (flow matching, arXiv 2210.02747), with guidance."""

    def __init__(self, settings: FlowSettings):
        super().__init__()
        self.sigma_min, self.drop_rate = settings.sigma_min, settings.drop_rate
        self.estimator = VelocityEstimator(settings.estimator)

    def solve(
        self, noise: Tensor, mean: Tensor, speaker: Tensor, condition: Tensor, steps: int, guidance: float
    ) -> Tensor:
        """Euler steps from `noise: (items, n_mels, frames)` to mel, float32; the points of time are cosine-spaced."""
        times = _cosine(torch.linspace(0, 1, steps + 1, device=noise.device))
        guided = guidance > 0
        if guided:  # with and without conditions in one pass
            mean, speaker, condition = (torch.cat((c, torch.zeros_like(c))) for c in (mean, speaker, condition))
        x = noise.float()
        for now, then in pairwise(times):
            point = torch.cat((x, x)) if guided else x
            velocity = self.estimator(point.to(mean.dtype), mean, now.expand(len(point)), speaker, condition).float()
            if guided:
                conditional, free = velocity.chunk(2)
                velocity = (1 + guidance) * conditional - guidance * free
            x = x + (then - now) * velocity
        return x

    def compute_loss(
        self,
        target: Tensor,
        mask: Tensor,
        mean: Tensor,
        speaker: Tensor,
        condition: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Flow-matching loss: mean squared error of the velocity over the frames that count.

        With the checkpoint's rate an item is trained without its conditions (mean, speaker, prompt).

        Args:
            target, mean, condition: `(items, n_mels, frames)`; mask: `(items, 1, frames)`; speaker: `(items, n_mels)`.
            generator: of the draws: time, noise, dropped conditions, in that order.
        """

        def draw(kind: Callable[..., Tensor], *shape: int) -> Tensor:
            return kind(*shape, generator=generator, device=target.device, dtype=target.dtype)

        t = _cosine(draw(torch.rand, len(target), 1, 1))
        noise = draw(torch.randn, *target.shape)
        kept = (draw(torch.rand, len(target)) > self.drop_rate).to(target.dtype)[:, None, None]
        point = (1 - (1 - self.sigma_min) * t) * noise + t * target
        velocity = target - (1 - self.sigma_min) * noise
        estimate: Tensor = self.estimator(
            point, mean * kept, t.flatten(), speaker * kept[..., 0], condition * kept, mask
        )
        return ((estimate - velocity) * mask).square().sum() / (mask.sum() * target.shape[1])
