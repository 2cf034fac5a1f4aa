"""Decoding speed: tokens per second, time to the first audio chunk, time between chunks, and where the time goes.

On a CPU, seconds are CPU seconds of the process, which other processes affect less; on a GPU they are elapsed seconds.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vita_audio_pl.benchmarking.decoding_settings import (
    FIRST_TEXT,
    DecodingProtocol,
    DecodingSize,
    Setting,
    settings_of,
)
from vita_audio_pl.codecs.protocol import Codec, DecodeStream
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.interleave import DecodePattern, IntervalRatio

CODES_PER_SECOND = 12.5
TURN_END, BEGIN, END = 0, 1, 2


@dataclass
class Measurement:
    """Measurements of one setting, over all repetitions.

    Attributes:
        tokens, seconds: per repetition, written by all sessions together.
        first_chunk, between_chunks: seconds from the start to the first complete chunk of codes, and from chunk to chunk.
        parts: seconds by kind of work (encode, prefill, backbone, heads, vocoder) of all repetitions.
        backbone_passes, head_passes: of one session; drafted, accepted: per head, of all.
        audio_seconds: sound that the codes of all sessions stand for, per repetition.
        cache_bytes: memory of the caches.
        first_audible: seconds from the start to the first sample of at least `AUDIBLE` that the codec gave.
        passes_to_audible: backbone's and heads' passes until then.
        gaps: for each answer, seconds in which playback, started with the first sound, would have waited for more.
        chunk_factors: for each push that gave sound, seconds since the last one over seconds of sound.
    """

    setting: Setting
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_chunk: list[float] = field(default_factory=list)
    between_chunks: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    written: int = 0
    backbone_passes: int = 0
    head_passes: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    audio_seconds: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    first_audible: list[float] = field(default_factory=list)
    passes_to_audible: list[tuple[int, int]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    chunk_factors: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Of the quickest repetition: what else runs on a machine can only take time."""
        if not self.tokens:
            return 0.0
        return max(tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True))

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of a session for each backbone pass that it took part in."""
        return self.written / self.backbone_passes if self.backbone_passes else 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of sound, all sessions together; below 1 it plays without a pause."""
        factors = [s / a for s, a in zip(self.seconds, self.audio_seconds, strict=True) if a]
        return min(factors) if factors else None

    @property
    def acceptance(self) -> list[float]:
        """Share of each head's drafts that were kept."""
        return [kept / tried if tried else 0.0 for kept, tried in zip(self.accepted, self.drafted, strict=True)]


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: CPU time of the process on a CPU; on a GPU elapsed time after synchronisation."""
    if device.type != "cuda":
        return time.process_time

    def elapsed() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return elapsed


def constraint_of(size: DecodingSize) -> SpanConstraint:
    """Markers and codes of the made-up vocabulary: the codes are its last rows."""
    return SpanConstraint(BEGIN, END, TURN_END, size.first_code, size.codes)


def script(mode: str, length: int, constraint: SpanConstraint, seed: int) -> list[int]:
    """A made-up answer of `length` tokens, interleaved in the mode's ratio (Vanilla's in Boost's)."""
    ratio = IntervalRatio.of("boost" if mode == "vanilla" else mode)
    random = np.random.default_rng(seed)
    text = random.integers(FIRST_TEXT, constraint.first_code, length)
    codes = random.integers(constraint.first_code, constraint.first_code + constraint.n_codes, 3 * length)
    ids: list[int] = ratio.interleave(text, codes, constraint.begin, constraint.end)[:length].tolist()
    return ids


class ScriptedDecoder(Decoder):
    """Does all the work of decoding, but what is written comes from a script; a draft misses it with some chance."""

    def __init__(self, runtime: Runtime, scripts: dict[int, list[int]], agreement: float, **options: Any):
        super().__init__(runtime, **options)
        self._agreement = agreement
        self.follow(scripts)

    def follow(self, scripts: dict[int, list[int]]) -> None:
        """Writes other scripts from now on."""
        self._scripts = scripts
        self._random = np.random.default_rng(0)

    def _most_likely(
        self,
        sequences: list[DecodedSequence],
        hidden: Tensor,
        greedy_rows: list[int],
        counts: list[int] | None = None,
        entropies: list[float | None] | None = None,
    ) -> list[int]:
        super()._most_likely(sequences, hidden, greedy_rows, counts, entropies)
        if entropies is not None:
            entropies[:] = [None] * len(entropies)  # random weights are never sure, whatever the script says
        tokens = []
        for i in greedy_rows:
            sequence, rows = sequences[i], 1 if counts is None else counts[i]
            lines = self._scripts[sequence.slot]
            place = len(sequence.ids) - sequence.n_prompt - rows + 1
            tokens += [lines[min(at, len(lines) - 1)] for at in range(place, place + rows)]
        if counts is None and self._agreement < 1:
            missed = self._random.random(len(tokens)) >= self._agreement
            tokens = [token + 1 if miss else token for token, miss in zip(tokens, missed, strict=True)]
        return tokens


