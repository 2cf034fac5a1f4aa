"""Figures as PNG, each in a light and a dark form."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vita_audio_pl.reporting.run_files import Curve, RunFiles, Stage

matplotlib.use("Agg")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    ink: str
    faint: str
    ground: str
    series: tuple[str, ...]
    heads: str  # colour map of the heads, first to last


LIGHT = Theme("#1d1d1b", "#d9d7d1", "#fdfcf9", ("#1f5a85", "#b5542a", "#4d7a45", "#7a5a9a"), "YlOrBr")
DARK = Theme("#e6e4de", "#3a3a38", "#171716", ("#7fb3d9", "#e29a72", "#9cc592", "#bfa3dc"), "YlOrBr_r")


@dataclass(frozen=True)
class Picture:
    """One figure as PNG bytes for light and dark surroundings, with a text for those who cannot see it."""

    light: bytes
    dark: bytes
    text: str


def draw(paint: Callable[[Figure, Theme], None], size: tuple[float, float], text: str) -> Picture:
    """Paint a figure twice, once in each theme. `size` is in inches at 160 dots each."""
    images = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, dpi=160, facecolor=theme.ground)
        paint(figure, theme)
        for axes in figure.axes:
            _plain(axes, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        images.append(buffer.getvalue())
    light, dark = images
    return Picture(light, dark, text)


def loss_curves(stage: Stage) -> Picture:
    """Loss of the backbone and of every head over the optimiser steps, held-out loss as dots."""

    def paint(figure: Figure, theme: Theme) -> None:
        loss, accuracy = figure.subplots(1, 2)
        for axes, kind in ((loss, "loss"), (accuracy, "accuracy")):
            _predictors(axes, stage, kind, theme)
            axes.set_xlabel("optimiser step")
            axes.set_title({"loss": "cross entropy", "accuracy": "next-token accuracy"}[kind])
        loss.set_yscale("log")
        _legend(loss, theme)
        figure.subplots_adjust(left=0.06, right=0.99, bottom=0.16, top=0.91, wspace=0.14)

    return draw(paint, (9.0, 3.0), f"loss and accuracy during stage {stage.name}")


def _predictors(axes: Axes, stage: Stage, kind: str, theme: Theme) -> None:
    main, heads = stage.curves.get(f"train/{kind}_main"), stage.head_curves(f"train/{kind}_head_")
    if main is not None:
        _line(axes, main, theme.series[0], "backbone")
    colours = matplotlib.colormaps[theme.heads]
    for number, curve in enumerate(heads):
        name = f"head {number}" if number in (0, len(heads) - 1) else None
        _line(axes, curve, colours(0.3 + 0.6 * number / max(1, len(heads) - 1)), name)
    held_out = stage.curves.get(f"val/{kind}_main") or stage.curves.get(f"val/{kind}_head_0")
    if held_out is not None:
        axes.plot(held_out.steps, held_out.values, "o", markersize=4, color=theme.ink, label="held out", clip_on=False)


def _line(axes: Axes, curve: Curve, colour: object, name: str | None) -> None:
    axes.plot(curve.steps, curve.values, linewidth=1.3, color=colour, label=name)


def quality_against_cost(run: RunFiles, stage: str, split: str) -> Picture | None:
    """WER of the speech over backbone passes per answer, one point per mode; None where nothing was spoken."""
    points = []
    for result in run.results:
        if (result.stage, result.split) == (stage, split) and result.task in ("tts", "sqa"):
            figure = result.figures["metrics"].get("speech_wer")
            if figure is not None:
                points.append((result.task, result.mode, result.figures["backbone_passes"], figure))
    # Points over other utterances are not to be compared, so their names say over how many they are
    unequal = {task for task, _, _, f in points if len({g["utterances"] for of, _, _, g in points if of == task}) > 1}
    if not points:
        return None

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for colour, task, name in ((theme.series[0], "tts", "text to speech"), (theme.series[1], "sqa", "spoken QA")):
            mine = sorted(((p, mode, f) for of, mode, p, f in points if of == task), key=lambda point: point[0])
            if not mine:
                continue
            x, y = [passes for passes, _, _ in mine], [100 * f["value"] for _, _, f in mine]
            below = [100 * (f["value"] - f["low"]) for _, _, f in mine]
            above = [100 * (f["high"] - f["value"]) for _, _, f in mine]
            axes.errorbar(
                x, y, [below, above], fmt="o-", color=colour, linewidth=1, markersize=5, capsize=2, label=name
            )
            for number, (passes, mode, f) in enumerate(mine):
                name = f"{mode} (n={f['utterances']})" if task in unequal else mode
                # Boost and Balance take nearly as many passes: neighbours are named above and below their points
                axes.annotate(name, (passes, 100 * f["value"]), xytext=(5, -13 if number % 2 else 6),
                              textcoords="offset points", color=colour, fontsize=8)  # fmt: skip
        axes.set_xlabel("backbone passes per answer")
        axes.set_ylabel("WER of the speech, %")
        axes.set_xlim(0, 1.18 * max(passes for _, _, passes, _ in points))  # the last name needs room
        axes.set_ylim(bottom=0)
        _legend(axes, theme)
        figure.subplots_adjust(left=0.09, right=0.97, bottom=0.14, top=0.97)

    return draw(paint, (6.5, 3.4), f"word error rate of the speech against backbone passes per answer, stage {stage}")


def _legend(axes: Axes, theme: Theme) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)


def _plain(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.tick_params(which="both", colors=theme.ink, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.ink)
    axes.grid(axis="y", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
        label.set_fontsize(9)
