"""The `filters` of a recipe: which utterances to use, and normalisation of their transcripts."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import regex

from vita_audio_pl.config.fields import check_settings, did_you_mean, setting
from vita_audio_pl.data.readers.base import Filtered, LeftOut, RawSample
from vita_audio_pl.data.readers.options import check_options
from vita_audio_pl.errors import UserError, shown
from vita_audio_pl.text import AUDIO_PLACEHOLDER, Message
from vita_audio_pl.text.messages import is_blank

SLOWEST_MATCH = 1.0
"""Time limit of a pattern per transcript, seconds; some patterns would take years on forty characters."""

_QUOTES = str.maketrans("\u2018\u2019\u201a\u201c\u201d\u201e\u2032\u2033", '\'\',"""\'"')

NORMALISERS: dict[str, Callable[[str], str]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "lower": str.lower,
    "straight_quotes": lambda text: text.translate(_QUOTES),
    "no_control": lambda text: "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf") or c in "\n\t"),
}
"""Normalisations that a recipe can name: Unicode's two normal forms (nfkc also converts full-width letters and
punctuation), lower case, straight quotes, removal of invisible characters."""


@dataclass(frozen=True)
class Filters:
    """Selection from a corpus. Excluded samples are counted under the reason named here, separately from faults.

    Patterns are regular expressions searched for in a transcript as published, or in each message of a chat.
    Columns are those of a table, keys of the JSON next to an audio, or what the reader knows of an utterance: `speaker`
    and, with lhotse, `language`, `gender` and its custom fields.
    """

    replace: Mapping[str, str] = setting({}, "pattern -> what stands in its place (no backreferences)")
    strip: tuple[str, ...] = setting((), "patterns taken out of the text; a blank stands in their place")
    normalise: tuple[str, ...] = setting((), "names of `NORMALISERS`, applied in turn after those two")
    refuse: tuple[str, ...] = setting((), "patterns that must not be found; else `refused text`")
    require: tuple[str, ...] = setting((), "patterns that must all be found; else `text not as required`")
    only: Mapping[str, tuple[str, ...]] = setting({}, "column -> the values that are taken; else `other COLUMN`")
    without: Mapping[str, tuple[str, ...]] = setting({}, "column -> values that are not; else `refused COLUMN`")
    at_least: Mapping[str, float] = setting({}, "column -> least number, such as dnsmos: 3.0; else `low COLUMN`")
    at_most: Mapping[str, float] = setting({}, "column -> largest number; else `high COLUMN`")
    speaker: str = setting(
        "",
        "pattern; what it finds of a speaker's name, or its first group, is the speaker; where it finds nothing, nobody is known",
    )
    min_seconds: float = setting(0.0, "shortest audio; else `audio too short`", at_least=0)
    characters_per_second: tuple[float, ...] = setting(
        (), "least and most characters of transcript for a second of audio; else `speech too slow` or `too fast`"
    )

    @classmethod
    def of(cls, value: Mapping[str, Any], where: str) -> "Filters":
        """The filters of a recipe.

        Raises:
            UserError: an unknown key, a value of the wrong type or out of range, or an invalid pattern.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(map(str, set(value) - set(known))):
            raise UserError(
                f"{where}: there is no filter '{unknown[0]:.100}'; there are {', '.join(known)}{did_you_mean(unknown[0][:100], known)}"
            )
        settings = {key: _frozen(item) for key, item in value.items()}
        check_options(f"{where}: 'filters'", cls, settings)
        filters = cls(**settings)
        check_settings(filters, f"{where}: filters.")
        return filters

    def check(self) -> None:
        """Check values and patterns.

        Raises:
            UserError: an unknown normalisation, an invalid pattern, or `characters_per_second` is not two rising
                numbers.
        """
        for pattern in (*self.replace, *self.strip, *self.refuse, *self.require, self.speaker):
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise UserError(f"filters: {pattern!r:.200} is not a regular expression ({error})") from None
        if unknown := [name for name in self.normalise if name not in NORMALISERS]:
            raise UserError(
                f"filters: there is no normaliser '{unknown[0]:.100}'; there are {', '.join(NORMALISERS)}{did_you_mean(unknown[0], NORMALISERS)}"
            )
        rates = self.characters_per_second
        if rates and not (len(rates) == 2 and 0 <= rates[0] < rates[1]):
            raise UserError(f"filters: characters_per_second is {list(rates)}; give the least and the most, as [4, 30]")

    @property
    def identity(self) -> str:
        """Changes with the selection; empty without filters, so that such shards keep their names."""
        if self == NONE:
            return ""
        chosen = {name: value for name, value in asdict(self).items() if name != "speaker" or value}  # it came later
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the filters use."""
        return tuple(dict.fromkeys((*self.only, *self.without, *self.at_least, *self.at_most)))

    def look(self, facts: Mapping[str, Any]) -> None:
        """Check the columns of an utterance.

        Args:
            facts: columns and their values.

        Raises:
            Filtered: it is excluded.
            LeftOut: it lacks a column.
        """
        for column in self.columns:
            if column not in facts:
                raise LeftOut("no such column", f"a filter looks at {column!r:.100}; it has {_listed(facts)}")
        for column, wanted in self.only.items():
            if not _values(facts[column]) & set(wanted):
                raise Filtered(f"other {column}", f"{column!r} is {shown(facts[column], 100)}")
        for column, unwanted in self.without.items():
            if _values(facts[column]) & set(unwanted):
                raise Filtered(f"refused {column}", f"{column!r} is {shown(facts[column], 100)}")
        for column, least in self.at_least.items():
            if (value := _number(column, facts[column])) < least:
                raise Filtered(f"low {column}", f"{column!r} is {value:g}, below {least:g}")
        for column, most in self.at_most.items():
            if (value := _number(column, facts[column])) > most:
                raise Filtered(f"high {column}", f"{column!r} is {value:g}, above {most:g}")

    def speaker_named(self, name: str) -> str:
        """The speaker in a corpus's `name`; "" if unknown.

        Raises:
            LeftOut: the pattern takes too long.
        """
        if not self.speaker or not name:
            return name
        found = _timed(self.speaker, partial(_found, name))
        return "" if found is None else str(found[min(1, len(found.groups()))] or "")

    def text(self, text: str) -> str:
        """A non-blank transcript, normalised.

        Raises:
            Filtered: it is excluded.
        """
        for pattern in self.refuse:
            if found := _timed(pattern, partial(_found, text)):
                raise Filtered("refused text", f"{found[0]!r:.100} is in its text")
        for pattern in self.require:
            if not _timed(pattern, partial(_found, text)):
                raise Filtered("text not as required", f"nothing in its text is {pattern!r:.100}")
        for pattern, instead in (*self.replace.items(), *((pattern, " ") for pattern in self.strip)):
            text = _timed(pattern, partial(_replaced, instead, text))
        for name in self.normalise:
            text = NORMALISERS[name](text)
        if is_blank(text):
            raise Filtered("no text left", "nothing is left of its text")
        return text

    def chat(self, sample: RawSample, facts: Mapping[str, Any]) -> RawSample:
        """A conversation with normalised messages.

        Raises:
            Filtered: it is excluded.
        """
        if self == NONE:
            return sample
        self.look(facts)
        messages = tuple(Message(message.role, self._around_audio(message)) for message in sample.conversation.messages)
        return replace(sample, conversation=replace(sample.conversation, messages=messages))

    def _around_audio(self, message: Message) -> str:
        pieces = message.content.split(AUDIO_PLACEHOLDER)
        return AUDIO_PLACEHOLDER.join(self.text(piece) if not is_blank(piece) else piece for piece in pieces)

    def heard(self, transcript: str, seconds: Sequence[float]) -> None:
        """Check the audio of a sample.

        Args:
            transcript: words of the last of its audios; empty if unknown.
            seconds: length of each of its audios.

        Raises:
            Filtered: it is excluded.
        """
        if seconds and min(seconds) < self.min_seconds:
            raise Filtered("audio too short", f"{min(seconds):.2f} s of audio, less than {self.min_seconds:g} s")
        if transcript and seconds and self.characters_per_second:
            rate, (least, most) = len(transcript) / seconds[-1], self.characters_per_second
            if not least <= rate <= most:
                reason = "speech too slow" if rate < least else "speech too fast"
                raise Filtered(reason, f"{len(transcript)} characters in {seconds[-1]:.2f} s, {rate:.1f} in a second")


