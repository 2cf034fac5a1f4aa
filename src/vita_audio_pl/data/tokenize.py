"""One task of preparing a corpus: a part of it in, one shard out, whole or not at all, and never done twice.

The output's name is a hash of the part, the codec, the tokenizer and the rules, and `<hash>.done.json` appears last. So
any task can be killed and run again, in any order, on any machine that sees the folder.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vita_audio_pl.data import clips
from vita_audio_pl.data.index import OFFSET_UNIT, IndexEntry, write_index
from vita_audio_pl.data.readers import AudioRef, Part, RawSample, Reader, Unreadable
from vita_audio_pl.data.samples import MOST_CODES, TokenizedSample, pack_sample
from vita_audio_pl.data.shape import SampleShape, shape_of
from vita_audio_pl.data.shards import ShardWriter
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.files import full_disk_is_told, write_array
from vita_audio_pl.text import Renderer, RenderOptions, TextTokenizer, conversation_to_turns

LAYOUT = 2  # raised when the same input gives other shards

TOO_LONG, SILENT, BROKEN_AUDIO = "audio too long", "silent audio", "unreadable audio"


class SpeechCodec(Protocol):
    """What tokenising needs of a codec; any of `vita_audio_pl.codecs` will do."""

    name: str
    sample_rate: int
    codes_per_second: float
    codebook_size: int
    fingerprint: str

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]: ...


AudioLoader = Callable[[AudioRef, int, float], np.ndarray]
"""Audio, a rate in Hz and the most seconds taken, to `(samples,) float32`; raises `SkipAudio`."""


class SkipAudio(Exception):
    """Audio that its sample is left out for; `reason` is what it is counted under."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason


@dataclass(frozen=True)
class AudioRules:
    """Which audio is taken.

    Attributes:
        max_seconds: longer audio is left out with its sample, and counted.
        silence: audio whose loudest sample is below this is left out likewise.
        batch_seconds: audio that the codec encodes at a time.
    """

    max_seconds: float = 30.0
    silence: float = 1e-4
    batch_seconds: float = 120.0


