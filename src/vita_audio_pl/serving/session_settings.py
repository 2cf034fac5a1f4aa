"""Settings of a Realtime session and of one response: validated as a whole before anything of them holds."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.pcm import SampleFormat, format_of
from vita_audio_pl.serving.requests import NO_FUNCTIONS, Decoding, checked, refuse
from vita_audio_pl.serving.service import Service

_RESPONSE = ("audio", "conversation", "decoding", "input", "max_output_tokens", "output_modalities", "tools")
"""What `response.create` may name; anything else is refused."""


_OTHERS = ("include", "prompt")
"""What a session of OpenAI's may name beside, and is not done here."""


class TurnDetection(BaseModel):
    """OpenAI's `turn_detection`; either type is the one detector.

    threshold: probability of speech from which a window counts.
    prefix_padding_ms: audio before speech was detected that belongs to the turn.
    silence_duration_ms: silence that ends a turn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=10_000)
    silence_duration_ms: int = Field(default=500, ge=0, le=60_000)
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class SessionSettings:
    """What `session.update` sets; also what one response has instead."""

    modalities: tuple[str, ...]
    instructions: str = ""
    voice: Any = None
    most_tokens: int | None = None  # None: as many as the server allows
    decoding: Decoding = field(default_factory=Decoding)
    incoming: SampleFormat = SampleFormat()
    outgoing: SampleFormat = SampleFormat()
    detection: TurnDetection | None = TurnDetection()
    transcribes: bool = False

    def updated(self, session: dict[str, Any], service: Service) -> "SessionSettings":
        """With what a `session.update` names.

        Raises:
            UserError: any of it is not valid or not served.
        """
        if session.get("type") == "transcription":
            raise UserError("transcription sessions are not served; send recordings to /v1/audio/transcriptions")
        audio = session.get("audio") or {}
        incoming, outgoing = audio.get("input") or {}, audio.get("output") or {}
        asked = [f"session.{name}" for name in _OTHERS if session.get(name)]
        asked += ["session.truncation"] if session.get("truncation") not in (None, "auto") else []
        asked += ["session.tool_choice"] if session.get("tool_choice") not in (None, "auto", "none") else []
        asked += ["session.audio.input.noise_reduction"] if incoming.get("noise_reduction") else []
        refuse(asked, ())
        new = replace(self._of_answers(session, outgoing, service), voice=outgoing.get("voice", self.voice))
        if "instructions" in session:
            new = replace(new, instructions=session["instructions"] or "")
            service.check_text(len(new.instructions), "instructions")
        if "max_output_tokens" in session:
            new = replace(new, most_tokens=_most_tokens(session["max_output_tokens"]))
        detection = self.detection
        if "turn_detection" in incoming:
            detection = _detection(incoming["turn_detection"], service.config.limits.audio_seconds)
        heard = format_of(incoming.get("format"), self.incoming)
        writes_down = bool(incoming.get("transcription", self.transcribes))
        return replace(new, incoming=heard, detection=detection, transcribes=writes_down)

    def of_response(self, params: dict[str, Any], service: Service) -> "SessionSettings":
        """With what a `response.create` names, for its one answer.

        Raises:
            UserError: any of it is not valid or cannot be followed.
        """
        if params.get("conversation") not in (None, "auto") or params.get("input") is not None:
            raise UserError("responses outside of the conversation are not served; open another session for them")
        audio = params.get("audio") or {}
        outgoing = audio.get("output") or {}
        asked = [name for name, value in params.items() if value and name not in _RESPONSE]
        asked = [name for name in asked if (name, params[name]) != ("tool_choice", "auto")]
        asked += [f"audio.{name}" for name, value in audio.items() if value and name != "output"]
        asked += [f"audio.output.{name}" for name in outgoing if name not in ("format", "speed", "voice")]
        if service.voice_name(outgoing.get("voice", self.voice)) != service.voice_name(self.voice):
            asked.append("audio.output.voice")
        if asked:
            raise UserError(
                f"{' and '.join(asked)[:200]} cannot be followed in one response; leave it out, or see session.update"
            )
        new = self._of_answers(params, outgoing, service)
        most = params.get("max_output_tokens")
        return new if most is None else replace(new, most_tokens=_most_tokens(most))

    def described(self, id: str, model: str) -> dict[str, Any]:
        """The session in OpenAI's form; model: the model's name."""
        detection = None if self.detection is None else self.detection.model_dump()
        heard = {"model": model} if self.transcribes else None
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": model,
            "audio": {
                "input": {"format": self.incoming.described, "turn_detection": detection, "transcription": heard},
                "output": {"format": self.outgoing.described, "voice": self.voice},
            },
            "tools": [],
            "decoding": self.decoding.model_dump(),
            "output_modalities": list(self.modalities),
            "max_output_tokens": self.most_tokens or "inf",
            "instructions": self.instructions,
        }

    def _of_answers(self, given: dict[str, Any], outgoing: dict[str, Any], service: Service) -> "SessionSettings":
        """With what a session and a response may both name."""
        if given.get("tools"):
            raise UserError(NO_FUNCTIONS)
        if outgoing.get("speed") not in (None, 1):
            raise UserError("speed is fixed at 1: the model speaks as it was trained to")
        modalities = tuple(given.get("output_modalities") or self.modalities)
        if "audio" in modalities and service.codec is None:
            raise UserError("the model has no audio codec and cannot speak")
        decoding = self.decoding
        if given.get("decoding") is not None:
            decoding = checked(Decoding, given["decoding"], of="decoding")
        service.options(decoding, spoken="audio" in modalities)
        format_out = format_of(outgoing.get("format"), self.outgoing, outgoing=True)
        return replace(self, modalities=modalities, decoding=decoding, outgoing=format_out)


def _most_tokens(most: Any) -> int | None:
    if most in (None, "inf"):
        return None
    if most < 1:
        raise UserError("max_output_tokens is a whole number from 1, or inf")
    return int(most)


def _detection(given: dict[str, Any] | None, longest: float) -> TurnDetection | None:
    """longest: seconds that a turn may have."""
    if given is None:
        return None
    named = {
        name: value for name, value in given.items() if value is not None and (name, value) != ("eagerness", "auto")
    }
    found: TurnDetection = checked(TurnDetection, named, of="turn_detection")
    if found.prefix_padding_ms >= 1000 * longest:
        raise UserError(f"turn_detection.prefix_padding_ms is as long as the longest turn, {longest:g} s")
    return found
