"""How fast answers come: tokens a second, the first chunk of sound, the chunks after it, and where the time goes.

On a CPU, seconds are CPU seconds of the process, which other processes disturb less; on a GPU they are elapsed seconds.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, Qwen2ForCausalLM

from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.codecs.protocol import Codec, DecodeStream
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.interleave import DecodePattern, IntervalRatio

CODES_PER_SECOND = 12.5
TURN_END, BEGIN, END, FIRST_CODE_FROM_END = 0, 1, 2, 8


@dataclass(frozen=True)
class Setting:
    """One combination that is measured; `name` of a mode, or `transformers` for its own loop."""

    mode: str
    verify: str = "none"
    sessions: int = 1
    constrained: bool = False

    @property
    def label(self) -> str:
        """Short name for tables."""
        parts = [self.mode]
        parts += [f"verify={self.verify}"] if self.verify != "none" else []
        parts += ["constrained"] if self.constrained else []
        return " ".join(parts + ([f"x{self.sessions}"] if self.sessions > 1 else []))


@dataclass
class Measurement:
    """What was seen of one setting, over all repetitions.

    Attributes:
        tokens, seconds: per repetition, written by all sessions together.
        first_chunk, between_chunks: seconds from the start to the first complete chunk of codes, and from chunk to chunk.
        parts: seconds by kind of work (encode, prefill, backbone, heads, vocoder) of all repetitions.
        backbone_passes, head_passes: of one session; drafted, accepted: per head, of all.
        audio_seconds: sound that the codes of all sessions stand for, per repetition.
        cache_bytes: memory of the caches.
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

    @property
    def tokens_per_second(self) -> float:
        """Of the quickest repetition: what else runs on a machine can only take time."""
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
    """Seconds: of the process's CPU time on a CPU, elapsed once the device is idle on a GPU."""
    if device.type != "cuda":
        return time.process_time

    def elapsed() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return elapsed


def constraint_of(size: DecodingSize) -> SpanConstraint:
    """Markers and codes of the made-up vocabulary: the codes are its last rows."""
    first = size.vocabulary - FIRST_CODE_FROM_END - size.codes
    return SpanConstraint(BEGIN, END, TURN_END, first, size.codes)


def script(mode: str, length: int, constraint: SpanConstraint, seed: int) -> list[int]:
    """A made-up answer of `length` tokens, interleaved in the mode's ratio (Vanilla's in Boost's)."""
    ratio = IntervalRatio.of("boost" if mode == "vanilla" else mode)
    random = np.random.default_rng(seed)
    text = random.integers(3, constraint.first_code, length)
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
        self, sequences: list[DecodedSequence], hidden: Tensor, greedy_rows: list[int], counts: list[int] | None = None
    ) -> list[int]:
        super()._most_likely(sequences, hidden, greedy_rows, counts)
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


