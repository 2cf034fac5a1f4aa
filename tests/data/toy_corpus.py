"""A corpus of tones and made-up words, small enough to prepare in a test, and what it takes to read it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from toy_codec import N_CODES, RATE, LoudnessCodec, load_whole_file

from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.readers.jsonl import JsonlReader
from vita_audio_pl.data.tokenize import AudioRules, TokenizeJob
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.packed import PackedBatch
from vita_audio_pl.text import RenderOptions, TextTokenizer

WORDS = "red blue green cow duck sheep farm river lives in the and has two cups who what".split()


def toy_tokenizer() -> TextTokenizer:
    return TextTokenizer.train([" ".join(WORDS), "user assistant system Convert the text to speech."] * 5, 320)


def write_corpus(root: Path, task: str, n: int, seed: int = 0) -> Path:
    """`n` samples of a task as `<task>.jsonl` and wavs of 0.2 to 2 s."""
    rng = np.random.default_rng([seed, *task.encode()])
    (root / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n):
        text = " ".join(rng.choice(WORDS, int(rng.integers(2, 12))))
        name = f"audio/{task}{i:05d}.wav"
        if task != "text":
            loud = np.repeat(rng.random(25), 640)[: int(rng.integers(1600, 16000))]
            soundfile.write(root / name, (loud * np.sin(np.arange(len(loud)) / 5)).astype(np.float32), RATE)
        messages, audios = {
            "asr": ([("user", "Convert the speech to text.\n<|audio|>"), ("assistant", text)], [name]),
            "tts": ([("user", f"Convert the text to speech.\n{text}"), ("assistant", "<|audio|>")], [name]),
            "text": ([("user", text), ("assistant", text[::-1])], []),
        }[task]
        rows = [{"role": role, "content": content} for role, content in messages]
        lines.append(json.dumps({"id": f"{task}-{i}", "messages": rows, "audios": audios}))
    path = root / f"{task}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def toy_job(
    root: Path, shards: Path, task: str, tokenizer: TextTokenizer, shard_bytes: int = 0, **rules: float
) -> TokenizeJob:
    """Parts of 50 samples; `shard_bytes` merges them."""
    return TokenizeJob(
        source=task,
        task=task,
        reader=JsonlReader(root, (f"{task}.jsonl",), lines_per_part=50),
        tokenizer=tokenizer,
        make_codec=LoudnessCodec,
        codec={"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES},
        load_audio=load_whole_file,
        out=shards / task,
        rules=AudioRules(**rules),
        shard_bytes=shard_bytes,
    )


@dataclass(frozen=True)
class Corpus:
    """A prepared toy corpus."""

    root: Path
    shards: Path
    tokenizer: TextTokenizer
    mixture: Path

    def module(
        self,
        *,
        ranks: int = 1,
        rank: int = 0,
        rows: int = 2,
        accumulate: int = 1,
        rows_per_step: int | None = None,
        row_length: int = 256,
        seed: int = 0,
        render: RenderOptions | None = None,
        **options: object,
    ) -> SpeechDataModule:
        settings = {"shards": str(self.shards), "mixture": str(self.mixture), "workers": 0, "window": 200, **options}
        module = SpeechDataModule(
            DataOptions(**settings),
            self.tokenizer.vocabulary(N_CODES),
            self.tokenizer,
            render or boost(),
            rows_per_batch=rows,
            row_length=row_length,
            accumulate=accumulate,
            rows_per_step=rows_per_step,
            seed=seed,
        )
        module.trainer = None if ranks == 1 else _Ranks(ranks, rank)
        return module


@dataclass
class _Ranks:
    """As much of a Lightning trainer as a data module asks."""

    world_size: int
    global_rank: int


def boost(**options: float) -> RenderOptions:
    return RenderOptions(IntervalRatio.of("boost"), DecodePattern.of("boost"), 10, **options)


def build_corpus(folder: Path, counts: dict[str, int], mixture: str) -> Corpus:
    tokenizer = toy_tokenizer()
    for task, n in counts.items():
        write_corpus(folder / "raw", task, n)
        prepare_source(toy_job(folder / "raw", folder / "shards", task, tokenizer))
    path = folder / "mixture.yaml"
    path.write_text(mixture)
    return Corpus(folder / "raw", folder / "shards", tokenizer, path)


def rows_of(batch: PackedBatch) -> list[str]:
    """A hash of each row, everything in it included."""
    tensors = [t for t in vars(batch).values() if hasattr(t, "numpy")]
    return [
        hashlib.sha256(b"".join(t[r].numpy().tobytes() for t in tensors)).hexdigest() for r in range(len(batch.names))
    ]


def take(module: SpeechDataModule, batches: int) -> list[PackedBatch]:
    """The next batches, consumed."""
    taken = []
    for batch in module.train_dataloader():
        taken.append(batch)
        module.consumed(batch)
        if len(taken) == batches:
            break
    return taken
