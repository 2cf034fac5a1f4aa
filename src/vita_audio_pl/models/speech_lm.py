"""The speech language model: backbone, heads and the shared vocabulary layer."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.attention import IMPLEMENTATION, DocumentAttention, check_kernel
from vita_audio_pl.models.families import BackboneConfig, DecoderLayer, family_of
from vita_audio_pl.models.heads import FORMS, HeadStack
from vita_audio_pl.models.layout import Documents, PackedLayout, to_device
from vita_audio_pl.models.linear_cross_entropy import RowLosses
from vita_audio_pl.models.objectives import HeadLosses, Objective, Scored
from vita_audio_pl.models.quantised import shape_quantised
from vita_audio_pl.models.rotary import ExactRotaryEmbedding
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.speech_input import SpeechInput
from vita_audio_pl.packed import PackedBatch


@dataclass
class SpeechLMConfig:
    """backbone: transformers' configuration of the language model (its `vocab_size` covers text, special and audio
    tokens); n_heads: heads, 0 for none; attention: a kernel of `models.attention`; detach_heads: the heads send no
    gradient into the backbone even where it trains (the Plus variants); encoder: of continuous speech, None without it;
    context_of_audio: id of the token that stands for one of its states; heads: their form, of `models.heads.FORMS`;
    quantize: how the linear layers are held (`models.quantised`), None for as trained."""

    backbone: BackboneConfig
    n_heads: int
    attention: str = "per_document"
    detach_heads: bool = False
    encoder: SenseVoiceConfig | None = None
    context_of_audio: int | None = None
    heads: str = "mctp"
    quantize: str | None = None

    def __post_init__(self) -> None:
        check_kernel(self.attention)


class VocabularyHead(nn.Linear):
    """The vocabulary layer `W`, used by the backbone and every head, for logits and for losses without logits.

    A loss runs inside this module's forward, so that a strategy which shards parameters gathers `W` around it.
    """

    @overload
    def forward(self, hidden: Tensor, loss: None = None) -> Tensor: ...

    @overload
    def forward(self, hidden: Tensor, loss: Callable[[Tensor, Tensor], RowLosses]) -> RowLosses: ...

    def forward(self, hidden: Tensor, loss: Callable[[Tensor, Tensor], RowLosses] | None = None) -> Tensor | RowLosses:
        """Logits (..., vocabulary) of `hidden`, or `loss(hidden, W)`."""
        return F.linear(hidden, self.weight) if loss is None else loss(hidden, self.weight)


class SpeechLM(nn.Module):
    """Backbone `model`, vocabulary layer `lm_head`, heads `heads`, `speech_input` where it takes audio through an encoder.

    Batches are read as one long row of documents without padding. Nothing looks across documents, neither attention nor
    labels.
    """

    def __init__(self, config: SpeechLMConfig):
        super().__init__()
        self.config = config
        config.backbone._attn_implementation = IMPLEMENTATION
        self.model = family_of(config.backbone).model(config.backbone)
        self.model.rotary_emb = ExactRotaryEmbedding(config.backbone)
        self.lm_head = VocabularyHead(config.backbone.hidden_size, config.backbone.vocab_size, bias=False)
        self.heads = HeadStack(config.backbone, config.n_heads, config.heads)
        encoder = None if config.encoder is None else SenseVoiceEncoder(config.encoder)
        self.speech_input = None if encoder is None else SpeechInput(encoder, config.backbone.hidden_size)
        self.apply_ties()
        self._initialise()

    def _initialise(self) -> None:
        """Initialise what transformers has not: N(0, initializer_range), biases 0, norms 1."""
        spread = self.config.backbone.initializer_range
        tied = self.config.backbone.tie_word_embeddings
        for module in (*self.heads.modules(), *(() if tied else (self.lm_head,))):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=spread)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def on_meta(cls, config: SpeechLMConfig) -> "SpeechLM":
        """A model on the meta device; load its weights, then call `materialised`."""
        with torch.device("meta"):
            model = cls(config)
            if config.quantize is not None:
                shape_quantised(model, config.quantize)
            return model

    def materialised(self, device: torch.device | str) -> "SpeechLM":
        """To be called once all weights of a meta model are set: restores ties and the buffers that no file holds."""
        self.model.rotary_emb = ExactRotaryEmbedding(self.config.backbone).to(device)
        self.apply_ties()
        return self

    def apply_ties(self) -> None:
        """Makes `W` and the embeddings one parameter where the configuration ties them."""
        if self.config.backbone.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def n_heads(self) -> int:
        return len(self.heads)

    @property
    def backbone_layers(self) -> list[DecoderLayer]:
        return [cast(DecoderLayer, layer) for layer in self.model.layers]

    @property
    def train_backbone(self) -> bool:
        """Whether any parameter outside the heads trains.

        Determined by `requires_grad`. If nothing outside the heads trains, the backbone runs without a
        graph, its output and the embeddings reach the heads detached, and its own loss is not computed.
        """
        heads = {id(parameter) for parameter in self.heads.parameters()}
        return any(p.requires_grad for p in self.parameters() if id(p) not in heads)

    # Shapes: T tokens of the batch end to end, without padding; R <= T rows of a predictor; S <= R of them scored;
    # H hidden size. Predictor 0 is the backbone, predictor k + 1 head k.

    def forward(self, batch: PackedBatch, objective: Objective, *, score_frozen_backbone: bool = False) -> HeadLosses:
        """Losses of `batch` under `objective`. Heads whose loss has no weight are not run.

        score_frozen_backbone: also report the backbone's loss and accuracy where it is frozen (no gradient, for the log).
        """
        layout = PackedLayout(batch)  # of the documents; numpy on the host, so that no step waits for the device
        trains = self.train_backbone
        # decided by configuration, never by data: ranks that shard parameters have to run the same modules
        deepest = self.n_heads if objective.weight else 0
        states = self._hidden_states(batch, layout, deepest)  # (1, R, H) each

        def scored(predictor: int) -> Scored:
            """The rows of a predictor that the objective trains, with targets and weights."""
            tokens = np.arange(len(layout)) if predictor == 0 else layout.head(predictor - 1).tokens  # (R,)
            own = np.flatnonzero(objective.trains_on(layout, predictor)[tokens])  # (S,) among its own R rows
            tokens = tokens[own]
            # the loss is divided here: by the labels of the whole step, so it does not depend on how a batch is cut
            share = layout.target_weights[tokens] * np.float32(
                objective.weight_of(predictor, self.n_heads) / layout.divisor
            )
            written = layout.target_writers[tokens] == predictor
            device = states[0].device
            rows, targets, weights, served = (
                to_device(array, device) for array in (own, layout.targets[tokens], share, written)
            )
            hidden = states[predictor][0].index_select(0, rows)  # (S, H)
            return Scored(predictor, hidden, targets, weights, torch.from_numpy(tokens), served, layout)

        parts = [scored(predictor) for predictor in range(0 if trains else 1, 1 + deepest)]
        if not parts:
            raise UserError("nothing is left to train: the backbone is frozen and the heads are absent or weigh 0")
        losses = objective.losses(self.lm_head, parts, states[0][0], self.n_heads)
        if score_frozen_backbone and not trains:
            with torch.no_grad():
                extra = objective.cross_entropy(self.lm_head, [scored(0)], self.n_heads)
            losses = losses.merge(extra._replace(total=torch.zeros_like(losses.total)))
        return losses

    def _hidden_states(self, batch: PackedBatch, layout: PackedLayout, deepest: int) -> list[Tensor]:
        """Normed hidden states of predictors 0..deepest, each (1, R, H)."""
        device = batch.device
        ids, positions = to_device(layout.ids, device)[None], to_device(layout.positions, device)[None]  # (1, T)
        trains = self.train_backbone
        with nullcontext() if trains else torch.no_grad():
            embeddings = self.model.embed_tokens(ids)  # (1, T, H)
            hidden = self.model(
                inputs_embeds=self.input_embeddings(layout.ids, embeddings, batch.clips),
                position_ids=positions,
                attention_mask={"full_attention": None},
                use_cache=False,
                documents=DocumentAttention(layout.documents, self.config.attention, device),
            ).last_hidden_state  # (1, T, H)
        states = [hidden]
        if deepest == 0:
            return states
        if self.config.detach_heads:
            embeddings, hidden = embeddings.detach(), hidden.detach()
        cos, sin = self.model.rotary_emb(hidden, positions)  # (1, T, head size)
        if not FORMS[self.config.heads].chained:
            tokens_of = [layout.head(k).tokens for k in range(deepest)]
            read = [hidden.index_select(1, to_device(tokens - k, device)) for k, tokens in enumerate(tokens_of, 1)]
            return [*states, *(head(each) for head, each in zip(self.heads, read, strict=False))]
        for k in range(deepest):
            # head k reads token p and the previous predictor's state at p - 1, for p >= k + 1 of each document
            rows = layout.head(k)
            tokens, previous = to_device(rows.tokens, device), to_device(rows.previous, device)  # (R,)
            hidden = self._head(
                k,
                rows.documents,
                (embeddings.index_select(1, tokens), hidden.index_select(1, previous)),
                (cos.index_select(1, tokens), sin.index_select(1, tokens)),
            )
            states.append(hidden)
        return states

    def _head(self, k: int, documents: Documents, inputs: tuple[Tensor, ...], angles: tuple[Tensor, ...]) -> Tensor:
        """Normed output of head `k`; if no document is long enough for it, it runs over a row of zeros.

        Ranks that shard parameters must run the same modules, whatever their rows contain.
        """
        missing = 0 if documents.lengths else 1
        if missing:
            documents = Documents((1,))
            inputs, angles = (tuple(F.pad(t, (0, 0, 0, 1)) for t in pair) for pair in (inputs, angles))
        attention = DocumentAttention(documents, self.config.attention, inputs[0].device)
        hidden: Tensor = self.model.norm(self.heads[k](*inputs, angles, documents=attention))
        return hidden[:, missing:]

    def input_embeddings(self, ids: np.ndarray, embeddings: Tensor, clips: Sequence[Tensor]) -> Tensor:
        """Embeddings with those of the context tokens replaced by the encoder states of `clips` (VITA-Audio-Plus).

        The backbone reads these; the heads read the plain embeddings.

        Args:
            ids: on the host, so that no step waits for the device; embeddings: (rows, length, hidden) of the ids.
            clips: features `(frames, input size)` of the audio, in the order of its places.

        Raises:
            UserError: clips without an encoder, or states that do not fill the places exactly.
        """
        if self.speech_input is None:
            if len(clips):
                raise UserError("the batch has audio for an encoder, but the model has none; use a Plus variant")
            return embeddings
        weight = next(self.speech_input.audio_projection.parameters())
        # the modules run even without a clip, since ranks that shard parameters must run the same modules
        features = clips or [torch.zeros(1, self.speech_input.encoder.config.input_size)]
        states: Tensor = self.speech_input([clip.to(weight, non_blocking=True) for clip in features])
        states = states.to(embeddings.dtype)
        if not len(clips):
            return embeddings + 0.0 * states.sum()
        assert self.config.context_of_audio is not None  # every encoder comes with it
        places = np.flatnonzero(ids == self.config.context_of_audio)
        if len(places) != len(states):
            raise UserError(
                f"the batch has {len(places)} places for states of audio and the encoder made {len(states)}; "
                "the data was prepared for another encoder"
            )
        into = to_device(places, embeddings.device)
        return embeddings.flatten(0, -2).index_copy(0, into, states).view_as(embeddings)

    def hidden_states(self, batch: PackedBatch) -> list[Tensor]:
        """Normed hidden states of the backbone and every head, `(1, rows, hidden)` each.

        Rows are the tokens of the batch end to end without padding; head `k` has those at positions `k + 1` and later
        of their document, so its row for `x_p` predicts `x_{p+1}`.
        """
        return self._hidden_states(batch, PackedLayout(batch), self.n_heads)

    def logits(self, batch: PackedBatch) -> list[Tensor]:
        """Full logits (1, rows, vocabulary) of the backbone and every head; for tests and small evaluations."""
        return [self.lm_head(hidden) for hidden in self.hidden_states(batch)]
