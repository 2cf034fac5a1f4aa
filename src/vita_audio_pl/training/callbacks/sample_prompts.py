"""The held-out prompts that a stage's model answers during training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.held_out import HeldOut
from vita_audio_pl.text import AudioFrames, TextIds, TextTokenizer, Turn
from vita_audio_pl.text.conversation import ASR_INSTRUCTION, TTS_INSTRUCTION
from vita_audio_pl.training.callback_settings import SamplesConfig


@dataclass(frozen=True, eq=False)
class SamplePrompt:
    """One prompt.

    Attributes:
        id: `source/sample-id`.
        task: asr, tts, sqa or text.
        ids: token ids of the prompt.
        clips: features `(frames, size)` of its audio, for models with an audio encoder.
        asked: the question as text; empty if it is only spoken.
        reference: the expected answer as text.
    """

    id: str
    task: str
    ids: list[int]
    clips: tuple[Tensor, ...]
    asked: str
    reference: str


def sample_prompts(
    settings: SamplesConfig, datamodule: SpeechDataModule, tokenizer: TextTokenizer, longest: int
) -> tuple[SamplePrompt, ...]:
    """The same prompts in every run on the same data, for the tasks of the stage's held-out sources.

    Args:
        longest: most tokens of a prompt.
    """
    chosen = datamodule.held_out(
        settings.tasks,
        settings.per_task,
        lambda held: bool(_text(held.answer, tokenizer)) and len(datamodule.renderer.prompt(held.asked)) <= longest,
    )
    return tuple(_prompt(held, datamodule, tokenizer) for held in chosen)


def _prompt(held: HeldOut, datamodule: SpeechDataModule, tokenizer: TextTokenizer) -> SamplePrompt:
    frames = [segment.features for turn in held.asked for segment in turn.segments if isinstance(segment, AudioFrames)]
    asked = _text(held.asked[-1], tokenizer)
    return SamplePrompt(
        held.id,
        held.task,
        datamodule.renderer.prompt(held.asked).tolist(),
        tuple(torch.from_numpy(features) for features in frames),
        asked.replace(TTS_INSTRUCTION, "").replace(ASR_INSTRUCTION, "").strip(),
        _text(held.answer, tokenizer),
    )


def _text(turn: Turn, tokenizer: TextTokenizer) -> str:
    ids = [int(token) for segment in turn.segments if isinstance(segment, TextIds) for token in segment.ids]
    return tokenizer.decode(ids).strip()
