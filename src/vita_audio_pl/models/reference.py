"""The model and loss of the paper, one document at a time, written as plainly as possible.

This is what `SpeechLM` computes, without packing, kernels, sharding or chunked losses. It is slow; the tests compare
everything else with it. Shapes: N tokens of a document, H hidden size, V vocabulary, K heads.

    h^0     = norm(LLM(x))                                                       backbone, (N, H)
    z_p     = P_k [ norm_e,k(E[x_p]) ; norm_h,k(h^k_{p-1}) ]                     head k, rows p = k + 1 .. N - 1
    h^{k+1} = norm( DecoderLayer_k(z) )                                          causal, rotary angle p
    loss    = CE(W h^0) + w / K * sum_k CE(W h^{k+1}),  row p against x_{p+1}

E, W and the final norm are shared by all predictors (VITA-Audio, arXiv 2505.03739, section 3; the published code).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.models.families import BackboneConfig, family_of

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Document:
    """ids: (N,) int64; labels: (N,) int64, not shifted: the id where it is a target, -100 elsewhere."""

    ids: Tensor
    labels: Tensor


class ReferenceHead(nn.Module):
    """Head k: two norms, a projection and one decoder layer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        family = family_of(config)  # Qwen2 or Qwen3
        self.embed_norm = family.norm(config)
        self.hidden_norm = family.norm(config)
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = family.layer(config, 0)

    def forward(self, embeddings: Tensor, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """embeddings, hidden: (rows, H); angles: cosines and sines (1, rows, head size); returns (rows, H), not normed."""
        z = self.proj(torch.cat([self.embed_norm(embeddings), self.hidden_norm(hidden)], dim=-1))
        rows = len(z)
        causal = torch.full((rows, rows), float("-inf")).triu(1)[None, None]
        out: Tensor = self.layer(z[None], attention_mask=causal, position_embeddings=angles)[0]
        return out


class ReferenceModel(nn.Module):
    """Backbone, vocabulary layer and K heads; the parameters have `SpeechLM`'s names."""

    def __init__(self, config: BackboneConfig, n_heads: int) -> None:
        super().__init__()
        config = type(config)(**config.to_dict())
        config._attn_implementation = "eager"
        self.model = family_of(config).model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.heads = nn.ModuleList(ReferenceHead(config) for _ in range(n_heads))
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def train_backbone(self) -> bool:
        """Whether any parameter outside the heads trains."""
        return any(p.requires_grad for name, p in self.named_parameters() if not name.startswith("heads."))

    def hidden_states(self, ids: Tensor) -> list[Tensor]:
        """h^0 .. h^K of one document: (N, H), then (N - k - 1, H) for head k, whose row i is token p = k + 1 + i."""
        positions = torch.arange(len(ids))[None]
        embeddings = self.model.embed_tokens(ids)  # (N, H)
        hidden = self.model(inputs_embeds=embeddings[None], position_ids=positions, use_cache=False).last_hidden_state[
            0
        ]
        states = [hidden]
        if not self.train_backbone:  # stages 2 and 3: the heads send nothing back
            embeddings, hidden = embeddings.detach(), hidden.detach()
        cos, sin = self.model.rotary_emb(hidden[None], positions)  # (1, N, head size)
        for k, head in enumerate(self.heads):
            first = k + 1
            if len(ids) <= first:
                states.append(hidden[:0])
                continue
            angles = (cos[:, first:], sin[:, first:])
            hidden = self.model.norm(head(embeddings[first:], hidden[:-1], angles))  # (N - k - 1, H)
            states.append(hidden)
        return states

    def losses(self, documents: Sequence[Document], *, shift_across_documents: bool = False) -> tuple[Tensor, Tensor]:
        """Summed cross entropy and number of labels of each predictor over the documents of one row: (1 + K,) each.

        Row p of a document is scored against its token p + 1, so the last row is not scored. The published code
        shifts the labels of the whole row at once, which scores a document's last row against the first row of the
        next document; `shift_across_documents` does the same.
        """
        states = [self.hidden_states(document.ids) for document in documents]
        sums, counts = [], []
        for predictor in range(1 + len(self.heads)):
            logits = torch.cat([self.lm_head(of_document[predictor]) for of_document in states])  # (rows, V)
            targets = [self._targets(document, predictor) for document in documents]
            if shift_across_documents:
                firsts = [document.labels[predictor : predictor + 1] for document in documents]
                targets = [
                    torch.cat([mine[:-1], following]) if len(mine) and len(following) else mine
                    for mine, following in zip(targets, [*firsts[1:], firsts[0][:0]], strict=True)
                ]
            target = torch.cat(targets)
            sums.append(F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="sum"))
            counts.append((target != IGNORE_INDEX).sum())
        return torch.stack(sums), torch.stack(counts)

    @staticmethod
    def _targets(document: Document, predictor: int) -> Tensor:
        """Label of the next token for each row of a predictor, -100 for the document's last: (rows,)."""
        return F.pad(document.labels[predictor:], (0, 1), value=IGNORE_INDEX)[1:]

    def loss(
        self,
        documents: Sequence[Document],
        divisor: float,
        head_weight: float = 1.0,
        *,
        shift_across_documents: bool = False,
    ) -> Tensor:
        """The scalar loss.

        divisor: labels of the whole optimiser step; head_weight: w. The backbone's own term is omitted if it is
        frozen.
        """
        sums, _ = self.losses(documents, shift_across_documents=shift_across_documents)
        main = sums[0] if self.train_backbone else torch.zeros(())
        heads = head_weight * sums[1:].mean() if len(self.heads) else torch.zeros(())
        return (main + heads) / divisor
