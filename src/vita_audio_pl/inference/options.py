"""The settings of `python -m vita_audio_pl.generate`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.prompts import TASKS
from vita_audio_pl.inference.sampling import Sampling
from vita_audio_pl.interleave import DecodePattern

FIRST_CHUNK = ("verified", "draft")


@dataclass
class PathsConfig:
    """Where data and runs lie, relative to the current directory unless absolute."""

    data: str = "data"
    runs: str = "runs"


@dataclass
class SamplingConfig:
    """How tokens are drawn; see `inference.sampling.Sampling`."""

    temperature: float = 0.0  # 0 takes the most likely token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def settings(self) -> Sampling:
        """The same, checked."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed)


@dataclass
class GenerateConfig:
    """Everything that `python -m vita_audio_pl.generate` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    model: str = MISSING  # a model folder, or the folder of the stage that made it
    task: str = "sts"  # sts, asr, tts or text
    text: str | None = None  # what to speak (tts) or to answer (text)
    audio: str | None = None  # recording to answer (sts) or to transcribe (asr)
    voice: str | None = None  # recording of a voice to answer in
    mode: Any = None  # turbo, boost, balance, vanilla or a list; null = the model's own for speech, vanilla for text
    verify: str = "none"  # greedy, sample: let the backbone check what the heads draft
    first_chunk: str = "verified"  # under verification: or draft, played before it is checked
    constrain: bool = False  # allow only codes and end markers inside audio spans
    max_new_tokens: int = 1024
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    output: str = "answer.wav"  # where the spoken answer goes; with stream=true, - is raw 16-bit samples on stdout
    stream: bool = False  # show and write the answer while it is made
    device: str = "cpu"  # or cuda
    threads: int = 1  # of a CPU; more help large models only
    dtype: str | None = None  # float32, bfloat16; null = the file's
    graphs: bool | None = None  # replay passes as CUDA graphs; null = on a GPU

    def check(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task={self.task!r} is unknown; use one of {', '.join(TASKS)}")
        if self.first_chunk not in FIRST_CHUNK:
            raise UserError(f"first_chunk={self.first_chunk!r} is unknown; use one of {', '.join(FIRST_CHUNK)}")
        if self.first_chunk == "draft" and self.verify == "none":
            raise UserError("first_chunk=draft means something only with verify=greedy or verify=sample")
        if self.output == "-" and not self.stream:
            raise UserError("output=- writes samples as they are made, so it needs stream=true")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(f"dtype={self.dtype!r} is unknown; use float32, bfloat16 or float16")
        if self.threads < 1:
            raise UserError(f"threads={self.threads} must be at least 1")
        self.sampling.settings()
        if self.mode is not None:
            DecodePattern.of(self.mode)
