"""What drafting computes, in plain torch: vLLM's layers and norms are handed in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Qwen2Config

from vita_audio_pl.models.vllm_export import DRAFT_TYPE


class DraftConfig(Qwen2Config):
    """`config.json` of the heads as a draft model; `backbone_type` says whose decoder layer they have."""

    model_type = DRAFT_TYPE
    backbone_type: str = "qwen2"
    num_nextn_predict_layers: int = 0
    n_predict: int = 0


class DraftHead(nn.Module):
    """Head `k` over tokens that lie flat, N of them, H the hidden size; parameters are named as `models.mctp.MCTPBlock`'s.

    Args:
        width: H.
        norm: makes an RMS norm.
        layer: decoder layer as vLLM has them, `layer(positions=, hidden_states=, residual=) -> (output, residual)`.
    """

    def __init__(self, width: int, norm: Callable[[], nn.Module], layer: nn.Module):
        super().__init__()
        self.embed_norm, self.hidden_norm = norm(), norm()
        self.proj = nn.Linear(2 * width, width, bias=False)
        self.layer = layer

    def forward(self, embeddings: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states before the final norm; embeddings, hidden: (N, H); positions: (N,)."""
        joined = torch.cat((self.embed_norm(embeddings), self.hidden_norm(hidden)), dim=-1)  # (N, 2H)
        output, residual = self.layer(positions=positions, hidden_states=self.proj(joined), residual=None)
        states: Tensor = output + residual
        return states


class HeadChain(nn.Module):
    """All heads and the final norm; `embed_tokens` is the backbone's and is set by whoever loads the model.

    vLLM counts a row by its place P in the backbone. At P, head k reads token P + k + 1 and what its predecessor made at P,
    which for k = 0 is the backbone's normed state. In `SpeechLM` this is row p = P + k + 1. The rotary angle is P's and not
    p's: within a head all rows are shifted alike, and attention depends on differences alone.
    """

    def __init__(self, heads: list[DraftHead], norm: nn.Module):
        super().__init__()
        self.embed_tokens: nn.Module = nn.Identity()
        self.heads = nn.ModuleList(heads)
        self.norm = norm

    def forward(self, input_ids: Tensor, positions: Tensor, hidden: Tensor, head: int) -> Tensor:
        """Normed hidden states (N, H) of `head`, for logits and for the next head; input_ids, positions: (N,)."""
        output: Tensor = self.norm(self.heads[head](self.embed_tokens(input_ids), positions, hidden))
        return output
