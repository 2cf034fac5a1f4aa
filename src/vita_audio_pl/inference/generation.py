"""The result of decoding one prompt."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vita_audio_pl.interleave import deinterleave
from vita_audio_pl.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Generation:
    """One answer and its cost.

    Attributes:
        ids: generated tokens, the stop token included.
        writers: the predictor of each token: 0 the backbone, k + 1 head k.
        backbone_passes: passes of the backbone that this answer took part in, the prefill included.
        head_passes: the same for heads, each head counted once per pass.
        stopped: whether a stop token was written; False if the limit was reached first.
        drafted: per head, tokens proposed for verification (empty without verification).
        accepted: per head, proposals that were accepted.
    """

    ids: list[int]
    writers: list[int]
    backbone_passes: int
    head_passes: int
    stopped: bool
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens per backbone pass."""
        return len(self.ids) / self.backbone_passes if self.backbone_passes else 0.0

    def text_ids(self, vocabulary: Vocabulary) -> list[int]:
        """Tokens outside audio spans, without special tokens."""
        text, _ = deinterleave(self.ids, vocabulary.begin_of_audio, vocabulary.end_of_audio)
        control = {vocabulary.im_start, vocabulary.im_end, vocabulary.pad}
        return [int(i) for i in text if i < vocabulary.n_text and int(i) not in control]

    def codes(self, vocabulary: Vocabulary) -> NDArray[np.int32]:
        """Audio codes inside spans, in order: `(n,)` int32."""
        _, audio = deinterleave(self.ids, vocabulary.begin_of_audio, vocabulary.end_of_audio)
        return vocabulary.codes_of(audio)