def benchmark_decoding(
    runtime: Runtime,
    protocol: DecodingProtocol,
    size: DecodingSize,
    *,
    codec: Codec | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Measures every setting of the protocol with random weights; repetitions take turns, so that noise is shared.

    What is done once (graphs captured, kernels chosen and compiled) is done in the warm-up, which is a repetition as long
    as the others: settings with as many sessions and heads keep one decoder.
    """
    measured = {setting: Measurement(setting) for setting in settings_of(protocol)}
    constraint = constraint_of(size)
    sounds = random_vocoder(codec)
    decoders: dict[tuple[int, int], ScriptedDecoder] = {}
    for repetition in range(-1, protocol.repetitions):
        for setting, kept in measured.items():
            progress(f"{setting.label}: {'warm-up' if repetition < 0 else f'repetition {repetition + 1}'}")
            into = Measurement(setting) if repetition < 0 else kept
            _run_scripted(runtime, protocol, constraint, setting, decoders, into, sounds)
    for setting, kept in measured.items():
        for _ in range(protocol.first_chunks):
            _run_scripted(runtime, protocol, constraint, setting, decoders, kept, sounds, first=True)
    return list(measured.values())


def settings_of(protocol: DecodingProtocol) -> list[Setting]:
    """All combinations, Vanilla's verification (which drafts nothing) left out."""
    combinations = product(protocol.sessions, protocol.constrain, protocol.verify, protocol.modes)
    return [
        Setting(mode, verify, sessions, constrained)
        for sessions, constrained, verify, mode in combinations
        if not (mode == "vanilla" and verify != "none")
    ]


Vocoder = Callable[[int, NDArray[np.int32]], int]
"""Makes the sound of new codes of the session with that number; returns how many samples can be played now."""


def random_vocoder(codec: Codec | None) -> Callable[[], Vocoder] | None:
    """Starts a vocoder for a run: one decoding stream of the codec for each session."""
    if codec is None:
        return None

    def start() -> Vocoder:
        streams: defaultdict[int, DecodeStream] = defaultdict(codec.decode_stream)

        def sound(session: int, codes: NDArray[np.int32]) -> int:
            return len(streams[session].push(codes % codec.codebook_size))

        return sound

    return start


def _run_scripted(
    runtime: Runtime,
    protocol: DecodingProtocol,
    constraint: SpanConstraint,
    setting: Setting,
    decoders: dict[tuple[int, int], ScriptedDecoder],
    into: Measurement,
    sounds: Callable[[], Vocoder] | None,
    first: bool = False,
) -> None:
    pattern, new_tokens, sessions = DecodePattern.of(setting.mode), protocol.new_tokens, setting.sessions
    random = np.random.default_rng(1)
    prompts = random.integers(3, constraint.first_code, (sessions, protocol.prompt_tokens)).tolist()
    scripts = {slot: script(setting.mode, new_tokens, constraint, slot) for slot in range(sessions)}
    n_heads = int(pattern.writers(new_tokens, runtime.n_heads).max())
    if (sessions, n_heads) not in decoders:
        decoders[sessions, n_heads] = ScriptedDecoder(
            runtime,
            scripts,
            protocol.agreement,
            slots=sessions,
            capacity=protocol.prompt_tokens + new_tokens,
            n_heads=n_heads,
            graphs=protocol.graphs,
            clock=clock_of(runtime.device),
        )
    decoder = decoders[sessions, n_heads]
    decoder.follow(scripts)
    options = Options(
        pattern,
        new_tokens,
        constraint=constraint if setting.constrained else None,
        verify=setting.verify,
    )
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
        clips: features of each prompt's audio, for models that hear through an encoder.
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
    while not all(s.finished for s in sequences):
        decoder.step()
        now = clock()
        for i, sequence in enumerate(sequences):
            new = np.asarray(sequence.ids[sequence.n_prompt + seen[i] : sequence.n_committed])
            seen[i] = sequence.n_written
            found = new[(new >= markers.first_code) & (new < markers.first_code + markers.n_codes)]
            codes += found.size
            if sounds is not None and found.size:
                audible[i] |= sounds(i, (found - markers.first_code).astype(np.int32)) > 0
                vocoder, now = vocoder + clock() - now, clock()
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


@torch.inference_mode()
def transformers_loop(
    size: DecodingSize, protocol: DecodingProtocol, device: torch.device, dtype: torch.dtype, tokens: int = 128
) -> Measurement:
    """Vanilla with transformers' Qwen2 and its growing cache, one session: the machine's own yardstick."""
    measured = Measurement(Setting("transformers"))
    backbone = random_model(size, protocol.prompt_tokens + tokens, device, dtype).config.backbone
    backbone._attn_implementation = "sdpa"
    with device:
        model = Qwen2ForCausalLM(backbone).eval()
        cast(torch.nn.Module, model).to(dtype)  # transformers' wrapper of `to` has a signature without `self`
    clock = clock_of(device)
    tokens = min(tokens, protocol.new_tokens)
    for repetition in range(protocol.repetitions + 1):
        ids = torch.randint(size.vocabulary, (1, protocol.prompt_tokens), device=device)
        cache = DynamicCache(config=backbone)
        begun, first = clock(), 0.0
        for number in range(tokens):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            int(ids)
            if number == 10:
                first = clock() - begun
        if repetition:
            measured.seconds.append(clock() - begun)
            measured.tokens.append(tokens)
            measured.audio_seconds.append(0.0)
            measured.first_chunk.append(first or clock() - begun)
            measured.written += tokens
            measured.backbone_passes += tokens
    return measured
