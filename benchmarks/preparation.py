"""What preparing a large corpus costs on this machine: `python benchmarks/preparation.py [PART ...]`.

- plans: lists of 10 million utterances, made up, as JSONL, Kaldi and parquet: seconds until they are parts, memory, size of a part;
- text: rows of JSONL, 2 kB each, tokenised: rows a minute, and how often each byte of the file is read (`--rows 1000000` is 2 GB);
- workers: cut-out seconds of long recordings through `mel_vq`, by one worker and by two, in turns;
- decoding: audio decoded and resampled by one thread and by two of one process, in turns, and how long another thread, which only
  counts, has to wait while one long recording is (a thread that held Python's lock would stop it for all of that time);
- codec: the GLM-4-Voice tokenizer at its published size with random weights, one clip at a time and in batches, in turns.

All of it lies in a temporary folder (TMPDIR) that is removed. Measured work runs in processes of their own.
"""

import argparse
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("plans", "text", "workers", "decoding", "codec")
FORMS = ("jsonl", "kaldi", "parquet")
WORDS = "the of to and in is it that was for on are with as his they be at one have this from or had by hot but some".split()
BLOCK = 100_000  # rows written at a time
RATE = 16_000


# ------------------------------------------------------------------------------------------------------------- plans


def reader_of(form: str, folder: Path) -> Any:
    from vita_audio_pl.data.readers import make_reader

    options: dict[str, Any] = {
        "jsonl": {"kind": "jsonl", "files": ["list.jsonl"]},
        "kaldi": {"kind": "kaldi"},
        "parquet": {
            "kind": "table",
            "files": ["*.parquet"],
            "columns": {"id": "id", "audio": "audio", "text": "text", "speaker": "speaker"},
        },
    }[form]
    return make_reader(folder, "text" if form == "jsonl" else "asr", options, "the benchmark")


