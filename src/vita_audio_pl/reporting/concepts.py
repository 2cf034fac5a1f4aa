"""The pictures of the documentation: `python -m vita_audio_pl.reporting.concepts DIR` draws them from the code's own rules."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vita_audio_pl.interleave import NAMED_PATTERNS, DecodePattern, IntervalRatio
from vita_audio_pl.reporting.figures import LIGHT

N_HEADS = 10
TEXT, AUDIO, MARK, PROMPT, NOTHING = "#1f5a85", "#e0a15e", "#b5542a", "#c9c5ba", "#fdfcf9"


def model(axes: Axes) -> None:
    """The backbone and the first heads: what each reads and what it predicts."""
    axes.set(xlim=(0, 100), ylim=(0, 46))
    columns = (
        ("backbone\n(Qwen2.5)", "x_0 ... x_p", "x_{p+1}"),
        *((f"head {k}", "x_p", "x_{p+1}") for k in (0, 1)),
        ("head 9", "x_p", "x_{p+1}"),
    )
    for place, (name, reads, predicts) in zip((4, 29, 53, 80), columns, strict=True):
        _box(axes, place, 17, 16, 9, name, TEXT if place == 4 else AUDIO)
        _box(axes, place, 32, 16, 5, "vocabulary layer W", PROMPT)
        _box(axes, place, 3, 16, 5, "embeddings E", PROMPT)
        _arrow(axes, (place + 8, 26), (place + 8, 32))
        _arrow(axes, (place + 8, 8), (place + 8, 17))
        axes.text(place + 8, 0.6, f"${reads}$", ha="center", fontsize=8)
        axes.text(place + 8, 40, f"${predicts}$", ha="center", fontsize=9)
        _arrow(axes, (place + 8, 37), (place + 8, 39.6))
    for (start, end), label in zip(
        ((20, 29), (45, 53), (69, 80)), ("$h^0_{p-1}$", "$h^1_{p-1}$", "$h^9_{p-1}$"), strict=True
    ):
        _arrow(axes, (start, 21.5), (end, 21.5))
        axes.text((start + end) / 2, 23, label, ha="center", fontsize=8)
    axes.text(74.5, 18.5, "...", ha="center", fontsize=12)
    axes.text(50, 44, "Head k: one decoder layer over P [norm(E[x_p]); norm(h of the predictor before, one token back)]; E, W and the last "
              "norm are shared", ha="center", fontsize=7.5)  # fmt: skip


def packed_row(axes: Axes) -> None:
    """One packed row: two documents, a spoken answer interleaved by Boost's ratio, and what is a target."""
    ratio = IntervalRatio.of("boost")
    prompt, text, codes = 7, 6, 21
    answer = ratio.layout(text, codes)
    kinds = [PROMPT] * prompt + [TEXT if i < text else AUDIO if i < text + codes else MARK for i in answer] + [TEXT]
    second = [PROMPT] * 9 + [TEXT] * 6
    cells, documents = [*kinds, *second, *[NOTHING] * 4], [len(kinds), len(kinds) + len(second)]
    positions = [*range(len(kinds)), *range(len(second))]
    axes.set(xlim=(-5, len(cells) + 0.5), ylim=(-3.4, 3.6))
    for place, colour in enumerate(cells):
        axes.add_patch(Rectangle((place, 1), 0.92, 1, facecolor=colour, edgecolor="#8a877f", linewidth=0.4))
        target = colour not in (PROMPT, NOTHING)
        axes.add_patch(
            Rectangle(
                (place, -0.5), 0.92, 1, facecolor=colour if target else NOTHING, edgecolor="#8a877f", linewidth=0.4
            )
        )
        if place < len(positions) and positions[place] % 5 == 0:
            axes.text(place + 0.46, -1.5, str(positions[place]), ha="center", fontsize=6.5)
    for label, height in (("tokens", 1.5), ("targets", 0), ("position", -1.35)):
        axes.text(-0.6, height, label, ha="right", va="center", fontsize=8)
    start = 0
    for number, end in enumerate(documents):
        axes.annotate("", (start, 2.5), (end, 2.5), arrowprops={"arrowstyle": "<->", "linewidth": 0.8})
        what = ("document 0: a spoken question, answered in text and speech", "document 1: ASR")[number]
        axes.text((start + end) / 2, 2.8, what, ha="center", fontsize=7.5)
        start = end
    axes.text(documents[-1] + 2, 2.8, "padding", ha="center", fontsize=7.5)
    _legend(
        axes, 0, -3.0, (("prompt", PROMPT), ("text", TEXT), ("audio codes", AUDIO), ("begin and end of audio", MARK))
    )


def decoding_patterns(axes: Axes) -> None:
    """Who writes each of the first tokens of an answer in each mode, and after how many backbone passes."""
    length = 44
    axes.set(xlim=(-6, length + 7), ylim=(-2.2, 5))
    heads = np.linspace(0.25, 0.95, N_HEADS)
    for row, mode in enumerate(("vanilla", "balance", "boost", "turbo")):
        writers = DecodePattern.of(mode).writers(length, N_HEADS)
        for place, writer in enumerate(writers):
            colour = TEXT if writer == 0 else _shade(float(heads[writer - 1]))
            axes.add_patch(
                Rectangle((place, 3.6 - row), 0.92, 0.8, facecolor=colour, edgecolor="#8a877f", linewidth=0.3)
            )
        axes.text(-0.6, 4 - row, mode, ha="right", va="center", fontsize=8)
        runs = "M only" if mode == "vanilla" else " ".join(map(str, NAMED_PATTERNS[mode]))
        axes.text(length + 0.5, 4 - row, f"{int((writers == 0).sum())} passes\n{runs}", va="center", fontsize=6.5)
    _legend(
        axes, 0, -0.6, (("backbone", TEXT), ("head 0", _shade(float(heads[0]))), ("head 9", _shade(float(heads[-1]))))
    )
    axes.text(0, -1.8, "In Boost the first backbone pass writes a text token, and ten heads follow with a marker, eight codes (0.64 s) "
              "and a marker.", fontsize=7.5)  # fmt: skip


PICTURES: dict[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {
    "model": (model, (8.6, 3.6)),
    "packed_row": (packed_row, (9.0, 2.1)),
    "decoding_patterns": (decoding_patterns, (8.6, 2.6)),
}


def draw_concepts(folder: Path) -> list[Path]:
    """Write the pictures as PNG; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (paint, size) in PICTURES.items():
        figure = Figure(figsize=size, dpi=140, facecolor=LIGHT.ground)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.axis("off")
        paint(axes)
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], metadata={"Software": None})
    return written


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0.1,rounding_size=0.8", facecolor=colour, edgecolor="none"
        )
    )
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=8,
        color="white" if colour == TEXT else "#1d1d1b",
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, linewidth=0.8, color="#6b6963"))


def _legend(axes: Axes, x: float, y: float, entries: tuple[tuple[str, str], ...]) -> None:
    for name, colour in entries:
        axes.add_patch(Rectangle((x, y), 0.92, 0.6, facecolor=colour, edgecolor="#8a877f", linewidth=0.3))
        axes.text(x + 1.3, y + 0.3, name, va="center", fontsize=7)
        x += 3 + 0.62 * len(name)


def _shade(share: float) -> str:
    """From pale to dark orange."""
    pale, dark = np.array([250, 224, 188]), np.array([181, 84, 42])
    return "#" + "".join(f"{int(value):02x}" for value in pale + share * (dark - pale))


if __name__ == "__main__":
    for path in draw_concepts(Path(sys.argv[1])):
        print(path)
