"""Spectra of real speech for codes that were heard in the same context: unit selection (Hunt and Black 1996).

What a network makes of codes is the mean of what they may stand for, which is dull where they leave it open: when a stop bursts
within a code, for one. Speech that was heard is sharp, and as a whole it fits together, so that it is followed as long as no
other has more of the context. Nothing looks ahead.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOUNDARY = -1
"""Stands in the place of a code before every utterance."""
_LEAST, _MOST = 3, 13  # codes that have to be the same, the present one among them, and that are compared
_CANDIDATES = 64  # places of which the one is taken that follows best
_BITS = 24  # of a code in a context


class Trail(NamedTuple):
    """Where a stream of codes has come to.

    Attributes:
        context: its last codes in one number, the newest in front; see `_behind`.
        place: of the speech that is followed; -1 where none is.
        last: components `(components,)` of the last code; None at the beginning.
    """

    context: int = 0
    place: int = -1
    last: NDArray[np.float32] | None = None


class Units:
    """Speech that a codec was fitted to, found again by its codes.

    Args:
        codes: `(n,) int32`, of utterances one after another, a `BOUNDARY` before each.
        parts: `(n, components) int8`, components of the log spectra of each.
        scale: `(components,)`, what a 1 in `parts` stands for.
    """

    def __init__(self, codes: Tensor, parts: Tensor, scale: Tensor) -> None:
        # whose operations on few rows take less time than torch's
        self._parts, self._scale = parts.numpy(), scale.numpy()
        self._contexts = [context := 0]
        for code in codes.tolist()[1:]:
            context = 0 if code == BOUNDARY else _behind(context, code)
            self._contexts.append(context)
        self._places = sorted(range(len(codes)), key=self._contexts.__getitem__)
        self._index = [self._contexts[place] for place in self._places]

    @classmethod
    def weights(cls, codes: Sequence[Tensor], components: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `__init__` takes, of the codes `(n,)` and components `(n, components)` of each utterance."""
        rows = torch.cat([part for some in components for part in (some.new_zeros(1, some.shape[1]), some)])
        scale = rows.abs().amax(dim=0).clamp(min=1e-12) / torch.iinfo(torch.int8).max
        marked = [part for row in codes for part in (row.new_full((1,), BOUNDARY), row)]
        return {"codes": torch.cat(marked).int(), "parts": (rows / scale).round().char(), "scale": scale}

    def chosen(self, codes: Tensor, otherwise: Callable[[], Tensor], trail: Trail) -> tuple[Tensor, Trail]:
        """Components `(n, components)` of the next codes `(n,)` of a stream, and where it has come to.

        otherwise: gives those of codes that were not heard in such a context, of the same shape.
        """
        context, place, last = trail
        others: NDArray[np.float32] | None = None
        places = []
        for at, code in enumerate(codes.tolist()):
            context = _behind(context, code)
            place = self._found(context, place, last)
            if place < 0:
                others = otherwise().numpy() if others is None else others
                last = others[at]
            places.append(place)
        rows = self._components(places)
        for at, there in enumerate(places):
            if there < 0 and others is not None:
                rows[at] = others[at]
        return torch.from_numpy(rows), Trail(context, place, rows[-1] if places else last)

    def _found(self, context: int, place: int, last: NDArray[np.float32] | None) -> int:
        """The place with the longest context in common; of several the one after `place`, or whose speech before is nearest.

        last: components of the code before where `place` is none.
        """
        at = bisect_left(self._index, context)
        differs = min((near ^ context).bit_length() for near in self._index[max(at - 1, 0) : at + 1])
        same = _MOST - -(-differs // _BITS)
        if same < _LEAST:
            return -1
        others = (1 << (_MOST - same) * _BITS) - 1
        if place >= 0 and place + 1 < len(self._contexts) and self._contexts[place + 1] | others == context | others:
            return place + 1
        first, after = bisect_left(self._index, context & ~others), bisect_right(self._index, context | others)
        places = self._places[first : min(after, first + _CANDIDATES)]
        before = self._components([place])[0] if place >= 0 else last
        if len(places) == 1 or before is None:
            return places[0]
        off = self._components([each - 1 for each in places]) - before
        return places[int((off * off).sum(axis=1).argmin())]

    def _components(self, places: list[int]) -> NDArray[np.float32]:
        components: NDArray[np.float32] = self._parts[places] * self._scale
        return components


def _behind(context: int, code: int) -> int:
    """A context with one more code in front, the oldest dropped; 0 stands for none, so that utterances that begin are alike."""
    return (code + 1) << (_MOST - 1) * _BITS | context >> _BITS
