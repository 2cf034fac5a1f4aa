"""Settings of the commands that answer with a model, and of `python -m vita_audio_pl.generate`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.decoding import TASKS, DecodingConfig, WeightsConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern

FIRST_CHUNK = ("verified", "draft")


@dataclass
class InferenceConfig(WeightsConfig, DecodingConfig, CommandConfig):
    """Settings of the commands that load one model and answer with it: `generate` and `serve`."""

    model: str = setting(
        MISSING, "what to load: a run, a stage, a model folder, adapters, or published weights", common=True
    )
    codec_folder: str | None = setting(
        None,
        "folder of the audio codec; null = the one in the model folder",
        common=True,
        exists=True,
    )
    encoder_folder: str | None = setting(
        None,
        "folder of a Plus model's audio encoder, as SenseVoiceSmall has it; null = the one in the model folder",
        exists=True,
    )
    device: str = setting("cpu", "cpu or cuda", choices=("cpu", "cuda"), common=True)
    threads: int = setting(1, "CPU threads of a matrix product; more than 1 helps large models only", at_least=1)
    dtype: str | None = setting(
        None, "float32, bfloat16 or float16; null = that of the weights", choices=("float32", "bfloat16", "float16")
    )

    @property
    def token_limit(self) -> int:
        """Most tokens of an answer."""
        return self.max_new_tokens or 1024


@dataclass
class GenerateConfig(InferenceConfig):
    """Settings of `python -m vita_audio_pl.generate`."""

    task: str = setting("sts", "sts, asr, tts or text", choices=TASKS, common=True)
    text: str | None = setting(
        None, "text to speak (tts) or to answer (text); null for other tasks", common=True, address=True
    )
    audio: str | None = setting(
        None,
        "recording to answer (sts) or transcribe (asr); null for other tasks",
        common=True,
        exists=True,
    )
    voice: str | None = setting(
        None,
        "recording of the voice to answer in; null = the voice the model was trained on",
        common=True,
        exists=True,
    )
    mode: Any = setting(
        None,
        "turbo, boost, balance, vanilla or a list; null = the model's own for speech, vanilla for text",
        common=True,
    )
    first_chunk: str = setting(
        "verified", "with verification: verified, or draft to play the first chunk unverified", choices=FIRST_CHUNK
    )
    output: str = setting(
        "answer.wav", "file for the spoken answer; with stream=true, - writes raw 16-bit samples to stdout", common=True
    )
    stream: bool = setting(False, "show and write the answer while it is generated", common=True)

    def check(self) -> None:
        if self.first_chunk == "draft" and self.verify == "none":
            raise UserError("first_chunk=draft means something only with verify=greedy or another check")
        if self.slack is not None and self.verify != "groups":
            raise UserError("slack means something only with verify=groups")
        if self.output == "-" and not self.stream:
            raise UserError("output=- writes samples as they are made, so it needs stream=true")
        if self.mode is not None:
            DecodePattern.of(self.mode)
