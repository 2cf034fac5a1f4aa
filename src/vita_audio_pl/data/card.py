"""Data cards: the contents of a prepared source or a mixture, for people (Markdown) and programs (JSON)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vita_audio_pl.config.screen import markdown_text
from vita_audio_pl.data.mixture import Mixture
from vita_audio_pl.data.prepared import JUDGED, Manifest
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import read_sealed
from vita_audio_pl.storage.places import Place

FORMAT = 1
NOT_LISTENED_TO = "nobody has listened: `prepare ... judge=NAME` does"
NOT_LOOKED_FOR = "not looked for: `python -m vita_audio_pl.data card against=[SOURCE]` does"


@dataclass(frozen=True)
class Card:
    """Facts about a prepared source.

    Attributes:
        source, task: name of the source and its task.
        description, licence, home, languages: of the corpus, from its recipe.
        samples, hours, text_tokens, codes: totals over the prepared shards.
        speakers: distinct speakers; 0 if the corpus does not name them.
        tokenizer, codec: fingerprints; the codec's with its name.
        left_out, filtered: number of unusable and of filtered samples, by reason.
        unread: estimated number of samples in unreadable files.
        overlap: other source -> number of shared samples, by how they match; None if not checked.
        spoken: synthesised messages: the `roles`, the `voice`, and the judge's verdict (`judged`);
            None if all audio comes from the corpus.
        transcripts: the recogniser that wrote the transcripts; None if they come from the corpus.
        absent: patterns of the recipe's files that found nothing, as after a partial download.
    """

    source: str
    task: str
    description: str
    licence: str
    home: str
    languages: tuple[str, ...]
    samples: int
    hours: float
    speakers: int
    text_tokens: int
    codes: int
    tokenizer: str
    codec: str
    left_out: Mapping[str, int]
    filtered: Mapping[str, int]
    unread: int
    overlap: Mapping[str, Mapping[str, int]] | None = None
    spoken: Mapping[str, Any] | None = None
    transcripts: Mapping[str, Any] | None = None
    absent: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_markdown(self, level: int = 1) -> str:
        """A heading and a table; `level` of the heading."""
        rows = {
            "task": self.task,
            "description": self.description or "not given",
            "languages": ", ".join(self.languages) or "not given",
            "licence": self.licence or "not given",
            "home": self.home or "not given",
            "samples": f"{self.samples:,}",
            "hours of audio": f"{self.hours:,.2f}",
            "speakers": f"{self.speakers:,}" if self.speakers else "not given by the corpus",
            "text tokens, codes": f"{self.text_tokens:,}, {self.codes:,}",
            "tokenizer, codec": f"{self.tokenizer}, {self.codec or 'none'}",
            "left out, since it could not be used": _counted(self.left_out, self.unread),
            "left out, since it was not wanted": _counted(self.filtered),
            **({"files that were not there": ", ".join(self.absent)} if self.absent else {}),
            "also in other sources": _overlaps(self.overlap),
            **({} if self.spoken is None else {"spoken": _spoken(self.spoken)}),
            **({} if self.transcripts is None else {"transcripts": f"by {_named(self.transcripts)}"}),
        }
        lines = (f"| {name} | {markdown_text(value)} |" for name, value in rows.items())
        return "\n".join([f"{'#' * level} {markdown_text(self.source)}", "", "| | |", "|---|---|", *lines, ""])


def judged_in(folder: Place, manifest: Manifest) -> Mapping[str, Any] | None:
    """The judge's results for the synthesised speech of a prepared source; None if these shards were not judged."""
    try:
        judged = read_sealed(folder / JUDGED)
    except (FileNotFoundError, UserError):  # if damaged, rerunning the command that wrote it repairs it
        return None
    return judged if judged.get("index_crc") == manifest.index_crc else None