@dataclass
class Progress:
    """What a task has done so far."""

    samples: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class TokenizeJob:
    """Everything a worker needs to tokenise parts of one source. Pickles; the codec is made where it is used.

    Attributes:
        source: name of the source.
        task: its task.
        reader: the corpus.
        tokenizer: text tokenizer.
        make_codec: makes the codec; None for a source without audio.
        codec: what decides its codes, and belongs to a shard's name: name, fingerprint, codes_per_second, codebook_size,
            and the build and dtype that encode; {} without one.
        load_audio: reads audio.
        out: folder of the source's shards.
        rules: which audio is taken.
        decoders: threads that read audio beside the codec.
        placeholders: of a clip of so many samples at 16 kHz, the tokens that stand for it with continuous input. If
            given, audio outside answers is kept beside the codes, so that an encoder can hear it.
    """

    source: str
    task: str
    reader: Reader
    tokenizer: TextTokenizer
    make_codec: Callable[[], SpeechCodec] | None
    codec: dict[str, Any]
    load_audio: AudioLoader
    out: Path
    rules: AudioRules = AudioRules()
    decoders: int = 2
    placeholders: Callable[[int], int] | None = None

    def __post_init__(self) -> None:
        if int(self.codec.get("codebook_size", 0)) > MOST_CODES:
            raise UserError(
                f"the codec {self.codec['name']} has {self.codec['codebook_size']} codes, and shards hold codes below "
                f"{MOST_CODES}; choose a codec with a smaller codebook, or fewer levels of this one"
            )

    def output_name(self, part: Part) -> str:
        """Name of a part's shard, without extension."""
        rules = (self.rules.max_seconds, self.rules.silence)
        facts = [
            LAYOUT,
            part.identity,
            self.codec,
            self.tokenizer.fingerprint,
            rules,
            self.placeholders is not None,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def done_file(self, part: Part) -> Path:
        """Appears when the part is complete."""
        return self.out / f"{self.output_name(part)}.done.json"

    def finished(self, part: Part) -> bool:
        """Whether the part's report is there and undamaged, and the files that it tells of, in their sizes."""
        try:
            report = read_sealed(self.done_file(part))
            shards = [report[kind] for kind in ("shard", "audio_shard") if kind in report]
            whole = all((self.out / shard["name"]).stat().st_size == shard["bytes"] for shard in shards)
            return whole and (self.out / f"{self.output_name(part)}.index").is_file()
        except (FileNotFoundError, UserError):
            return False

    def run(self, part: Part, progress: Callable[[Progress], None] = lambda done: None) -> None:
        """Writes the shard, the index and the report of a part, unless they are there.

        Raises:
            UserError: the disk is full, or the codec cannot be made.
        """
        if self.finished(part):
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with full_disk_is_told(self.out, f"'{self.source}'"):
            _PartTask(self, part, progress).run()


_made: dict[str, SpeechCodec] = {}  # facts -> codec; loading a large one for every part would take longer


def _codec_of(job: TokenizeJob) -> SpeechCodec | None:
    """This process's codec."""
    if job.make_codec is None:
        return None
    facts = json.dumps(job.codec, sort_keys=True)
    if facts not in _made:
        codec = job.make_codec()
        if codec.fingerprint != job.codec["fingerprint"]:
            raise UserError(f"the codec has changed while '{job.source}' was being prepared; give the command again")
        _made.clear()
        _made[facts] = codec
    return _made[facts]


@dataclass
class _Waiting:
    """A sample whose audio is being read."""

    raw: RawSample
    waves: list["Future[np.ndarray]"]


class _PartTask:
    """The state of one running task."""

    def __init__(self, job: TokenizeJob, part: Part, progress: Callable[[Progress], None]):
        self.job, self.part, self.report_progress = job, part, progress
        self.done = Progress()
        self.codec = _codec_of(job)
        self.rule = Renderer(
            job.tokenizer.vocabulary(max(1, int(job.codec.get("codebook_size", 1)))), job.tokenizer, RenderOptions(None)
        ).length_rule
        self.reasons: Counter[str] = Counter()
        self.culprits: list[dict[str, str]] = []
        self.shapes: list[SampleShape] = []
        self.audio_bytes: list[int] = []
        self.text_tokens = self.codes = 0

    def run(self) -> None:
        base = self.job.out / self.job.output_name(self.part)
        shard, audio_shard = base.with_suffix(".tar"), base.with_suffix(".audio.tar")
        keeps_audio = self.job.placeholders is not None
        with ExitStack() as stack:
            writer = stack.enter_context(ShardWriter(shard))
            audio = stack.enter_context(ShardWriter(audio_shard, extension=clips.EXTENSION)) if keeps_audio else None
            pool = stack.enter_context(ThreadPoolExecutor(self.job.decoders))
            for batch in self._batches(pool):
                for sample, heard in self._encoded(batch):
                    writer.add(pack_sample(sample))
                    if audio is not None:
                        packed = clips.pack_clips(heard, self.codec.sample_rate if self.codec else clips.RATE)
                        self.audio_bytes.append(len(packed))
                        audio.add(packed)
                self.report_progress(self.done)
            sums = {} if audio is None else {audio_shard.name: audio.close()}
            sums[shard.name] = writer.close()
        entries = [
            IndexEntry(0, place.offset, place.crc, shape)
            for place, shape in zip(writer.placed, self.shapes, strict=True)
        ]
        write_index(base.with_suffix(".index"), entries)
        report: dict[str, Any] = {
            "part": self.part.name,
            "changed": self.part.changed,
            "shard": {"name": shard.name, "bytes": sums[shard.name].bytes, "samples": len(entries)},
            "sums": {name: written.to_json() for name, written in sums.items()},
            "seconds": self.done.seconds,
            "text_tokens": self.text_tokens,
            "codes": self.codes,
            "skipped": dict(self.reasons),
            "culprits": self.culprits,
        }
        if audio is not None:
            places = [(p.offset // OFFSET_UNIT, n) for p, n in zip(audio.placed, self.audio_bytes, strict=True)]
            write_array(base.with_suffix(".audio.npy"), np.array(places, clips.PLACES))
            audio_bytes = sums[audio_shard.name].bytes
            report["audio_shard"] = {"name": audio_shard.name, "bytes": audio_bytes, "samples": len(entries)}
        write_sealed(self.job.done_file(self.part), report)

    def _skip(self, where: str, reason: str, problem: str) -> None:
        self.reasons[reason] += 1
        self.culprits.append({"where": where, "reason": reason, "problem": problem})
        self.done.skipped += 1

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[list[tuple[RawSample, list[np.ndarray]]]]:
        """Samples with their waves, in order, about `batch_seconds` of audio at a time; reading runs ahead."""
        waiting: deque[_Waiting] = deque()
        batch: list[tuple[RawSample, list[np.ndarray]]] = []
        seconds = 0.0
        for raw in self.job.reader.read(self.part):
            if isinstance(raw, Unreadable):
                self._skip(raw.where, raw.reason, raw.problem)
                continue
            waiting.append(_Waiting(raw, [pool.submit(self._load, audio) for audio in raw.audios]))
            if len(waiting) > _READ_AHEAD:
                seconds += self._take(waiting.popleft(), batch)
            if seconds >= self.job.rules.batch_seconds or len(batch) >= _MOST_IN_BATCH:
                yield batch
                batch, seconds = [], 0.0
        while waiting:
            seconds += self._take(waiting.popleft(), batch)
            if seconds >= self.job.rules.batch_seconds:
                yield batch
                batch, seconds = [], 0.0
        if batch:
            yield batch

    def _load(self, audio: AudioRef) -> np.ndarray:
        if self.codec is None:
            raise UserError(
                f"'{self.job.source}' has audio ({audio}): say with codec_folder=DIR which codec makes codes of it"
            )
        return self.job.load_audio(audio, self.codec.sample_rate, self.job.rules.max_seconds)

    def _take(self, waiting: _Waiting, batch: list[tuple[RawSample, list[np.ndarray]]]) -> float:
        """Moves a sample into the batch if all its audio is fit; returns its seconds."""
        waves, name = [], waiting.raw.conversation.id
        for future, audio in zip(waiting.waves, waiting.raw.audios, strict=True):
            try:
                wave = future.result()
            except SkipAudio as error:
                self._skip(name, error.reason, str(error))
                return 0.0
            if float(np.abs(wave).max(initial=0.0)) < self.job.rules.silence:
                self._skip(name, SILENT, f"{audio}: nothing but silence")
                return 0.0
            waves.append(wave)
        batch.append((waiting.raw, waves))
        return sum(len(wave) for wave in waves) / self.codec.sample_rate if self.codec else 0.0

    def _encoded(
        self, batch: list[tuple[RawSample, list[np.ndarray]]]
    ) -> Iterator[tuple[TokenizedSample, list[np.ndarray]]]:
        """Tokenised samples of a batch, in order, and the waves outside their answers.

        Waves go through the codec longest first.
        """
        waves = [wave for _, of_sample in batch for wave in of_sample]
        codes: list[np.ndarray] = [np.empty(0, np.int32)] * len(waves)
        if self.codec is not None and waves:
            order = sorted(range(len(waves)), key=lambda i: -len(waves[i]))
            for i, encoded in zip(order, self.codec.encode([waves[i] for i in order]), strict=True):
                codes[i] = encoded
        at = 0
        for raw, of_sample in batch:
            mine = codes[at : at + len(of_sample)]
            at += len(of_sample)
            name = raw.conversation.id
            try:
                turns = conversation_to_turns(raw.conversation, self.job.tokenizer, mine)
                heard = _outside_answers(raw, of_sample)
                shape = shape_of(turns, self.rule, self._placeholders(heard))
            except UserError as error:
                self._skip(name, "not usable", f"{name}: {error}")
                continue
            seconds = sum(map(len, of_sample)) / self.codec.sample_rate if self.codec else 0.0
            self.shapes.append(shape)
            self.text_tokens += sum(turn.counts()[0] for turn in turns)
            self.codes += sum(map(len, mine))
            self.done.samples += 1
            self.done.seconds += seconds
            yield TokenizedSample(name, tuple(turns)), heard

    def _placeholders(self, waves: list[np.ndarray]) -> int:
        if self.job.placeholders is None or self.codec is None:
            return 0
        rate = self.codec.sample_rate
        return sum(self.job.placeholders(len(clips.at_rate(wave, rate))) for wave in waves)


def _outside_answers(raw: RawSample, waves: list[np.ndarray]) -> list[np.ndarray]:
    """The waves of a sample that are heard, not spoken."""
    roles = [message.role for message in raw.conversation.messages for _ in range(message.n_audios)]
    return [wave for role, wave in zip(roles, waves, strict=True) if role != "assistant"]


_READ_AHEAD = 64  # samples whose audio is read while the codec works
_MOST_IN_BATCH = 4096  # samples without audio are passed on in batches of this size
