"""Synthetic sources with realistic lengths, to measure the data engine without a corpus.

The mix of 1,000 samples: 450 recognition and 350 synthesis (audio log-normal, median 7 s, sigma 0.5, cut to 0.5..30 s;
text 0.35 tokens a code), 50 spoken questions (4 s asked, 20 s answered), 140 text (log-normal, median 250 tokens,
sigma 1.0), 10 long text (median 3,000, sigma 0.8). Codes come 12.5 a second.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vita_audio_pl.data.index import COLUMNS, ONE_ANSWER, OVERFLOW_ROWS, IndexEntry, write_columns, write_index
from vita_audio_pl.data.prepared import INDEX, Manifest, ShardFile
from vita_audio_pl.data.samples import TokenizedSample, pack_sample
from vita_audio_pl.data.shape import shape_of
from vita_audio_pl.data.shards import ShardWriter
from vita_audio_pl.text import AudioCodes, Renderer, RenderOptions, Segment, TextIds, TextTokenizer, Turn

PER_MILLE = {"asr": 450, "tts": 350, "sqa": 50, "text": 140, "long_text": 10}
N_CODES = 16_384
_TEXT_IDS = 250  # any text token will do
_SAMPLES_PER_SHARD = 20_000


@dataclass(frozen=True)
class Counts:
    """Tokens of samples, `(n,)` each: text and codes asked, text and codes answered."""

    prompt_text: np.ndarray
    prompt_codes: np.ndarray
    answer_text: np.ndarray
    answer_codes: np.ndarray


def counts_of(task: str, n: int, seed: int) -> Counts:
    """Lengths of `n` samples of a task, as described above."""
    rng = np.random.default_rng([seed, *task.encode()])

    def codes(median_seconds: float) -> np.ndarray:
        return np.ceil(np.clip(rng.lognormal(np.log(median_seconds), 0.5, n), 0.5, 30) * 12.5).astype(np.int64)

    def words(median: float, sigma: float) -> np.ndarray:
        return np.clip(rng.lognormal(np.log(median), sigma, n), 4, 60_000).astype(np.int64)

    nothing, instruction = np.zeros(n, np.int64), np.full(n, 6)
    if task == "asr":
        heard = codes(7)
        return Counts(instruction, heard, (heard * 0.35).astype(np.int64) + 1, nothing)
    if task == "tts":
        spoken = codes(7)
        text = (spoken * 0.35).astype(np.int64) + 1
        return Counts(instruction + text, nothing, text, spoken)
    if task == "sqa":
        answered = codes(20)
        return Counts(nothing, codes(4), (answered * 0.35).astype(np.int64) + 1, answered)
    asked = words(60 if task == "text" else 2500, 0.8)
    return Counts(asked, nothing, words(190 if task == "text" else 500, 1.0), nothing)


def synthetic_tokenizer() -> TextTokenizer:
    """A tokenizer of the least size; what the text says does not matter here."""
    return TextTokenizer.train(["user assistant system"], 280)


def write_source(folder: Path, task: str, n: int, tokenizer: TextTokenizer, seed: int = 0) -> None:
    """Writes a prepared source of `n` samples: shards, index and manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = counts_of(task, n, seed)
    columns = [getattr(counts, name).tolist() for name in vars(counts)]
    rule = Renderer(tokenizer.vocabulary(N_CODES), tokenizer, RenderOptions(None)).length_rule
    rng = np.random.default_rng(seed)
    text, codes = rng.integers(0, _TEXT_IDS, 200_000), rng.integers(0, N_CODES, 200_000)
    shards, entries, sums = [], [], {}
    for number, first in enumerate(range(0, n, _SAMPLES_PER_SHARD)):
        path = folder / f"{number:06d}.tar"
        shapes = []
        with ShardWriter(path) as writer:
            for i in range(first, min(n, first + _SAMPLES_PER_SHARD)):
                prompt_text, prompt_codes, answer_text, answer_codes = (column[i] for column in columns)
                at = (i * 7919) % 100_000
                turns = (
                    _turn("user", text[at : at + prompt_text], codes[at : at + prompt_codes]),
                    _turn("assistant", text[at : at + answer_text], codes[at : at + answer_codes]),
                )
                writer.add(pack_sample(TokenizedSample(f"{task}-{i}", turns)))
                shapes.append(shape_of(turns, rule))
            sums[path.name] = writer.close()
        entries += [IndexEntry(number, p.offset, p.crc, s) for p, s in zip(writer.placed, shapes, strict=True)]
        shards.append(ShardFile(path.name, sums[path.name].bytes, len(shapes)))
    crc = write_index(folder / INDEX, entries)
    _manifest(task, n, tokenizer, counts, tuple(shards), crc).save(folder, sums)


def write_index_only(path: Path, task: str, n: int, around: int, seed: int = 0) -> None:
    """Writes an index of `n` samples without shards, for planning alone; `around` is the template of a user turn."""
    counts = counts_of(task, n, seed)
    zeros = np.zeros(n, np.int64)
    columns = {
        **{name: zeros for name in COLUMNS.names or ()},
        "prompt_text": counts.prompt_text + around + 2 * (counts.prompt_codes > 0),
        "flags": np.full(n, ONE_ANSWER),
        "prompt_codes": counts.prompt_codes,
        "answer_text": counts.answer_text,
        "answer_codes": counts.answer_codes,
    }
    write_columns(path, columns, np.empty(0, OVERFLOW_ROWS))


def _turn(role: str, text: np.ndarray, codes: np.ndarray) -> Turn:
    segments: list[Segment] = [TextIds(text)] if len(text) else []
    segments += [AudioCodes(codes)] if len(codes) else []
    return Turn(role, tuple(segments))


def _manifest(
    task: str, n: int, tokenizer: TextTokenizer, counts: Counts, shards: tuple[ShardFile, ...], crc: int
) -> Manifest:
    total = int(counts.prompt_codes.sum() + counts.answer_codes.sum())
    return Manifest(
        source=task,
        task=task,
        tokenizer=tokenizer.fingerprint,
        codec={"name": "made up", "fingerprint": "0", "codes_per_second": 12.5, "codebook_size": N_CODES},
        samples=n,
        seconds=total / 12.5,
        text_tokens=int(counts.prompt_text.sum() + counts.answer_text.sum()),
        codes=total,
        shards=shards,
        index_crc=crc,
    )
