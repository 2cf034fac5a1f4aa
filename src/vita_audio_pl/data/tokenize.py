"""One preparation task: a part of a corpus in, one shard out, atomically and never twice.

The output is named by a hash of the part, the codec, the tokenizer and the rules, and `<hash>.done.json` is written
last. Any task can therefore be killed and run again, in any order, on any machine that sees the folder.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import xxhash

from vita_audio_pl.data import clips
from vita_audio_pl.data.index import OFFSET_UNIT, IndexEntry, check_entry, write_index
from vita_audio_pl.data.kept_codes import KeptCodes
from vita_audio_pl.data.outputs import DONE, is_finished
from vita_audio_pl.data.read_ahead import ReadAhead
from vita_audio_pl.data.readers import (
    AnyAudio,
    AudioRef,
    KnownCodes,
    LeftOut,
    Part,
    RawSample,
    Reader,
    Unreadable,
    read_part,
    unreadable,
)
from vita_audio_pl.data.readers.base import LONGEST_NAME, LONGEST_PROBLEM, check_asked
from vita_audio_pl.data.readers.filters import NONE, Filters
from vita_audio_pl.data.samples import MOST_CODES, TokenizedSample, pack_sample
from vita_audio_pl.data.shape import SampleShape, shape_of
from vita_audio_pl.data.shards import ShardWriter
from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.storage.checksums import write_sealed
from vita_audio_pl.storage.files import explain_full_disk, write_array
from vita_audio_pl.storage.places import Place
from vita_audio_pl.storage.secrets import without_credentials
from vita_audio_pl.text import Renderer, RenderOptions, TextTokenizer, conversation_to_turns

LAYOUT = 2  # raised when the same input gives other shards

TOO_LONG, SILENT = "audio too long", "silent audio"
NO_CODES, NO_CODEC, NOT_USABLE = "no codes", "audio without a codec", "not usable"

MOST_NAMED = 2000
"""Samples that cannot be used, named of each reason in a part; lists of other recordings may have millions."""

MOST_FILTERED = 20
"""Samples that filters do not want, named of each reason in a part; a filter may want a hundredth of a corpus."""

SHARD_BYTES = 100_000_000


class SpeechCodec(Protocol):
    """What tokenising needs of a codec; any of `vita_audio_pl.codecs` will do."""

    name: str
    sample_rate: int
    codes_per_second: float
    codebook_size: int
    fingerprint: str

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]: ...


AudioLoader = Callable[[AudioRef, int, float], np.ndarray]
"""Audio, a rate in Hz and the most seconds taken, to `(samples,) float32`; raises `LeftOut` where it is not fit."""


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
    """What a task has done so far.

    Attributes:
        samples, skipped: taken, and left out.
        seconds: of audio.
        elapsed: seconds that it has worked, and of these `reading`, waiting for the corpus and for audio to be decoded,
            and `encoding`, in the codec.
    """

    samples: int = 0
    seconds: float = 0.0
    skipped: int = 0
    elapsed: float = 0.0
    reading: float = 0.0
    encoding: float = 0.0


@dataclass(frozen=True)
class TokenizeJob:
    """Everything a worker needs to tokenise parts of one source. Pickles; the codec is made where it is used.

    Attributes:
        source: name of the source.
        task: its task.
        reader: the corpus.
        tokenizer: text tokenizer.
        make_codec: makes the codec; None for a source without audio.
        codec: what decides its codes, and belongs to a shard's name: name, fingerprint, codes_per_second,
            codebook_size, and the build and dtype that encode; {} without one.
        load_audio: reads audio.
        out: folder of the source's shards.
        rules: which audio is taken.
        filters: which samples are wanted by their audio; the reader, whose parts tell their identity, does the rest.
        max_skipped: share of its samples that may be left out.
        decoders: threads that read audio beside the codec.
        shard_bytes: that a shard has at least; parts are merged until it has them. 0 leaves each part its own.
        codes: folder that keeps the codes of recordings for other sources of the same; None keeps none.
        placeholders: of a clip of so many samples at 16 kHz, the tokens that stand for it with continuous input. If
            given, audio outside answers is kept beside the codes, so that an encoder can hear it.
        about: what the data card says of the corpus: description, languages, licence, home.
    """

    source: str
    task: str
    reader: Reader
    tokenizer: TextTokenizer
    make_codec: Callable[[], SpeechCodec] | None
    codec: dict[str, Any]
    load_audio: AudioLoader
    out: Place
    rules: AudioRules = AudioRules()
    filters: Filters = NONE
    max_skipped: float = 0.05
    decoders: int = 2
    shard_bytes: int = SHARD_BYTES
    codes: Place | None = None
    placeholders: Callable[[int], int] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if int(self.codec.get("codebook_size", 0)) > MOST_CODES:
            raise UserError(
                f"the codec {self.codec['name']} has {self.codec['codebook_size']} codes, and shards hold codes below "
                f"{MOST_CODES}; choose a codec with a smaller codebook, or fewer levels of this one"
            )

    def output_name(self, part: Part) -> str:
        """Name of a part's shard, without extension."""
        rules = (self.rules.max_seconds, self.rules.silence)
        tokenizer, keeps_audio = self.tokenizer.fingerprint, self.placeholders is not None
        facts = [LAYOUT, part.identity, self.codec, tokenizer, rules, keeps_audio]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def done_file(self, part: Part) -> Place:
        """Appears when the part is complete."""
        return self.out / f"{self.output_name(part)}{DONE}"

    def run(self, part: Part, progress: Callable[[Progress], None] = lambda done: None) -> None:
        """Writes the shard, the index and the report of a part, unless they are there.

        Raises:
            UserError: the disk is full, or the codec cannot be made.
        """
        if is_finished(self.out, self.output_name(part)):
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(self.out, f"'{self.source}'"):
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


