"""What preparing has done, is doing and has left to do, over all sources of a mixture and all jobs that work on them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from vita_audio_pl.data.jobs import JobState, failures_of, jobs_of, outputs_of
from vita_audio_pl.data.mixture import Mixture, Share
from vita_audio_pl.data.outputs import TAR, Outputs
from vita_audio_pl.data.prepared import MANIFEST, Manifest, NotPrepared
from vita_audio_pl.storage.lease import Held, holders
from vita_audio_pl.storage.places import Place, names_in


@dataclass(frozen=True)
class SourceStatus:
    """How far a source is.

    Attributes:
        source: its name.
        parts: that it has; 0 where nobody has begun.
        done, running, failed: of them.
        samples, seconds: in those that are done, the seconds of audio.
        ready: it can be trained on.
        jobs: that work on it now, each with the state that it has noted.
        silent: holders of leases that have not been heard of for a while.
        failures: of parts that were given up, a sentence each.
    """

    source: str
    parts: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    samples: int = 0
    seconds: float = 0.0
    ready: bool = False
    jobs: tuple[tuple[Held, JobState | None], ...] = ()
    silent: tuple[Held, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Parts that nobody works on yet."""
        return max(0, self.parts - self.done - self.running - self.failed)

    @property
    def to_go(self) -> float | None:
        """Seconds until it is done, at the pace of the jobs that work now; None where that cannot be told."""
        pace = sum(state.done / state.elapsed for _, state in self.jobs if state is not None)
        return (self.left + self.running) / pace if pace else None

    @property
    def hours_an_hour(self) -> float:
        """Hours of audio that its jobs do in an hour."""
        return sum(state.seconds / state.elapsed for _, state in self.jobs if state is not None)

    @property
    def summary(self) -> str:
        if self.ready:
            return "ready"
        if not self.parts:
            return "not begun"
        if self.jobs:
            return "running"
        return "stopped" if self.left or self.failed else "to be finished"


def status_of(folder: Place) -> SourceStatus:
    """How far the source in `folder` is.

    Raises:
        UserError: a file of it is of another version.
    """
    names = names_in(folder)
    wanted, outputs = outputs_of(folder), Outputs.find(folder, names)
    try:
        manifest = Manifest.load(folder) if MANIFEST in names else None
    except NotPrepared:
        manifest = None
    if manifest is not None and not wanted:
        stems = [shard.name.removesuffix(TAR) for shard in manifest.shards]
        wanted = [name for stem in stems for name in outputs.inside.get(stem, (stem,))]
    done = [name for name in wanted if name in outputs.parts]
    failed = [(name, note) for name, note in failures_of(folder, names) if name in wanted and name not in outputs.parts]
    held = [one for one in holders(folder, names) if one.kind.startswith("prepare")]
    states = {state.lease: state for state in jobs_of(folder, names)}
    live = tuple((one, states.get(one.kind)) for one in held if one.lives)
    running = sum(state.running for _, state in live if state is not None)
    whole = manifest if len(done) == len(wanted) else None
    reports = [] if whole else outputs.reports(done)
    return SourceStatus(
        source=folder.name,
        parts=len(wanted),
        done=len(done),
        running=min(running, len(wanted) - len(done) - len(failed)),
        failed=len(failed),
        samples=whole.samples if whole else sum(int(report["shard"]["samples"]) for report in reports),
        seconds=whole.seconds if whole else sum(float(report["seconds"]) for report in reports),
        ready=whole is not None,
        jobs=live,
        silent=tuple(one for one in held if not one.lives),
        failures=tuple(
            f"{folder.name}: {note.get('part')} failed {note.get('tries')} times, at last on {note.get('host')}: "
            f"{note.get('why')}"
            for _, note in failed
        ),
    )


def status_table(found: Sequence[SourceStatus], mixture: Mixture) -> Table:
    """A row for each source, with the hours of it that an epoch of the mixture takes, and one for all."""
    table = Table(title_justify="left", caption_justify="left")
    shares = {share.source: share for share in mixture.shares}
    wanted = {one.source: _hours_an_epoch(one, shares[one.source]) for one in found if one.source in shares}
    counted = ("parts", "done", "running", "failed", "left", "hours", "an epoch", "hours an hour", "to go")
    for column in ("source", "state", *counted):
        table.add_column(column, justify="left" if column in ("source", "state") else "right")
    table.add_column("jobs")
    for one in found:
        counts = (one.parts, one.done, one.running, one.failed, one.left)
        jobs = [f"{held.holder.host}:{held.holder.pid} ({held.kind})" for held, _ in one.jobs]
        jobs += [f"{held.holder.host}:{held.holder.pid} ({held.kind}, silent)" for held in one.silent]
        table.add_row(
            one.source, one.summary, *(f"{count:,}" for count in counts), f"{one.seconds / 3600:,.2f}",
            f"{wanted[one.source]:,.2f}" if one.source in wanted else "",
            f"{one.hours_an_hour:,.1f}" if one.hours_an_hour else "", _time(one.to_go) if one.jobs else "", ", ".join(jobs),
        )  # fmt: skip
    if len(found) > 1:
        sums = [sum(getattr(one, name) for one in found) for name in ("parts", "done", "running", "failed", "left")]
        hours = sum(one.seconds for one in found) / 3600
        longest = [one.to_go for one in found if one.jobs]
        known = [seconds for seconds in longest if seconds is not None]
        table.add_section()
        ready = f"{sum(one.ready for one in found)} of {len(found)} ready"
        to_go = _time(max(known)) if known and len(known) == len(longest) else ""
        pace = sum(one.hours_an_hour for one in found)
        table.add_row(
            "all",
            ready,
            *(f"{count:,}" for count in sums),
            f"{hours:,.2f}",
            f"{sum(wanted.values()):,.2f}",
            f"{pace:,.1f}" if pace else "",
            to_go,
            "",
        )
    table.caption = (
        f"as of {time.strftime('%Y-%m-%d %H:%M:%S')}; 'to go' at the pace of the jobs that run now; 'an epoch': hours that one of "
        f"'{mixture.name}' takes of all that is prepared, before its temperature"
    )
    return table


def _hours_an_epoch(one: SourceStatus, share: Share) -> float:
    return share.ratio * share.used(one.samples) * one.seconds / 3600 if share.hours is None else share.hours


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(minutes, 1)} min"
