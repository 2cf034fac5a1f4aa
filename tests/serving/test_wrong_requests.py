"""What newcomers get wrong is told in a sentence, and nothing that they ask for is left out in silence."""

import asyncio
import errno
import json
import socket
import ssl
from dataclasses import replace

import httpx
import pytest
import torch

from vita_audio_pl.errors import UserError, errno_of, is_machine_fault
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.serving import links, process
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.realtime import Session
from vita_audio_pl.serving.requests import Decoding
from vita_audio_pl.serving.settings import ServeConfig
from vita_audio_pl.serving.sound_files import _wav_header

ASK = [{"role": "user", "content": "the cow"}]


def asked(service, path, method="POST", **request):
    async def ask():
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("path", "request_", "sentence"),
    [
        (
            "chat/completions",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            "the body is not JSON",
        ),
        ("chat/completions", {"content": b"{}"}, "the body must be a JSON object"),
        ("chat/completions", {"json": {}}, "messages is missing"),
        ("chat/completions", {"json": {"messages": ASK, "decoding": {"steps": 1}}}, "there is no field decoding.steps"),
        (
            "chat/completions",
            {"json": {"messages": ASK, "decoding": {"mode": {}}}},
            "decoding.mode: it should be a valid",
        ),
        (
            "chat/completions",
            {"json": {"messages": ASK, "stop": ["."], "logprobs": True}},
            "stop and logprobs cannot be",
        ),
        (
            "chat/completions",
            {"json": {"messages": ASK, "response_format": {"type": "json_object"}}},
            "response_format",
        ),
        (
            "chat/completions",
            {"json": {"messages": ASK, "temprature": 0.5, "user": "me", "store": False}},
            "temprature cannot be followed by this server; leave it out; did you mean 'temperature'?",
        ),
        ("chat/completions", {"json": {"messages": ASK, "prediction": {"type": "content"}}}, "prediction cannot be"),
        ("chat/completions", {"json": {"messages": ASK, "tool_choice": "required"}}, "tool_choice cannot be followed"),
        ("chat/completions", {"json": {"messages": ASK, "function_call": {"name": "f"}}}, "function_call cannot be"),
        ("audio/speech", {"json": {"input": "a", "instructions": "whisper"}}, "instructions cannot be followed"),
        ("audio/speech", {"json": {"input": " \n\0"}}, "input is empty"),
        (
            "audio/transcriptions",
            {
                "files": {"file": ("a.wav", _wav_header(16_000, 32_000) + bytes(32_000))},
                "data": {"decoding": '[["mode", "boost"]]'},
            },
            "decoding is not a JSON object",
        ),
        ("audio/speech", {"json": {"input": "a", "decoding": {"max_new_tokens": 1}}}, "the model spoke no word"),
        (
            "audio/transcriptions",
            {"files": {"file": ("a.wav", _wav_header(16_000, 160) + bytes(160))}},
            "has 5 ms of audio",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(service, path, request_, sentence):
    answer = asked(service, f"/v1/{path}", **request_)
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]


def test_a_balancer_may_ask_for_the_head_of_health(service):
    assert asked(service, "/health", "HEAD").status_code == 200


def test_another_method_is_told_the_right_one(service):
    assert "takes POST" in asked(service, "/v1/audio/speech", "GET").json()["error"]["message"]
    assert asked(service, "/", "HEAD").status_code == 200


def test_what_chat_asks_of_sampling_is_done(service, answered):
    wanted = {"temperature": 0.5, "top_p": 0.25, "seed": 7}
    body = {
        "messages": ASK,
        **wanted,
        "stop": None,
        "logprobs": False,
        "decoding": {"top_p": 0.75, "max_new_tokens": 2},
    }
    assert asked(service, "/v1/chat/completions", json=body).status_code == 200
    sampling = answered[0][0].options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.75, 7)


