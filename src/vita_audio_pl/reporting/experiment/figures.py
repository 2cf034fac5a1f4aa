"""Figures of an ablation: error rate over speed, learning curves, held-out accuracy by head."""

from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vita_audio_pl.reporting.experiment.files import ExperimentFiles
from vita_audio_pl.reporting.experiment.measures import accuracy_by_head, distinct_modes, estimate, metric, speed_up
from vita_audio_pl.reporting.figures import Picture, Theme, draw
from vita_audio_pl.reporting.run_files import Curve, Stage
from vita_audio_pl.reporting.seeds import Estimate

MARKS = {"vanilla": "s", "own": "o", "boost": "o", "balance": "D", "turbo": "^"}
VERIFIED = "*"
PARETO = "wer_against_speed"
CURVES = "curves_"


def experiment_pictures(files: ExperimentFiles, split: str) -> dict[str, Picture]:
    """Figures by name: `wer_against_speed`, `curves_<stage>` for stages in which the arms differ."""
    curves = {f"{CURVES}{stage}": _curves(files, stage) for stage in files.differing_stages()}
    found = {PARETO: _pareto(files, split)} | curves
    return {name: picture for name, picture in found.items() if picture is not None}


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (speed-up, error rate) points, slowest first."""
    found: list[tuple[float, float]] = []
    for speed, error in sorted(points, key=lambda point: (-point[0], point[1])):
        if not found or error < found[-1][1]:
            found.append((speed, error))
    return found[::-1]


def _pareto(files: ExperimentFiles, split: str) -> Picture | None:
    points = []
    for number, choice in enumerate(files.choices):
        for mode in distinct_modes(files, split):
            x = estimate(files, choice, speed_up(mode, split))
            y = estimate(files, choice, metric(mode, "tts", "speech_wer", split))
            if x is not None and y is not None:
                points.append((number, choice, mode, x, y))
    if not points:
        return None
    one_seed = any(y.n == 1 for *_, y in points)
    note = (
        "Means over seeds, bars: 95 % intervals (Student's t). Line: the points that none beats in both."
        + (" Hollow: one seed, no interval." if one_seed else "")
    )  # fmt: skip

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        best = front([(x.mean, 100 * y.mean) for *_, x, y in points])
        axes.plot(*zip(*best, strict=True), color=theme.ink, linewidth=0.8, linestyle=":", zorder=1)
        for number, _, mode, x, y in points:
            colour = _colour(theme, number)
            axes.errorbar(
                x.mean, 100 * y.mean, _bar(y, 100), _bar(x), fmt=_mark(mode), color=colour, markersize=_size(mode),
                markerfacecolor=theme.ground if y.n == 1 else colour, linewidth=1, capsize=2,
            )  # fmt: skip
        for number, choice in dict.fromkeys((number, choice) for number, choice, *_ in points):
            axes.plot([], [], color=_colour(theme, number), linewidth=4, label=choice)
        for mode in dict.fromkeys(mode for _, _, mode, _, _ in points):
            axes.plot([], [], _mark(mode), color=theme.ink, markersize=_size(mode) - 1, label=mode)
        axes.set_xlabel(
            "projected speed-up over Vanilla (a head's pass counted as 11 % of the backbone's, a parallel one's as 8 %)"
        )
        axes.set_ylabel("WER of read text, %")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.text(0.08, 0.02, note, color=theme.ink, fontsize=7)
        figure.subplots_adjust(left=0.08, right=0.76, bottom=0.19, top=0.96)

    return draw(paint, (8.0, 3.8), f"word error rate of read text against projected speed-up. {note}")


def _mark(mode: str) -> str:
    return VERIFIED if "+" in mode else MARKS.get(mode, "o")


def _size(mode: str) -> int:
    return 9 if "+" in mode else 6


def _bar(found: Estimate, factor: float = 1.0) -> list[list[float]] | None:
    """Lengths of an error bar below and above the mean."""
    if found.interval is None:
        return None
    low, high = found.interval
    return [[factor * (found.mean - low)], [factor * (high - found.mean)]]


def _stages(files: ExperimentFiles, choice: str, name: str) -> list[Stage]:
    return [stage for arm in files.of(choice) for stage in arm.run.stages if stage.name == name and stage.curves]


def _curves(files: ExperimentFiles, name: str) -> Picture | None:
    """Loss, the backbone's accuracy where it trains, and the heads' on held-out data, as far as they are on record."""
    stages = {choice: _stages(files, choice, name) for choice in files.choices}
    if not any(stages.values()):
        return None
    by_head = {
        choice: [found for arm in files.of(choice) if (found := accuracy_by_head(arm, name))] for choice in stages
    }
    heads_over_steps = {choice: [_mean_of_heads(stage) for stage in found] for choice, found in stages.items()}
    panels: list[tuple[str, str, Callable[[Axes, str, object], None]]] = []

    def of_stages(curve: str) -> Callable[[Axes, str, object], None]:
        def plot(axes: Axes, choice: str, colour: object) -> None:
            for place, stage in enumerate(stages[choice]):
                _plot(axes, stage.curves.get(curve), colour, choice if place == 0 else None)

        return plot

    def over_steps(axes: Axes, choice: str, colour: object) -> None:
        for curve in heads_over_steps[choice]:
            _plot(axes, curve, colour, None)

    def at_the_end(axes: Axes, choice: str, colour: object) -> None:
        aside = 0.1 * (files.choices.index(choice) - (len(files.choices) - 1) / 2)  # arms beside each other, not on top
        for heads in by_head[choice]:
            places = [head + aside for head in range(len(heads))]
            axes.plot(places, [100 * value for value in heads], ".", color=colour, markersize=4, alpha=0.6)
        means = [100 * sum(seeds) / len(seeds) for seeds in zip(*by_head[choice], strict=False)]
        axes.plot([head + aside for head in range(len(means))], means, "_-", color=colour, linewidth=1.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(-0.5, max(map(len, sum(by_head.values(), []))) - 0.5)

    panels.append(("loss that each arm trains on", "optimiser step", of_stages("train/loss")))
    if any("train/accuracy_main" in stage.curves for found in stages.values() for stage in found):
        panels.append(("backbone's accuracy in training", "optimiser step", of_stages("train/accuracy_main")))
    if any(curve is not None and len(curve.steps) > 1 for found in heads_over_steps.values() for curve in found):
        panels.append(("held-out accuracy, mean of the heads", "optimiser step", over_steps))
    if any(by_head.values()):
        panels.append(("held-out accuracy at the end, % (dots: seeds)", "head", at_the_end))

    width = 3.6 * max(2, len(panels))

    def paint(figure: Figure, theme: Theme) -> None:
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, below, plot) in zip(drawn, panels, strict=True):
            for number, choice in enumerate(files.choices):
                plot(axes, choice, _colour(theme, number))
            axes.set_title(title)
            axes.set_xlabel(below)
        drawn[0].set_yscale("log")
        drawn[0].yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        drawn[0].yaxis.set_minor_formatter(FuncFormatter(lambda loss, _: f"{loss:g}" if f"{loss:e}"[0] in "25" else ""))
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            frameon=False,
            labelcolor=theme.ink,
            fontsize=8,
            loc="lower center",
            ncols=min(6, len(labels)),
        )
        figure.subplots_adjust(left=0.5 / width, right=0.99, bottom=0.24, top=0.91, wspace=0.2)

    text = f"training of stage {name}: {'; '.join(title for title, _, _ in panels)}"
    return draw(paint, (width, 3.2), text)


def _mean_of_heads(stage: Stage) -> Curve | None:
    """Held-out accuracy over the steps at which all heads have one, their mean, each over the tokens that it writes."""
    heads = stage.head_curves("val/served_accuracy_head_")
    if not heads:
        return None
    by_step = [dict(zip(head.steps, head.values, strict=True)) for head in heads]
    steps = tuple(sorted(set.intersection(*(set(one) for one in by_step))))
    return Curve(steps, tuple(sum(one[step] for one in by_step) / len(by_step) for step in steps))


def _plot(axes: Axes, curve: Curve | None, colour: object, label: str | None) -> None:
    if curve is not None:
        axes.plot(curve.steps, curve.values, linewidth=1, color=colour, label=label)


def _colour(theme: Theme, number: int) -> object:
    if number < len(theme.series):
        return theme.series[number]
    return matplotlib.colormaps["tab10"](number % 10)
