"""The settings of `python -m vita_audio_pl.generate`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.prompts import TASKS
from vita_audio_pl.inference.sampling import Sampling
from vita_audio_pl.inference.sequence import VERIFY_MODES
from vita_audio_pl.interleave import DecodePattern

FIRST_CHUNK = ("verified", "draft")


@dataclass
class SamplingConfig:
    """How tokens are drawn; see `inference.sampling.Sampling`."""

    temperature: float = setting(0.0, "0 takes the most likely token", at_least=0)
    top_k: int = setting(0, "0 keeps all", at_least=0)
    top_p: float = setting(1.0, "tokens of this much probability are kept", above=0, at_most=1)
    repetition_penalty: float = setting(1.0, "above 1 repeats less", above=0)
    seed: int = setting(0, "of the draws", at_least=0)

    def settings(self) -> Sampling:
        """The same, checked."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.seed)


@dataclass
class GenerateConfig(CommandConfig):
    """Everything that `python -m vita_audio_pl.generate` can be told."""

    model: str = setting(MISSING, "a run, a stage, a model folder, adapters, or published weights", common=True)
    codec_folder: str | None = setting(None, "of the audio codec; null = the one in the model folder", common=True)
    encoder_folder: str | None = setting(
        None, "of a Plus model's audio encoder, laid out as SenseVoiceSmall; null = the one in the model folder"
    )
    task: str = setting("sts", "sts, asr, tts or text", choices=TASKS, common=True)
    text: str | None = setting(
        None, "what to speak (tts) or to answer (text); null for other tasks", common=True, address=True
    )
    audio: str | None = setting(
        None, "recording to answer (sts) or to transcribe (asr); null for other tasks", common=True
    )
    voice: str | None = setting(
        None, "recording of a voice to answer in; null = the voice that the model was trained to speak in", common=True
    )
    mode: Any = setting(
        None,
        "turbo, boost, balance, vanilla or a list; null = the model's own for speech, vanilla for text",
        common=True,
    )
    verify: str = setting(
        "none", "greedy, sample: let the backbone check what the heads draft", choices=VERIFY_MODES, common=True
    )
    first_chunk: str = setting(
        "verified", "under verification: or draft, played before it is checked", choices=FIRST_CHUNK
    )
    constrain: bool = setting(False, "allow only codes and end markers inside audio spans")
    max_new_tokens: int = setting(1024, "of an answer", at_least=1, common=True)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    output: str = setting(
        "answer.wav", "where the spoken answer goes; with stream=true, - is raw 16-bit samples on stdout", common=True
    )
    stream: bool = setting(False, "show and write the answer while it is made", common=True)
    device: str = setting("cpu", "or cuda", choices=("cpu", "cuda"), common=True)
    threads: int = setting(1, "of a CPU; more help large models only", at_least=1)
    dtype: str | None = setting(
        None, "float32, bfloat16; null = the file's", choices=("float32", "bfloat16", "float16")
    )
    graphs: bool | None = setting(None, "replay passes as CUDA graphs; null = on a GPU")

    def check(self) -> None:
        if self.first_chunk == "draft" and self.verify == "none":
            raise UserError("first_chunk=draft means something only with verify=greedy or verify=sample")
        if self.output == "-" and not self.stream:
            raise UserError("output=- writes samples as they are made, so it needs stream=true")
        self.sampling.settings()
        if self.mode is not None:
            DecodePattern.of(self.mode)
