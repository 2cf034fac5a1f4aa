"""Whatever a client sends, the server answers in sentences: no crash, no traceback, and the next good message is served."""

import asyncio
import base64
import copy
import json
import random

import httpx
import pytest

from tests.serving.loop_calls import slots_of
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.realtime import Session

SOUND = base64.b64encode(bytes(range(256)) * 40).decode()
TEXT_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the cow"}]}
MESSAGES = [
    {"type": "session.update", "session": {"type": "realtime", "instructions": "Speak.", "output_modalities": ["audio"], "max_output_tokens": 9, "decoding": {"mode": "turbo", "verify": "none", "temperature": 0.5}, "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 300, "prefix_padding_ms": 100}, "format": {"type": "audio/pcm", "rate": 16000}, "transcription": {"model": "own"}}, "output": {"voice": "alloy", "speed": 1}}}},
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
    {"type": "input_audio_buffer.append", "audio": SOUND},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "output_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": TEXT_ITEM, "previous_item_id": "root"},
    {"type": "conversation.item.create", "item": {"id": "item_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "in the farm"}]}},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": SOUND}]}},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "a"}]}},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 100},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "response.create", "response": {"output_modalities": ["text"], "max_output_tokens": 4, "decoding": {"mode": [1, 3]}}},
    {"type": "response.create"},
    {"type": "response.cancel", "event_id": "mine"},
]  # fmt: skip
REQUESTS = [
    ("/v1/audio/speech", {"model": "m", "input": "a", "voice": "alloy", "response_format": "wav", "speed": 1.0, "stream_format": "sse", "decoding": {"mode": "boost", "max_new_tokens": 4}}),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}]}, {"role": "assistant", "content": "b"}], "modalities": ["text", "audio"], "audio": {"voice": "v", "format": "mp3"}, "stream": True, "max_tokens": 4, "temperature": 0.0, "n": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "audio": {"id": "x"}}, {"role": "user", "content": "a"}], "max_completion_tokens": 3}),
]  # fmt: skip
ODD = [None, True, -1, 0, 2**63, 1e308, -0.5, "", "\u0000", "a" * 500, "🐄\ud83d", [], {}, [[]], {"type": "x"}, "boost", "item_1", SOUND[:-3], [1, 10], float("nan")]  # fmt: skip


def places(value, path=()):
    """Every place inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def mutated(value, draw):
    """A JSON value with a few places changed, taken away, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        path = draw.choice(list(places(value)))
        if not path:
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        match draw.randrange(4):
            case 0:
                holder[path[-1]] = copy.deepcopy(draw.choice(ODD))
            case 1:
                del holder[path[-1]]
            case 2 if isinstance(holder, dict):
                holder[draw.choice(["type", "audio", "item", "x", "id", "tools", "text"])] = holder.pop(path[-1])
            case _:
                holder[path[-1]] = [holder[path[-1]], holder[path[-1]]]
    return value


def as_text(value, draw):
    """JSON text, sometimes damaged."""
    text = json.dumps(value)
    match draw.randrange(12):
        case 0:
            return text[: draw.randrange(len(text) + 1)]
        case 1:
            at = draw.randrange(len(text) + 1)
            return text[:at] + chr(draw.choice([0, 9, 34, 92, 125, 0x2028, 0xFFFD])) + text[at:]
        case 2:
            return text.encode("utf-16")
    return text


@pytest.mark.parametrize("count", [500, pytest.param(60_000, marks=pytest.mark.slow)])
def test_malformed_messages_never_break_a_session(service, count):
    draw = random.Random(0)

    async def check():
        told = []
        session = Session(service, lambda text, _: told.append(text), lambda _: None)
        for number in range(count):
            if number % 300 == 299:  # sessions come and go
                await session.close()
                session = Session(service, lambda text, _: told.append(text), lambda _: None)
            told.clear()
            message = mutated(draw.choice(MESSAGES), draw)
            await session.take(as_text(message, draw))
            for text in told:
                event = json.loads(text)
                assert event["type"] and "Traceback" not in text and "/src/" not in text
                if event["type"] == "error":
                    assert len(event["error"]["message"]) > 8
        await session.close()
        session = Session(service, lambda text, _: told.append(text), lambda _: None)
        told.clear()
        for message in ({"type": "conversation.item.create", "item": TEXT_ITEM}, {"type": "response.create"}):
            await session.take(json.dumps(message))
        while not any('"response.done"' in text for text in told):
            await asyncio.sleep(0.01)
        await session.close()

    asyncio.run(check())
    assert slots_of(service) == (2, 0) and service.engine.asked == 0


@pytest.mark.parametrize("count", [250, pytest.param(40_000, marks=pytest.mark.slow)])
def test_malformed_requests_are_answered_with_a_status_and_a_sentence(service, count):
    draw = random.Random(1)

    async def check():
        transport = httpx.ASGITransport(create_app(service))  # what the application raises fails the test
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(count):
                path, body = draw.choice(REQUESTS)
                content = as_text(mutated(body, draw), draw)
                content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
                answer = await client.post(path, content=content, headers={"content-type": "application/json"})
                assert answer.status_code in (200, 400, 422, 429), answer.text
                assert b"Traceback" not in answer.content
                if answer.status_code != 200:
                    assert answer.json()["error"]["message"]

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("examples", [300])
def test_requests_drawn_from_the_schema_meet_no_fault(service, examples):
    import schemathesis
    from hypothesis import given, settings

    app = create_app(service)
    app.openapi_url = "/openapi.json"  # as a server it has none
    app.setup()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 7
    for operation in operations:

        @settings(max_examples=examples, deadline=None)
        @given(case=operation.as_strategy())
        def check(case):
            answer = case.call(headers={"host": "localhost"})
            assert answer.status_code < 500 and b"Traceback" not in answer.content

        check()