class _PartTask:
    """The state of one running task."""

    def __init__(self, job: TokenizeJob, part: Part, progress: Callable[[Progress], None]):
        self.job, self.part, self.report_progress = job, part, progress
        self.done = Progress()
        self.codec = _codec_of(job)
        self.kept = KeptCodes(job.codes, part, job.codec)
        self.rule = Renderer(
            job.tokenizer.vocabulary(max(1, int(job.codec.get("codebook_size", 1)))), job.tokenizer, RenderOptions(None)
        ).length_rule
        self.reasons: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.culprits: list[dict[str, str]] = []
        self.rest_lost = False  # something at its end could not be read, and nobody knows how much
        self.shapes: list[SampleShape] = []
        self.audio_bytes: list[int] = []
        self.text_tokens = self.codes = 0
        self.speakers: set[str] = set()
        self.started = time.monotonic()

    def run(self) -> None:
        base = self.job.out / self.job.output_name(self.part)
        shard, audio_shard = base.with_suffix(".tar"), base.with_suffix(".audio.tar")
        keeps_audio = self.job.placeholders is not None
        with ExitStack() as stack:
            writer = stack.enter_context(ShardWriter(shard))
            audio = stack.enter_context(ShardWriter(audio_shard, extension=clips.EXTENSION)) if keeps_audio else None
            pool = ThreadPoolExecutor(self.job.decoders)
            # after an error nothing waits for what was queued: a text to speak may take minutes
            stack.push(lambda error, *_: pool.shutdown(cancel_futures=error is not None))
            ahead = ReadAhead(self.job.rules.batch_seconds, self._load, self._seconds, self._skip, self._clocked)
            for batch in ahead.batches(read_part(self.job.reader, self.part), pool):
                for packed, heard in self._ready(batch):
                    writer.add(packed)
                    if audio is not None:
                        self.audio_bytes.append(len(heard))
                        audio.add(heard)
                self.done.elapsed = time.monotonic() - self.started
                self.report_progress(self.done)
            sums = {} if audio is None else {audio_shard.name: audio.close()}
            sums[shard.name] = writer.close()
        entries = [
            IndexEntry(0, place.offset, place.crc, shape)
            for place, shape in zip(writer.placed, self.shapes, strict=True)
        ]
        write_index(base.with_suffix(".index"), entries)
        report: dict[str, Any] = {
            "format": 1,
            "part": self.part.name,
            "changed": self.part.changed,
            "shard": {"name": shard.name, "bytes": sums[shard.name].bytes, "samples": len(entries)},
            "sums": {name: written.to_json() for name, written in sums.items()},
            "seconds": self.done.seconds,
            "text_tokens": self.text_tokens,
            "codes": self.codes,
            "speakers": sorted(self.speakers),
            "skipped": dict(self.reasons),
            "filtered": dict(self.filtered),
            "culprits": self.culprits,
            "rest_lost": self.rest_lost,
        }
        if audio is not None:
            places = [(p.offset // OFFSET_UNIT, n) for p, n in zip(audio.placed, self.audio_bytes, strict=True)]
            write_array(base.with_suffix(".audio.npy"), np.array(places, clips.PLACES))
            audio_bytes = sums[audio_shard.name].bytes
            report["audio_shard"] = {"name": audio_shard.name, "bytes": audio_bytes, "samples": len(entries)}
        self.kept.save()
        write_sealed(self.job.done_file(self.part), report)

    def _skip(self, left_out: Unreadable) -> None:
        counts = self.filtered if left_out.filtered else self.reasons
        counts[left_out.reason] += 1
        self.rest_lost |= left_out.rest
        self.done.skipped += 1
        if counts[left_out.reason] > (MOST_FILTERED if left_out.filtered else MOST_NAMED):
            return
        culprit = {
            "where": without_credentials(left_out.where)[:LONGEST_NAME],
            "reason": left_out.reason,
            "problem": without_credentials(left_out.problem)[:LONGEST_PROBLEM],
        }
        self.culprits.append(culprit | ({"trace": left_out.trace} if left_out.trace else {}))

    @contextmanager
    def _clocked(self, what: str) -> Iterator[None]:
        """Adds the time in the block to what `Progress` tells of it."""
        start = time.monotonic()
        try:
            yield
        finally:
            setattr(self.done, what, getattr(self.done, what) + time.monotonic() - start)

    def _load(self, audio: AnyAudio) -> np.ndarray:
        if self.codec is None:
            raise LeftOut(
                NO_CODEC,
                f"'{self.job.source}' has audio ({audio}): say with codec_folder=DIR which codec makes codes of it",
            )
        if isinstance(audio, KnownCodes):
            return np.array(audio.codes)
        wave = self.job.load_audio(audio, self.codec.sample_rate, self.job.rules.max_seconds)
        if float(np.abs(wave - wave.mean()).max(initial=0.0)) < self.job.rules.silence:
            raise LeftOut(SILENT, f"{audio}: nothing but silence")
        return wave

    def _seconds(self, raw: RawSample, waves: list[np.ndarray]) -> float:
        """Seconds of a sample's audio; raises `LeftOut` where the filters do not want it."""
        if self.codec is None:
            return 0.0
        seconds = [self._duration(wave) for wave in waves]
        self.job.filters.heard(raw.transcript, seconds)
        return sum(seconds)

    def _ready(self, batch: list[tuple[RawSample, list[np.ndarray]]]) -> Iterator[tuple[bytes, bytes]]:
        """Samples of a batch as they are stored, in order, and the audio that is heard in each."""
        for (raw, waves), codes in zip(batch, self._codes([waves for _, waves in batch]), strict=True):
            name = raw.conversation.id
            try:
                if isinstance(codes, Exception):
                    raise codes
                if self.job.task != "long_text":
                    check_asked(raw.conversation)
                turns = conversation_to_turns(raw.conversation, self.job.tokenizer, codes)
                heard = clips.outside_answers(raw, waves)
                shape = shape_of(turns, self.rule, self._placeholders(heard))
                packed = pack_sample(TokenizedSample(name, tuple(turns)))
                check_entry(IndexEntry(0, 0, 0, shape))
                rate = self.codec.sample_rate if self.codec else clips.RATE
                kept = clips.pack_clips(heard, rate) if self.job.placeholders is not None else b""
            except Exception as error:
                self._skip(unreadable(name, error, NOT_USABLE))
                continue
            self.shapes.append(shape)
            if raw.speaker:
                self.speakers.add(xxhash.xxh3_64_hexdigest(raw.speaker.encode("utf-8", "surrogatepass")))
            self.text_tokens += sum(turn.counts()[0] for turn in turns)
            self.codes += sum(map(len, codes))
            self.done.samples += 1
            self.done.seconds += sum(map(self._duration, waves))
            yield packed, kept

    def _codes(self, waves: list[list[np.ndarray]]) -> list[list[np.ndarray] | Exception]:
        """The codes of each sample's waves; where the codec fails with all of them, of each by itself, or its error."""
        flat = [wave for of_sample in waves for wave in of_sample]
        if self.codec is None or not flat:
            return [[] for _ in waves]
        try:
            encoded = iter(self._encode(flat))
        except Exception as error:
            if is_machine_fault(error):
                raise
            return [error] if len(waves) == 1 else [self._codes([of_sample])[0] for of_sample in waves]
        found: list[list[np.ndarray] | Exception] = []
        for of_sample in waves:
            codes = [next(encoded) for _ in of_sample]
            wrong = [wave for wave, made in zip(of_sample, codes, strict=True) if not self._are_codes(made)]
            problem = f"{self.codec.name} makes no codes of its audio of {len(wrong[0])} samples" if wrong else ""
            found.append(LeftOut(NO_CODES, problem) if problem else codes)
        return found

    def _encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """What the codec makes of each wave; those that are not known go through it, longest first, and codes stay as they are."""
        assert self.codec is not None
        if any(map(clips.is_coded, waves)):
            encoded = iter(self._encode([wave for wave in waves if not clips.is_coded(wave)]))
            return [wave if clips.is_coded(wave) else next(encoded) for wave in waves]
        keys = [KeptCodes.key(wave) for wave in waves]
        new = {key: wave for key, wave in zip(keys, waves, strict=True) if key not in self.kept}
        order = sorted(new, key=lambda key: -len(new[key]))
        with self._clocked("encoding"):
            made = dict(zip(order, self.codec.encode([new[key] for key in order]), strict=True)) if new else {}
        for key, codes in made.items():
            if self._are_codes(codes):
                self.kept.add(key, codes)
        return [made[key] if key in made else self.kept[key] for key in keys]

    def _duration(self, wave: np.ndarray) -> float:
        """Seconds of a wave, or of codes."""
        if self.codec is None:
            return 0.0
        return len(wave) / (self.codec.codes_per_second if clips.is_coded(wave) else self.codec.sample_rate)

    def _are_codes(self, codes: np.ndarray) -> bool:
        return codes.size > 0 and codes.min() >= 0 and codes.max() < int(self.job.codec["codebook_size"])

    def _placeholders(self, waves: list[np.ndarray]) -> int:
        if self.job.placeholders is None or self.codec is None:
            return 0
        rate = self.codec.sample_rate
        return sum(self.job.placeholders(len(clips.at_rate(wave, rate))) for wave in waves)