NONE = Filters()
"""Includes everything unchanged."""


def _frozen(value: Any) -> Any:
    """Lists as tuples; integers in a mapping's lists as text, since columns hold text."""
    if isinstance(value, Mapping):
        return {key: _words(item) if isinstance(item, list) else item for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _words(values: list[Any]) -> tuple[Any, ...]:
    return tuple(str(value) if isinstance(value, int) and not isinstance(value, bool) else value for value in values)


def _values(value: Any) -> set[str]:
    listed = value if isinstance(value, list | tuple) else [value]
    return {str(item) for item in listed if item is not None}


def _number(column: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Filtered(f"no {column}", f"{column!r} is {shown(value)}, no number") from None


def _listed(facts: Mapping[str, Any]) -> str:
    return f"{', '.join(map(str, facts)):.300}" or "none"


def _found(text: str, pattern: Any) -> Any:
    return pattern.search(text, timeout=SLOWEST_MATCH)


def _replaced(instead: str, text: str, pattern: Any) -> str:
    return str(pattern.sub(lambda _: instead, text, timeout=SLOWEST_MATCH))


def _timed(pattern: str, match: Callable[[Any], Any]) -> Any:
    try:
        return match(regex.compile(pattern))
    except TimeoutError:
        raise LeftOut(
            "pattern too slow", f"the pattern {pattern!r:.200} takes over {SLOWEST_MATCH:g} s on its text"
        ) from None
