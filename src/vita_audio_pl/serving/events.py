"""Realtime events: validation of client events with OpenAI's own types, and server events about items and answers."""

import copy
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, get_args

from openai.types import realtime as types
from pydantic import BaseModel

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import Item
from vita_audio_pl.serving.pcm import SampleFormat
from vita_audio_pl.serving.requests import checked
from vita_audio_pl.serving.service import Answer

_EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(types.RealtimeClientEvent)[0])
}
for _event in _EVENTS.values():
    _event.model_rebuild()  # openai leaves it to the first use, where a client would wait for it


@dataclass
class Record:
    """An item as clients know it, and its counterpart in the conversation (None: nothing of it is left there)."""

    id: str
    described: dict[str, Any]
    item: Item | None = None
    whole: Item | None = None  # length of an answer, before it was truncated


@dataclass
class Reply:
    """The answer in progress."""

    id: str
    item_id: str
    answer: Answer
    spoken: bool
    record: Record
    format: SampleFormat
    text: str = ""
    sound_sent: float = 0.0  # seconds
    first_sound: float = 0.0
    n_codes: int = 0
    reason: str | None = None  # why it was cancelled

    @property
    def address(self) -> dict[str, Any]:
        """The fields that identify it in events."""
        return {"response_id": self.id, "item_id": self.item_id, "output_index": 0, "content_index": 0}

    def played(self, codes_per_second: float) -> int | None:
        """Codes that can have been played by now; None for an answer without audio."""
        if not self.spoken or not self.n_codes:
            return None
        seconds = time.monotonic() - self.first_sound if self.first_sound else 0.0
        return int(min(seconds, self.sound_sent) * codes_per_second)


def response_of(reply: Reply, status: str, error: str | None = None) -> dict[str, Any]:
    """The response object, during an answer or at its end."""
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
    """Parse a message as a client event.

    Raises:
        UserError: it is not a valid event.
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
    # other sample rates than OpenAI's are accepted; its types allow only one
    known = copy.deepcopy(value)
    form = ((known.get("session") or {}).get("audio") or {}) if isinstance(known.get("session"), dict) else {}
    for side in form.values() if isinstance(form, dict) else ():
        if isinstance(side, dict) and isinstance(side.get("format"), dict):
            side["format"].pop("rate", None)
    checked(kind, known)
    return value


def described(id: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """An item in OpenAI's form."""
    return {"id": id, "object": "realtime.item", "type": "message", "role": role, "status": status, "content": content}


def session_of(
    id: str,
    model: str,
    incoming: SampleFormat,
    outgoing: SampleFormat,
    detection: dict[str, Any] | None,
    voice: Any,
    decoding: dict[str, Any],
    written: bool,
) -> dict[str, Any]:
    """A session in OpenAI's form; written: whether the model writes down what it hears."""
    heard = {"model": model} if written else None
    audio = {
        "input": {"format": incoming.described, "turn_detection": detection, "transcription": heard},
        "output": {"format": outgoing.described, "voice": voice},
    }
    known = {"type": "realtime", "object": "realtime.session", "id": id, "model": model}
    return known | {"audio": audio, "tools": [], "decoding": decoding}


def new_id(kind: str) -> str:
    """A unique id."""
    return f"{kind}_{secrets.token_hex(10)}"
