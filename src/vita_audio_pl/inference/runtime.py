"""The model's forward pass for decoding: fused weights, rows of many sequences in one pass, stateless between calls.

It computes the same function as the training forward (transformers' layers and the MCTP blocks), with less overhead per
module: query, key and value weights are one matrix, gate and up another, and rotary angles come from a table. In
float32 on a CPU, norm weights are folded into the matrices that read them, and the two halves of each query and key
head are interleaved, so that a rotation is one complex product.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.cache import Cache, Store
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import Kernels, Matrix
from vita_audio_pl.inference.layers import (
    Layer,
    Norm,
    ParallelHead,
    Weights,
    head_matrices,
    layer_matrices,
    prepared_head,
)
from vita_audio_pl.inference.products import (
    LAYOUTS,
    Layout,
    VocabularyProduct,
    can_lay_out,
    vocabulary_product,
)
from vita_audio_pl.inference.rows import Rows, Span
from vita_audio_pl.inference.screening import Largest
from vita_audio_pl.models.families import head_size
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.text.turns import EXTRA_FRAMES


class AudioStates(NamedTuple):
    """States `(len(rows), hidden_size)` of an audio encoder, and the rows of a pass that read them."""

    rows: list[int]
    states: Tensor


class _Places(NamedTuple):
    """What all layers of a pass have in common.

    Attributes:
        rows: rows of the pass.
        turns: rotations for their positions: complex `(rows.total, 1, head_size / 2)`, or cosines and signed sines
            `(rows.total, 1, head_size)`.
        store: stores a layer's keys and values.
        keys, values: of each layer, `(slots, key_heads, keys, head_size)`.
    """

    rows: Rows
    turns: tuple[Tensor, ...]
    store: Store
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class Runtime:
    """A `SpeechLM` prepared for decoding with its present weights; build once, use for any number of sessions.

    Args:
        model: on the device and in the dtype to decode with.
        n_heads: heads to prepare, all by default.
        kernels: layout of the matrices in float32 on a CPU, and whether argmax over large vocabularies is screened in 8
            bits: `auto`, a layout, a file of recorded choices (see `Kernels`), or the choices themselves.
        release: move the weights out of the model, so that none is held twice. The model cannot be run afterwards,
            except its audio encoder.
        compile: let torch.compile fuse the operations between products (pays on a GPU; needs a C++ or CUDA compiler).

    Attributes:
        kernels: the choices that were made, to be stored with results.
        chained: whether a head reads the one before it, and all rows; otherwise the backbone's state alone.

    Raises:
        UserError: the backbone has a part that decoding does not support.
    """

    def __init__(
        self,
        model: SpeechLM,
        *,
        n_heads: int | None = None,
        kernels: Kernels | str = "auto",
        release: bool = False,
        compile: bool = False,
    ):
        config = model.config.backbone
        if "sliding_attention" in (config.layer_types or ()) or config.hidden_act != "silu":
            raise UserError("decoding knows backbones with full attention and SiLU, and this one is of another kind")
        backbone = model.model
        self.n_heads = model.n_heads if n_heads is None else min(n_heads, model.n_heads)
        self.chained = FORMS[model.config.heads].chained
        self.n_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.query_heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads or self.query_heads
        self.groups = self.query_heads // self.key_heads
        self.head_size = head_size(config)
        self.scale = self.head_size**-0.5
        self._parts = (
            (0, self.query_heads + self.key_heads),  # attention heads that are rotated
            (0, self.query_heads),
            (self.query_heads, 2 * self.key_heads),  # attention heads that are cached
        )
        self.quantize = model.config.quantize
        # as if all had the type of the embeddings: what few bits save is saved in time, too
        self.weights_of_a_layer, self.weights_of_a_head = (
            sum(p.nbytes for part in parts for p in part.parameters()) // backbone.embed_tokens.weight.itemsize
            for parts in ([backbone.layers[0]], list(model.heads)[:1])
        )
        self.max_positions = config.max_position_embeddings
        self.embedding = backbone.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.kernels = Kernels(kernels) if isinstance(kernels, str) else kernels
        self._pairs = self.dtype == torch.float32 and self.device.type == "cpu" and not compile
        self._rotate = rotate_pairs_ if self._pairs else rotate_
        self._gated = gated
        if compile:
            self._rotate, self._gated = torch.compile(rotate_, dynamic=True), torch.compile(gated, dynamic=True)
        vocabulary = self._vocabulary_matrix(model.lm_head.weight)
        of_layers = [matrix for layer in model.backbone_layers for matrix in layer_matrices("backbone", layer)]
        of_a_head = [matrix for block in islice(model.heads, min(1, self.n_heads)) for matrix in head_matrices(block)]
        self.kernels.choose([*of_layers, *of_a_head, *vocabulary], self.n_heads)
        laid = Weights(self.kernels, self.n_heads, self.head_size if self._pairs else None, release, self.dtype)
        with torch.inference_mode(False), torch.no_grad():
            self.final_norm = Norm(backbone.norm)
            self.layers = [Layer.of(layer, "backbone", laid) for layer in model.backbone_layers]
            self.heads = [prepared_head(block, laid) for block in islice(model.heads, self.n_heads)]
            self.vocabulary = self._vocabulary_product(model.lm_head.weight.detach())
            if release and model.lm_head.weight is not backbone.embed_tokens.weight:
                laid.taken(model.lm_head)
        self.largest = Largest(self.vocabulary, self.kernels)
        self._parts_of_vocabulary: dict[tuple[int, ...], tuple[VocabularyProduct, Largest]] = {}
        self._speech_input = model.speech_input
        self.place_of_audio = model.config.context_of_audio
        self._rotary = backbone.rotary_emb
        self._turns: tuple[Tensor, ...] = (torch.empty(0, device=self.device),)

    @cached_property
    def costs(self) -> PassCosts:
        """Of its passes in the decoder's rounds on this machine."""
        from vita_audio_pl.inference.costs import pass_costs  # which decodes with this runtime

        return pass_costs(self)

    def new_cache(self, *, slots: int, capacity: int, n_heads: int, window: int | None = None) -> Cache:
        """A cache for `slots` sequences of up to `capacity` tokens, for patterns that use `n_heads` heads."""
        self._extend_turns(capacity)
        return Cache(
            slots=slots,
            capacity=capacity,
            layers=self.n_layers + (n_heads if self.chained else 0),
            key_heads=self.key_heads,
            head_size=self.head_size,
            levels=n_heads if self.chained else min(n_heads, 1),
            window=min(window or capacity, capacity),
            hidden_size=self.hidden_size,
            dtype=self.dtype,
            device=self.device,
        )

    def rows(self, predictor: int, spans: Sequence[Span], ids: Sequence[int]) -> Rows:
        """Rows of `spans` for a pass of predictor 0 (the backbone) or k + 1 (head k), with the token `ids` at them."""
        return Rows(spans, ids, first_key=predictor, groups=self.groups, device=self.device, dtype=self.dtype)

    def encode_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """States `(frames + 4 per clip, hidden_size)` that the backbone reads instead of the placeholders.

        clips: features `(frames, size)` of each recording, validated by `check_clips`.
        """
        assert self._speech_input is not None  # `check_clips` refuses recordings without it
        weight = next(self._speech_input.audio_projection.parameters())
        states: Tensor = self._speech_input([clip.to(weight) for clip in clips])
        return states.to(self.dtype)

    def check_clips(self, clips: Sequence[Tensor], places: int) -> None:
        """Check that `clips` are features that the encoder accepts and that they fill the prompt's `places`.

        Raises:
            UserError: the model has no encoder, a clip is not `(frames, size)` finite numbers, or their number differs.
        """
        if len(clips) and self._speech_input is None:
            raise UserError("this model reads audio as codes and has no audio encoder")
        size = 0 if self._speech_input is None else self._speech_input.encoder.config.input_size
        for number, clip in enumerate(clips, 1):
            shape = tuple(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
            if not isinstance(clip, Tensor) or clip.dim() != 2 or clip.shape[1] != size or not len(clip):
                raise UserError(
                    f"recording {number} came as {shape}; the encoder expects features of shape (frames, {size})"
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

        The rows are added to the cache: their keys and values, and the result for the next head.

        audio: encoder states that the backbone reads instead of some tokens' embeddings (heads read the plain ones).
        """
        head = self.heads[predictor - 1] if predictor else None
        if isinstance(head, ParallelHead):
            return head(cache.previous_hidden(0, rows, back=predictor))
        layers = (
            range(self.n_layers) if predictor == 0 else range(self.n_layers + predictor - 1, self.n_layers + predictor)
        )
        turns = tuple(rows.of_table(table)[:, None] for table in self.turns)
        at = _Places(rows, turns, cache.store(rows, layers), *cache.seen(rows, layers))
        hidden = F.embedding(rows.ids, self.embedding)
        if head is None:
            if audio is not None:
                hidden.index_copy_(0, torch.tensor(audio.rows, device=self.device), audio.states)
            for number, layer in enumerate(self.layers):
                hidden = self._layer(layer, number, hidden, at)
        else:
            previous = head.hidden_norm(cache.previous_hidden(predictor - 1, rows))
            joined = head.join(torch.cat((head.embed_norm(hidden), previous), dim=-1))
            hidden = self._layer(head.layer, 0, joined, at)
        hidden = self.final_norm(hidden)
        cache.keep_hidden(predictor, rows, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """`(rows, vocab_size)` logits of normed hidden states `(rows, hidden_size)`."""
        return self.vocabulary(hidden)

    def vocabulary_slice(self, ids: tuple[int, ...]) -> tuple[VocabularyProduct, Largest]:
        """Logits of the tokens `ids` only, `(rows, hidden_size) -> (rows, len(ids))`, and the largest's column."""
        if ids not in self._parts_of_vocabulary:
            with torch.inference_mode(False), torch.no_grad():
                weight = self.vocabulary.dense()[torch.tensor(ids, device=self.device)]
                logits = self._vocabulary_product(weight)
            self._parts_of_vocabulary[ids] = logits, Largest(logits, self.kernels)
        return self._parts_of_vocabulary[ids]

    def _vocabulary_product(self, weight: Tensor) -> VocabularyProduct:
        planned = [self.kernels.plan(matrix, self.n_heads) for matrix in self._vocabulary_matrix(weight)]
        return vocabulary_product(weight, *planned)

    def _vocabulary_matrix(self, weight: Tensor) -> list[Matrix]:
        """Of the vocabulary or a part of it; none if it stays as it is."""
        # in another layout the embeddings, which are read by rows, would be held twice
        shared = weight.untyped_storage().data_ptr() == self.embedding.untyped_storage().data_ptr()
        layouts: tuple[Layout, ...] = ("rows",) if shared else LAYOUTS
        return [Matrix("vocabulary", weight.shape[0], weight.shape[1], layouts)] if can_lay_out(weight) else []

    def _layer(self, layer: Layer, number: int, hidden: Tensor, at: _Places) -> Tensor:
        """number: index of the layer among those whose keys and values `at` holds."""
        qkv = layer.qkv(layer.input_norm(hidden)).view(at.rows.total, -1, self.head_size)
        query_key, query, key_value = (qkv.narrow(1, start, length) for start, length in self._parts)
        if layer.head_norm is not None:
            layer.head_norm(query_key)
        self._rotate(query_key, *at.turns)
        at.store(number, key_value)
        attended = self._attend(query, at.keys[number], at.values[number], at.rows)
        hidden = layer.output.add_to(hidden, attended)
        return layer.down.add_to(hidden, self._gated(layer.gate_up(layer.mlp_norm(hidden))))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """`query: (rows.total, query_heads, head_size)` -> `(rows.total, query_heads * head_size)`."""
        if rows.apart:
            parts = query.split([span.length for span in rows.spans])
            places = [(span.slot - rows.first_slot, span.stop - rows.first_key) for span in rows.spans]
            attended = [
                self._attend_grid(part, keys[at : at + 1, :, :end], values[at : at + 1, :, :end], mask)
                for part, (at, end), mask in zip(parts, places, rows.masks, strict=True)
            ]
            return torch.cat(attended) if len(attended) > 1 else attended[0]
        grid = query if rows.into_grid is None else query.index_select(0, rows.into_grid)
        out = self._attend_grid(grid, keys, values, rows.mask)
        return out if rows.out_of_grid is None else out.index_select(0, rows.out_of_grid)

    def _attend_grid(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """`query: (slots * width, query_heads, head_size)` -> `(slots * width, query_heads * head_size)`.

        Query heads that share a key head are stacked as further rows of it, so keys are neither copied nor repeated.
        """
        slots = keys.shape[0]
        width = query.shape[0] // slots
        if width == 1:
            query = query.view(slots, self.key_heads, self.groups, self.head_size)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
            return out.reshape(slots, -1)
        query = query.reshape(slots, width, self.key_heads, self.groups, self.head_size)
        query = query.permute(0, 2, 3, 1, 4).reshape(slots, self.key_heads, self.groups * width, self.head_size)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
        return (
            out.view(slots, self.key_heads, self.groups, width, self.head_size)
            .permute(0, 3, 1, 2, 4)
            .reshape(slots * width, -1)
        )

    @property
    def turns(self) -> tuple[Tensor, ...]:
        """Tables of the rotations of all positions; `_Places.turns` holds rows of them."""
        return self._turns

    def _extend_turns(self, capacity: int) -> None:
        """Extend the tables if they are too short."""
        if capacity <= self._turns[0].shape[0]:
            return
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(capacity, device=self.device)[None]
            cos, sin = (table[0] for table in self._rotary(self.embedding[:1], positions))
            half = self.head_size // 2
            if self._pairs:
                self._turns = (torch.complex(cos[:, :half].contiguous(), sin[:, :half].contiguous()),)
            else:
                self._turns = cos.contiguous(), torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)


def rotate_(query_key: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate queries and keys `(rows, heads, head_size)` by their positions, in place.

    rotate_half(x) * sin equals roll(x, half) * (sin with its first half negated), and that is what `sin` holds.
    """
    rolled = query_key.roll(query_key.shape[-1] // 2, -1)
    query_key.mul_(cos).addcmul_(rolled, sin)


def rotate_pairs_(query_key: Tensor, turns: Tensor) -> None:
    """The same for heads whose halves are interleaved: neighbours are the real and imaginary part of a number."""
    torch.view_as_complex(query_key.view(*query_key.shape[:2], -1, 2)).mul_(turns)


def gated(gate_up: Tensor) -> Tensor:
    """Activation of SwiGLU: `(rows, 2 * width) -> (rows, width)`."""
    width = gate_up.shape[1] // 2
    return F.silu(gate_up.narrow(1, 0, width)).mul_(gate_up.narrow(1, width, width))
