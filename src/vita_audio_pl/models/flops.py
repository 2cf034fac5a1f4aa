"""Floating-point operations of a training step, independent of how it is computed.

A multiply-add counts as two. A matrix product counts once forward, once for the gradient of its input if needed, and
once for its own gradient if it trains, so frozen parts and skipped logits are accounted for. Recomputation is not
counted, and attention counts only the pairs of tokens that attend to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vita_audio_pl.models.families import DecoderLayer, head_norms
from vita_audio_pl.models.objectives import Objective
from vita_audio_pl.models.parallel_heads import ParallelHead
from vita_audio_pl.models.sensevoice import N_QUERIES, MemoryLayer
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.packed import PackedBatch

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_QUERY_KEY_AND_VALUE = 2 * 2  # operations per pair of tokens and feature: the score, and the weighted sum


@dataclass(frozen=True)
class Work:
    """The amount of work in a step, as counts, which may be expected values.

    Attributes:
        tokens: rows that each predictor processes, the backbone first: `1 + K` numbers.
        pairs: pairs of these rows that attend to each other, per predictor.
        scored: labels that each predictor is scored on.
        frames: states of the speech encoder; frame_pairs: pairs of them that attend to each other.
    """

    tokens: Sequence[float]
    pairs: Sequence[float]
    scored: Sequence[float]
    frames: float = 0.0
    frame_pairs: float = 0.0


def rows_and_pairs(batch: PackedBatch, n_heads: int) -> Tensor:
    """`Work.tokens`, then `Work.pairs` of a batch: `(2 + 2 * n_heads,)` float64."""
    seen = torch.where(batch.document_ids >= 0, batch.position_ids + 1, 0).reshape(1, -1)
    # head k starts at position k + 1 of a document and attends to nothing before it
    left_out = torch.tensor([0, *range(1, 1 + n_heads)], device=seen.device)[:, None]
    visible = (seen - left_out).clamp(min=0)
    return torch.cat([(visible > 0).sum(1), visible.sum(1)]).double()


def frames_and_pairs(batch: PackedBatch) -> tuple[int, int]:
    """`Work.frames` and `Work.frame_pairs` of a batch."""
    lengths = [len(clip) + N_QUERIES for clip in batch.clips]
    return sum(lengths), sum(n * n for n in lengths)


@dataclass
class _Part:
    """Operations per row, and per pair of rows that attend to each other."""

    row: int = 0
    pair: int = 0


@dataclass
class StepFlops:
    """Operations of a model's training step, forward and backward, given which parameters are frozen now.

    Args:
        model: only its shapes are read, so it may be on the meta device.
        objective: training objective.
    """

    model: SpeechLM
    objective: Objective
    _predictors: list[_Part] = field(init=False)
    _scored: list[int] = field(init=False)
    _encoder: _Part = field(init=False)

    def __post_init__(self) -> None:
        model, objective = self.model, self.objective
        trains = model.train_backbone
        deepest = model.n_heads if objective.weight else 0
        self._encoder, heard = self._speech_input()
        backbone, flows = _Part(), trains and (heard or model.model.embed_tokens.weight.requires_grad)
        for layer in model.backbone_layers:
            flows = _layer(backbone, layer, flows)
        flows = trains and (flows or _trains(model.model.norm))
        flowing, self._predictors = [flows], [backbone]
        embeds_flow = trains and model.model.embed_tokens.weight.requires_grad
        if model.config.detach_heads:
            embeds_flow = flows = False
        for head in list(model.heads)[:deepest]:
            part = _Part()
            if isinstance(head, ParallelHead):  # each reads the backbone, so `flows` stays the backbone's
                flowing.append(_linear(part, head.residual, flows))
                self._predictors.append(part)
                continue
            joined = embeds_flow or flows or _trains(head.embed_norm) or _trains(head.hidden_norm)
            flows = _layer(part, head.layer, _linear(part, head.proj, joined)) or _trains(model.model.norm)
            self._predictors.append(part)
            flowing.append(flows)
        rows = model.config.backbone.vocab_size
        # all predictors are scored in one call, which computes the gradients of all hidden states or of none
        uses = 1 + any(flowing) + model.lm_head.weight.requires_grad
        self._scored = [
            2
            * model.lm_head.in_features
            * (objective.vocabulary_rows(j, rows) * uses + objective.teacher_rows(j, rows))
            for j in range(len(flowing))
        ]
        if not trains:
            self._scored[0] = 0

    def of(self, work: Work) -> float:
        """Operations of a step that does `work`."""
        total = self._encoder.row * work.frames + self._encoder.pair * work.frame_pairs
        for part, tokens, pairs in zip(self._predictors, work.tokens, work.pairs, strict=False):
            total += part.row * tokens + part.pair * pairs
        return total + sum(each * scored for each, scored in zip(self._scored, work.scored, strict=False))

    def of_batch(self, batch: PackedBatch, counts: Tensor) -> float:
        """Operations for one batch; counts: `HeadLosses.counts` of it."""
        numbers = rows_and_pairs(batch, self.model.n_heads).tolist()
        half = len(numbers) // 2
        return self.of(Work(numbers[:half], numbers[half:], counts.tolist(), *frames_and_pairs(batch)))

    def _speech_input(self) -> tuple[_Part, bool]:
        """The encoder and its adapter, and whether gradients come out of them."""
        part, speech = _Part(), self.model.speech_input
        if speech is None:
            return part, False
        encoder, layers = speech.encoder, speech.encoder.encoder
        flows = _trains(encoder.embed)
        for layer in (*layers.encoders0, *layers.encoders):
            flows = _encoder_layer(part, cast(MemoryLayer, layer), flows)
        flows |= _trains(layers.after_norm)
        for layer in layers.tp_encoders:
            flows = _encoder_layer(part, cast(MemoryLayer, layer), flows)
        norm, first, _, second = speech.audio_projection
        read = flows or _trains(layers.tp_norm) or _trains(norm)
        return part, _linear(part, second, _linear(part, first, read))


def _layer(part: _Part, layer: DecoderLayer, flows: bool) -> bool:
    """Add a decoder layer; flows: whether its input requires gradients. Returns whether its output does."""
    attention, mlp = layer.self_attn, layer.mlp
    read = flows or _trains(layer.input_layernorm)
    looked = any([_linear(part, module, read) for module in (attention.q_proj, attention.k_proj, attention.v_proj)])
    looked |= any(_trains(norm) for norm in head_norms(layer) or ())
    part.pair += _QUERY_KEY_AND_VALUE * attention.o_proj.in_features * (1 + 2 * looked)
    flows = _linear(part, attention.o_proj, looked) or flows
    read = flows or _trains(layer.post_attention_layernorm)
    gated = any([_linear(part, module, read) for module in (mlp.gate_proj, mlp.up_proj)])
    return _linear(part, mlp.down_proj, gated) or flows


def _encoder_layer(part: _Part, layer: MemoryLayer, flows: bool) -> bool:
    """Add a SAN-M layer; flows: whether its input requires gradients. Returns whether its output does."""
    attention, feed_forward = layer.self_attn, layer.feed_forward
    looked = _linear(part, attention.linear_q_k_v, flows or _trains(layer.norm1))
    part.pair += _QUERY_KEY_AND_VALUE * attention.linear_out.in_features * (1 + 2 * looked)
    memory = attention.fsmn_block.weight
    part.row += 2 * memory.numel() * (1 + looked + memory.requires_grad)
    mixed = any([_linear(part, attention.linear_out, looked), looked, memory.requires_grad])
    flows = mixed or (flows and attention.linear_q_k_v.in_features == attention.linear_out.out_features)
    read = flows or _trains(layer.norm2)
    return _linear(part, feed_forward.w_2, _linear(part, feed_forward.w_1, read)) or flows


def _linear(part: _Part, module: nn.Module, flows: bool) -> bool:
    """Add a linear layer and its LoRA adapters; flows: whether its input requires gradients. Returns the output's."""
    if isinstance(module, nn.Linear):
        part.row += 2 * module.in_features * module.out_features * (1 + flows + module.weight.requires_grad)
        return flows or _trains(module)
    adapted = cast("LoraLayer", module)
    out = _linear(part, adapted.get_base_layer(), flows)
    for adapter in adapted.active_adapters:
        out |= _linear(part, adapted.lora_B[adapter], _linear(part, adapted.lora_A[adapter], flows))
    return out


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
