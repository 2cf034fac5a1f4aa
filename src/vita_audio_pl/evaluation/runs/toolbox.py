"""The tools of an evaluation: models, codecs and judges, loaded when needed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from vita_audio_pl.codecs import Codec, load_codec, read_audio, write_wav
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.judges.pocketsphinx import Judge
from vita_audio_pl.evaluation.judges.voice_quality import Naturalness, SpeakerSimilarity
from vita_audio_pl.evaluation.records import Answer, Measured, Transcript
from vita_audio_pl.evaluation.runs.jobs import GPU_PRECISION, Decoding, codec_folder
from vita_audio_pl.evaluation.runs.runner import Answered
from vita_audio_pl.foreign.weights import require_trust
from vita_audio_pl.inference.answering import clips_of, encode_recordings, prompt_ids, read_recordings
from vita_audio_pl.inference.batch import generate
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.loading import LoadedModel, load_speech_model
from vita_audio_pl.inference.prompts import answer_text
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.devices import processor
from vita_audio_pl.text import TextTokenizer, Vocabulary

WARM_UP = 2
"""Answers decoded before the clock starts: several at a time take other paths than one alone."""
CAPACITY_STEP = 128
"""Cache lengths are rounded up to a multiple of this many tokens, so that slightly longer prompts need no new cache."""


def as_answer(id: str, generation: Generation, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> Answer:
    """A model's output as a record."""
    return Answer(
        id,
        answer_text(generation, vocabulary, tokenizer),
        tuple(generation.codes(vocabulary).tolist()),
        len(generation.ids),
        generation.backbone_passes,
        generation.head_passes,
        generation.stopped,
        drafted=sum(generation.drafted),
        accepted=sum(generation.accepted),
    )


