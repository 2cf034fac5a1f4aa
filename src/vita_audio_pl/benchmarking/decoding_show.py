"""Results of the decoding benchmark as a table, Markdown, JSON and a plot."""

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from vita_audio_pl.benchmarking.decoding import AUDIBLE, Measurement
from vita_audio_pl.storage.files import write_output, write_output_json

PARTS = ("encode", "prefill", "backbone", "heads", "vocoder")
HEADERS = (
    "setting",
    "tokens/s",
    "x Vanilla",
    "x transformers",
    "tokens/pass",
    "accepted, first to last head",
    "first chunk ms (p50 p90 p99)",
    "between chunks ms",
    "first audible ms p50 (passes: backbone + heads)",
    "RTF; gaps s",
    "encode/prefill/backbone/heads/vocoder %",
    "cache MiB",
)


def figures(
    measured: Measurement, vanilla: Measurement | None, transformers: Measurement | None = None
) -> dict[str, Any]:
    """All numbers of one setting, by name; latencies in milliseconds."""
    total = sum(measured.parts.values())
    return {
        "setting": asdict(measured.setting),
        "label": measured.setting.label,
        "tokens_per_second": measured.tokens_per_second,
        "times_vanilla": None if vanilla is None else times_as_fast(measured, vanilla),
        "times_transformers": None if transformers is None else times_as_fast(measured, transformers),
        "audible_from": AUDIBLE,
        "first_audible_ms": percentiles(measured.first_audible),
        "passes_to_audible": (
            [float(np.median(count)) for count in zip(*measured.passes_to_audible, strict=True)]
            if measured.passes_to_audible
            else None
        ),
        "gaps_seconds": float(np.mean(measured.gaps)) if measured.gaps else None,
        "real_time_factor_by_chunk": (
            {f"p{p}": float(np.percentile(measured.chunk_factors, p)) for p in (50, 90, 99)}
            if measured.chunk_factors
            else None
        ),
        "tokens_per_backbone_pass": measured.tokens_per_pass,
        "head_passes": measured.head_passes,
        "acceptance_by_head": measured.acceptance if any(measured.drafted) else None,
        "first_chunk_ms": percentiles(measured.first_chunk),
        "between_chunks_ms": percentiles(measured.between_chunks),
        "real_time_factor": measured.real_time_factor,
        "share_of_time": {kind: measured.parts.get(kind, 0.0) / total for kind in PARTS} if total else None,
        "seconds": measured.seconds,
        "tokens": measured.tokens,
        "cache_bytes": measured.cache_bytes,
    }


def times_as_fast(one: Measurement, other: Measurement) -> float:
    """Of the tokens a second of two settings that took turns: the median over repetitions.

    A shared machine's own speed changes from one repetition to the next, and the quickest of each may be of different ones.
    """
    speeds = [np.divide(measured.tokens, measured.seconds) for measured in (one, other)]
    return float(np.median(speeds[0] / speeds[1])) if one.tokens else 0.0


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p90 and p99 in milliseconds; None of nothing."""
    if not seconds:
        return None
    return {f"p{p}": float(np.percentile(seconds, p) * 1e3) for p in (50, 90, 99)}


def all_figures(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Figures of every setting; each is compared with Vanilla in exact weights and else alike, and with transformers' loop."""
    by_setting = {measured.setting: measured for measured in measurements}
    loop = next((measured for measured in measurements if measured.setting.mode == "transformers"), None)
    alike = partial(replace, mode="vanilla", verify="none", agreement=None, quantize=None)
    return [figures(measured, by_setting.get(alike(measured.setting)), loop) for measured in measurements]


def decoding_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The figures on a terminal."""
    table = Table(title=title, title_justify="left")
    for header in HEADERS:
        table.add_column(header, justify="left" if header == "setting" else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def write_decoding(rows: Sequence[dict[str, Any]], about: dict[str, Any], folder: Path) -> None:
    """Writes `decoding.json`, `decoding.md` and `decoding.png` into `folder`."""
    record = {"format": 1, "about": about, "results": list(rows)}
    write_output_json(folder / "decoding.json", record)
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    write_output(folder / "decoding.md", ("\n".join(lines) + "\n").encode())
    write_output(folder / "decoding.png", _plot(rows))


def _plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """Speed and first chunks as a PNG."""
    labels = [row["label"] for row in rows]
    places = np.arange(len(rows))
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.6 + 0.34 * len(rows)), sharey=True, layout="constrained")
    axes[0].barh(places, [row["tokens_per_second"] for row in rows], color="tab:blue")
    axes[0].set(title="tokens per second", yticks=places, yticklabels=labels)
    for percentile, shade in (("p99", 0.25), ("p90", 0.5), ("p50", 1.0)):
        lengths = [(row["first_chunk_ms"] or {}).get(percentile, 0.0) for row in rows]
        axes[1].barh(places, lengths, color="tab:orange", alpha=shade, label=percentile)
    axes[1].set(title="first chunk, ms")
    axes[1].legend()
    axes[0].invert_yaxis()
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.getvalue()


def _cells(row: dict[str, Any]) -> list[str]:
    accepted = row["acceptance_by_head"]
    share = row["share_of_time"]
    factor = row["real_time_factor"]
    return [
        row["label"],
        f"{row['tokens_per_second']:.1f}",
        "" if row["times_vanilla"] is None else f"{row['times_vanilla']:.2f}",
        "" if row["times_transformers"] is None else f"{row['times_transformers']:.2f}",
        f"{row['tokens_per_backbone_pass']:.2f}",
        "" if accepted is None else " ".join(f"{a:.2f}" for a in accepted),
        _milliseconds(row["first_chunk_ms"]),
        _milliseconds(row["between_chunks_ms"]),
        _audible(row),
        ""
        if factor is None
        else f"{factor:.3f}" + ("" if row["gaps_seconds"] is None else f"; {row['gaps_seconds']:.2f}"),
        "" if share is None else " ".join(f"{100 * share[kind]:.0f}" for kind in PARTS),
        f"{row['cache_bytes'] / 2**20:.1f}",
    ]


def _audible(row: dict[str, Any]) -> str:
    if row["first_audible_ms"] is None:
        return ""
    backbone, heads = row["passes_to_audible"]
    return f"{row['first_audible_ms']['p50']:.0f} ({backbone:.0f} + {heads:.0f})"


def _milliseconds(values: dict[str, float] | None) -> str:
    return "" if values is None else " ".join(f"{value:.0f}" for value in values.values())
