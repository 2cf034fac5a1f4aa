"""`/v1/realtime`: OpenAI's Realtime events over a WebSocket, for one conversation.

A session has one answer at a time. Barge-in: the sender drops what it has not sent of the current answer, the engine
ends it within a round, and the conversation is truncated to what can have been played, then to what the client says
was played (`conversation.item.truncate`).
"""

import asyncio
import base64
import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.dialogue import Item, TurnContent
from vita_audio_pl.inference.streaming import AudioChunk, NewCodes, TextPiece
from vita_audio_pl.serving.asr import send_transcript
from vita_audio_pl.serving.audio_input import LEAST_AUDIO
from vita_audio_pl.serving.endpoints import base64_of
from vita_audio_pl.serving.engine import Busy, Lost
from vita_audio_pl.serving.events import Record, Reply, described, new_id, parsed, response_of
from vita_audio_pl.serving.requests import NO_FUNCTIONS
from vita_audio_pl.serving.service import Service
from vita_audio_pl.serving.session_settings import SessionSettings
from vita_audio_pl.serving.turn_taking import TurnTaker

_LOG = logging.getLogger("vita_audio_pl.serving")
_LEFT_OUT = 64  # items that a full conversation left out and clients may still ask for


class Session:
    """One client's conversation.

    Args:
        service: the service that all share.
        send: queues a message for the client; its second argument is the answer it belongs to, which a barge-in drops.
    """

    def __init__(self, service: Service, send: Callable[[str, str | None], None], forget: Callable[[str], None]):
        self.service = service
        self.id = f"sess_{uuid.uuid4().hex[:20]}"
        self.conversation = service.engine.conversation()
        self._send_text, self._forget = send, forget
        self._records: dict[str, Record] = {}
        self._settings = SessionSettings(("audio" if service.codec is not None else "text",))
        self._instructions: Item | None = None
        self._turns = TurnTaker(service)
        self._turn_id = new_id("item")
        self._reply: Reply | None = None
        self._task: asyncio.Task[None] | None = None
        self._writing_down: set[asyncio.Task[None]] = set()

    @property
    def answering(self) -> bool:
        """Whether an answer is in progress."""
        return self._reply is not None

    def begin(self) -> None:
        """Send `session.created`."""
        self._send("session.created", session=self._settings.described(self.id, self.service.name))

    async def take(self, text: str | bytes) -> None:
        """Handle one message; an invalid one is answered with an error event and changes nothing."""
        event_id = None
        try:
            event = parsed(text, self.service.config.limits.text_characters)
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            await self._handle(event)
        except Busy as busy:
            self._error(str(busy), event_id, "rate_limit_exceeded", kind="server_error", retry_after=busy.seconds)
        except UserError as error:
            self._error(str(error), event_id, "invalid_value")

    async def close(self) -> None:
        """End the current answer and free the caches."""
        if self._reply is not None:
            self._reply.answer.cancel()
        self.service.engine.close(self.conversation)
        tasks = [*self._writing_down, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._turns.clear()  # the detector of speech is large, and the connection and its session hold one another
        self._task = self._reply = None  # a cancelled task keeps its frames alive, and they hold the answer's audio

    # -- events of the client -----------------------------------------------------------------------------------------

    async def _handle(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                await self._update(event["session"])
            case "input_audio_buffer.append":
                await self._append(event["audio"])
            case "input_audio_buffer.commit":
                await self._commit(least=LEAST_AUDIO)
            case "input_audio_buffer.clear":
                self._turns.clear()
                self._send("input_audio_buffer.cleared")
            case "output_audio_buffer.clear":
                await self._interrupt("client_cancelled")
            case "conversation.item.create":
                await self._create(event["item"], event.get("previous_item_id"))
            case "conversation.item.delete":
                self._delete(event["item_id"])
            case "conversation.item.retrieve":
                self._send("conversation.item.retrieved", item=self._record(event["item_id"]).described)
            case "conversation.item.truncate":
                await self._truncate(event["item_id"], event["content_index"], event["audio_end_ms"])
            case "response.create":
                await self._respond(event.get("response") or {})
            case "response.cancel":
                if self._reply is None:
                    raise UserError("no response is in progress; there is nothing to cancel")
                if event.get("response_id") not in (None, self._reply.id):
                    raise UserError("that response is not in progress, but another one is")
                await self._interrupt("client_cancelled")

    async def _update(self, session: dict[str, Any]) -> None:
        new, old = self._settings.updated(session, self.service), self._settings
        if (new.instructions, new.voice) != (old.instructions, old.voice):
            self._instruct(new)  # the last that may refuse, before it changes anything
        self._settings = new
        self._turns.set(new.incoming.rate, new.detection)
        self._send("session.updated", session=new.described(self.id, self.service.name))

    def _instruct(self, settings: SessionSettings) -> None:
        """The system turn at the beginning: instructions and a voice."""
        pieces: list[TurnContent] = [settings.instructions] if settings.instructions else []
        pieces += self.service.voice_turn(settings.voice)
        item = self.conversation.chat_format.input_turn("system", *pieces) if pieces else None
        items = self.conversation.items
        items[:] = ([item] if item else []) + [kept for kept in items if kept is not self._instructions]
        self._instructions = item

    async def _append(self, audio: str) -> None:
        wave = self._settings.incoming.samples(base64_of(audio, "audio"))
        detection = self._settings.detection
        async for began, at_ms in self._turns.push(wave):
            if began:
                self._send("input_audio_buffer.speech_started", item_id=self._turn_id, audio_start_ms=at_ms)
                if detection is None or detection.interrupt_response:
                    await self._interrupt("turn_detected")
            else:
                self._send("input_audio_buffer.speech_stopped", item_id=self._turn_id, audio_end_ms=at_ms)
                await self._commit(least=0)
                if detection is None or detection.create_response:
                    await self._respond({})

    async def _commit(self, least: float) -> None:
        said = await self._turns.finish(least)
        item = self.conversation.chat_format.input_turn("user", said)
        id, self._turn_id = self._turn_id, new_id("item")
        record = Record(id, described(id, "user", [{"type": "input_audio", "transcript": None}]), item)
        before = self._insert(record)
        self._send("input_audio_buffer.committed", item_id=id, previous_item_id=before)
        self._announce(record, before)
        if self._settings.transcribes:
            task = asyncio.create_task(send_transcript(self.service, record.id, said, self._send))
            self._writing_down.add(task)
            task.add_done_callback(self._writing_down.discard)

    async def _create(self, item: dict[str, Any], previous: Any) -> None:
        kind = item.get("type")
        if kind != "message":
            raise UserError(
                NO_FUNCTIONS if str(kind).startswith("function") else f"items of type {kind} are not supported"
            )
        role, pieces, shown = item["role"], [], []
        parts = item.get("content") or []
        written = [part[name] for part in parts for name in ("text", "transcript") if isinstance(part.get(name), str)]
        self.service.check_text(sum(map(len, written)), "the item")
        for part in parts:
            if isinstance(part.get("text"), str):
                pieces.append(part["text"])
                shown.append({"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]})
            elif role == "user" and isinstance(part.get("audio"), str):
                wave = self._settings.incoming.samples(base64_of(part["audio"], "the item"))
                pieces.append(await self._turns.encode(wave))
                shown.append({"type": "input_audio", "transcript": part.get("transcript")})
            elif role == "assistant" and isinstance(part.get("transcript"), str):
                pieces.append(part["transcript"])
                shown.append({"type": "output_text", "text": part["transcript"]})
            else:
                raise UserError(f"a part of the type {part.get('type')!r} cannot be read; send text or audio")
        given = self.conversation.chat_format.input_turn(role, *pieces)
        id = item.get("id") or new_id("item")
        if id in self._records:
            raise UserError("an item with that id exists already")
        record = Record(id, described(id, role, shown), given)
        self._announce(record, self._insert(record, previous))

    def _insert(self, record: Record, previous: Any = None) -> str | None:
        """Add an item to the history, after the item with the id `previous`; returns the id of the one before it."""
        after = self._records.get(previous) if isinstance(previous, str) and previous != "root" else None
        if isinstance(previous, str) and previous != "root" and after is None:
            raise UserError("previous_item_id is not an item of this conversation")
        items = self.conversation.items
        self.service.check_room([*items, record.item])  # type: ignore[list-item]
        before = previous if previous is not None else next(reversed(self._records), None)
        known = list(self._records.values())
        known.insert(len(known) if previous is None else 0 if after is None else known.index(after) + 1, record)
        self._records = {one.id: one for one in known}
        items.insert(self._place(record), record.item)  # type: ignore[arg-type]
        held = set(items)
        # a full conversation leaves out its oldest items for good; what clients may ask of them ends, too, in time
        writing = None if self._reply is None else self._reply.record
        gone = [id for id, known in self._records.items() if known.item not in held and known is not writing]
        for id in gone[:-_LEFT_OUT]:
            del self._records[id]
        return before

    def _place(self, record: Record) -> int:
        """A record's in the history: behind the nearest one before it of which something is there."""
        items = self.conversation.items
        place = 1 if self._instructions in items else 0
        for known in self._records.values():
            if known is record:
                break
            if known.item in items:
                place = items.index(known.item) + 1
        return place

    def _announce(self, record: Record, before: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._send(kind, item=record.described, previous_item_id=before)

    def _delete(self, id: str) -> None:
        record = self._record(id)
        if self._reply is not None and self._reply.record is record:
            raise UserError("the item is being written; cancel the response first")
        if record.item in self.conversation.items:
            self.conversation.items.remove(record.item)
        del self._records[id]
        self._send("conversation.item.deleted", item_id=id)

    async def _truncate(self, id: str, content_index: int, end_ms: int) -> None:
        record = self._record(id)
        if end_ms < 0 or content_index != 0:
            raise UserError("audio_end_ms is below 0, or content_index not 0, the one part of a spoken answer")
        if self._reply is not None and self._reply.record is record:
            await self._interrupt("client_cancelled")
        if record.whole is None or self.service.codec is None:
            raise UserError("only a spoken answer can be truncated")
        n_codes = int(min(end_ms, 10**9) / 1000 * self.service.codec.codes_per_second)
        self._cut(record, n_codes)
        self._send("conversation.item.truncated", item_id=id, content_index=0, audio_end_ms=end_ms)

    def _cut(self, record: Record, n_codes: int) -> None:
        """Truncate an answer to its first codes, even if it was truncated before."""
        conversation, whole = self.conversation, record.whole
        if whole is None or record.item is None or record.item not in conversation.items:
            return
        conversation.items[conversation.items.index(record.item)] = whole
        record.item = conversation.cut(whole, n_codes)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _respond(self, params: dict[str, Any]) -> None:
        if self._reply is not None:
            raise UserError("a response is in progress; cancel it or wait for its end")
        if not any(record.item for record in self._records.values()):
            raise UserError("the conversation is empty; say something first")
        settings = self._settings.of_response(params, self.service)
        spoken, most = "audio" in settings.modalities, self.service.most_new_tokens
        options = self.service.options(settings.decoding, spoken, min(settings.most_tokens or most, most))
        id, item_id = new_id("resp"), new_id("item")
        record = Record(item_id, described(item_id, "assistant", [], "in_progress"))
        rate = settings.outgoing.rate
        answer = self.service.ask(
            self.conversation, options, sound=spoken, rate=rate, place=lambda: self._place(record)
        )
        reply = self._reply = Reply(id, item_id, answer, spoken, record, settings.outgoing)
        previous = next(reversed(self._records), None)
        self._records[item_id] = record
        self._send("response.created", response=response_of(reply, "in_progress"))
        self._send(
            "response.output_item.added", **reply.address, item=record.described, without=("item_id", "content_index")
        )
        self._send("conversation.item.added", item=record.described, previous_item_id=previous)
        part = {"type": "audio", "transcript": ""} if spoken else {"type": "text", "text": ""}
        self._send("response.content_part.added", **reply.address, part=part)
        self._task = asyncio.create_task(self._send_answer(reply))

    async def _send_answer(self, reply: Reply) -> None:
        try:
            async for event in reply.answer:
                self._send_piece(reply, event)
        except UserError as failure:
            # refused before anything was read, such as a conversation that does not fit: the client's to mend
            ours = reply.answer.n_read > 0 or isinstance(failure, Lost)
            kind = "server_error" if ours else "invalid_request_error"
            reply.error = {"type": kind, "code": "failed", "message": str(failure)}
        except Exception:  # a bug: this answer ends, the session continues
            _LOG.exception("an answer failed")
            message = "the server failed while answering; see its log"
            reply.error = {"type": "server_error", "code": "failed", "message": message}
        ended = await reply.answer.finished()
        reply.record.item = reply.record.whole = ended.item
        if reply.reason is not None and ended.item is not None and self.service.codec is not None:
            n_codes = reply.played(self.service.codec.codes_per_second)
            if n_codes is not None:
                self._cut(reply.record, n_codes)
        self._end_reply(reply)

    def _send_piece(self, reply: Reply, event: Any) -> None:
        if isinstance(event, TextPiece):
            reply.text += event.text
            kind = "response.output_audio_transcript.delta" if reply.spoken else "response.output_text.delta"
            self._send(kind, reply.id, **reply.address, delta=event.text, writers=list(event.writers))
        elif isinstance(event, NewCodes):
            reply.n_codes += len(event.codes)
            self._send("vita_audio_pl.codes", reply.id, **reply.address, writers=list(event.writers))
        elif isinstance(event, AudioChunk) and event.wave.size:
            if not reply.first_sound:
                reply.first_sound = time.monotonic()
                self._turns.own.begin(event.sample_rate)
            self._turns.own.send(event.wave)
            reply.sound_sent += event.wave.size / event.sample_rate
            delta = base64.b64encode(reply.format.encode(event.wave)).decode()
            self._send("response.output_audio.delta", reply.id, **reply.address, in_base64=delta)

    def _end_reply(self, reply: Reply) -> None:
        generation = reply.answer.ended.generation if reply.answer.ended is not None else None
        cut = generation is not None and not generation.stopped
        status = "failed" if reply.error else "cancelled" if reply.reason else "incomplete" if cut else "completed"
        of = reply.address
        if reply.spoken:
            self._send("response.output_audio.done", **of)
            self._send("response.output_audio_transcript.done", **of, transcript=reply.text)
            part = {"type": "audio", "transcript": reply.text}
        else:
            self._send("response.output_text.done", **of, text=reply.text)
            part = {"type": "text", "text": reply.text}
        self._send("response.content_part.done", **of, part=part)
        state = "completed" if status == "completed" else "incomplete"
        content = [part | {"type": f"output_{part['type']}"}]
        reply.record.described = described(reply.item_id, "assistant", content, state)
        self._send("response.output_item.done", **of, item=reply.record.described, without=("item_id", "content_index"))
        self._send("conversation.item.done", item=reply.record.described)
        self._reply = None
        self._send("response.done", response=response_of(reply, status))

    async def _interrupt(self, reason: str) -> None:
        """End the current answer: nothing more of it is sent."""
        reply, task = self._reply, self._task
        if reply is None or task is None:
            return
        reply.reason = reply.reason or reason
        reply.answer.cancel()
        self._forget(reply.id)
        await asyncio.gather(task, return_exceptions=True)

    # -- events of the server ---------------------------------------------------------------------------------------------

    def _send(
        self, type: str, answer: str | None = None, *, without: tuple[str, ...] = (), in_base64: str = "", **fields: Any
    ) -> None:
        event = {"type": type, "event_id": new_id("event")} | {k: v for k, v in fields.items() if k not in without}
        text = json.dumps(event)
        if in_base64:  # looking for what has to be escaped would take longer than all the rest
            text = f'{text[:-1]}, "delta": "{in_base64}"}}'
        self._send_text(text, answer)

    def _error(
        self, message: str, event_id: str | None, code: str, kind: str = "invalid_request_error", **more: Any
    ) -> None:
        self._send(
            "error", error={"type": kind, "code": code, "message": message, "param": None, "event_id": event_id} | more
        )

    def _record(self, id: Any) -> Record:
        if id not in self._records:
            raise UserError("this conversation has no item with that id")
        return self._records[id]