class ModelToolbox:
    """Loads what an evaluation names when it is first needed, and keeps the latest; of judges two.

    Args:
        make_judge: name -> judge; called in the process that listens.
        device: where models run.
        count_unreadable: a recording that cannot be read makes its utterance a failed one instead of ending the run.
        threads: CPU threads of one process.
        speaker_model: WavLM checkpoint that compares answers with the voice that was asked for; None for no comparison.
        mos_model: UTMOS as TorchScript that rates how natural answers sound; None for no rating.
        trust_file: load `mos_model`, which can run any code.
        graphs: decode with CUDA graphs; None for on a GPU.
        codec_folder, encoder_folder: of models that carry none; None for their own.
        kernels: how matrices are laid out for decoding; see `Runtime`.
        quantize: how weights are held; see `models.quantised`.
    """

    def __init__(
        self,
        make_judge: Callable[[str], Judge],
        device: str = "cpu",
        count_unreadable: bool = False,
        threads: int = 1,
        speaker_model: Path | None = None,
        mos_model: Path | None = None,
        trust_file: bool = False,
        graphs: bool | None = None,
        codec_folder: str | None = None,
        encoder_folder: str | None = None,
        kernels: str = "auto",
        quantize: str | None = None,
    ) -> None:
        self.kernels, self.quantize = kernels, quantize
        self._decoder: Decoder | None = None
        self._warm: set[Decoding] = set()  # decoded with this decoder before
        self.codec_folder, self.encoder_folder = codec_folder, encoder_folder
        self.device, self.count_unreadable, self.threads, self.graphs = device, count_unreadable, threads, graphs
        self.model: Callable[[Path], LoadedModel] = lru_cache(maxsize=1)(self._load_model)
        self.codec: Callable[[Path], Codec] = lru_cache(maxsize=1)(partial(load_codec, device=device))
        self.judge: Callable[[str], Judge] = lru_cache(maxsize=2)(make_judge)
        self.similarity = cache(lambda: SpeakerSimilarity(speaker_model, device)) if speaker_model else None
        if mos_model:
            require_trust(mos_model, "a TorchScript file", trust_file)  # before the first answer
        self.naturalness = cache(lambda: Naturalness(mos_model, device, trust_file)) if mos_model else None

    def answer(self, model: Path, decoding: Decoding, batch_size: int, items: Sequence[Item]) -> Answered:
        """See `runner.Toolbox`."""
        torch.set_num_threads(self.threads)
        loaded = self.model(model)
        prompts, clips, answers = {}, {}, {}
        for item in items:
            try:
                codec = self.codec(codec_folder(model, self.codec_folder)) if item.prompt.audios else None
                audios = encode_recordings(item.prompt, read_recordings(item.prompt, loaded, codec), loaded, codec)
                prompts[item.id] = prompt_ids(item.prompt, audios, loaded, codec)
                clips[item.id] = clips_of(audios)
            except UserError as error:
                if not self.count_unreadable:
                    raise UserError(f"utterance '{item.id}': {error}") from None
                answers[item.id] = Answer(item.id, failure=str(error))
        generations, seconds = self._timed(loaded, list(prompts.values()), list(clips.values()), decoding, batch_size)
        a_token = seconds / max(1, sum(len(generation.ids) for generation in generations))
        on_gpu = self.device.startswith("cuda")
        machine = torch.cuda.get_device_name(self.device) if on_gpu else processor()
        measured = Measured(min(batch_size, len(prompts)), machine)
        for id, generation in zip(prompts, generations, strict=True):
            answer = as_answer(id, generation, loaded.vocabulary, loaded.tokenizer)
            answers[id] = replace(answer, compute_seconds=round(a_token * len(generation.ids), 6), **measured._asdict())
        return [answers[item.id] for item in items], loaded.runtime.kernels.record()

    def transcribe(
        self, model: Path, judge: str, answers: Sequence[Answer], voices: dict[str, Path]
    ) -> list[Transcript]:
        """See `runner.Toolbox`."""
        if not answers:
            return []
        torch.set_num_threads(self.threads)
        codec = self.codec(codec_folder(model, self.codec_folder))
        waves = codec.decode_batch([np.asarray(answer.codes) for answer in answers])
        texts = self.judge(judge).transcribe(waves, codec.sample_rate)
        likeness = dict(zip(voices, self._likeness(voices, answers, waves, codec.sample_rate), strict=True))
        scores = self.naturalness().score(waves, codec.sample_rate) if self.naturalness else [None] * len(waves)
        return [
            Transcript(answer.id, text, len(wave) / codec.sample_rate, likeness.get(answer.id), score)
            for answer, text, wave, score in zip(answers, texts, waves, scores, strict=True)
        ]

    def _likeness(
        self, voices: dict[str, Path], answers: Sequence[Answer], waves: Sequence[np.ndarray], rate: int
    ) -> list[float | None]:
        """Likeness of each answer that was to be spoken in some voice, in the order of `voices`."""
        if self.similarity is None:
            return [None] * len(voices)
        spoken = {answer.id: wave for answer, wave in zip(answers, waves, strict=True)}
        asked = [read_audio(path, rate) for path in voices.values()]
        return list(self.similarity().compare([spoken[id] for id in voices], asked, rate))

    def speak(self, model: Path, files: Sequence[tuple[Answer, Path]]) -> list[Path]:
        """Write answers as wav files; `files` are `(answer, wav to write)`."""
        torch.set_num_threads(self.threads)
        codec = self.codec(codec_folder(model, self.codec_folder))
        waves = codec.decode_batch([np.asarray(answer.codes) for answer, _ in files])
        for wave, (_, path) in zip(waves, files, strict=True):
            write_wav(path, wave, codec.sample_rate)
        return [path for _, path in files]

    def recognise(self, codec_folder: Path, judge: str, recordings: Sequence[Path], treatment: str) -> list[str]:
        """What the judge transcribed in recordings as they are (`source`), after the codec, or in noise of the same length."""
        torch.set_num_threads(self.threads)
        codec = self.codec(codec_folder)
        waves = [read_audio(path, codec.sample_rate) for path in recordings]
        if treatment == "codec":
            waves = codec.decode_batch(codec.encode(waves))
        elif treatment == "noise":
            rng = np.random.default_rng(0)
            waves = [rng.normal(0, np.std(wave), len(wave)).astype(np.float32).clip(-1, 1) for wave in waves]
        return self.judge(judge).transcribe(waves, codec.sample_rate)

    def resynthesise(self, codec_folder: Path, files: Sequence[tuple[Path, Path]]) -> list[Path]:
        """Write recordings as they sound after the codec; `files` are `(recording, wav to write)`."""
        torch.set_num_threads(self.threads)
        codec = self.codec(codec_folder)
        codes = codec.encode([read_audio(recording, codec.sample_rate) for recording, _ in files])
        for wave, (_, path) in zip(codec.decode_batch(codes), files, strict=True):
            write_wav(path, wave, codec.sample_rate)
        return [path for _, path in files]

    def _load_model(self, folder: Path) -> LoadedModel:
        dtype = getattr(torch, GPU_PRECISION) if self.device.startswith("cuda") else None
        return load_speech_model(
            folder,
            device=self.device,
            dtype=dtype,
            codec_folder=self.codec_folder,
            encoder_folder=self.encoder_folder,
            kernels=self.kernels,
            quantize=self.quantize,
        )

    def _timed(
        self,
        loaded: LoadedModel,
        prompts: list[list[int]],
        clips: list[list[torch.Tensor]],
        decoding: Decoding,
        batch_size: int,
    ) -> tuple[list[Generation], float]:
        """Answers, and what they cost: CPU seconds, elapsed ones on a GPU.

        What is done once for a model, a decoder and a mode (choosing kernels, measuring costs of passes, allocating caches,
        capturing graphs) is done before the clock starts.
        """
        if not prompts:
            return [], 0.0
        decoder = self._decoder_for(loaded, prompts, DecodePattern.of(decoding.pattern), decoding, batch_size)
        if decoding not in self._warm:
            first = min(WARM_UP, batch_size)
            self._generate(loaded, prompts[:first], clips[:first], decoding, decoder)
            self._warm.add(decoding)
        clock = time.perf_counter if self.device.startswith("cuda") else time.process_time
        begun = clock()
        generations = self._generate(loaded, prompts, clips, decoding, decoder)
        return generations, clock() - begun

    def _generate(
        self,
        loaded: LoadedModel,
        prompts: list[list[int]],
        clips: list[list[torch.Tensor]],
        decoding: Decoding,
        decoder: Decoder,
    ) -> list[Generation]:
        vocabulary = loaded.vocabulary
        return generate(
            loaded.runtime,
            prompts,
            DecodePattern.of(decoding.pattern),
            max_new_tokens=decoding.max_new_tokens,
            stop_ids=[vocabulary.im_end],
            constraint=SpanConstraint.of(vocabulary) if decoding.constrained else None,
            **loaded.verification(decoding.verify, decoding.slack),
            sampling=decoding.sampling,
            clips=clips,
            decoder=decoder,
        )

    def _decoder_for(
        self,
        loaded: LoadedModel,
        prompts: list[list[int]],
        pattern: DecodePattern,
        decoding: Decoding,
        batch_size: int,
    ) -> Decoder:
        """The decoder of earlier calls as long as it fits: its caches, and on a GPU its graphs, are made once."""
        n_heads = max(0, *pattern.writers(decoding.max_new_tokens, loaded.runtime.n_heads).tolist())
        needed = max(map(len, prompts)) + decoding.max_new_tokens
        kept = self._decoder
        fits = kept is not None and kept.runtime is loaded.runtime and kept.free_slots == batch_size
        if kept is None or not fits or kept.n_heads != n_heads or kept.cache.capacity < needed:
            self._decoder = None  # its memory first
            self._warm = set()
            rounded = -(-needed // CAPACITY_STEP) * CAPACITY_STEP
            capacity = max(needed, min(rounded, loaded.runtime.max_positions))
            kept = Decoder(loaded.runtime, slots=batch_size, capacity=capacity, n_heads=n_heads, graphs=self.graphs)
            self._decoder = kept
        return kept
