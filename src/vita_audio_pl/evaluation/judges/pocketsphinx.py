"""Judges that transcribe spoken answers: the protocol, and pocketsphinx, which needs no download."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from vita_audio_pl.errors import UserError
from vita_audio_pl.text.lines import read_lines, split_fields

RATE = 16_000  # Hz, sample rate of the recognisers


class Judge(Protocol):
    """A speech recogniser. The text of a wave must not depend on earlier waves."""

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """Text of each wave `(samples,) float32` in [-1, 1] at `sample_rate` Hz; "" if nothing was recognised."""
        ...


class PocketsphinxJudge:
    """CMU Sphinx with its US English model, restricted to the sentences of a grammar.

    The grammar makes up for a weak acoustic model but is lenient: an answer is recognised as the nearest sentence that
    the grammar allows. Its error rates compare runs and are not absolute.

    Args:
        grammar: JSGF file; its words must be in the CMU pronouncing dictionary.

    Raises:
        UserError: pocketsphinx is not installed, or the grammar cannot be used.
    """

    def __init__(self, grammar: Path) -> None:
        pocketsphinx = _package()
        model = Path(pocketsphinx.get_model_path()) / "en-us"
        with tempfile.TemporaryDirectory() as folder:
            # Of the whole dictionary, 135,000 words, loading takes longer than judging a hundred answers
            dictionary = Path(folder) / "words.dict"
            dictionary.write_text(_pronunciations(model / "cmudict-en-us.dict", grammar_words(grammar), grammar))
            try:
                # with a grammar the lattice's best path is slower and less accurate than the search's own result
                self.decoder = pocketsphinx.Decoder(
                    hmm=str(model / "en-us"), lm=None, dict=str(dictionary), jsgf=str(grammar), bestpath=False,
                    logfn="/dev/null",
                )  # fmt: skip
            except RuntimeError as error:
                raise UserError(f"pocketsphinx cannot use the grammar {grammar}: {error}") from None

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """See `Judge`."""
        return [self._one(at_rate(wave, sample_rate)) for wave in waves]

    def _one(self, wave: np.ndarray) -> str:
        self.decoder.start_utt()
        # as a full utterance, features are normalised over this wave only, not over earlier ones
        samples = (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
        self.decoder.process_raw(samples, no_search=False, full_utt=True)
        self.decoder.end_utt()
        best = self.decoder.hyp()
        return best.hypstr if best is not None else ""


class PocketsphinxWordsJudge(PocketsphinxJudge):
    """CMU Sphinx with its own language model of English and its 135,000 words: it expects nothing of what is said.

    Weak beside today's recognisers, and so a hard judge: what it understands, people do.

    Raises:
        UserError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        self.decoder = _package().Decoder(logfn="/dev/null")


def _package() -> Any:
    try:
        import pocketsphinx
    except ImportError:
        raise UserError("the judge 'pocketsphinx' is not installed: `pip install 'vita-audio-pl[eval]'`") from None
    return pocketsphinx


def grammar_words(grammar: Path) -> list[str]:
    """All words that a JSGF grammar can produce, sorted.

    Raises:
        UserError: the file is missing, or no JSGF.
    """
    try:
        text = grammar.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the grammar {grammar} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the grammar {grammar} is not UTF-8 text") from None
    if not text.startswith("#JSGF"):
        raise UserError(f"{grammar} is not a JSGF grammar: its first line must begin with #JSGF")
    expansions = re.findall(r"=([^;]*);", re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S))
    bare = re.sub(r"<[^>]*>|/[\d.]+/|\{[^}]*\}", " ", " ".join(expansions))
    return sorted(set(re.findall(r"[^\s|()\[\]*+]+", bare)))


def at_rate(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """The wave resampled to 16 kHz."""
    return wave if sample_rate == RATE else soxr.resample(wave, sample_rate, RATE).astype(np.float32)


def _pronunciations(dictionary: Path, words: Sequence[str], grammar: Path) -> str:
    """The lines of the dictionary for `words`, variants like `the(2)` included."""
    wanted, found, lines = set(words), set(), []
    for line in read_lines(dictionary):
        word = "".join(split_fields(line.text)[:1]).partition("(")[0]
        if word in wanted:
            found.add(word)
            lines.append(line.text + "\n")
    if wanted - found:
        raise UserError(f"{grammar}: pocketsphinx has no pronunciation of {', '.join(sorted(wanted - found))}")
    return "".join(lines)
