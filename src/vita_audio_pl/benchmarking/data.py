"""Speed of the data engine in planning, packing and reading, compared with plain WebDataset on the same shards."""

import json
import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import torch
import webdataset as wds

from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.benchmarking.synthetic_data import (
    N_CODES,
    PER_MILLE,
    synthetic_tokenizer,
    write_index_only,
    write_source,
)
from vita_audio_pl.child_processes import attach_worker, worker_context, worker_processes
from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.index import Index
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.plan import Place, Plan, PlannedSource
from vita_audio_pl.data.prepared import MANIFEST, PreparedSource
from vita_audio_pl.data.samples import TokenizedSample
from vita_audio_pl.data.shards import decode_block
from vita_audio_pl.data.survey import survey
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.storage.owned import Kind, Owned
from vita_audio_pl.text import Rendered, Renderer, RenderOptions, TextTokenizer

ROW_LENGTH = 8192
_WARM_UP = 64  # rows before the clock starts


@dataclass(frozen=True)
class Figure:
    """One measured number. `cpu_seconds` counts all processes, so that a busy machine does not hide the cost."""

    name: str
    value: float
    unit: str
    goal: str = ""
    cpu_seconds: float | None = None


def benchmark_data(options: DataBenchmark) -> list[Figure]:
    """All measurements, in order.

    Raises:
        UserError: `options.folder` holds something else.
    """
    folder, tokenizer = Path(options.folder), synthetic_tokenizer()
    Owned.claim(folder, Kind("data benchmark", sign=("benchmark.yaml",)))
    shards = folder / f"shards_{options.samples}"
    for task, per_mille in PER_MILLE.items():
        if not (shards / task / MANIFEST).is_file():
            write_source(shards / task, task, options.samples * per_mille // 1000, tokenizer)
    mixture = folder / "benchmark.yaml"
    mixture.write_text(json.dumps({"sources": dict.fromkeys(PER_MILLE, 1.0)}), encoding="utf-8")
    module = partial(_module, shards, mixture, tokenizer)
    figures = [*_planning(folder, 1_000_000, tokenizer), *_first_batch(module)]
    if options.codec_seconds:
        figures.append(_encoding(options.codec_seconds))
    figures += _throughput(module, options)
    figures += _plain_webdataset(shards, tokenizer, options)
    if options.steady_rows:
        figures.append(_memory(module, options))
    if options.planned:
        figures += _planning(folder, options.planned, tokenizer)
    return figures


def _module(
    shards: Path, mixture: Path, tokenizer: TextTokenizer, workers: int, rows_per_batch: int = 1
) -> SpeechDataModule:
    return SpeechDataModule(
        DataOptions(shards=str(shards), mixture=str(mixture), workers=workers, prefetch=8),
        tokenizer.vocabulary(N_CODES),
        tokenizer,
        _render_options(),
        rows_per_batch=rows_per_batch,
        row_length=ROW_LENGTH,
        accumulate=1,
        seed=0,
    )


def _render_options() -> RenderOptions:
    return RenderOptions(IntervalRatio.of("boost"), DecodePattern.of("boost"), 10)


def _planning(folder: Path, n: int, tokenizer: TextTokenizer) -> list[Figure]:
    """Plans `n` samples from their indexes alone: all of it up to a million, else up to the first row."""
    renderer = Renderer(tokenizer.vocabulary(N_CODES), tokenizer, _render_options())
    whole = n <= 1_000_000
    indexes = _indexes(folder / f"index_{n}", n, renderer.length_rule.around[1], aside=not whole)
    size = sum(index.path.stat().st_size for index in indexes.values())
    with _Clock() as clock:
        sources = []
        for task, index in indexes.items():
            source = cast(PreparedSource, SimpleNamespace(index=index, quarantined={}, holds_pairs=False))
            measured = survey(source, renderer.length_rule, renderer.options, False, ROW_LENGTH, "skip")
            sources.append(PlannedSource(task, measured.tokens, 1.0))
        plan = Plan(sources, ROW_LENGTH, 0)
        if whole:
            windows = [plan.window(0, 0, number) for number in range(plan.phases[0].windows)]
        else:
            next(plan.rows(Place()))
    named = f"{n / 1e6:g} million samples"
    if not whole:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return [
            Figure(f"plan {named}, to the first row", clock.seconds, "s", "<= 10", clock.cpu),
            Figure(f"peak memory of the whole run, with the index of {named}", peak, "GiB", "<= 4"),
        ]
    rows = sum(len(window) for window in windows)
    tokens = sum(int(source.tokens.sum(dtype=np.int64)) for source in sources)
    return [
        Figure(f"plan {named}, all rows", clock.seconds, "s", "<= 1", clock.cpu),
        Figure("rows are full to", 100 * tokens / (rows * ROW_LENGTH), "%", ">= 99.5"),
        Figure("index", size / n, "bytes a sample", "<= 32"),
    ]


def _indexes(folder: Path, n: int, around: int, aside: bool) -> dict[str, Index]:
    """Made-up indexes of the mix; `aside`: in a process of their own, whose memory is not the plan's."""
    folder.mkdir(parents=True, exist_ok=True)
    calls = [(folder / f"{task}.bin", task, n * per_mille // 1000, around) for task, per_mille in PER_MILLE.items()]
    if aside:
        with worker_processes(1, "spawn") as pool:
            for call in calls:
                pool.submit(write_index_only, *call).result()
    else:
        for call in calls:
            write_index_only(*call)
    return {task: Index(path) for path, task, _, _ in calls}


def _first_batch(module: Any) -> list[Figure]:
    with _Clock() as clock:
        next(iter(module(0).train_dataloader()))
    return [Figure("open the shards, to the first batch", clock.seconds, "s", "<= 2", clock.cpu)]


def _encoding(seconds: int) -> Figure:
    """Audio seconds that `mel_vq` encodes in a second of one core."""
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(7 * 16_000, np.float32) for _ in range(max(1, seconds // 7))]
    codec = MelVQ.fit(waves[:17], MelVQConfig())
    with _Clock() as clock:
        codec.encode(waves)
    audio = sum(map(len, waves)) / 16_000
    return Figure("mel_vq encodes, one core", audio / max(clock.cpu, clock.seconds), "x real time", ">= 50", clock.cpu)


def _throughput(module: Any, options: DataBenchmark) -> Iterator[Figure]:
    for rows_per_batch in (1, 4):
        batches = iter(module(options.workers, rows_per_batch).train_dataloader())
        name = f"planned rows of {ROW_LENGTH}, {options.workers} workers, {rows_per_batch} a batch"
        yield _rate(name, (len(batch.names) for batch in batches), options.rows, ">= 400")


def _plain_webdataset(shards: Path, tokenizer: TextTokenizer, options: DataBenchmark) -> Iterator[Figure]:
    """The same shards through WebDataset's own shuffle and split, packed next-fit in each worker."""
    urls = [str(path) for path in sorted(shards.glob("*/*.tar"))]
    renderer = Renderer(tokenizer.vocabulary(N_CODES), tokenizer, _render_options())
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
        .map(_samples_of)
        .unlisted()
        .shuffle(5000)
        .compose(partial(_next_fit, renderer))
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=8 if options.workers else None,
        worker_init_fn=partial(attach_worker, os.getpid()),
        multiprocessing_context=worker_context() if options.workers else None,
    )
    filled: list[float] = []

    def rows() -> Iterator[int]:
        for row in loader:
            filled.append(float((row["document_ids"] >= 0).float().mean()))
            yield 1

    yield _rate(f"plain WebDataset rows, {options.workers} workers", rows(), options.rows, "")
    yield Figure("plain WebDataset rows are full to", 100 * float(np.mean(filled)), "%")


def _samples_of(member: dict[str, Any]) -> list[TokenizedSample]:
    return decode_block(member["block"])


def _next_fit(renderer: Renderer, samples: Iterable[TokenizedSample]) -> Iterator[dict[str, torch.Tensor]]:
    """Rows filled in the order in which samples come; the last, unfilled one of each worker is lost."""
    row: dict[str, np.ndarray] | None = None
    at = documents = 0
    for sample in samples:
        length = renderer.length(sample.turns)
        if length > ROW_LENGTH:
            continue
        if row is None or at + length > ROW_LENGTH:
            if row is not None:
                yield {
                    name: torch.from_numpy(column.astype(_WIDER.get(name, column.dtype)))
                    for name, column in row.items()
                }
            row, at, documents = _blank_row(renderer.vocabulary.pad), 0, 0
        line = Rendered(row["input_ids"], row["labels"], row["writers"], row["loss_weights"])
        renderer.render_into(sample.turns, line[at : at + length])
        row["position_ids"][at : at + length] = np.arange(length)
        row["document_ids"][at : at + length] = documents
        at, documents = at + length, documents + 1


_WIDER = {"input_ids": np.int64}


def _blank_row(pad: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.full(ROW_LENGTH, pad, np.int32),
        "labels": np.full(ROW_LENGTH, -100, np.int64),
        "position_ids": np.zeros(ROW_LENGTH, np.int64),
        "document_ids": np.full(ROW_LENGTH, -1, np.int32),
        "writers": np.full(ROW_LENGTH, -1, np.int8),
        "loss_weights": np.zeros(ROW_LENGTH, np.float32),
    }


def _rate(name: str, batches: Iterator[int], rows: int, goal: str) -> Figure:
    """Rows per second once the workers are running."""
    warm = 0
    while warm < _WARM_UP:
        warm += next(batches)
    done = 0
    with _Clock() as clock:
        while done < rows:
            done += next(batches)
    return Figure(name, done / clock.seconds, "rows/s", goal, clock.cpu)


def _memory(module: Any, options: DataBenchmark) -> Figure:
    """Growth of the most that all processes hold from the second quarter of the rows to the last.

    In the first one the pages that workers share with their parent become their own; what the allocator gives back
    from time to time does not count.
    """
    sizes = []
    batches = islice(module(options.workers, 4).train_dataloader(), options.steady_rows // 4)
    for number, _ in enumerate(batches):
        if number % 25 == 24:
            sizes.append(_own_memory())
    quarter = len(sizes) // 4
    growth = max(sizes[-quarter:]) - max(sizes[quarter : 2 * quarter])
    return Figure(f"memory growth over {options.steady_rows} rows", growth / 2**20, "MiB", "about 0")


def _own_memory() -> int:
    """Bytes of this process and its workers, shared batches included; mapped shards do not count."""
    this = psutil.Process(os.getpid())
    return sum(_held(process.pid) for process in (this, *this.children(recursive=True)))


def _held(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


class _Clock:
    """Wall seconds, and CPU seconds of this process and its workers."""

    def __enter__(self) -> "_Clock":
        self._wall, self._cpu = time.perf_counter(), self._cpu_now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._wall, self._cpu_now() - self._cpu

    @staticmethod
    def _cpu_now() -> float:
        this = psutil.Process(os.getpid())
        times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
        seconds: float = sum(t.user + t.system for t in times)
        return seconds
