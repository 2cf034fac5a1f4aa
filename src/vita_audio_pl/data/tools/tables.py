"""Prepared sources and plans as tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.plan import Place
from vita_audio_pl.data.prepared import Manifest, PreparedSource
from vita_audio_pl.data.staging import source_folders
from vita_audio_pl.data.tools.lint import Findings
from vita_audio_pl.text import LengthRule

if TYPE_CHECKING:  # the training side of the package takes seconds to import
    from vita_audio_pl.data.datamodule import SpeechDataModule

_BLOCKS = " ▁▂▃▄▅▆▇█"


def info_table(manifests: Sequence[Manifest]) -> Table:
    """What there is of each source."""
    table = _table("source", "task", "samples", "hours", "text tokens", "codes", "shards", "MiB", "tokenizer", "codec")
    table.add_column("left out when it was prepared")
    totals = np.zeros(4)
    for manifest in manifests:
        counts = (manifest.samples, manifest.seconds / 3600, manifest.text_tokens, manifest.codes)
        totals += counts
        size = sum(shard.bytes for shard in manifest.shards) / 2**20
        codec = f"{manifest.codec['name']} {manifest.codec['fingerprint'][:8]}" if manifest.codec else "none"
        left_out = manifest.report.get("skipped", {}) | manifest.report.get("filtered", {})
        skipped = ", ".join(f"{reason}: {n}" for reason, n in left_out.items()) or "nothing"
        cells = (*_counts(counts), str(len(manifest.shards)), f"{size:.1f}", manifest.tokenizer[:8], codec, skipped)
        table.add_row(manifest.source, manifest.task, *cells)
    if len(manifests) > 1:
        table.add_section()
        table.add_row("all", "", *_counts(totals))
    return table


def stats_table(sources: Sequence[PreparedSource], rule: LengthRule, row_length: int, continuous: bool) -> Table:
    """How long samples are as they are trained on, and what of them is labelled."""
    table = _table("source", "samples", "mean", "p50", "p90", "p99", "longest", "text labels", "audio labels")
    table.add_column(f"longer than {row_length}", justify="right")
    table.add_column("lengths, 8 to 8192 and more, a step a power of two")
    for source in sources:
        measured = source.index.measure(rule, continuous)
        tokens = measured.tokens
        p50, p90, p99 = np.percentile(tokens, (50, 90, 99))
        histogram = np.bincount(np.clip(np.log2(np.maximum(tokens, 8)).astype(int) - 3, 0, 10), minlength=11)
        bars = "".join(_BLOCKS[int(np.ceil(8 * count / histogram.max()))] for count in histogram)
        lengths = [f"{value:.0f}" for value in (tokens.mean(), p50, p90, p99, tokens.max())]
        labels = [f"{100 * part.sum() / tokens.sum():.1f} %" for part in (measured.text_labels, measured.audio_labels)]
        table.add_row(source.name, f"{len(source):,}", *lengths, *labels, f"{(tokens > row_length).sum():,}", bars)
    return table


def plan_table(module: "SpeechDataModule", rows: int) -> Table:
    """Shares of an epoch as the mixture says, and as the first `rows` rows have them."""
    plan = module.plan
    tokens = np.zeros(len(module.sources))
    planned = plan.rows(Place())
    for _ in range(rows):
        source, sample, _ = next(planned)
        for number in np.unique(source).tolist():
            tokens[number] += plan.sources[number].tokens[sample[source == number]].sum()
    phase = plan.phases[-1]
    table = _table("source", "ratio", "hours an epoch", "samples", "tokens", "share", f"first {rows:,} rows")
    table.add_column("left out")
    for number, facts in enumerate(module.describe()["sources"].items()):
        name, source = facts
        left_out = ", ".join(f"{reason}: {count:,}" for reason, count in source["left_out"].items()) or "nothing"
        share = f"{100 * tokens[number] / tokens.sum():.2f} %"
        cells = (
            f"{source['ratio']:.6g}",
            f"{source['hours']:,.2f}",
            f"{source['samples']:,}",
            f"{source['tokens']:,}",
            f"{100 * source['share']:.2f} %",
        )
        table.add_row(name, *cells, share, left_out)
    table.caption = (
        f"an epoch has about {phase.tokens_per_epoch / module.row_length:,.0f} rows of {module.row_length} tokens in "
        f"{phase.windows:,} windows, {module.steps_per_epoch:,} steps; the first {rows:,} rows are "
        f"{100 * tokens.sum() / (rows * module.row_length):.2f} % full; hours are of all that is prepared, left out or not; plan "
        f"{module.fingerprint}"
    )
    return table


def lint_table(findings: Sequence[Findings]) -> Table:
    """What is wrong with each source, counted."""
    table = _table("source", "samples", "broken")
    table.add_column("found")
    for found in findings:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in found.kinds.items()) or "nothing"
        table.add_row(found.source, f"{found.samples:,}", f"{len(found.broken):,}", kinds)
    return table


def _table(name: str, *numbers: str) -> Table:
    table = Table(title_justify="left", caption_justify="left")
    table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="left" if number in ("task", "tokenizer", "codec") else "right")
    return table


def _counts(counts: Sequence[float] | np.ndarray) -> list[str]:
    samples, hours, text, codes = counts
    return [f"{samples:,.0f}", f"{hours:,.2f}", f"{text:,.0f}", f"{codes:,.0f}"]


def prepared_in(options: DataOptions, names: Sequence[str]) -> list[PreparedSource]:
    """The named sources beside one another in `data.shards`."""
    return [PreparedSource(folder) for folder in source_folders(options, names)]