class Beside(Protocol):
    """Something else that is measured in turn."""

    measured: Measurement

    def run(self, counts: bool = True) -> None:
        """Writes one answer; counts: and keeps what it took."""
        ...


def benchmark_decoding(
    runtime_for: Callable[[Setting], Runtime],
    protocol: DecodingProtocol,
    size: DecodingSize,
    *,
    codec: Codec | None = None,
    beside: Beside | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Measures every setting of the protocol with random weights; repetitions take turns, so that noise is shared.

    Args:
        runtime_for: the runtime of a setting.
        beside: measured in turn with them.

    What is done once (graphs captured, kernels chosen and compiled) is done in the warm-up, which is a repetition as long
    as the others: settings with as many sessions and heads keep one decoder.
    """
    measured = {setting: Measurement(setting) for setting in settings_of(protocol, size.heads)}
    constraint = constraint_of(size)
    sounds = random_vocoder(codec)
    decoders: dict[tuple[int, int, int, float], ScriptedDecoder] = {}
    for repetition in range(-1, protocol.repetitions):
        if beside is not None:
            beside.run(counts=repetition >= 0)
        for setting, kept in measured.items():
            progress(f"{setting.label}: {'warm-up' if repetition < 0 else f'repetition {repetition + 1}'}")
            into = Measurement(setting) if repetition < 0 else kept
            _run_scripted(runtime_for(setting), protocol, constraint, setting, decoders, into, sounds)
    for setting, kept in measured.items():
        for _ in range(protocol.first_chunks):
            _run_scripted(runtime_for(setting), protocol, constraint, setting, decoders, kept, sounds, first=True)
    return [*measured.values(), *([beside.measured] if beside is not None else [])]


AUDIBLE = 0.01
"""Of full scale, -40 dB: a smaller sample counts as silence."""


@dataclass(frozen=True)
class Vocoder:
    """Makes the sound of new codes of the session with that number: samples `(n,)` that can be played now."""

    push: Callable[[int, NDArray[np.int32]], NDArray[np.float32]]
    sample_rate: int


class Playback:
    """One answer as it would be played: from its first sound on, waiting wherever there is nothing to play."""

    def __init__(self, begun: float):
        self._last = begun
        self._until: float | None = None
        self.heard = False
        self.gaps = 0.0

    def push(self, seconds: float, now: float) -> float:
        """Takes `seconds` of sound that came at `now`; gives the seconds of work for each second of it."""
        if self._until is not None:
            self.gaps += max(0.0, now - self._until)
        self._until = max(now, self._until or now) + seconds
        factor, self._last = (now - self._last) / seconds, now
        return factor


def random_vocoder(codec: Codec | None) -> Callable[[], Vocoder] | None:
    """Starts a vocoder for a run: one decoding stream of the codec for each session."""
    if codec is None:
        return None

    def start() -> Vocoder:
        streams: defaultdict[int, DecodeStream] = defaultdict(codec.decode_stream)
        return Vocoder(lambda session, codes: streams[session].push(codes % codec.codebook_size), codec.sample_rate)

    return start


def _run_scripted(
    runtime: Runtime,
    protocol: DecodingProtocol,
    constraint: SpanConstraint,
    setting: Setting,
    decoders: dict[tuple[int, int, int, float], ScriptedDecoder],
    into: Measurement,
    sounds: Callable[[], Vocoder] | None,
    first: bool = False,
) -> None:
    pattern, new_tokens, sessions = DecodePattern.of(setting.mode), protocol.new_tokens, setting.sessions
    random = np.random.default_rng(1)
    prompts = random.integers(FIRST_TEXT, constraint.first_code, (sessions, protocol.prompt_tokens)).tolist()
    scripts = {slot: script(setting.mode, new_tokens, constraint, slot) for slot in range(sessions)}
    n_heads = int(pattern.writers(new_tokens, runtime.n_heads).max())
    agreement = 1.0 if setting.agreement is None else setting.agreement
    kind = (id(runtime), sessions, n_heads, agreement)
    if kind not in decoders:
        decoders[kind] = ScriptedDecoder(
            runtime,
            scripts,
            agreement,
            slots=sessions,
            capacity=protocol.prompt_tokens + new_tokens,
            n_heads=n_heads,
            graphs=protocol.graphs,
            clock=clock_of(runtime.device),
        )
    decoder = decoders[kind]
    decoder.follow(scripts)
    markers = constraint if setting.constrained else None
    options = Options(pattern, new_tokens, constraint=markers, verify=setting.verify)
    run_sessions(decoder, prompts, options, constraint, into, sounds=sounds and sounds(), first_chunk_only=first)


def run_sessions(
    decoder: Decoder,
    prompts: list[list[int]],
    options: Options,
    markers: SpanConstraint,
    into: Measurement,
    *,
    sounds: Vocoder | None = None,
    first_chunk_only: bool = False,
    encode_seconds: float = 0.0,
    clips: list[tuple[Tensor, ...]] | None = None,
) -> list[DecodedSequence]:
    """Decodes all prompts at once and adds what it took to `into`.

    A chunk ends with the audio end marker, where `sounds` has given samples since the last one: a codec that holds short
    chunks back has not been heard yet. The decoder is free before and after.

    Args:
        encode_seconds: what reading the prompts' audio took, counted in the time to the first chunk.
        clips: features of each prompt's audio, for models with an audio encoder.
    """
    clock = clock_of(decoder.runtime.device)
    decoder.seconds.clear()
    begun = clock() - encode_seconds
    heard = clips or [()] * len(prompts)
    sequences = [decoder.open(prompt, options, clip) for prompt, clip in zip(prompts, heard, strict=True)]
    seen = [0] * len(sequences)
    last_chunk = [begun] * len(sequences)
    chunks = [0] * len(sequences)
    audible = [sounds is None] * len(sequences)
    codes = 0
    vocoder = 0.0
    players = [Playback(begun) for _ in sequences]
    while not all(s.finished for s in sequences):
        decoder.step()
        now = clock()
        for i, sequence in enumerate(sequences):
            new = np.asarray(sequence.ids[sequence.n_prompt + seen[i] : sequence.n_committed])
            seen[i] = sequence.n_written
            found = new[(new >= markers.first_code) & (new < markers.first_code + markers.n_codes)]
            codes += found.size
            if sounds is not None and found.size:
                wave = sounds.push(i, (found - markers.first_code).astype(np.int32))
                vocoder, now = vocoder + clock() - now, clock()
                if len(wave):
                    audible[i] = True
                    into.chunk_factors.append(players[i].push(len(wave) / sounds.sample_rate, now))
                    if not players[i].heard and float(np.abs(wave).max()) >= AUDIBLE:
                        players[i].heard = True
                        into.first_audible.append(now - begun)
                        into.passes_to_audible.append((sequence.backbone_passes, sequence.head_passes))
            if markers.end in new and audible[i]:
                audible[i] = sounds is None
                (into.between_chunks if chunks[i] else into.first_chunk).append(now - last_chunk[i])
                last_chunk[i], chunks[i] = now, chunks[i] + 1
        if first_chunk_only and all(chunks):
            break
    seconds = clock() - begun
    for sequence in sequences:
        decoder.close(sequence)
    if first_chunk_only and all(chunks):
        return sequences
    into.gaps += [player.gaps for player in players] if sounds is not None else []
    into.seconds.append(seconds)
    into.tokens.append(sum(s.n_written for s in sequences))
    into.audio_seconds.append(codes / CODES_PER_SECOND)
    into.cache_bytes = decoder.cache.nbytes
    for kind, seconds in decoder.seconds.items():
        into.parts[kind] += seconds
    into.parts["encode"] += encode_seconds
    into.parts["vocoder"] += vocoder
    into.written += sequences[0].n_written
    into.backbone_passes += sequences[0].backbone_passes
    into.head_passes += sequences[0].head_passes
    for sequence in sequences:
        for total, part in ((into.drafted, sequence.drafted), (into.accepted, sequence.accepted)):
            total.extend([0] * (len(part) - len(total)))
            total[: len(part)] = [a + b for a, b in zip(total, part, strict=False)]
    return sequences
