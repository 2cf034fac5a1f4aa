"""Realtime events: validation of client events with OpenAI's own types, and server events about items and answers."""

import copy
import itertools
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from openai.types import realtime as types
from pydantic import BaseModel

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import Item
from vita_audio_pl.serving.answer import Answer
from vita_audio_pl.serving.pcm import SampleFormat
from vita_audio_pl.serving.requests import checked, refuse

_EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(types.RealtimeClientEvent)[0])
}
_MOST_VALUES = 1000
_OURS, _NUMBERS = secrets.token_hex(6), itertools.count()  # replicas have other ones
_ADDED = ("session.decoding", "session.id", "session.object")
"""Fields that OpenAI's events do not have: our own, and what a client may send back of a session as it was described."""
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
    error: dict[str, Any] | None = None  # why it failed

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


def response_of(reply: Reply, status: str) -> dict[str, Any]:
    """The response object, during an answer or at its end."""
    details: dict[str, Any] | None = None
    if status == "cancelled":
        details = {"type": "cancelled", "reason": reply.reason}
    elif status == "incomplete":
        details = {"type": "incomplete", "reason": "max_output_tokens"}
    elif status == "failed":
        details = {"type": "failed", "error": reply.error}
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
        generation = reply.answer.ended.generation
        read, written = reply.answer.n_read, len(generation.ids)
        response["usage"] = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        response["decoding"] = {
            "backbone_passes": generation.backbone_passes,
            "drafted": generation.drafted,
            "accepted": generation.accepted,
        }
    return response


def parsed(text: str | bytes, most_text: int) -> dict[str, Any]:
    """Parse a message as a client event, whose values have the types of OpenAI's.

    most_text: characters that a text may have; what else an event is of takes few commas and brackets.

    Raises:
        UserError: it is not a valid event.
    """
    signs = ",[{" if isinstance(text, str) else (b",", b"[", b"{")
    if sum(map(text.count, signs)) > most_text + _MOST_VALUES:  # type: ignore[arg-type]
        raise UserError("the message has more values than any event")
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UserError("the message is not JSON") from None
    if not isinstance(value, dict):
        raise UserError("a message is an object with a 'type'")
    kind = _EVENTS.get(value["type"]) if isinstance(value.get("type"), str) else None
    if kind is None:
        raise UserError(f"there is no event of type {str(value.get('type'))[:60]!r}")
    known = value
    if value["type"] == "session.update":
        # other sample rates than OpenAI's are accepted; its types allow only one
        known = copy.deepcopy(value)
        form = ((known.get("session") or {}).get("audio") or {}) if isinstance(known.get("session"), dict) else {}
        for side in form.values() if isinstance(form, dict) else ():
            if isinstance(side, dict) and isinstance(side.get("format"), dict):
                side["format"].pop("rate", None)
    event: BaseModel = checked(kind, known, strict=True)
    beyond = [name for name in _beyond(event) if name not in _ADDED]
    # what a response names is told apart where it is followed
    refuse([name for name in beyond if not name.startswith("response.")], _fields_of(event))
    return value


def _beyond(model: BaseModel, of: str = "") -> Iterator[str]:
    """Fields that OpenAI's events do not have, at any depth."""
    for name in model.model_extra or ():
        yield of + name
    for name in model.model_fields_set & model.__class__.model_fields.keys():
        given = getattr(model, name)
        for part in given if isinstance(given, list) else [given]:
            if isinstance(part, BaseModel):
                yield from _beyond(part, f"{of}{name}.")


def _fields_of(model: BaseModel, of: str = "") -> Iterator[str]:
    """Fields of an event and of the models in it."""
    for name in model.__class__.model_fields:
        yield of + name
        if isinstance(part := getattr(model, name), BaseModel):
            yield from _fields_of(part, f"{of}{name}.")


def _no_number(name: str) -> None:
    raise UserError(f"{name} is not a number of JSON")


def described(id: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    """An item in OpenAI's form."""
    return {"id": id, "object": "realtime.item", "type": "message", "role": role, "status": status, "content": content}


def new_id(kind: str) -> str:
    """An id that nothing else has, though it can be guessed: an answer has two dozen, and the system's randomness takes time."""
    return f"{kind}_{_OURS}{next(_NUMBERS):08x}"
