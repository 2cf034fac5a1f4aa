"""Text normalisers: from a transcript to the units that are counted (words, or characters for Chinese)."""

import json
import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from vita_audio_pl.errors import UserError

Normaliser = Callable[[str], list[str]]
"""Turns a transcript into scored units. Deterministic, and the same for reference and hypothesis."""

# Ideographs (with extensions A and B.., compatibility forms) and kana: scripts written without blanks
_UNSPACED = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f\u3040-\u30ff"
_MIXED_UNITS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def _without_punctuation(text: str) -> str:
    """Lower-cased NFKC text; punctuation and symbols become blanks, but an apostrophe inside a word is removed."""
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", unicodedata.normalize("NFKC", text).lower())
    return "".join(" " if unicodedata.category(char)[0] in "PSC" else char for char in text)


def plain(text: str) -> list[str]:
    """Words: NFKC, lower case, punctuation removed. Numbers are unchanged."""
    return _without_punctuation(text).split()


def mixed(text: str) -> list[str]:
    """Units of the mixed error rate: each Chinese character is one unit, each Latin word or number is one unit.

    For text without Latin words this is the character error rate.
    """
    return _MIXED_UNITS.findall(_without_punctuation(text))


def characters(text: str) -> list[str]:
    """Every character except blanks and punctuation, including Latin letters."""
    return list("".join(_without_punctuation(text).split()))


@cache
def whisper_english(spelling_file: str | None = None) -> Normaliser:
    """Whisper's English normaliser (numbers to digits, contractions, titles), as transformers ships it.

    Args:
        spelling_file: `normalizer.json` of a Whisper checkpoint, the map from British to American spelling; without
            it spellings stay as they are.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spelling = {}
    if spelling_file is not None:
        path = Path(spelling_file)
        if not path.is_file():
            raise UserError(f"the spelling map {path} does not exist; give the normalizer.json of a Whisper checkpoint")
        spelling = json.loads(path.read_text(encoding="utf-8"))
    normalise: Callable[[str], str] = EnglishTextNormalizer(spelling)
    return lambda text: normalise(text).split()


@cache
def whisper_basic() -> Normaliser:
    """Whisper's normaliser for every other language: marks and symbols removed, lower case."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalise = BasicTextNormalizer()
    return lambda text: normalise(text).split()


@cache
def wetext_chinese() -> Normaliser:
    """WeTextProcessing's Chinese normaliser (numbers, dates and units written out), then `mixed` units."""
    try:
        from tn.chinese.normalizer import Normalizer
    except ImportError:
        raise UserError(
            "the normaliser 'wetext_chinese' needs the package WeTextProcessing; "
            "install it with `pip install WeTextProcessing`, or choose normaliser=mixed"
        ) from None
    normalise = Normalizer()
    return lambda text: mixed(normalise.normalize(text))


_CHINESE_MARKS = (
    "\uff02-\uff0d\uff0f\uff1a-\uff1e\uff20\uff3b-\uff40\uff5b-\uff60\uff62-\uff64\u3000\u3001\u3003\u3008-\u3011\u3014-\u301f\u3030"
    "\u303e\u303f\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f\ufe51\ufe54\u00b7\uff01\uff1f\uff61\u3002"
)
# Seed-TTS-eval removes these marks, East Asian and ASCII, except the ASCII apostrophe, and nothing else
_SEED_TTS_MARKS = re.compile(f"[{_CHINESE_MARKS}{re.escape(string.punctuation.replace(chr(39), ''))}]")


def seed_tts_english(text: str) -> list[str]:
    """Words as Seed-TTS-eval counts them: punctuation except apostrophes removed without a gap, lower case, nothing else."""
    return _SEED_TTS_MARKS.sub("", text).lower().split()


@cache
def seed_tts_chinese() -> Normaliser:
    """Characters as Seed-TTS-eval counts them: simplified by zhconv, punctuation removed, nothing else.

    Raises:
        UserError: zhconv is not installed; it is not a dependency because it is under the GPL.
    """
    try:
        from zhconv import convert
    except ImportError:
        raise UserError(
            "the normaliser 'seed_tts_chinese' needs the package zhconv (GPL): install it with `pip install zhconv`, or "
            "choose profile=strict"
        ) from None
    return lambda text: list("".join(_SEED_TTS_MARKS.sub("", convert(text, "zh-cn")).split()))


def get_normaliser(name: str, spelling_file: str | None = None) -> Normaliser:
    """Look a normaliser up by the name used in bench files.

    Raises:
        UserError: unknown name, or its package is not installed.
    """
    match name:
        case "plain":
            return plain
        case "mixed":
            return mixed
        case "characters":
            return characters
        case "whisper_english":
            return whisper_english(spelling_file)
        case "whisper_basic":
            return whisper_basic()
        case "wetext_chinese":
            return wetext_chinese()
        case "seed_tts_english":
            return seed_tts_english
        case "seed_tts_chinese":
            return seed_tts_chinese()
    raise UserError(
        f"there is no normaliser '{name}'; choose plain, mixed, characters, whisper_english, whisper_basic, "
        "wetext_chinese, seed_tts_english or seed_tts_chinese"
    )
