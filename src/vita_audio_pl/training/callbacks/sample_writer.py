"""A training model's answers, decoded, transcribed and scored: `samples/step-<n>/samples.jsonl` and `audio/`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vita_audio_pl.codecs import Codec, load_codec, write_wav
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.choice import judge_maker, judge_name, own_judge
from vita_audio_pl.evaluation.judges.pocketsphinx import Judge
from vita_audio_pl.evaluation.records import Answer, Transcript
from vita_audio_pl.evaluation.runs.jobs import SPEAKING_TASKS, audio_file
from vita_audio_pl.evaluation.runs.toolbox import as_answer
from vita_audio_pl.evaluation.scores.normalisers import mixed
from vita_audio_pl.evaluation.scores.scoring import METRICS, Scoring, per_utterance, score_answer
from vita_audio_pl.inference.batch import generate
from vita_audio_pl.inference.code_groups import verification
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.loading import VANILLA
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.storage.owned import begin_folder, finish_folder
from vita_audio_pl.text import TextTokenizer, Vocabulary
from vita_audio_pl.training.callback_settings import SamplesConfig
from vita_audio_pl.training.callbacks.sample_prompts import SamplePrompt
from vita_audio_pl.training.callbacks.warn_once import WarnOnce
from vita_audio_pl.training.run_folder.layout import sample_folder

SAMPLES_FILE = "samples.jsonl"
_RULES = Scoring(mixed)
_WER = {"asr": "wer", "tts": "speech_wer", "sqa": "speech_wer"}
"""The error rate of each task's samples."""


@dataclass(frozen=True)
class AnsweredSamples:
    """A model's answers at one step.

    Attributes:
        folder: folder of the files, under a temporary name until `publish`.
        rows: one per answer, as in `samples.jsonl`.
        figures: `samples/<task>/<metric>` over a task's prompts.
    """

    step: int
    folder: Path
    rows: list[dict[str, Any]]
    figures: dict[str, float]

    def publish(self) -> Path:
        """Move the folder to its final name; replaces samples of the same step from an earlier run.

        Raises:
            UserError: something else is there; the samples are left under their temporary name.
        """
        place = sample_folder(self.folder.parent, self.step)
        finish_folder(self.folder, place, replace=True)
        return place


