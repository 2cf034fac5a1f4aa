"""How speech is decoded while its codes still arrive."""

import reprlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import IntervalRatio

JOINS = ("crossfade", "published")
_PUBLISHED_CHUNK = (10,)
MOST_STEPS = 1000
_MOST = {"chunk_codes": 10_000, "flow_steps": MOST_STEPS}
_MOST_AROUND = 100_000
GROWING_STEPS = (1, 3, 5, 7, 9, 10)  # the first sound after one step of the flow, later chunks at full quality


@dataclass(frozen=True)
class StreamOptions:
    """Sizes of the chunks and how they are joined.

    Attributes:
        join: `crossfade`, seamless and as long as you like; `published`, as the GLM-4-Voice decoder does it.
        chunk_codes: codes of the first, second, ... chunk; the last number holds for all that follow. None: as many as
            Boost writes in a span, so that each of its spans gives sound (crossfade), or ten (published).
        flow_steps: Euler steps of the first, second, ... chunk, likewise; `GROWING_STEPS` is what VITA-Audio uses.
        overlap_frames: mel frames at the end of a chunk that are held back and made again with the next one.
        context_codes: codes before a chunk that the flow reads with it (crossfade; published reads all).
        fade_samples: length of the cross-fade of waves (crossfade).

    Raises:
        UserError: a number is too small or the join is not known.
    """

    join: str = "crossfade"
    chunk_codes: tuple[int, ...] | None = None
    flow_steps: tuple[int, ...] = (10,)
    overlap_frames: int = 34
    context_codes: int = 50
    fade_samples: int = 128

    def __post_init__(self) -> None:
        if self.join not in JOINS:
            raise UserError(f"streamed decoding: join is {self.join!r}; choose {' or '.join(JOINS)}")
        if self.chunk_codes is None:
            spans = IntervalRatio.of("boost").code_runs
            object.__setattr__(self, "chunk_codes", spans if self.join == "crossfade" else _PUBLISHED_CHUNK)
        for name in ("chunk_codes", "flow_steps"):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < 1 or max(numbers) > _MOST[name]:
                raise UserError(
                    f"streamed decoding: {name} is {reprlib.repr(numbers)}; expected numbers of at least 1 and at most "
                    f"{_MOST[name]}"
                )
        if min(self.overlap_frames, self.context_codes, self.fade_samples) < 0:
            raise UserError("streamed decoding: overlap_frames, context_codes and fade_samples must not be negative")
        if max(self.overlap_frames, self.context_codes, self.fade_samples) > _MOST_AROUND:
            raise UserError(
                f"streamed decoding: overlap_frames, context_codes and fade_samples must be at most {_MOST_AROUND}"
            )

    @classmethod
    def read(cls, values: Any, where: str) -> "StreamOptions":
        """Options from the JSON object `stream` of a codec file; what it leaves out keeps its default.

        Raises:
            UserError: it has a key that is no option, or a value of the wrong kind; `where` names the file.
        """
        defaults = asdict(cls())
        if not isinstance(values, dict) or set(values) - set(defaults):
            raise UserError(f"{where}: 'stream' is {reprlib.repr(values)}; it takes {', '.join(defaults)}")
        read: dict[str, Any] = {}
        for name, value in values.items():
            numbers = isinstance(value, list) and all(type(number) is int for number in value)
            if not (numbers if isinstance(defaults[name], tuple) else type(value) is type(defaults[name])):
                raise UserError(
                    f"{where}: 'stream': {name} is {reprlib.repr(value)}; {defaults[name]!r} is its default"
                )
            read[name] = tuple(value) if isinstance(value, list) else value
        return cls(**read)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Codes and flow steps of one chunk after the other, without end."""
        assert self.chunk_codes is not None  # set above
        return zip(_held(self.chunk_codes), _held(self.flow_steps), strict=False)


def _held(numbers: tuple[int, ...]) -> Iterator[int]:
    return chain(numbers, repeat(numbers[-1]))
