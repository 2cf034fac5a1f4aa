"""What a client may ask: numbers of any kind, texts of any length, updates that are refused, fields that nobody follows."""

import asyncio
import base64
import json
import math

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from pydantic import ValidationError

from tests.serving.test_wrong_requests import ASK, asked
from vita_audio_pl.serving.realtime import Session
from vita_audio_pl.serving.requests import ChatRequest
from vita_audio_pl.serving.sound_files import _wav_header

ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the cow"}]}
VAD = {"type": "server_vad", "create_response": False}
NOISE = (np.random.default_rng(0).standard_normal(2_000) * 3000).astype("<i2").tobytes()
SOUND = base64.b64encode(NOISE).decode()
INPUT = ("audio", "input", "turn_detection")
NUMBERS = {
    ("session", "max_output_tokens"): (1, math.inf),
    ("session", "decoding", "temperature"): (0, 10),
    ("session", "decoding", "top_p"): (1e-300, 1),
    ("session", "decoding", "top_k"): (0, 2**63 - 1),
    ("session", "decoding", "repetition_penalty"): (1e-6, 10),
    ("session", "decoding", "seed"): (0, 2**63 - 1),
    ("session", "decoding", "max_new_tokens"): (1, math.inf),
    ("session", *INPUT, "threshold"): (0, 1),
    ("session", *INPUT, "prefix_padding_ms"): (0, 10_000),
    ("session", *INPUT, "silence_duration_ms"): (0, 60_000),
    ("session", *INPUT, "idle_timeout_ms"): (1, 0),
    ("session", "audio", "input", "format", "rate"): (8000, 192_000),
    ("session", "audio", "output", "speed"): (1, 1),
    ("response", "max_output_tokens"): (1, math.inf),
    ("response", "decoding", "temperature"): (0, 10),
    ("response", "decoding", "repetition_penalty"): (1e-6, 10),
    ("truncate", "audio_end_ms"): (0, math.inf),
    ("truncate", "content_index"): (0, 0),
}
"""Every number that a session takes, and the least and most of what it may accept."""
ODD = ["5", "0.5", "nan", "inf", "x", True, [], {}, math.nan, math.inf, -math.inf, -1, -(10**30), -1e-9, 0, 0.5, 1, 7,
       1e-300, 1e-40, 1e300, 16_000, 2**31, 2**63 - 1, 2**63, 10**400]  # fmt: skip


def talking(service):
    """A session, and a function that sends it a message and gives the events that came of it."""
    told = []
    session = Session(service, lambda text, _: told.append(text), lambda _: None)

    async def send(kind, **fields):
        told.clear()
        await session.take(json.dumps({"type": kind, **fields}))
        return [json.loads(text) for text in told]

    return session, send


def errors_of(events):
    return [event["error"]["message"] for event in events if event["type"] == "error"]


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_a_number_is_refused_in_a_sentence_or_followed(service, path):
    kind, *inner, name = path
    low, high = NUMBERS[path]

    async def check():
        session, send = talking(service)
        await send("conversation.item.create", item=ITEM)
        await send("response.create", response={"max_output_tokens": 4})
        await session._task
        spoken = next(reversed(session._records))
        await send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": VAD}}})
        accepted = []
        for odd in ODD:
            fields = {**(VAD if inner[-1:] == ["turn_detection"] else {}), name: odd}
            for outer in reversed(inner):
                fields = {outer: fields}
            before = session._settings
            if kind == "session":
                events = await send("session.update", session={"type": "realtime", **fields})
            elif kind == "response":
                events = await send("response.create", response={"max_output_tokens": 2, **fields})
                if session.answering:
                    await session._task
            else:
                cut = {"item_id": spoken, "content_index": 0, "audio_end_ms": 100}
                events = await send("conversation.item.truncate", **cut | fields)
            if errors := errors_of(events):
                assert session._settings is before and len(errors[0]) > 8
            else:
                accepted.append(odd)
            assert not errors_of(await send("input_audio_buffer.append", audio=SOUND)), odd
        unlimited = ["inf"] if name == "max_output_tokens" else []
        for odd in accepted:
            assert odd in unlimited or low <= (float(odd) if isinstance(odd, str) else odd) <= high
        assert bool(accepted) == (low <= high)
        await session.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "wrong",
    [
        {"instructions": "<|audio|>"},
        {"instructions": "a" * 8001},
        {"tools": [{"type": "function", "name": "f"}]},
        {"max_output_tokens": 0},
        {"decoding": {"temperature": 0.5, "verify": "greedy"}},
        {"audio": {"input": {"turn_detection": {**VAD, "eagerness": "high"}}}},
        {"audio": {"input": {"turn_detection": {**VAD, "prefix_padding_ms": 9000}}}},
        {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 7}}}},
        {"audio": {"output": {"speed": 2}}},
        {"modalities": ["text"]},
        {"audio": {"input": {"turn_detecton": VAD}}},
    ],
)
def test_a_refused_update_leaves_the_session_as_it_was(service, monkeypatch, wrong):
    monkeypatch.setattr(service.config.limits, "audio_seconds", 5.0)
    whole = {"instructions": "be kind", "max_output_tokens": 7, "output_modalities": ["text"], "decoding": {"mode": "vanilla"},
             "audio": {"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}, "transcription": {"model": "m"}}, "output": {"voice": "v"}}}  # fmt: skip

    async def check():
        session, send = talking(service)
        await send("session.update", session={"type": "realtime", "instructions": "hello"})
        settings, turns, items = session._settings, session._turns.detection, list(session.conversation.items)
        [error] = errors_of(await send("session.update", session={"type": "realtime", **whole, **wrong}))
        assert error and (session._settings, session._turns.detection) == (settings, turns)
        assert session.conversation.items == items and session._instructions is items[0]
        [updated] = await send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "v"}}})
        assert updated["session"] == settings.described(session.id, service.name) | {
            "audio": updated["session"]["audio"]
        }
        [updated] = await send("session.update", session={"type": "realtime", **whole})
        assert updated["type"] == "session.updated" and session._turns.detection is None
        await session.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"instructions": "be kind"}, "instructions cannot be followed in one response"),
        ({"metadata": {"a": "b"}, "tool_choice": "required"}, "metadata and tool_choice cannot be followed"),
        ({"conversation": "other"}, "outside of the conversation"),
        ({"input": []}, "outside of the conversation"),
        ({"audio": {"output": {"speed": 2}}}, "speed is fixed"),
        ({"audio": {"output": {"voice": "mary"}}}, "audio.output.voice cannot be followed"),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "rate"),
        ({"max_output_tokens": -1}, "max_output_tokens is a whole number from 1"),
        ({"audio": {"output": {"format": {"type": "audio/pcmu"}, "voice": "alloy"}}, "tool_choice": "auto", "tools": []}, None),
    ],
)  # fmt: skip
def test_a_response_follows_what_it_names_or_refuses_it(service, monkeypatch, params, sentence):
    monkeypatch.setitem(service.voices, "mary", np.zeros(2, np.int32))

    async def check():
        session, send = talking(service)
        await send("conversation.item.create", item=ITEM)
        events = await send("response.create", response=params)
        if sentence is None:
            assert not errors_of(events) and session._reply.format.type == "audio/pcmu"
            assert session._settings.outgoing.type == "audio/pcm"  # of the session, still
        else:
            assert sentence in errors_of(events)[0] and not session.answering
        await session.close()

    asyncio.run(check())