def test_a_session_keeps_what_an_update_does_not_name_and_says_what_it_has(service):
    told = []

    async def talk():
        session = Session(service, lambda text, _: told.append(json.loads(text)), lambda _: None)

        async def update(**settings):
            await session.take(json.dumps({"type": "session.update", "session": {"type": "realtime", **settings}}))
            return told[-1]["session"]

        first = await update(instructions="be kind", audio={"input": {"transcription": {"model": "own"}}})
        assert first["audio"]["input"]["transcription"]
        assert (await update(audio={"output": {"voice": "alloy"}}))["instructions"] == "be kind"
        assert len(session.conversation.items) == 1
        assert (await update(instructions=""))["instructions"] == "" and not session.conversation.items
        await session.take('{"type": "session.update", "session": {"instructions": "a"}}')
        assert told[-1]["error"]["message"] == "session.type is missing"
        await session.take('{"type": "session.update", "session": {"type": "realtime", "output_modalites": ["text"]}}')
        assert told[-1]["error"]["message"].endswith("; did you mean 'session.output_modalities'?")
        for settings in (
            {"turn_detection": None},
            {"truncation": "disabled"},
            {"tool_choice": "required"},
            {"prompt": {"id": "p"}},
            {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}},
        ):
            await session.take(json.dumps({"type": "session.update", "session": {"type": "realtime", **settings}}))
            assert "cannot be followed" in told[-1]["error"]["message"], settings
        described = first | {"audio": {**first["audio"], "output": {"voice": "alloy"}}}
        assert (await update(**described))["instructions"] == "be kind"  # what was told can be sent back
        assert not (await update(instructions=""))["instructions"]
        spoken = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the cow"}]}
        await session.take(json.dumps({"type": "conversation.item.create", "item": spoken}))
        await session.take('{"type": "response.create", "response": {"output_modalities": ["audio", "text"]}}')
        await session.take('{"type": "response.cancel", "response_id": "resp_other"}')
        assert told[-1]["error"]["message"] == "that response is not in progress, but another one is"
        while told[-1]["type"] != "response.done":
            await asyncio.sleep(0.01)
        [item] = [event["item"]["id"] for event in told if event["type"] == "response.output_item.done"]
        assert told[-1]["response"]["output_modalities"] == ["audio"]
        cut = {"item_id": item, "content_index": 0, "audio_end_ms": 10**400}
        await session.take(json.dumps({"type": "conversation.item.truncate", **cut}))
        assert told[-1]["type"] == "conversation.item.truncated"
        await session.close()

    asyncio.run(talk())


def test_an_address_or_files_that_cannot_be_used_are_told_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "load_service", lambda config: pytest.fail("the model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="in use.*another port"):
            process.run(ServeConfig(model="m", port=taken.getsockname()[1]))
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("none")
        with pytest.raises(UserError, match="give a PEM certificate and its own key"):
            process.run(
                ServeConfig(model="m", tls_certificate=str(tmp_path / "certificate"), tls_key=str(tmp_path / "key"))
            )
    mismatch = ssl.SSLError(errno.ESTALE, "key values mismatch")  # OpenSSL's numbers are not the operating system's
    assert errno_of(mismatch) is None and not is_machine_fault(mismatch)


def test_an_address_that_is_empty_or_taken_meanwhile_is_refused_in_one_sentence(monkeypatch, capfd):
    """Two servers that start at once find a port free, and one takes it while the other's model is loaded."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(process, "load_service", lambda config: taken.listen())
        with pytest.raises(UserError, match=rf":{port} cannot be used \(.* in use\); give another port"):
            process.run(ServeConfig(model="m", port=port))
    with pytest.raises(UserError, match="host is empty"):
        process.run(ServeConfig(model="m", host=""))
    assert not capfd.readouterr().err


def test_weights_are_served_though_their_file_is_written_anew(random_model, codec, smoke_world, tmp_path, monkeypatch):
    loaded = random_model(codec, smoke_world / "codec")
    weight, file = loaded.model.lm_head.weight, tmp_path / "weights"
    kept = weight.detach().clone()
    file.write_bytes(kept.numpy().tobytes())
    weight.data = torch.from_file(str(file), shared=True, size=weight.numel()).view_as(weight)
    monkeypatch.setattr(links, "load_speech_model", lambda *_, **__: loaded)
    links.load_served(ServeConfig(model="m", threads=torch.get_num_threads()))
    with file.open("r+b") as other:
        other.write(bytes(kept.numel() * kept.element_size()))
    assert torch.equal(weight, kept)


def test_what_needs_heads_is_refused_by_a_server_of_a_model_without(loaded, monkeypatch):
    backbone = SpeechLM(SpeechLMConfig(loaded.model.config.backbone, 0))
    bare = replace(loaded, model=backbone)
    for decoding in (Decoding(mode="boost"), Decoding(verify="greedy")):
        with pytest.raises(UserError, match="heads draft there, and this model has none"):
            decoding.options(bare, None, ServeConfig(model="m"), 8, True)
    assert not Decoding().options(bare, None, ServeConfig(model="m"), 8, True).pattern.uses_heads
    monkeypatch.setattr(links, "load_speech_model", lambda *of, **settings: bare)
    with pytest.raises(UserError, match="verify=greedy: heads draft there"):
        links.load_served(ServeConfig(model="m", verify="greedy"))
