"""Progress of a preparation on the terminal: parts, samples, hours of audio per hour, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from vita_audio_pl.config.screen import messages
from vita_audio_pl.data.readers import Part
from vita_audio_pl.data.tokenize import Progress


class PrepareProgress:
    """A progress bar as a `Report` for the executors; without a terminal, one line at the end.

    Args:
        source: name shown.
        parts: parts to do.
        console: where to show it; stderr by default.
    """

    def __init__(self, source: str, parts: int, console: Console | None = None):
        self.console = console or messages()
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar = self._bars.add_task(source, total=parts, summary="")
        self._source, self._parts = source, parts
        self._done: dict[str, Progress] = {}
        self._finished = 0
        self._start = time.monotonic()

    def __call__(self, part: Part, progress: Progress, finished: bool) -> None:
        self._done[part.name] = progress
        self._finished += finished
        self._bars.update(self._bar, completed=self._finished, summary=self._summary())

    def _summary(self) -> str:
        samples, skipped = (sum(getattr(p, what) for p in self._done.values()) for what in ("samples", "skipped"))
        hours = sum(p.seconds for p in self._done.values()) / 3600
        elapsed = max(time.monotonic() - self._start, 1e-3)
        speed = f"{hours:.2f} h of audio, {hours * 3600 / elapsed:.0f} h an hour, " if hours else ""
        return f"{samples} samples, {speed}{skipped} left out{self._waits()}"

    def _waits(self) -> str:
        """Where the workers spend their time: whether more decoders or a faster codec would help."""
        elapsed, reading, encoding = (
            sum(getattr(p, what) for p in self._done.values()) for what in ("elapsed", "reading", "encoding")
        )
        return (
            f"; {reading / elapsed:.0%} of the time reading, {encoding / elapsed:.0%} in the codec" if elapsed else ""
        )

    def __enter__(self) -> "PrepareProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if kind is None and self._parts and not self.console.is_terminal:
            self.console.print(f"{self._source}: {self._summary()}")
