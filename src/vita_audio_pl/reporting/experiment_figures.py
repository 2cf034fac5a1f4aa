"""An ablation's figures: error rate over speed, learning curves, accuracy by head."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vita_audio_pl.reporting.experiment_files import ExperimentFiles
from vita_audio_pl.reporting.experiment_tables import estimate, metric, speed_up
from vita_audio_pl.reporting.figures import Picture, Theme, draw
from vita_audio_pl.reporting.run_files import Curve, Stage

MARKS = {"vanilla": "s", "own": "o", "boost": "o", "balance": "D", "turbo": "^"}
PARETO = "wer_against_speed"


def experiment_pictures(files: ExperimentFiles, split: str) -> dict[str, Picture]:
    """Figures by name: `wer_against_speed`, `curves_<stage>` for stages in which the arms differ."""
    pictures = {f"curves_{stage}": _curves(files, stage) for stage in _differing_stages(files)}
    pareto = _pareto(files, split)
    return pictures if pareto is None else {PARETO: pareto} | pictures


def _pareto(files: ExperimentFiles, split: str) -> Picture | None:
    points = []
    for number, choice in enumerate(files.choices):
        for mode in files.modes(split):
            x = estimate(files, choice, speed_up(mode, split))
            y = estimate(files, choice, metric(mode, "tts", "speech_wer", split))
            if x is not None and y is not None:
                points.append((number, choice, mode, x, y))
    if not points:
        return None

    def paint(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        named: set[str] = set()
        for number, choice, mode, x, y in points:
            spread = None
            if y.low is not None and y.high is not None:
                seen = [
                    v for arm in files.of(choice) if (v := metric(mode, "tts", "speech_wer", split)(arm)) is not None
                ]
                spread = [[100 * (y.mean - min(seen))], [100 * (max(seen) - y.mean)]]
            checked = mode.endswith("+verify")
            colour = _colour(theme, number)
            axes.errorbar(
                x.mean, 100 * y.mean, spread, fmt=MARKS.get(mode.removesuffix("+verify"), "o"), color=colour, markersize=6,
                markerfacecolor=theme.ground if checked else colour, linewidth=1, capsize=2,
                label=None if choice in named else choice,
            )  # fmt: skip
            named.add(choice)
        for mode in dict.fromkeys(mode for _, _, mode, _, _ in points):
            checked = mode.endswith("+verify")
            axes.plot(
                [], [], MARKS.get(mode.removesuffix("+verify"), "o"), color=theme.ink, markersize=5, label=mode,
                markerfacecolor=theme.ground if checked else theme.ink,
            )  # fmt: skip
        axes.set_xlabel("speed-up over Vanilla (a head's pass counted as 11 % of the backbone's)")
        axes.set_ylabel("WER of read text, %")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.subplots_adjust(left=0.08, right=0.76, bottom=0.14, top=0.96)

    return draw(paint, (8.0, 3.6), "word error rate of read text against speed-up, means over seeds; bars from the lowest to the "
                "highest seed")  # fmt: skip


def _differing_stages(files: ExperimentFiles) -> list[str]:
    """Stages that at least two choices trained apart and that left curves, in order."""
    folders: dict[str, set[str]] = {}
    for arm in files.arms:
        for stage in arm.facts["stages"]:
            folders.setdefault(stage["stage"], set()).add(stage["folder"])
    seeds = len({arm.seed for arm in files.arms})
    return [
        stage
        for stage, apart in folders.items()
        if len(apart) > seeds and any(_stages(files, c, stage) for c in files.choices)
    ]


def _stages(files: ExperimentFiles, choice: str, name: str) -> list[Stage]:
    return [stage for arm in files.of(choice) for stage in arm.run.stages if stage.name == name and stage.curves]


def _curves(files: ExperimentFiles, name: str) -> Picture:
    def paint(figure: Figure, theme: Theme) -> None:
        loss, accuracy, by_head = figure.subplots(1, 3)
        for number, choice in enumerate(files.choices):
            colour = _colour(theme, number)
            for place, stage in enumerate(_stages(files, choice, name)):
                label = choice if place == 0 else None
                _plot(loss, stage.curves.get("train/loss"), colour, label)
                heads = stage.head_curves("train/accuracy_head_")
                if not heads:
                    _plot(accuracy, stage.curves.get("train/accuracy_main"), colour, label)
                    continue
                _plot(accuracy, heads[0], colour, label)
                if len(heads) > 1:
                    accuracy.plot(heads[-1].steps, heads[-1].values, color=colour, linewidth=1, linestyle="--")
                ends = [sum(head.values[-3:]) / len(head.values[-3:]) for head in heads]
                by_head.plot(range(len(ends)), ends, "o-", color=colour, linewidth=1, markersize=3, label=label)
        loss.set_yscale("log")
        for axes, title, below in (
            (loss, "loss that is trained on", "optimiser step"),
            (accuracy, "accuracy: first head, last head dashed", "optimiser step"),
            (by_head, "accuracy at the end", "head"),
        ):
            axes.set_title(title)
            axes.set_xlabel(below)
        if not by_head.lines:
            by_head.set_visible(False)
        loss.legend(frameon=False, labelcolor=theme.ink, fontsize=7)
        figure.subplots_adjust(left=0.06, right=0.99, bottom=0.16, top=0.91, wspace=0.2)

    return draw(
        paint, (10.0, 3.0), f"loss and accuracy of the heads during stage {name}, one line for each arm and seed"
    )


def _plot(axes: Axes, curve: Curve | None, colour: object, label: str | None) -> None:
    if curve is not None:
        axes.plot(curve.steps, curve.values, linewidth=1, color=colour, label=label)


def _colour(theme: Theme, number: int) -> object:
    if number < len(theme.series):
        return theme.series[number]
    return matplotlib.colormaps["tab10"](number % 10)
