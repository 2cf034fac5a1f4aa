"""A session: one answer being generated, alone or with others, token by token."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from torch import Tensor

from vita_audio_pl.config.decoding import Greedy, Sampling
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern


class Session:
    """One answer; iterating yields lists of new tokens, one list per round of the decoder.

    Sessions of one decoder are decoded together: whichever is iterated drives them all, from one thread or several, and
    each buffers its tokens until they are requested. Settings, caches and random numbers are its own. Closing frees its
    slot; a session that fails raises in its own iteration only.

    Args:
        decoder: where it is decoded.
        prompt: token ids.
        pattern, max_new_tokens, stop_ids, sampling, constraint, verify, groups: as in `generate`.
        first_chunk: `(begin, end)` audio markers to play the first drafted audio chunk before it is verified
            (draft-first); None verifies it too (verified-first). Without verification there is no difference.
        clips: features of the prompt's audio, for models with an audio encoder.

    Raises:
        UserError: an invalid setting, a prompt longer than the cache, no free slot.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Sequence[int],
        pattern: DecodePattern,
        *,
        max_new_tokens: int,
        stop_ids: Iterable[int] = (),
        sampling: Sampling = Greedy,
        constraint: SpanConstraint | None = None,
        verify: str = "none",
        first_chunk: tuple[int, int] | None = None,
        groups: CodeGroups | None = None,
        clips: Sequence[Tensor] = (),
    ):
        stops = frozenset(stop_ids)
        options = Options(pattern, max_new_tokens, stops, sampling, constraint, verify, first_chunk, groups)
        self._decoder = decoder
        self._sequence = decoder.open(prompt, options, clips)
        self._taken = 0
        self._closed = False

    @property
    def finished(self) -> bool:
        """Whether everything has been generated (even if not all has been taken)."""
        return self._sequence.finished

    def advance(self) -> list[int]:
        """Tokens generated since the last call, at least one; an empty list at the end.

        Raises:
            UserError: the session is closed, or has failed.
        """
        if self._closed:
            raise UserError("this session is closed; open a new one")
        self._decoder.step_for(self._sequence, self._taken)
        new = self._sequence.result().ids[self._taken :]
        self._taken += len(new)
        if not new and self._sequence in self._decoder.errors:
            raise self._decoder.errors[self._sequence]
        return new

    def __iter__(self) -> Iterator[list[int]]:
        while new := self.advance():
            yield new

    def result(self) -> Generation:
        """The answer so far and its cost."""
        return self._sequence.result()

    def close(self) -> None:
        """Free the session's slot.

        Raises:
            UserError: it is closed already.
        """
        if self._closed:
            raise UserError("this session is closed already; a session is closed once")
        self._closed = True
        self._decoder.close(self._sequence)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()