def write_lists(form: str, folder: Path, rows: int) -> None:
    """Lists of utterances without audio, ten of each recording, sorted as Kaldi sorts them."""
    blocks = [range(first, min(first + BLOCK, rows)) for first in range(0, rows, BLOCK)]
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {"id": "u{:08}", "audio": "wav/{:08}.flac", "text": "an utterance that says {}", "speaker": "s{:05}"}
        for number, block in enumerate(blocks):
            table = {name: [form.format(n) for n in block] for name, form in columns.items()}
            parquet.write_table(pyarrow.table(table), folder / f"{number:04}.parquet", row_group_size=1000)
        return
    if form == "jsonl":
        row = (
            '{{"id": "u{0:08}", "messages": [{{"role": "user", "content": "Convert the speech to text.\\n<|audio|>"}}, '
            '{{"role": "assistant", "content": "an utterance that says {0}"}}], "audios": ["wav/{0:08}.flac"]}}\n'
        )
        lists = {"list.jsonl": (row, 1)}
    else:
        lists = {
            "wav.scp": ("r{0:07} wav/r{0:07}.flac\n", 10),
            "segments": ("u{0:08} r{1:07} {2}.25 {3}.5\n", 1),
            "text": ("u{0:08} an utterance that says {0}\n", 1),
            "utt2spk": ("u{0:08} s{1:07}\n", 1),
        }
    for name, (form_of_row, each) in lists.items():
        with open(folder / name, "w") as file:
            for block in blocks:
                numbers = range(block.start // each, block.stop // each)
                file.write("".join(form_of_row.format(n, n // 10, n % 10 * 7, n % 10 * 7 + 6) for n in numbers))


def plan(form: str, folder: Path) -> dict[str, float]:
    """Plans a list; runs in a process of its own, whose memory is measured."""
    start, cpu = time.monotonic(), time.process_time()
    parts = reader_of(form, folder).parts()
    return {
        "parts": len(parts),
        "seconds": time.monotonic() - start,
        "processor seconds": time.process_time() - cpu,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "largest part": max(len(pickle.dumps(part)) for part in parts),
    }


def plans(rows: int) -> None:
    for form in FORMS:
        with tempfile.TemporaryDirectory() as name:
            write_lists(form, Path(name), rows)
            size = sum(path.stat().st_size for path in Path(name).iterdir())
            told = apart("_plan", form, name)
        print(
            f"plans, {form}: {rows:,} utterances ({size / 1e9:.2f} GB) as {told['parts']:,.0f} parts in {told['seconds']:.1f} s "
            f"({told['processor seconds']:.1f} of the processor), at most {told['peak MiB']:.0f} MiB, a part pickles to "
            f"{told['largest part']:.0f} bytes or less",
            flush=True,
        )


# -------------------------------------------------------------------------------------------------------------- text


class CountingFile(io.FileIO):
    """Counts the bytes that are read from the disk."""

    bytes_read = 0

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        CountingFile.bytes_read += size or 0
        return size


class CountingPath(type(Path())):  # type: ignore[misc]
    """A path whose files count what is read of them."""

    def open(self, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        if mode == "rb":
            return io.BufferedReader(CountingFile(self, "rb"), buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        return super().open(mode, buffering, *more, **options)


def text_rows(rows: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")])
    words = np.array([*WORDS, *("".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(20_000))])
    often = 1 / np.arange(1, len(words) + 1)
    stream = rng.choice(words, 2_000_000, p=often / often.sum())
    for number in range(rows):
        first = int(rng.integers(0, len(stream) - 400))
        content = " ".join(stream[first : first + 400])[:1850]
        messages = [{"role": "user", "content": content[:200]}, {"role": "assistant", "content": content[200:]}]
        yield json.dumps({"id": f"row-{number:07}", "messages": messages}) + "\n"


def tokenise(folder: Path) -> dict[str, float]:
    """Tokenises `list.jsonl` in this process."""
    from vita_audio_pl.data.prepare_source import prepare_source
    from vita_audio_pl.data.readers.jsonl import JsonlReader
    from vita_audio_pl.data.tokenize import TokenizeJob
    from vita_audio_pl.text import TextTokenizer

    with open(folder / "list.jsonl") as file:
        tokenizer = TextTokenizer.train([file.readline() for _ in range(2000)], 16_000)
    reader = JsonlReader(CountingPath(folder), ("list.jsonl",))
    job = TokenizeJob("text", "text", reader, tokenizer, None, {}, _no_audio, folder / "shards")
    start, cpu = time.monotonic(), time.process_time()
    manifest = prepare_source(job)
    assert manifest is not None
    return {
        "rows": manifest.samples,
        "tokens": manifest.text_tokens,
        "shards": len(manifest.shards),
        "seconds": time.monotonic() - start,
        "processor seconds": time.process_time() - cpu,
        "bytes read": CountingFile.bytes_read,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _no_audio(*_: Any) -> np.ndarray:
    raise AssertionError("rows of text have no audio")


def text(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        with open(Path(name) / "list.jsonl", "w") as file:
            for row in text_rows(rows):
                file.write(row)
        size = (Path(name) / "list.jsonl").stat().st_size
        told = apart("_tokenise", name)
    minutes, cpu = told["seconds"] / 60, told["processor seconds"] / 60
    print(
        f"text: {told['rows']:,.0f} rows ({size / 1e9:.2f} GB, {told['tokens'] / 1e6:.0f} M tokens) in {minutes:.1f} min: "
        f"{told['rows'] / cpu:,.0f} rows a minute of the processor, {told['rows'] / minutes:,.0f} by the clock; each byte read "
        f"{told['bytes read'] / size:.3f} times; {told['shards']:.0f} shards; at most {told['peak MiB']:.0f} MiB",
        flush=True,
    )


# ------------------------------------------------------------------------------------------------- workers, decoding


def write_recordings(folder: Path, hours: float) -> None:
    """Ten long recordings of modulated noise, and segments of 10 s that begin anywhere in them."""
    import soundfile

    rng = np.random.default_rng(0)
    minutes, count = 5, round(hours * 360)
    for number in range(10):
        loud = np.repeat(rng.random(minutes * 600), RATE // 10)
        wave = (0.3 * loud * rng.standard_normal(len(loud))).clip(-1, 1).astype(np.float32)
        soundfile.write(folder / f"r{number}.flac", wave, RATE)
    starts = rng.uniform(0, minutes * 60 - 10, count)
    with (
        open(folder / "wav.scp", "w") as scp,
        open(folder / "segments", "w") as cut,
        open(folder / "text", "w") as said,
    ):
        scp.writelines(f"r{number} r{number}.flac\n" for number in range(10))
        cut.writelines(f"u{n:06} r{n % 10} {start:.3f} {start + 10:.3f}\n" for n, start in enumerate(starts))
        said.writelines(f"u{n:06} an utterance that says {n}\n" for n in range(count))


@dataclass(frozen=True)
class Prepared:
    """What it took to prepare a source."""

    seconds: float
    cpu: float


def prepare_recordings(folder: Path, out: Path, workers: int) -> Prepared:
    from vita_audio_pl.codecs import load_codec
    from vita_audio_pl.data.executors import LocalExecutor
    from vita_audio_pl.data.prepare_source import prepare_source
    from vita_audio_pl.data.readers.kaldi import KaldiReader
    from vita_audio_pl.data.tokenize import TokenizeJob
    from vita_audio_pl.preparation import codec_facts, load_audio, worker_codec
    from vita_audio_pl.text import TextTokenizer

    tokenizer = TextTokenizer.train([" ".join(WORDS)], 400)
    reader = KaldiReader(folder, utterances_per_part=200)
    job = TokenizeJob(
        "noise", "asr", reader, tokenizer, partial(worker_codec, folder / "codec", "cpu", "float32"),
        dict(codec_facts(load_codec(folder / "codec"))), load_audio, out,
    )  # fmt: skip
    before, start = _cpu(), time.monotonic()
    assert prepare_source(job, LocalExecutor(workers)) is not None
    return Prepared(time.monotonic() - start, _cpu() - before)


def _cpu() -> float:
    """Seconds of the processor of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def workers(hours: float, rounds: int) -> None:
    from vita_audio_pl.codecs import MelVQ, MelVQConfig

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder, hours)
        wave = np.random.default_rng(0).standard_normal(RATE * 120).astype(np.float32) * 0.1
        MelVQ.fit([wave], MelVQConfig(codebook_size=512), 0).save(folder / "codec")
        for turn in range(rounds):
            one, two = (prepare_recordings(folder, folder / f"shards-{turn}-{n}", n) for n in (1, 2))
            print(
                f"workers, turn {turn + 1}: {hours:g} h of audio by one worker in {one.seconds:.1f} s ({one.cpu:.1f} of the "
                f"processor, {hours * 3600 / one.cpu:,.0f} times real time a core), by two in {two.seconds:.1f} ({two.cpu:.1f}): "
                f"{one.seconds / two.seconds:.2f} times; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


def decoding(clips: int, rounds: int) -> None:
    import soundfile

    from vita_audio_pl.data.readers import AudioBytes
    from vita_audio_pl.preparation import load_audio

    def recording(seconds: int) -> AudioBytes:
        file = io.BytesIO()
        soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 44_100 * seconds), 44_100, format="FLAC")
        return AudioBytes("clip", file.getvalue())

    clip, long = recording(10), recording(300)
    for turn in range(rounds):
        spent = []
        for threads in (1, 2):
            start = time.monotonic()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda _: load_audio(clip, RATE, 30), range(clips)))
            spent.append(time.monotonic() - start)
        with ThreadPoolExecutor(1) as pool:
            start = last = time.monotonic()
            work, paused = pool.submit(load_audio, long, RATE, 3600), 0.0
            while not work.done():
                now = time.monotonic()
                last, paused = now, max(paused, now - last)
            whole = time.monotonic() - start
        print(
            f"decoding, turn {turn + 1}: {clips} clips of 10 s, FLAC at 44.1 kHz to 16 kHz, by one thread in {spent[0]:.1f} s, by two "
            f"in {spent[1]:.1f}: {spent[0] / spent[1]:.2f} times; another thread waited {1000 * paused:.0f} ms at most while one "
            f"recording took {1000 * whole:.0f}; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


# ------------------------------------------------------------------------------------------------------------- codec


def codec(seconds: float, rounds: int) -> None:
    import torch

    from vita_audio_pl.codecs.glm4voice.settings import TokenizerSettings
    from vita_audio_pl.codecs.glm4voice.tokenizer import SpeechTokenizer
    from vita_audio_pl.codecs.glm4voice.whisper_vq import WhisperVQEncoder

    settings = TokenizerSettings(128, 1280, 20, 5120, 1500, 4, "avg", 16, 16, 16_384, 200, True)
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(WhisperVQEncoder(settings))
    weights = sum(parameter.numel() for parameter in tokenizer.encoder.parameters()) / 1e6
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(7), 0.5, 1000), 1, 30)  # seconds, as of read speech
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), seconds)) + 1]
    waves = [(0.1 * rng.standard_normal(int(length * RATE))).astype(np.float32) for length in lengths]
    ways: dict[str, Callable[[], Any]] = {
        "one clip at a time": lambda: [tokenizer.encode([wave])[0] for wave in waves],
        "batches of at most 120 s": lambda: tokenizer.encode(waves),
    }
    tokenizer.batch_seconds = 120.0
    total = float(lengths.sum())
    found = []
    for turn in range(rounds):
        for name, work in ways.items():
            cpu, start = time.process_time(), time.monotonic()
            found.append(np.concatenate(work()))
            cpu, clock = time.process_time() - cpu, time.monotonic() - start
            print(
                f"codec, turn {turn + 1}, {name}: {total:.0f} s of audio ({len(waves)} clips, {weights:.0f} M weights, "
                f"{torch.get_num_threads()} threads): {total / cpu:.2f} s of audio a second of the processor, {total / clock:.2f} by "
                f"the clock; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    print(f"codec: {np.mean(found[0] == found[1]):.2%} of the codes are the same", flush=True)


# -------------------------------------------------------------------------------------------------------------------


def apart(*arguments: str) -> dict[str, float]:
    """What a piece of work in a process of its own tells."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    if sys.argv[1:2] == ["_plan"]:
        print(json.dumps(plan(sys.argv[2], Path(sys.argv[3]))))
        return
    if sys.argv[1:2] == ["_tokenise"]:
        print(json.dumps(tokenise(Path(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--utterances", type=int, default=10_000_000, help="in each list of 'plans'")
    parser.add_argument("--rows", type=int, default=100_000, help="of 'text'")
    parser.add_argument("--hours", type=float, default=20, help="of audio for 'workers'")
    parser.add_argument("--clips", type=int, default=200, help="of 'decoding'")
    parser.add_argument("--seconds", type=float, default=60, help="of audio for 'codec'")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides of 'workers', 'decoding' and 'codec'")
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"'{unknown[0]}' is no part; choose among {', '.join(PARTS)}")
    cpus = [line.partition(": ")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {cpus[0] if cpus else 'unknown processor'} x {len(cpus)}", flush=True)
    for part in chosen.parts or PARTS:
        match part:
            case "plans":
                plans(chosen.utterances)
            case "text":
                text(chosen.rows)
            case "workers":
                workers(chosen.hours, chosen.rounds)
            case "decoding":
                decoding(chosen.clips, chosen.rounds)
            case "codec":
                codec(chosen.seconds, chosen.rounds)


if __name__ == "__main__":
    main()