def test_texts_of_a_request_are_added_up_before_any_is_tokenised(service, monkeypatch):
    monkeypatch.setattr(type(service.loaded.tokenizer), "encode", lambda *_: pytest.fail("a text was tokenised"))

    def sentence(messages):
        answer = asked(service, "/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    half = {"type": "text", "text": "a" * 5000}
    assert "text of message 2 has 10000 characters" in sentence([*ASK, {"role": "user", "content": [half, half]}])
    assert "messages with 70000 characters are more" in sentence([{"role": "user", "content": [half]}] * 14)
    assert "4097 messages with 4097 characters" in sentence([{"role": "user", "content": "a"}] * 4097)
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"messages": [1] * 9})
    assert refused.value.error_count() == 1  # and not as many as somebody sends
    parts = [{"type": "input_text", "text": "a" * 5000}] * 2

    async def check():
        session, send = talking(service)
        item = {"type": "message", "role": "user", "content": parts}
        assert "10000 characters" in errors_of(await send("conversation.item.create", item=item))[0]
        item["content"] = [{"type": "input_text", "text": ""}] * 100_000
        assert "more values than any event" in errors_of(await send("conversation.item.create", item=item))[0]
        update = {"type": "realtime", "instructions": "a" * 10**6}
        assert "1000000 characters" in errors_of(await send("session.update", session=update))[0]
        await session.close()

    asyncio.run(check())


def test_the_history_of_a_session_is_bounded_and_so_is_what_is_known_of_it(make_service):
    service = make_service(context_tokens=64, max_new_tokens=8)

    async def check():
        session, send = talking(service)
        for _ in range(100):
            if errors := errors_of(await send("conversation.item.create", item=ITEM)):
                break
        assert "more than 4 times the 64 tokens" in errors[0]
        await session.close()
        session, send = talking(service)
        spoken = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "in the barn"}]}
        for _ in range(50):
            assert not errors_of(await send("conversation.item.create", item=ITEM))
            await send("conversation.item.create", item=spoken)
            await send("response.create", response={"max_output_tokens": 1})
            await session._task
        assert len(session._records) < 80
        update = {"type": "realtime", "instructions": "the cow lives in the barn " * 40}
        await send("session.update", session=update)
        told = []
        session._send_text = lambda text, _: told.append(json.loads(text))
        await send("response.create")
        await session._task
        error = told[-1]["response"]["status_details"]["error"]
        assert error["type"] == "invalid_request_error" and "does not fit" in error["message"]
        await session.close()

    asyncio.run(check())
    service.close()


def test_options_of_a_transcription_come_as_openai_sends_them(server, answered):
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)

    def ask(decoding, **more):
        sound = _wav_header(16_000, 2 * len(NOISE)) + 2 * NOISE
        client.audio.transcriptions.create(model="m", file=("a.wav", sound), extra_body={"decoding": decoding}, **more)
        return answered[-1][0].options

    found = ask({"mode": [2, 3], "max_new_tokens": 3, "constrain": False, "temperature": 0.5, "top_k": 7})
    assert found.pattern.runs == (2, 3)
    assert (found.max_new_tokens, found.constraint) == (3, None)
    assert (found.sampling.temperature, found.sampling.top_k) == (0.5, 7)
    with pytest.raises(BadRequestError, match="warp"):
        ask({"mode": "warp"})
    with pytest.raises(BadRequestError, match=r"no field decoding\.steps"):
        ask({"steps": 1})
    with pytest.raises(BadRequestError, match="no field timestamp_granularities"):
        ask({}, timestamp_granularities=["word"])
