"""Multiple cross-modal token prediction (MCTP): blocks that predict the next token from a delayed backbone state."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vita_audio_pl.models.families import BackboneConfig, family_of


class MCTPBlock(GradientCheckpointingLayer):
    """Head `k`: a projection of (token embedding, previous hidden state) and one decoder layer.

    For rows `p >= k + 1` of a document, `z_p = proj([embed_norm(E[x_p]) ; hidden_norm(h^k_{p-1})])` goes through the
    layer; the shared final norm is applied by the model (VITA-Audio, section 3.2). `h^0` is the backbone's normed
    output.

    Args:
        config: the backbone's; the layer is of its family and has its shape.
        index: `k`, from 0. The layer's index in a key-value cache is `number of backbone layers + k`.
    """

    chained: ClassVar[bool] = True
    """Whether a head reads the one before it, so that its output is normed and cached."""

    def __init__(self, config: BackboneConfig, index: int):
        super().__init__()
        family = family_of(config)
        self.embed_norm = family.norm(config)
        self.hidden_norm = family.norm(config)
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        # the config describes only the backbone's layers, so this one is built as the last of them and renumbered
        self.layer = family.layer(config, config.num_hidden_layers - 1)
        self.layer.self_attn.layer_idx = config.num_hidden_layers + index

    def forward(
        self, embeds: Tensor, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], **attention: Any
    ) -> Tensor:
        """Hidden states before the final norm.

        embeds: (rows, length, hidden) of the tokens x_p; hidden: (rows, length, hidden) of the previous predictor at
        p - 1, normed; position_embeddings: RoPE cosines and sines, (rows, length, head size) each; attention: further
        arguments of the decoder layer (`documents`, or `attention_mask` and `past_key_values`).
        """
        joined = torch.cat((self.embed_norm(embeds), self.hidden_norm(hidden)), dim=-1)
        out: Tensor = self.layer(self.proj(joined), position_embeddings=position_embeddings, **attention)
        return out