class SampleWriter:
    """Lets a model answer fixed prompts, as in evaluation, and writes the results.

    Failures are logged once and skipped: a task that cannot be generated, a missing codec or judge.

    Args:
        settings: judge and limits.
        prompts: the prompts.
        vocabulary, tokenizer_folder, codec_folder: those of the data.
        grammar: JSGF grammar for pocketsphinx.
        pattern: decoding pattern of spoken answers; written ones use the backbone only.
        folder: parent of `step-<n>/`.
    """

    def __init__(
        self,
        settings: SamplesConfig,
        prompts: Sequence[SamplePrompt],
        *,
        vocabulary: Vocabulary,
        tokenizer_folder: Path,
        codec_folder: Path,
        grammar: Path,
        pattern: DecodePattern,
        folder: Path,
    ) -> None:
        self.settings, self.prompts, self.folder = settings, tuple(prompts), folder
        self.vocabulary, self.pattern = vocabulary, pattern
        self.tokenizer = TextTokenizer.load(tokenizer_folder)
        self._make_codec: Callable[[str], Codec] = lambda device: load_codec(codec_folder, device)
        self._make_judge: Callable[[str], Judge] = lambda device: judge_maker(
            str(grammar), settings.judge_model, device, False, own_judge(settings.judge)
        )(judge_name(settings.judge))
        self._kept: dict[str, Any] = {}
        self._warn = WarnOnce()

    def answer(self, model: SpeechLM, step: int, device: torch.device) -> AnsweredSamples:
        """Generate, decode, transcribe, score and write, under a temporary name.

        Raises:
            OSError: the files cannot be written.
        """
        aside = begin_folder(sample_folder(self.folder, step), "samples")
        answers = self._generate(model)
        transcripts, judged = self._transcribe(answers, aside, str(device))
        rows = [
            self._row(prompt, answers[prompt.id], transcripts.get(prompt.id), judged)
            for prompt in self.prompts
            if prompt.id in answers
        ]
        lines = "".join(json.dumps({"format": 1, **row}, ensure_ascii=False) + "\n" for row in rows)
        (aside / SAMPLES_FILE).write_text(lines, encoding="utf-8")
        if device.type != "cpu":
            self._kept.clear()  # free the memory for training
        return AnsweredSamples(step, aside, rows, _figures(rows))

    def _generate(self, model: SpeechLM) -> dict[str, Answer]:
        runtime, answers = Runtime(model, kernels=self.settings.kernels), {}

        def codec() -> Codec:
            made: Codec = self._once("codec", lambda: self._make_codec(str(runtime.device)))
            return made

        for task in dict.fromkeys(prompt.task for prompt in self.prompts):
            mine = [prompt for prompt in self.prompts if prompt.task == task]
            try:
                checks = verification(self.settings.verify, self.settings.slack, codec, self.vocabulary)
                generations = generate(
                    runtime,
                    [prompt.ids for prompt in mine],
                    self.pattern if task in SPEAKING_TASKS else VANILLA,
                    max_new_tokens=self.settings.token_limit,
                    stop_ids=[self.vocabulary.im_end],
                    sampling=self.settings.sampling,
                    constraint=SpanConstraint.of(self.vocabulary) if self.settings.constrain else None,
                    **checks,
                    graphs=self.settings.graphs,
                    batch_size=len(mine),
                    clips=[prompt.clips for prompt in mine],
                )
            except Exception as error:
                self._warn(f"samples of {task} cannot be generated", error)
                continue
            for prompt, generation in zip(mine, generations, strict=True):
                answers[prompt.id] = as_answer(prompt.id, generation, self.vocabulary, self.tokenizer)
        return answers

    def _transcribe(self, answers: dict[str, Answer], aside: Path, device: str) -> tuple[dict[str, Transcript], bool]:
        """Write the audio; returns the transcripts, and whether a judge made any."""
        waves: dict[str, np.ndarray] = {}
        try:
            codec: Codec = self._once("codec", lambda: self._make_codec(device))
            for answer in answers.values():
                if answer.codes:
                    waves[answer.id] = codec.decode(np.asarray(answer.codes))
                    write_wav(aside / audio_file(answer.id), waves[answer.id], codec.sample_rate)
        except Exception as error:
            self._warn("samples have no sound", error)
            return {}, False
        texts, judged = [""] * len(waves), False
        try:
            if self.settings.judge is None:
                raise UserError("callbacks.samples.judge is null, so nothing is transcribed")
            judge: Judge = self._once("judge", lambda: self._make_judge(device))
            texts, judged = judge.transcribe(list(waves.values()), codec.sample_rate), True
        except Exception as error:
            self._warn("spoken samples have no WER", error)
        seconds = {id: len(wave) / codec.sample_rate for id, wave in waves.items()}
        return {id: Transcript(id, text, seconds[id]) for id, text in zip(waves, texts, strict=True)}, judged

    def _row(self, prompt: SamplePrompt, answer: Answer, transcript: Transcript | None, judged: bool) -> dict[str, Any]:
        """A line of `samples.jsonl`; `wer` is the first error metric of the task that was measured."""
        spoken = prompt.task in SPEAKING_TASKS
        judgement = transcript or Transcript(prompt.id, "", 0.0) if judged else None
        scores, _ = score_answer(prompt.task, [prompt.reference], answer, judgement if spoken else None, _RULES)
        row: dict[str, Any] = {
            "id": prompt.id,
            "task": prompt.task,
            "asked": prompt.asked,
            "reference": prompt.reference,
            "text": answer.text,
            "tokens": answer.tokens,
            "backbone_passes": answer.backbone_passes,
            "stopped": answer.stopped,
            "scores": scores,
            "wer": _rate(scores.get(_WER.get(prompt.task, ""))),
        }
        if spoken:
            row["transcript"] = judgement.text if judgement is not None else None
            row["seconds"] = round(transcript.seconds, 3) if transcript is not None else 0.0
        if transcript is not None:
            row["audio"] = audio_file(prompt.id)
        return row

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Loaded on first use and cached."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


def _rate(score: dict[str, int] | None) -> float | None:
    return None if score is None else round(score["errors"] / score["of"], 5)


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    figures = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        for metric in METRICS[task]:
            counts = per_utterance(mine, metric.name).values()
            if counts:
                figures[f"samples/{task}/{metric.name}"] = sum(top for top, _ in counts) / sum(of for _, of in counts)
    return figures
