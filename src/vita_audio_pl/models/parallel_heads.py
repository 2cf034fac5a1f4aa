"""Parallel heads: each reads the backbone's state alone, the baseline that MCTP's chain of decoder layers is compared with."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vita_audio_pl.models.families import BackboneConfig


class ParallelHead(GradientCheckpointingLayer):
    """Head `k`: `h^{k+1}_p = x + SiLU(W_k x)` with `x = h^0_{p-k-1}`, the backbone's normed output `k + 1` tokens back.

    The residual block of Medusa (arXiv 2401.10774); arXiv 2506.12537 decodes speech with heads of this kind. Both give each head
    an output matrix of its own; here the backbone's is shared, as with MCTP, so that the block is the only difference. With
    `W_k = 0`, where training starts, a head predicts what the backbone does.

    Args:
        config: the backbone's.
        index: `k`; all heads are alike.
    """

    chained: ClassVar[bool] = False

    def __init__(self, config: BackboneConfig, index: int):
        super().__init__()
        self.residual = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(rows, length, hidden)` states of the backbone, normed, to states of the same shape for the vocabulary layer."""
        out: Tensor = hidden + F.silu(self.residual(hidden))
        return out
