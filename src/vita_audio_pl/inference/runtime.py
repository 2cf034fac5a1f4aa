"""The model's arithmetic for decoding: fused weights, rows of many sequences in one pass, nothing kept between calls.

The same function as the training forward (transformers' Qwen2 layers and the MCTP blocks), without its per-module
overhead: query, key and value weights are one matrix, gate and up another, rotary angles come from a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.cache import Cache
from vita_audio_pl.inference.products import Product, product, vocabulary_product
from vita_audio_pl.inference.rows import Rows, Span
from vita_audio_pl.inference.screening import Largest
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.text.turns import EXTRA_FRAMES


class Norm:
    """RMSNorm with fixed weights."""

    def __init__(self, norm: Qwen2RMSNorm):
        weight, self._eps = norm.weight.detach(), norm.variance_epsilon
        self._weight, self._width = weight, weight.shape[-1]
        self._by_parts = weight.dtype == torch.float32 and weight.device.type == "cpu"
        if self._by_parts:
            self._scaled = weight * self._width**0.5
            self._floor = torch.tensor((self._eps * self._width) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, width) -> (rows, width)`."""
        if not self._by_parts:
            return F.rms_norm(x, (self._width,), self._weight, self._eps)
        # x / sqrt(mean(x^2) + eps) as sqrt(width) * x / hypot(|x|, sqrt(width * eps)): half the time on a CPU
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self._floor)).mul_(self._scaled)


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer, ready for decoding."""

    input_norm: Norm
    qkv: Product
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, layer: Qwen2DecoderLayer, pack: bool) -> "Layer":
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv_weight = torch.cat([p.weight.detach() for p in projections])
        qkv_bias = torch.cat([p.bias.detach() for p in projections])
        gate_up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        return cls(
            Norm(layer.input_layernorm),
            product(qkv_weight, qkv_bias, pack=pack),
            product(attention.o_proj.weight, attention.o_proj.bias, pack=pack),
            Norm(layer.post_attention_layernorm),
            product(gate_up, pack=pack),
            product(mlp.down_proj.weight, pack=pack),
        )


@dataclass(frozen=True)
class Head:
    """Weights of one MCTP block, ready for decoding."""

    embed_norm: Norm
    hidden_norm: Norm
    join: Product
    layer: Layer


class AudioStates(NamedTuple):
    """States `(len(rows), hidden_size)` of an audio encoder, and the rows of a pass that they are read at."""

    rows: list[int]
    states: Tensor


class _Places(NamedTuple):
    """What all layers of a pass share: the rows, cosines and signed sines `(rows.total, 1, head_size)` of their positions,
    and their places in the cache."""

    rows: Rows
    cos: Tensor
    sin: Tensor
    places: Tensor


class Runtime:
    """A `SpeechLM` prepared for decoding; build once, use for any number of sessions. Weights are those at build time.

    Args:
        model: on the device and in the type to decode in.
        n_heads: heads to prepare, all by default.
        pack: copy weights into the CPU's fast layout, and large vocabularies into 8 bits to find the largest logit with
            (float32 on a CPU; elsewhere without effect).
        compile: let torch.compile fuse what lies between the products (pays on a GPU; needs a C++ or CUDA compiler).

    Raises:
        UserError: the backbone has a part that decoding does not know.
    """

    def __init__(self, model: SpeechLM, *, n_heads: int | None = None, pack: bool = True, compile: bool = False):
        config = model.config.backbone
        if "sliding_attention" in (config.layer_types or ()) or config.hidden_act != "silu":
            raise UserError(
                "decoding knows Qwen2 backbones with full attention and SiLU, and this one is of another kind"
            )
        backbone = model.model
        self.n_heads = model.n_heads if n_heads is None else min(n_heads, model.n_heads)
        self.n_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.query_heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads or self.query_heads
        self.groups = self.query_heads // self.key_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.scale = self.head_size**-0.5
        self._parts = (
            (0, self.query_heads + self.key_heads),  # what is rotated
            (0, self.query_heads),
            (self.query_heads, 2 * self.key_heads),  # what is kept
        )
        self.max_positions = config.max_position_embeddings
        self.embedding = backbone.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        with torch.inference_mode(False), torch.no_grad():
            self.final_norm = Norm(backbone.norm)
            self.layers = [Layer.of(layer, pack) for layer in model.backbone_layers]
            self.heads = [
                Head(
                    Norm(block.embed_norm),
                    Norm(block.hidden_norm),
                    product(block.proj.weight, pack=pack),
                    Layer.of(block.layer, pack),
                )
                for block in islice(model.heads, self.n_heads)
            ]
            self.vocabulary_weight = model.lm_head.weight.detach()
            self.vocabulary = vocabulary_product(self.vocabulary_weight, pack=pack)
        self.largest = Largest(self.vocabulary_weight, self.vocabulary, screened=pack)
        self._parts_of_vocabulary: dict[tuple[int, ...], tuple[int | None, Product, Largest]] = {}
        self._speech_input = model.speech_input
        self.place_of_audio = model.config.context_of_audio
        self._pack = pack
        self._rotate, self._gated = rotate_, gated
        if compile:
            self._rotate, self._gated = torch.compile(rotate_, dynamic=True), torch.compile(gated, dynamic=True)
        self._rotary = backbone.rotary_emb
        self.angles = (torch.empty(0, self.head_size, device=self.device),) * 2

    def new_cache(self, *, slots: int, capacity: int, n_heads: int, window: int | None = None) -> Cache:
        """A cache for `slots` sequences of up to `capacity` tokens, of which `n_heads` heads write."""
        self._extend_angles(capacity)
        return Cache(
            slots=slots,
            capacity=capacity,
            layers=self.n_layers + n_heads,
            key_heads=self.key_heads,
            head_size=self.head_size,
            levels=n_heads,
            window=min(window or capacity, capacity),
            hidden_size=self.hidden_size,
            dtype=self.dtype,
            device=self.device,
        )

    def rows(self, predictor: int, spans: Sequence[Span], ids: Sequence[int]) -> Rows:
        """Rows of `spans` for a pass of predictor 0 (the backbone) or k + 1 (head k), with the tokens `ids` at them."""
        return Rows(spans, ids, first_key=predictor, groups=self.groups, device=self.device, dtype=self.dtype)

    def hear(self, clips: Sequence[Tensor]) -> Tensor:
        """States `(frames + 4 for each clip, hidden_size)` that the backbone reads in place of the audio's tokens.

        clips: features `(frames, size)` of each recording, as `check_clips` lets them pass.
        """
        assert self._speech_input is not None  # `check_clips` refuses recordings without it
        weight = next(self._speech_input.audio_projection.parameters())
        states: Tensor = self._speech_input([clip.to(weight) for clip in clips])
        return states.to(self.dtype)

    def check_clips(self, clips: Sequence[Tensor], places: int) -> None:
        """Checks that `clips` are features that the model can hear, and fill the prompt's `places` for their states.

        Raises:
            UserError: the model has no encoder, a clip is not of `(frames, size)` finite numbers, or it is another number.
        """
        if len(clips) and self._speech_input is None:
            raise UserError("this model reads audio as codes and has no encoder to hear it with")
        size = 0 if self._speech_input is None else self._speech_input.encoder.config.input_size
        for number, clip in enumerate(clips, 1):
            shape = tuple(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
            if not isinstance(clip, Tensor) or clip.dim() != 2 or clip.shape[1] != size or not len(clip):
                raise UserError(
                    f"recording {number} came as {shape}; the encoder hears features of shape (frames, {size})"
                )
        if places != (found := sum(len(clip) + EXTRA_FRAMES for clip in clips)):
            raise UserError(
                f"the prompt has {places} places for states of audio, and its recordings give {found}; give the features "
                "that the prompt was written for"
            )
        for number, clip in enumerate(clips, 1):
            if not clip.is_floating_point() or not bool(clip.isfinite().all()):
                raise UserError(f"the features of recording {number} are not finite numbers; read the recording again")

    def run(self, predictor: int, rows: Rows, cache: Cache, audio: AudioStates | None = None) -> Tensor:
        """Normed hidden states `(rows.total, hidden_size)` of predictor 0 (the backbone) or k + 1 (head k).

        The cache takes in the rows: their keys and values, and the result for the next head.

        audio: what the backbone reads in place of some tokens' embeddings (the heads read the plain ones).
        """
        places = cache.places(rows)
        cos, sin = (table.index_select(0, rows.positions) for table in self.angles)
        at = _Places(rows, cos[:, None], sin[:, None], places)
        hidden = F.embedding(rows.ids, self.embedding)
        if predictor == 0:
            if audio is not None:
                hidden.index_copy_(0, torch.tensor(audio.rows, device=self.device), audio.states)
            for number, layer in enumerate(self.layers):
                hidden = self._layer(layer, number, hidden, at, cache)
        else:
            head = self.heads[predictor - 1]
            previous = head.hidden_norm(cache.previous_hidden(predictor - 1, rows))
            joined = head.join(torch.cat((head.embed_norm(hidden), previous), dim=-1))
            hidden = self._layer(head.layer, self.n_layers + predictor - 1, joined, at, cache)
        hidden = self.final_norm(hidden)
        cache.keep_hidden(predictor, rows, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """`(rows, vocab_size)` logits of normed hidden states `(rows, hidden_size)`."""
        return self.vocabulary(hidden)

    def part_of_vocabulary(self, ids: tuple[int, ...]) -> tuple[Product, Largest]:
        """Logits of the tokens `ids` alone, `(rows, hidden_size) -> (rows, len(ids))`, and the column of the largest."""
        weight = self.vocabulary_weight
        version = None if weight.is_inference() else weight._version
        part = self._parts_of_vocabulary.get(ids)
        if part is None or part[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                rows = weight[torch.tensor(ids, device=self.device)]
            logits = vocabulary_product(rows, pack=self._pack)
            part = self._parts_of_vocabulary[ids] = version, logits, Largest(rows, logits, screened=self._pack)
        return part[1:]

    def _layer(self, layer: Layer, number: int, hidden: Tensor, at: _Places, cache: Cache) -> Tensor:
        rows, cos, sin, places = at
        qkv = layer.qkv(layer.input_norm(hidden)).view(rows.total, -1, self.head_size)
        query_key, query, key_value = (qkv.narrow(1, start, length) for start, length in self._parts)
        self._rotate(query_key, cos, sin)
        cache.by_row[number].index_copy_(0, places, key_value.reshape(-1, self.head_size))
        attended = self._attend(query, rows.seen(cache.keys[number]), rows.seen(cache.values[number]), rows)
        hidden = hidden + layer.output(attended)
        return hidden.add_(layer.down(self._gated(layer.gate_up(layer.mlp_norm(hidden)))))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """`query: (rows.total, query_heads, head_size)` -> `(rows.total, query_heads * head_size)`.

        Query heads that share a key head stand as further rows of it, so keys are neither copied nor repeated.
        """
        if rows.width == 1 and rows.dense:
            query = query.view(rows.slots, self.key_heads, self.groups, self.head_size)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=rows.mask, scale=self.scale)
            return out.reshape(rows.slots, -1)
        if rows.into_grid is not None:
            query = query.index_select(0, rows.into_grid)
        slots, width = rows.slots, rows.width
        query = query.reshape(slots, width, self.key_heads, self.groups, self.head_size)
        query = query.permute(0, 2, 3, 1, 4).reshape(slots, self.key_heads, self.groups * width, self.head_size)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=rows.mask, scale=self.scale)
        out = out.unflatten(2, (self.groups, width)).permute(0, 3, 1, 2, 4).reshape(slots * width, -1)
        result: Tensor = out if rows.out_of_grid is None else out.index_select(0, rows.out_of_grid)
        return result

    def _extend_angles(self, capacity: int) -> None:
        """Makes the table of cosines and signed sines of all positions long enough."""
        if capacity <= self.angles[0].shape[0]:
            return
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(capacity, device=self.device)[None]
            cos, sin = self._rotary(self.embedding[:1], positions)
            half = self.head_size // 2
            self.angles = cos[0].contiguous(), torch.cat((-sin[0][:, :half], sin[0][:, half:]), dim=-1)


def rotate_(query_key: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns queries and keys by their positions, in place.

    rotate_half(x) * sin equals roll(x, half) * (sin with its first half negated), and that is what `sin` holds.
    """
    rolled = query_key.roll(query_key.shape[-1] // 2, -1)
    query_key.mul_(cos).addcmul_(rolled, sin)


def gated(gate_up: Tensor) -> Tensor:
    """SwiGLU's middle: `(rows, 2 * width) -> (rows, width)`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
