"""The decoder's encoder of codes: pre-norm layers with relative positions, causal but for blocks that see themselves.

Attention with relative positions as in Transformer-XL (arXiv 1901.02860); names of weights as in the public file.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio_pl.codecs.glm4voice.settings import ConformerSettings


class BlockCausalEncoder(nn.Module):
    """Embedded codes `(items, n, input_size)` to states `(items, n, width)`; all items are `n` codes long."""

    def __init__(self, settings: ConformerSettings):
        super().__init__()
        self.settings = settings
        self.embed = _InputLayer(settings)
        self.encoders = nn.ModuleList(_Layer(settings) for _ in range(settings.layers))
        self.after_norm = nn.LayerNorm(settings.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        place = torch.arange(x.shape[1], device=x.device)
        key, query = place[None, :], place[:, None]
        allowed = (key <= query) | (key // self.settings.block == query // self.settings.block)
        positions = relative_positions(x.shape[1], self.settings.width, x.device).to(x.dtype)
        for layer in self.encoders:
            x = layer(x, positions, allowed)
        out: Tensor = self.after_norm(x)
        return out


def relative_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids of the distances `length - 1` down to `-(length - 1)`, `(2 length - 1, width)` float32.

    A distance is positive where the key lies to the left of the query.
    """
    distances = torch.arange(length - 1, -length, -1, dtype=torch.float32, device=device)[:, None]
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    angles = distances * torch.exp(steps * (-math.log(10_000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class _InputLayer(nn.Module):
    def __init__(self, settings: ConformerSettings):
        super().__init__()
        self.out = nn.Sequential(nn.Linear(settings.input_size, settings.width), nn.LayerNorm(settings.width))
        self.scale = math.sqrt(settings.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x) * self.scale
        return out


class _Layer(nn.Module):
    def __init__(self, settings: ConformerSettings):
        super().__init__()
        self.self_attn = _RelativeAttention(settings.width, settings.heads)
        self.feed_forward = _FeedForward(settings.width, settings.ffn_width)
        self.norm_ff = nn.LayerNorm(settings.width)
        self.norm_mha = nn.LayerNorm(settings.width)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, allowed)
        out: Tensor = x + self.feed_forward(self.norm_ff(x))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


class _RelativeAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_size = heads, width // heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.head_size))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.head_size))

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        length = x.shape[1]
        query = self.linear_q(x).unflatten(-1, (self.heads, self.head_size))
        key = self._by_head(self.linear_k(x))
        value = self._by_head(self.linear_v(x))
        position = self._by_head(self.linear_pos(positions)[None])
        by_distance = (query + self.pos_bias_v).transpose(1, 2) @ position.transpose(-1, -2)  # (items, heads, n, 2n-1)
        place = torch.arange(length, device=x.device)
        column = (length - 1 - place[:, None] + place[None, :]).expand(*by_distance.shape[:2], length, length)
        scores = by_distance.gather(-1, column) / math.sqrt(self.head_size)
        mixed = F.scaled_dot_product_attention(
            (query + self.pos_bias_u).transpose(1, 2), key, value, attn_mask=scores.masked_fill(~allowed, -torch.inf)
        )
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        out: Tensor = x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)
        return out