def card_of(
    manifest: Manifest,
    overlap: Mapping[str, Mapping[str, int]] | None = None,
    judged: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a prepared source.

    Args:
        overlap, judged: see `Card` and `judged_in`.
    """
    report = manifest.report
    about = report.get("about", {})
    codec = manifest.codec
    return Card(
        source=manifest.source,
        task=manifest.task,
        description=about.get("description", ""),
        licence=about.get("licence", ""),
        home=about.get("home", ""),
        languages=tuple(about.get("languages", ())),
        samples=manifest.samples,
        hours=round(manifest.seconds / 3600, 4),
        speakers=report.get("speakers", 0),
        text_tokens=manifest.text_tokens,
        codes=manifest.codes,
        tokenizer=manifest.tokenizer,
        codec=f"{codec['name']} {codec['fingerprint']}" if codec else "",
        left_out=report.get("skipped", {}),
        filtered=report.get("filtered", {}),
        unread=report.get("unread", 0),
        overlap=overlap,
        spoken={**about["spoken"], "judged": judged} if "spoken" in about else None,
        transcripts=about.get("transcripts"),
        absent=tuple(about.get("absent", ())),
    )


@dataclass(frozen=True)
class MixtureCard:
    """Facts about a mixture.

    Attributes:
        mixture: name of the mixture.
        ratios: prepared source -> passes over it per epoch.
        cards: cards of the prepared sources.
        missing: names of the sources that are not prepared.
    """

    mixture: str
    ratios: Mapping[str, float]
    cards: tuple[Card, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, mixture: Mixture, cards: Sequence[Card]) -> "MixtureCard":
        there = {card.source: card.hours for card in cards}
        shares = [share for share in mixture.shares if share.source in there]
        ratios = {share.source: share.passes(there[share.source]) for share in shares}
        missing = tuple(share.source for share in mixture.shares if share.source not in there)
        return cls(mixture.name, ratios, tuple(cards), missing)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "hours": self._sum("hours"), "samples": self._sum("samples"), **asdict(self)}

    def to_markdown(self) -> str:
        """A table of the sources, and the card of each."""
        head = "| source | task | ratio | samples | hours | speakers | languages | licence |"
        rows = [
            f"| {markdown_text(c.source)} | {c.task} | {self.ratios.get(c.source, 0):.6g} | {c.samples:,} | {c.hours:,.2f} | "
            f"{c.speakers or ''} | {markdown_text(', '.join(c.languages))} | {markdown_text(c.licence)} |"
            for c in self.cards
        ]
        total = f"| all | | | {self._sum('samples'):,} | {self._sum('hours'):,.2f} | | | |"
        missing = [f"Not prepared: {markdown_text(', '.join(self.missing))}.", ""] if self.missing else []
        table = [
            f"# Mixture {markdown_text(self.mixture)}",
            "",
            head,
            "|---|---|---:|---:|---:|---:|---|---|",
            *rows,
            total,
            "",
        ]
        return "\n".join([*table, *missing, *(card.to_markdown(2) for card in self.cards)])

    def _sum(self, what: str) -> float:
        total: float = sum(getattr(card, what) for card in self.cards)
        return round(total, 4)


def _counted(reasons: Mapping[str, int], unread: int = 0) -> str:
    told = [f"{reason}: {count:,}" for reason, count in reasons.items()]
    return "; ".join([*told, *([f"about {unread:,} in what could not be read"] if unread else [])]) or "nothing"


def _overlaps(overlap: Mapping[str, Mapping[str, int]] | None) -> str:
    if overlap is None:
        return NOT_LOOKED_FOR
    told = [
        f"{other}: {count:,} ({kind})" for other, kinds in overlap.items() for kind, count in kinds.items() if count
    ]
    return "; ".join(told) or f"nothing of {', '.join(overlap)}"


def _spoken(spoken: Mapping[str, Any]) -> str:
    judged = spoken["judged"]
    heard = NOT_LISTENED_TO
    if judged is not None:
        heard = (
            f"{judged['wer']:.1%} of the {judged['unit']} wrong in {judged['messages']:,} messages, by the transcripts of "
            f"{judged['judge']['judge']}"
        )
    return f"{' and '.join(spoken['roles'])}, by {_named(spoken['voice'])}; {heard}"


def _named(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in ("", None))
