"""Realtime events: those of clients, checked by OpenAI's own types, and those of the server on items and answers."""

import copy
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any, get_args

from openai.types import realtime as types
from pydantic import BaseModel

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import Item
from vita_audio_pl.serving.requests import checked
from vita_audio_pl.serving.service import OUTPUT_RATE, Answer

_EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(types.RealtimeClientEvent)[0])
}


@dataclass
class Record:
    """An item as clients know it, and what it is in the conversation (None: nothing of it is left there)."""

    id: str
    described: dict[str, Any]
    item: Item | None = None
    whole: Item | None = None  # of an answer, before it was cut


@dataclass
class Reply:
    """The answer under way."""

    id: str
    item_id: str
    answer: Answer
    spoken: bool
    record: Record
    text: str = ""
    sound_sent: float = 0.0  # seconds
    first_sound: float = 0.0
    n_codes: int = 0
    reason: str | None = None  # why it was cancelled

    @property
    def address(self) -> dict[str, Any]:
        """The fields that name it in events."""
        return {"response_id": self.id, "item_id": self.item_id, "output_index": 0, "content_index": 0}

    def played(self, codes_per_second: float) -> int | None:
        """Codes that can have been played by now; None where it has no sound."""
        if not self.spoken or not self.n_codes:
            return None
        seconds = time.monotonic() - self.first_sound if self.first_sound else 0.0
        return int(min(seconds, self.sound_sent) * codes_per_second)


def response_of(reply: Reply, status: str, error: str | None = None) -> dict[str, Any]:
    """The object of an answer under way or at its end."""
    details: dict[str, Any] | None = None
    if status == "cancelled":
        details = {"type": "cancelled", "reason": reply.reason}
    elif status == "incomplete":
        details = {"type": "incomplete", "reason": "max_output_tokens"}
    elif status == "failed":
        details = {"type": "failed", "error": {"type": "server_error", "code": "failed", "message": error}}
    response: dict[str, Any] = {
        "id": reply.id,
        "object": "realtime.response",
        "status": status,
        "status_details": details,
        "output": [] if status == "in_progress" else [reply.record.described],
        "output_modalities": ["audio"] if reply.spoken else ["text"],
        "usage": None,
    }
    if status != "in_progress" and reply.answer.ended is not None and reply.answer.ended.generation is not None:
        generation, sequence = reply.answer.ended.generation, reply.answer.sequence
        read, written = 0 if sequence is None else sequence.n_prompt, len(generation.ids)
        response["usage"] = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        response["decoding"] = {
            "backbone_passes": generation.backbone_passes,
            "drafted": generation.drafted,
            "accepted": generation.accepted,
        }
    return response


def parsed(text: str | bytes) -> dict[str, Any]:
    """A message as the event that it is.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("the message is not JSON") from None
    if not isinstance(value, dict):
        raise UserError("a message is an object with a 'type'")
    kind = _EVENTS.get(value["type"]) if isinstance(value.get("type"), str) else None
    if kind is None:
        raise UserError(f"there is no event of type {str(value.get('type'))[:60]!r}")
    # rates other than OpenAI's are taken; its types know the one only
    known = copy.deepcopy(value)
    form = ((known.get("session") or {}).get("audio") or {}) if isinstance(known.get("session"), dict) else {}
    for side in form.values() if isinstance(form, dict) else ():
        if isinstance(side, dict) and isinstance(side.get("format"), dict):
            side["format"].pop("rate", None)
    checked(kind, known)
    return value


def rate_of(form: Any, known: int) -> int:
    """The rate of a format that a session asks for.

    Raises:
        UserError: it is not PCM, or of no rate that is taken.
    """
    if form is None:
        return known
    if form.get("type", "audio/pcm") != "audio/pcm":
        raise UserError(f"audio comes as audio/pcm (16 bits, little-endian, one channel), not as {form.get('type')}")
    rate = form.get("rate", OUTPUT_RATE)
    if isinstance(rate, bool) or not isinstance(rate, int) or not 8000 <= rate <= 192_000:
        raise UserError("the rate of audio/pcm is a whole number from 8000 to 192000 Hz")
    return rate


def described(id: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """An item as clients see it."""
    return {"id": id, "object": "realtime.item", "type": "message", "role": role, "status": status, "content": content}


def session_of(
    id: str, model: str, rate: int, detection: dict[str, Any] | None, voice: Any, decoding: dict[str, Any]
) -> dict[str, Any]:
    """A session as clients see it."""
    form = {"type": "audio/pcm", "rate": OUTPUT_RATE}
    audio = {
        "input": {"format": form | {"rate": rate}, "turn_detection": detection},
        "output": {"format": form, "voice": voice},
    }
    known = {"type": "realtime", "object": "realtime.session", "id": id, "model": model}
    return known | {"audio": audio, "tools": [], "decoding": decoding}


def new_id(kind: str) -> str:
    """A name that nothing else has."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"
