"""A batch as a page to look at: every token, what it is trained to be followed by, and who writes it."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from vita_audio_pl.packed import IGNORE_INDEX, PackedBatch
from vita_audio_pl.text import TextTokenizer, Vocabulary

_BACKBONE = "#30475e"
_HEADS = ("#d1495b", "#edae49", "#66a182", "#2e86ab", "#8d6a9f", "#e07a5f", "#81b29a", "#f2cc8f", "#9bc53d", "#c9a0dc")
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class _Token:
    text: str
    target: str
    kind: str
    colour: str
    writer: str
    title: str


def preview_html(batch: PackedBatch, tokenizer: TextTokenizer, vocabulary: Vocabulary, title: str) -> str:
    """The page as one HTML file that needs nothing beside it."""
    heads = int(batch.writers.max())
    template = files("vita_audio_pl.data.tools").joinpath("preview.html.j2").read_text(encoding="utf-8")
    facts = [
        ("divisor of the step", f"{batch.divisor:g}"),
        ("labels in this batch", int((batch.labels != IGNORE_INDEX).sum())),
        ("padding", f"{100 * float((batch.document_ids < 0).float().mean()):.2f} %"),
        *((f"position: {name}", value) for name, value in batch.position.items()),
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(template)
    return page.render(
        title=title,
        facts=facts,
        frames=vocabulary.continuous_input,
        writers=[("backbone", _BACKBONE, "B"), *((f"head {k}", _colour(k + 1), k) for k in range(heads))],
        rows=[_row(batch, r, tokenizer, vocabulary) for r in range(len(batch.names))],
    )


def _row(batch: PackedBatch, r: int, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    columns = {
        name: getattr(batch, name)[r].numpy()
        for name in ("input_ids", "labels", "position_ids", "document_ids", "writers")
    }
    weights = batch.loss_weights[r].numpy() if batch.loss_weights is not None else np.ones(len(columns["labels"]))
    documents = []
    for number, name in enumerate(batch.names[r]):
        places = np.flatnonzero(columns["document_ids"] == number)
        tokens = []
        for place in places.tolist():
            last = place == places[-1]
            label = IGNORE_INDEX if last else int(columns["labels"][place + 1])  # labels stand at their own token
            own = int(columns["labels"][place])
            writer = int(columns["writers"][place])
            id = int(columns["input_ids"][place])
            told = {
                "place": place,
                "position": int(columns["position_ids"][place]),
                "id": id,
                "label": "none" if own == IGNORE_INDEX else own,
                "weight": f"{weights[place]:g}",
                "written by": {-1: "nobody", 0: "the backbone"}.get(writer, f"head {writer - 1}"),
                "trained to be followed by": "nothing" if label == IGNORE_INDEX else label,
            }
            tokens.append(
                _Token(
                    _shown(id, tokenizer, vocabulary),
                    "" if label == IGNORE_INDEX else _shown(label, tokenizer, vocabulary),
                    _kind(id, vocabulary),
                    _colour(writer),
                    {-1: "", 0: "B"}.get(writer, str(writer - 1)),
                    ", ".join(f"{key} {value}" for key, value in told.items()),
                )
            )
        labels = int((columns["labels"][places] != IGNORE_INDEX).sum())
        documents.append({"name": name, "tokens": tokens, "labels": labels})
    used = int((columns["document_ids"] >= 0).sum())
    return {"documents": documents, "used": used, "length": len(columns["labels"])}


def _shown(id: int, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> str:
    if vocabulary.is_code(id):
        return str(id - vocabulary.first_code)
    names = {vocabulary.begin_of_audio: "▶", vocabulary.end_of_audio: "■"}
    names |= {vocabulary.im_start: "im_start", vocabulary.im_end: "im_end", vocabulary.pad: "pad"}
    if id in names:
        return names[id]
    name = vocabulary.token(id)
    return name.strip("<|>") if name is not None else tokenizer.decode([id]).translate(_VISIBLE)


def _kind(id: int, vocabulary: Vocabulary) -> str:
    if vocabulary.is_code(id):
        return "code"
    if id in (vocabulary.begin_of_audio, vocabulary.end_of_audio):
        return "marker"
    if id in (vocabulary.im_start, vocabulary.im_end, vocabulary.pad):
        return "template"
    return "frame" if vocabulary.continuous_input and id == vocabulary.context_of_audio else "text"


def _colour(writer: int) -> str:
    return "" if writer < 0 else _BACKBONE if writer == 0 else _HEADS[(writer - 1) % len(_HEADS)]
