"""Transcription by the model itself."""

import asyncio
from collections.abc import Callable
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import TurnContent
from vita_audio_pl.inference.streaming import TextPiece
from vita_audio_pl.serving.answer import Answer
from vita_audio_pl.serving.requests import Decoding
from vita_audio_pl.serving.service import Service
from vita_audio_pl.text.conversation import ASR_INSTRUCTION

_AFTER = 0.3  # seconds: answers have priority


def transcribe(service: Service, said: TurnContent, decoding: Decoding, temperature: float | None = None) -> Answer:
    """Request the transcript of a recording, in a conversation of its own that the caller closes.

    Raises:
        UserError: contradictory settings.
        Busy: too many answers are waiting.
    """
    options = service.options(decoding, spoken=False, temperature=temperature)
    conversation = service.engine.conversation()
    conversation.add("user", f"{ASR_INSTRUCTION}\n", said)
    return service.ask(conversation, options, sound=False)


async def send_transcript(service: Service, item_id: str, said: TurnContent, send: Callable[..., None]) -> None:
    """Send the transcript of a session's user turn, as Realtime events."""
    await asyncio.sleep(_AFTER)
    of: dict[str, Any] = {"item_id": item_id, "content_index": 0}
    kind, text, answer = "conversation.item.input_audio_transcription", "", None
    try:
        answer = transcribe(service, said, Decoding())
        async for event in answer:
            if isinstance(event, TextPiece):
                text += event.text
                send(f"{kind}.delta", **of, delta=event.text, writers=list(event.writers))
        send(f"{kind}.completed", **of, transcript=text.strip(), usage={"type": "duration", "seconds": 0.0})
    except UserError as error:
        send(f"{kind}.failed", **of, error={"type": "server_error", "code": "failed", "message": str(error)})
    finally:
        if answer is not None:
            service.engine.close(answer.conversation)
