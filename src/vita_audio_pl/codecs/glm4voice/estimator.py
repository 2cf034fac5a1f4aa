"""The velocity estimator of the flow: a one-dimensional U-Net of residual blocks and transformer layers.

The architecture is Matcha-TTS's decoder (arXiv 2309.03199); names of weights as in the public file.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio_pl.codecs.glm4voice.settings import EstimatorSettings

_GROUPS = 8


class VelocityEstimator(nn.Module):
    """Velocity `(items, n_mels, frames)` at the point `x` and time `t` of the flow."""

    def __init__(self, settings: EstimatorSettings):
        super().__init__()
        channels = settings.channels
        time_width = channels[0] * 4
        self.time_mlp = _TimeEmbedding(settings.input_size, time_width)

        def stage(input_size: int, output_size: int) -> list[nn.Module]:
            layers = [_TransformerLayer(output_size, settings) for _ in range(settings.layers_per_stage)]
            return [_ResidualBlock(input_size, output_size, time_width), nn.ModuleList(layers)]

        last = len(channels) - 1
        self.down_blocks = nn.ModuleList()
        size = settings.input_size
        for level, width in enumerate(channels):
            down = nn.Conv1d(width, width, 3, padding=1) if level == last else _Downsample(width)
            self.down_blocks.append(nn.ModuleList([*stage(size, width), down]))
            size = width
        self.mid_blocks = nn.ModuleList(nn.ModuleList(stage(size, size)) for _ in range(settings.middle_stages))
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(reversed(channels)):
            size = channels[max(0, last - level - 1)]
            up = nn.Conv1d(size, size, 3, padding=1) if level == last else _Upsample(size)
            self.up_blocks.append(nn.ModuleList([*stage(2 * width, size), up]))
        self.final_block = _ConvBlock(size, size)
        self.final_proj = nn.Conv1d(size, settings.output_size, 1)

    def forward(
        self, x: Tensor, mean: Tensor, t: Tensor, speaker: Tensor, prompt: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Estimates the velocity.

        Args:
            x, mean, prompt: `(items, n_mels, frames)`; t: `(items,)` in [0, 1]; speaker: `(items, n_mels)`.
            mask: `(items, 1, frames)`, 1 on frames that count; None where all do.
        """
        time = self.time_mlp(t)
        x = torch.cat((x, mean, speaker[..., None].expand_as(x), prompt), dim=1)
        masks, skips = [mask], []
        for level, block in enumerate(self.down_blocks):
            residual, layers, down = cast(nn.ModuleList, block)
            here = masks[-1]
            x = _stage(x, time, here, residual, layers)
            skips.append(x)
            x = down(_masked(x, here))
            if level < len(self.down_blocks) - 1:
                masks.append(None if here is None else here[..., ::2])
        for block in self.mid_blocks:
            residual, layers = cast(nn.ModuleList, block)
            x = _stage(x, time, masks[-1], residual, layers)
        for block in self.up_blocks:
            residual, layers, up = cast(nn.ModuleList, block)
            skip = skips.pop()
            # an odd number of frames comes back one longer than it went down
            x = torch.cat((x[..., : skip.shape[-1]], skip), dim=1)
            x = _stage(x, time, masks[len(skips)], residual, layers)
            x = up(_masked(x, masks[len(skips)]))
        x = self.final_block(x, mask)
        return _masked(self.final_proj(_masked(x, mask)), mask)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _stage(x: Tensor, time: Tensor, mask: Tensor | None, residual: nn.Module, layers: nn.Module) -> Tensor:
    x = residual(x, time, mask).transpose(1, 2)
    # the published network adds the 0/1 mask product to the scores, so padding is weakened, not shut out
    bias = None if mask is None else (mask.transpose(1, 2) * mask)[:, None]
    for layer in cast(nn.ModuleList, layers):
        x = layer(x, bias)
    return x.transpose(1, 2)


class _TimeEmbedding(nn.Module):
    def __init__(self, size: int, width: int):
        super().__init__()
        self.frequencies = size // 2
        self.linear_1 = nn.Linear(size, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        # in float32: a thousand times a rounded time would be another time
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=t.device)
        angles = 1000 * t.float()[:, None] * torch.exp(steps * (-math.log(10_000.0) / (self.frequencies - 1)))
        sines = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(sines)))
        return out


class _ConvBlock(nn.Module):
    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(input_size, output_size, 3, padding=1), nn.GroupNorm(_GROUPS, output_size), nn.Mish()
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return _masked(self.block(_masked(x, mask)), mask)


class _ResidualBlock(nn.Module):
    def __init__(self, input_size: int, output_size: int, time_width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, output_size))
        self.block1 = _ConvBlock(input_size, output_size)
        self.block2 = _ConvBlock(output_size, output_size)
        self.res_conv = nn.Conv1d(input_size, output_size, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        h = self.block1(x, mask) + self.mlp(time)[..., None]
        out: Tensor = self.block2(h, mask) + self.res_conv(_masked(x, mask))
        return out


class _Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class _TransformerLayer(nn.Module):
    def __init__(self, width: int, settings: EstimatorSettings):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = _Attention(width, settings.heads, settings.head_size)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), bias)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_size: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_size, bias=False)
        self.to_k = nn.Linear(width, heads * head_size, bias=False)
        self.to_v = nn.Linear(width, heads * head_size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_size, width)])

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([_GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class _GeluProjection(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))
