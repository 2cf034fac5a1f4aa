"""The GLM-4-Voice speech tokenizer's network: a causal-in-blocks Whisper encoder that ends in a codebook.

Public layout of the weights: no prefix, as many layers as run before the quantisation, no final norm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from vita_audio_pl.codecs.glm4voice.settings import TokenizerSettings

_ROWS_AT_ONCE = 2048  # of the distance table, 128 MiB at 16384 codes


class WhisperVQEncoder(nn.Module):
    """Log-mel features to codes; 100 frames a second in, 12.5 codes a second out with the public settings."""

    def __init__(self, settings: TokenizerSettings):
        super().__init__()
        self.settings = settings
        whisper = WhisperConfig(
            d_model=settings.width,
            encoder_attention_heads=settings.heads,
            encoder_ffn_dim=settings.ffn_width,
            activation_function="gelu",
        )
        whisper._attn_implementation = "sdpa"
        self.conv1 = nn.Conv1d(settings.n_mels, settings.width, 3)
        self.conv2 = nn.Conv1d(settings.width, settings.width, 3, stride=2)
        self.embed_positions = nn.Embedding(settings.positions, settings.width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(whisper) for _ in range(settings.quantize_position))
        self.codebook = nn.Embedding(settings.codebook_size, settings.width)
        # part of the public files, though neither is needed to find a code
        self.embed_positions2 = nn.Embedding(-(-settings.positions // settings.pooling_kernel), settings.width)
        if settings.has_ema:
            self.register_buffer("ema_count", torch.ones(settings.codebook_size))
            self.register_buffer("ema_weight", torch.zeros(settings.codebook_size, settings.width))

    @property
    def frames_per_code(self) -> int:
        return 2 * self.settings.pooling_kernel

    def hidden(self, features: Tensor, frames: Tensor) -> Tensor:
        """States that are quantised, `(items, length / 8, width)`.

        Args:
            features: `(items, n_mels, length)`, `length` a multiple of 8.
            frames: `(items,)`, frames of each item that are not padding, at least 1.
        """
        settings = self.settings
        x = features.to(self.conv1.weight.dtype)
        x = F.gelu(self.conv1(F.pad(x, (2, 0))))  # zeros on the left only: no look ahead
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        valid = (frames + 1) // 2
        mask = _attention_mask(x.shape[1], valid, settings.block)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, attention_mask=mask)
            if number == settings.pooling_position:
                x = self._pooled(x)
                valid = -(-valid // settings.pooling_kernel)
                mask = _attention_mask(x.shape[1], valid, max(1, settings.block // settings.pooling_kernel))
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        pool = F.avg_pool1d if self.settings.pooling_type == "avg" else F.max_pool1d
        return pool(x.transpose(1, 2), self.settings.pooling_kernel).transpose(1, 2)

    def quantised(self, hidden: Tensor) -> Tensor:
        """Number of the nearest codebook entry, `(items, length)` int64; always reckoned in float32."""
        codebook = self.codebook.weight.float()
        norms = codebook.square().sum(dim=1)
        flat = hidden.float().reshape(-1, hidden.shape[-1])
        nearest = [
            (rows.square().sum(dim=1, keepdim=True) + norms - 2 * rows @ codebook.T).argmin(dim=1)
            for rows in flat.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(nearest).reshape(hidden.shape[:-1])

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Codes `(items, length / 8)` int64; of item `i` the first `ceil(frames[i] / 8)` count."""
        return self.quantised(self.hidden(features, frames))


def _attention_mask(length: int, valid: Tensor, block: int) -> Tensor | None:
    """Which keys each query sees, `(items, 1, length, length)` bool; None where every query sees every key."""
    whole = bool((valid >= length).all())
    if whole and length <= block:
        return None
    place = torch.arange(length, device=valid.device)
    key, query = place[None, :], place[:, None]
    seen = (key <= query) | (key // block == query // block)
    if whole:
        return seen[None, None]
    return (seen[None] & (key[None] < valid[:, None, None]))[:, None]
