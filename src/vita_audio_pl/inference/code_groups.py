"""Codes that sound alike: neighbours in the codec's codebook.

From principled coarse-graining (arXiv 2511.13732): a code's group is all codes whose vectors lie within some cosine
similarity of its own, so groups overlap, and a code's probability is shared evenly by the groups that it is in. There the
vectors are the language model's embeddings; here they are the codec's own, which are known before anything is trained and
say how a code sounds. Everything that is no code is a group of its own: where audio ends is never a matter of taste.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vita_audio_pl.codecs.protocol import Codec
from vita_audio_pl.config.decoding import SLACK
from vita_audio_pl.errors import UserError
from vita_audio_pl.text.vocabulary import Vocabulary

_ROWS = 1024
"""Codes that are compared with all others at a time."""
_MOST_PAIRS = 32_000_000
"""Pairs of codes that share a group, 16 bytes each: beyond it nearly all codes are alike, and groups mean nothing."""


class CodeGroups:
    """The groups of the codes `first_code`, `first_code + 1`, ... of a vocabulary.

    Args:
        vectors: `(codes, width)`, one for each code.
        first_code: token of code 0.
        slack: 1 - the least cosine similarity of two codes that share a group; 0 leaves every code alone.

    Raises:
        UserError: so many codes share groups that they would not fit in memory.
    """

    def __init__(self, vectors: Tensor, first_code: int, slack: float):
        self.first_code, self.n_codes, self.slack = first_code, len(vectors), slack
        unit = torch.nn.functional.normalize(vectors.float(), dim=1)
        pairs = [torch.arange(len(unit)).expand(2, -1)]
        for start in range(0, len(unit) if slack else 0, _ROWS):
            alike = (unit[start : start + _ROWS] @ unit[start:].T >= 1 - slack).triu(1)  # each pair is compared once
            one, other = alike.nonzero().T + start
            pairs += [torch.stack((one, other)), torch.stack((other, one))]
            if sum(found.shape[1] for found in pairs) > _MOST_PAIRS:
                raise UserError(f"slack={slack:g} makes nearly all {len(unit)} codes of the codec alike; give less")
        owners, members = torch.cat(pairs, dim=1)
        order = (owners * len(unit) + members).argsort()
        self._owners, self._members = owners[order], members[order]
        self.sizes = torch.bincount(owners, minlength=len(unit))
        self._starts = [0, *self.sizes.cumsum(0).tolist()]

    def alike(self, one: int, other: int) -> bool:
        """Whether two tokens are the same, or codes of one group."""
        if one == other:
            return True
        codes = one - self.first_code, other - self.first_code
        return all(0 <= code < self.n_codes for code in codes) and bool((self._group(codes[0]) == codes[1]).any())

    def group(self, column: int, first: int) -> Tensor:
        """Columns that share a group with `column`, itself included, where column `first` is code 0."""
        code = column - first
        return self._group(code) + first if 0 <= code < self.n_codes else torch.tensor([column])

    def shares(self, probabilities: Tensor, first: int) -> Tensor:
        """What each of a token's groups gets of its probability: `(choices,)`."""
        codes = slice(first, first + self.n_codes)
        shares = probabilities.clone()
        shares[codes] /= self.sizes.to(shares.device)
        return shares

    def masses(self, shares: Tensor, first: int) -> Tensor:
        """The probability `(choices,)` of each group, numbered by its middle, of what `shares` gives."""
        codes = slice(first, first + self.n_codes)
        owners, members = self._owners.to(shares.device), self._members.to(shares.device)
        masses = shares.clone()
        masses[codes] = torch.zeros_like(shares[codes]).index_add_(0, owners, shares[codes][members])
        return masses

    def _group(self, code: int) -> Tensor:
        members: Tensor = self._members[self._starts[code] : self._starts[code + 1]]
        return members


def verification(
    verify: str, slack: float | None, codec: Callable[[], Codec | None], vocabulary: Vocabulary
) -> dict[str, Any]:
    """`verify` and `groups` of `Options`.

    Args:
        slack: of the groups; None for 0.3.
        codec: gives the one whose codes the vocabulary has; asked where its codebook is needed.

    Raises:
        UserError: `groups` without a codec whose codes have a vector each, or with a codec of other codes.
    """
    if verify != "groups":
        return {"verify": verify}
    speaks = codec()
    codebook = getattr(speaks, "codebook", None)
    if codebook is None:
        found = "the model has no codec" if speaks is None else f"the codec {speaks.name} has none"
        raise UserError(f"verify=groups needs a codec with one vector for each code, as mel_vq and glm4voice; {found}")
    vectors = torch.from_numpy(codebook())
    if len(vectors) != vocabulary.n_codes:
        raise UserError(f"the codec has {len(vectors)} codes and the model {vocabulary.n_codes}; it is another model's")
    return {"verify": verify, "groups": CodeGroups(vectors, vocabulary.first_code, SLACK if slack is None else slack)}
