"""HTTP endpoints of OpenAI's API: speech, transcriptions, chat with audio in and out."""

import asyncio
import base64
import binascii
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import History, TurnContent
from vita_audio_pl.inference.streaming import AudioChunk, TextPiece
from vita_audio_pl.serving.answer import Answer, chain, watched, with_first
from vita_audio_pl.serving.asr import transcribe
from vita_audio_pl.serving.metrics import by_replica, text_of
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.requests import NO_FUNCTIONS, ChatAudio, ChatRequest, SpeechRequest, decoding_of_form
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.sound_files import MEDIA_TYPES, SoundWriter
from vita_audio_pl.text.conversation import TTS_INSTRUCTION
from vita_audio_pl.text.messages import ROLES

_LOG = logging.getLogger("vita_audio_pl.serving")

_TRANSCRIPTION = ("file", "model", "response_format", "stream", "language", "prompt", "temperature")
_SPOKEN_FOR = 3600  # seconds


class Endpoints:
    """The HTTP endpoints of a service; `router` has the routes."""

    def __init__(self, service: Service):
        self.service = service
        self.router = router = APIRouter()
        router.add_api_route("/v1/models", self.models, methods=["GET"])
        router.add_api_route("/v1/models/{model}", self.model, methods=["GET"])
        router.add_api_route("/v1/audio/speech", self.speech, methods=["POST"])
        router.add_api_route("/v1/audio/transcriptions", self.transcriptions, methods=["POST"], response_model=None)
        router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        router.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        router.add_api_route("/health", self.health, methods=["HEAD"], include_in_schema=False)
        router.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse)

    async def models(self) -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [self._described()]}

    async def model(self, model: str) -> Response:
        """The one model, by name."""
        if model != self.service.name:
            return JSONResponse({"error": {"message": f"there is no such model; {self.service.name} is served",
                                           "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}, 404)  # fmt: skip
        return JSONResponse(self._described())

    async def health(self) -> Response:
        """200 while the server accepts requests, else 503."""
        state = "draining" if self.service.draining else "ok" if self.service.healthy else "failed"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    async def metrics(self) -> PlainTextResponse:
        """Metrics in Prometheus's text format."""
        replicas = self.service.replicas
        families = self.service.metrics.families() if replicas is None else by_replica(await replicas.counts())
        return PlainTextResponse(text_of(families), media_type="text/plain; version=0.0.4")

    async def speech(self, body: SpeechRequest, request: Request) -> Response:
        """Text to speech; audio is streamed as it is made."""
        service = self.service
        body.check()
        if body.speed != 1:
            raise UserError("speed is fixed at 1: the model speaks as it was trained to")
        if service.codec is None:
            raise UserError("the model has no audio codec and cannot speak; start it with codec_folder=DIR")
        service.check_text(len(body.input), "input")
        if not body.input.strip().strip("\0"):
            raise UserError("input is empty")
        options = service.options(body.decoding, spoken=True)
        conversation = service.engine.conversation()
        self._speak_as(conversation, body.voice)
        conversation.add("user", f"{TTS_INSTRUCTION}\n{body.input}")
        writer = SoundWriter(body.response_format, OUTPUT_RATE)
        answer = service.ask(conversation, options)
        events = with_first(aiter(answer))
        async with watched(request, answer):
            first = await anext(events)  # an error before the first chunk can still become a status
            while first is not None and not (isinstance(first, AudioChunk) and first.wave.size):
                first = await anext(events, None)
        if first is None:
            self._release(answer)
            raise UserError("the model spoke no word of this text; try another text, or another decoding")
        if body.stream_format == "sse":
            return _stream(self._speech_events(events, first, writer, answer), "text/event-stream")
        return _stream(self._sound(events, first, writer, answer), MEDIA_TYPES[body.response_format])

    async def transcriptions(
        self,
        request: Request,
        file: Annotated[UploadFile, File()],
        model: str = Form(""),
        response_format: Literal["json", "text", "verbose_json"] = Form("json"),
        stream: bool = Form(False),
        language: str = Form(""),
        prompt: str = Form(""),
        temperature: float = Form(0.0, ge=0, le=10),
    ) -> Response:
        """Speech to text; `language` and `prompt` are hints that it does not need."""
        service, how = self.service, decoding_of_form((await request.form()).multi_items(), _TRANSCRIPTION)
        data = await file.read()
        said, seconds = await service.encode_audio(data, "the recording")
        answer = transcribe(service, said, how, temperature)
        if stream:
            events = with_first(aiter(answer))
            async with watched(request, answer):
                first = await anext(events)
            if answer.cancelled:
                return self._left(answer)
            return _stream(self._transcript_events(events, first, answer), "text/event-stream")
        async with watched(request, answer):
            text = "".join([event.text async for event in answer if isinstance(event, TextPiece)]).strip()
        self._release(answer)
        if response_format == "text":
            return PlainTextResponse(text + "\n")
        usage = {"type": "tokens", **_usage(answer)}
        return JSONResponse({"text": text, "usage": usage} | ({"task": "transcribe", "language": "", "duration": seconds} if response_format == "verbose_json" else {}))  # fmt: skip

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation of text and recordings."""
        service = self.service
        body.check()
        wants_sound = "audio" in (body.modalities or (["audio"] if body.audio else []))
        form = body.audio or ChatAudio()
        conversation = service.engine.conversation()
        if wants_sound:
            if service.codec is None:
                raise UserError("the model has no audio codec and cannot speak; start it with codec_folder=DIR")
            self._speak_as(conversation, form.voice)
        heard = await self._add_messages(conversation, body.messages)
        limit = body.max_completion_tokens or body.max_tokens or service.most_new_tokens
        most, how = min(limit, service.most_new_tokens), body.model_dump(include={"temperature", "top_p", "seed"})
        options = service.options(body.decoding, heard or wants_sound, most, **how)
        answer = service.ask(conversation, options, sound=wants_sound)
        reply = _ChatReply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), service.name, wants_sound)
        events = with_first(aiter(answer))
        async with watched(request, answer):
            first = await anext(events)
        if answer.cancelled:
            return self._left(answer)
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            writer = SoundWriter(form.format, OUTPUT_RATE)
            return _stream(self._chat_events(events, first, answer, reply, writer, usage), "text/event-stream")
        writer, text = SoundWriter(form.format, OUTPUT_RATE, whole=True), ""
        async with watched(request, answer):
            async for event in chain(first, events):
                if isinstance(event, TextPiece):
                    text += event.text
                elif isinstance(event, AudioChunk):
                    writer.push(event.wave)
        sound = writer.finish() if answer.speech else b""
        self._remember(reply.audio_id, answer)
        self._release(answer)
        return JSONResponse(reply.whole(text, sound, answer))

    def _described(self) -> dict[str, Any]:
        service = self.service
        return {"id": service.name, "object": "model", "created": service.started, "owned_by": "vita_audio_pl"}

    def _speak_as(self, conversation: History, voice: Any) -> None:
        if turn := self.service.voice_turn(voice):
            conversation.add("system", *turn)

    async def _add_messages(self, conversation: History, messages: list[dict[str, Any]]) -> bool:
        """Add a chat's messages; returns whether the user's last one is speech."""
        self.service.check_texts([_characters(message.get("content")) for message in messages])
        spoken = False
        for number, message in enumerate(messages, 1):
            await asyncio.sleep(0)  # tokenising a message takes milliseconds; others have their turn between two
            role = message.get("role")
            role = "system" if role == "developer" else role
            if not isinstance(role, str) or role not in ROLES:
                raise UserError(f"message {number} has the role {str(role)[:40]!r}; use system, user or assistant")
            if message.get("tool_calls"):
                raise UserError(NO_FUNCTIONS)
            known = message.get("audio")
            if role == "assistant" and isinstance(known, dict):
                item = await self.service.remembered(str(known.get("id")))
                if item is None:
                    raise UserError(
                        f"message {number} names an audio that is not known any more; send its text instead"
                    )
                conversation.items.append(item)
                continue
            pieces, has_audio = await self._pieces(message.get("content"), f"message {number}")
            conversation.add(role, *pieces)
            spoken = has_audio if role == "user" else spoken
        return spoken

    async def _pieces(self, content: Any, where: str) -> tuple[list[TurnContent], bool]:
        if isinstance(content, str):
            return [content], False
        if not isinstance(content, list):
            raise UserError(f"{where} has no content; give text, or a list of text and input_audio parts")
        pieces: list[TurnContent] = []
        has_audio = False
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                pieces.append(part["text"])
            elif kind == "input_audio" and isinstance(part.get("input_audio"), dict):
                data = base64_of(part["input_audio"].get("data"), where)
                pieces.append((await self.service.encode_audio(data, where))[0])
                has_audio = True
            else:
                raise UserError(f"{where} holds a part of the type {str(kind)[:40]!r}; text and input_audio are read")
        return pieces, has_audio

    def _remember(self, audio_id: str, answer: Answer) -> None:
        if answer.ended is not None and answer.ended.item is not None:
            self.service.remember(audio_id, answer.ended.item)

    def _release(self, answer: Answer) -> None:
        self.service.engine.close(answer.conversation)

    def _left(self, answer: Answer) -> Response:
        """For a client that has gone."""
        self._release(answer)
        return Response(status_code=499)

    async def _sound(self, events: Any, first: Any, writer: SoundWriter, answer: Answer) -> AsyncIterator[bytes]:
        try:
            async for event in chain(first, events):
                if isinstance(event, AudioChunk) and (data := writer.push(event.wave)):
                    yield data
            if data := writer.finish():
                yield data
        finally:
            await events.aclose()
            self._release(answer)

    async def _speech_events(self, events: Any, first: Any, writer: SoundWriter, answer: Answer) -> AsyncIterator[str]:
        try:
            async for data in self._sound(events, first, writer, answer):
                yield _sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            yield _sse({"type": "speech.audio.done", "usage": _usage(answer)})
        except Exception as error:
            yield _sse({"type": "error", "error": {"message": _sentence(error)}})

    async def _transcript_events(self, events: Any, first: Any, answer: Answer) -> AsyncIterator[str]:
        text = ""
        try:
            async for event in chain(first, events):
                if isinstance(event, TextPiece):
                    text += event.text
                    yield _sse({"type": "transcript.text.delta", "delta": event.text})
            yield _sse(
                {"type": "transcript.text.done", "text": text.strip(), "usage": {"type": "tokens", **_usage(answer)}}
            )
        except Exception as error:
            yield _sse({"type": "error", "error": {"message": _sentence(error)}})
        finally:
            await events.aclose()
            self._release(answer)

    async def _chat_events(
        self, events: Any, first: Any, answer: Answer, reply: "_ChatReply", writer: SoundWriter, usage: bool
    ) -> AsyncIterator[str]:
        try:
            yield _sse(reply.chunk({"role": "assistant", "content": None if reply.sound else ""}))
            async for event in chain(first, events):
                if isinstance(event, TextPiece):
                    yield _sse(reply.chunk(reply.text_delta(event.text)))
                elif isinstance(event, AudioChunk) and (data := writer.push(event.wave)):
                    yield _sse(reply.chunk(reply.sound_delta(data)))
            if answer.speech and (data := writer.finish()):
                yield _sse(reply.chunk(reply.sound_delta(data)))
            self._remember(reply.audio_id, answer)
            yield _sse(reply.chunk({}, _finish_reason(answer)))
            if usage:
                yield _sse(reply.usage_chunk(answer))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield _sse({"error": {"message": _sentence(error), "type": "server_error"}})
        finally:
            await events.aclose()
            self._release(answer)


class _ChatReply:
    """The JSON object of a chat answer."""

    def __init__(self, id: str, created: int, model: str, sound: bool):
        self._base = {"id": id, "created": created, "model": model}
        self.sound = sound
        self.audio_id = f"audio_{uuid.uuid4().hex}"

    def text_delta(self, text: str) -> dict[str, Any]:
        return {"audio": {"id": self.audio_id, "transcript": text}} if self.sound else {"content": text}

    def sound_delta(self, data: bytes) -> dict[str, Any]:
        return {"audio": {"id": self.audio_id, "data": base64.b64encode(data).decode()}}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._base, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, answer: Answer) -> dict[str, Any]:
        return {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": _chat_usage(answer)}

    def whole(self, text: str, sound: bytes, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.sound:
            expires = self._base["created"] + _SPOKEN_FOR  # type: ignore[operator]
            data = base64.b64encode(sound).decode()
            message["audio"] = {"id": self.audio_id, "expires_at": expires, "data": data, "transcript": text}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(answer), "logprobs": None}
        return {**self._base, "object": "chat.completion", "choices": [choice], "usage": _chat_usage(answer)}


def base64_of(data: Any, where: str) -> bytes:
    """Decode base64 text.

    Raises:
        UserError: it is not base64.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise UserError(f"{where}: the audio is not base64") from None


def _characters(content: Any) -> int:
    """Length of the text of a message's content."""
    if isinstance(content, str):
        return len(content)
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return sum(len(text) for text in texts if isinstance(text, str))


def _finish_reason(answer: Answer) -> str:
    generation = None if answer.ended is None else answer.ended.generation
    return "stop" if generation is None or generation.stopped else "length"


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.n_read, answer.n_written
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _chat_usage(answer: Answer) -> dict[str, int]:
    usage = _usage(answer)
    return {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"], "total_tokens": usage["total_tokens"]}  # fmt: skip


def _sentence(error: Exception) -> str:
    """What a client is told in mid-stream, where no status can be given any more."""
    if isinstance(error, UserError):
        return str(error)
    _LOG.error("an answer failed", exc_info=error)
    return "the server failed while answering; see its log"


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _stream(content: AsyncIterator[Any], media_type: str) -> StreamingResponse:
    return StreamingResponse(
        content, media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )
