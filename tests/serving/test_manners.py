"""Who may come in, how many, and how they leave; nothing that one client does holds up another."""

import asyncio
import base64
import json
import os
import threading

import httpx
import numpy as np
import pytest
import websockets
from openai import OpenAI, RateLimitError

from tests.patience import wait_until
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, costs
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.serving import service as service_module
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.gate import KEY_PROTOCOL, Gate
from vita_audio_pl.serving.metrics import text_of
from vita_audio_pl.serving.realtime import Session
from vita_audio_pl.serving.requests import Decoding
from vita_audio_pl.serving.settings import ServeConfig, api_keys

HOST = {"host": "localhost:8000"}


def asked(service, method="GET", path="/v1/models", **request):
    """What the application answers, in process."""

    async def ask():
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


@pytest.fixture
def keyed(service, monkeypatch):
    monkeypatch.setattr(service, "keys", frozenset(["one", "two"]))
    return service


def test_keys_are_asked_for_everywhere_but_on_the_page_and_health(keyed):
    assert asked(keyed).status_code == 401
    assert asked(keyed, headers={"authorization": "Bearer three"}).status_code == 401
    assert asked(keyed, headers={"authorization": "Bearer two"}).status_code == 200
    assert asked(keyed, headers={"authorization": "bearer  two"}).status_code == 200
    assert asked(keyed, "OPTIONS").status_code == 401 and asked(keyed, path="/openapi.json").status_code == 401
    assert asked(keyed, path="/health").json() == {"status": "ok"}
    page = asked(keyed, path="/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert asked(keyed, path="/metrics").status_code == 401


def test_keys_come_from_a_file_of_ones_own_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    config = ServeConfig(model="m", api_keys=str(file))
    with pytest.raises(UserError, match="cannot be read"):
        api_keys(config)
    file.write_bytes("\ufeffabc\r\n# mine\r\n  # mine, too\r\n\r\n".encode())  # as Windows writes it
    os.chmod(file, 0o644)
    with pytest.raises(UserError, match="chmod 600"):
        api_keys(config)
    os.chmod(file, 0o600)
    assert api_keys(config) == {"abc"}
    monkeypatch.setenv("VITA_AUDIO_PL_API_KEYS", "x, y")
    assert api_keys(ServeConfig(model="m")) == {"x", "y"}


def test_a_key_of_any_signs_is_shown_by_a_page_in_the_name_of_a_protocol(service):
    keyed = Gate(None, ["a+b/(c)="], [], loopback=False, most_bytes=1)
    assert keyed._shown({"sec-websocket-protocol": f"realtime, {KEY_PROTOCOL}a%2Bb%2F%28c%29%3D"}) == "a+b/(c)="
    assert keyed._shown({"sec-websocket-protocol": f"realtime, {KEY_PROTOCOL}a%2Bb"}) is None


def test_a_page_of_a_listed_origin_can_read_why_it_was_refused(keyed, monkeypatch):
    monkeypatch.setattr(keyed.config, "origins", ["https://friend.org"])
    friend = {"origin": "https://friend.org"}
    large = asked(keyed, "POST", headers={**friend, "authorization": "Bearer one", "content-length": "99999999999"})
    for refused, status in ((asked(keyed, headers=friend), 401), (large, 413)):
        assert refused.status_code == status and refused.headers["access-control-allow-origin"] == "https://friend.org"
    asks = {**friend, "access-control-request-method": "POST"}
    assert asked(keyed, "OPTIONS", headers=asks).status_code == 200
    stranger = asked(keyed, headers={"origin": "https://elsewhere.org"})
    assert stranger.status_code == 403 and "access-control-allow-origin" not in stranger.headers


def test_sessions_are_counted_by_the_key_however_it_is_written(run_server, make_service, monkeypatch):
    monkeypatch.setenv("VITA_AUDIO_PL_API_KEYS", "one,two")
    server = run_server(make_service(limits={"sessions_a_client": 1}))
    url = server.url.replace("http", "ws") + "/realtime"

    async def first(**how):
        socket = await websockets.connect(url, **how)
        return json.loads(await socket.recv())["type"]

    async def check():
        assert await first(additional_headers={"authorization": "Bearer one"}) == "session.created"
        for written in ("Bearer  one", "one", "bearer one", "Bearer one "):
            assert await first(additional_headers={"authorization": written}) == "error"
        for names in (["realtime", f"{KEY_PROTOCOL}one"], [f"{KEY_PROTOCOL}%6Fne", "realtime", "x"]):
            assert await first(subprotocols=names) == "error"
        assert await first(additional_headers={"authorization": "Bearer two"}) == "session.created"

    asyncio.run(check())
    server.stop()


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(service, monkeypatch):
    assert asked(service, headers={"origin": "https://elsewhere.org"}).status_code == 403
    assert asked(service, headers={"origin": "http://localhost:8000"}).status_code == 200
    assert asked(service, headers={"host": "rebound.org:8000"}).status_code == 403
    monkeypatch.setattr(service.config, "host", "0.0.0.0")  # all interfaces let nobody else in without a key, either
    assert asked(service, headers={"host": "rebound.org:8000"}).status_code == 403
    assert asked(service, path="/page/..%2Fserve.py").status_code == 404
    assert asked(service, path="/page/%2Fetc%2Fpasswd").status_code == 404


def test_what_is_too_large_is_refused_before_it_is_read(service, monkeypatch):
    monkeypatch.setattr(service.config.limits, "message_bytes", 5000)
    body = {"model": "m", "input": "a" * 6000, "voice": "v"}
    assert asked(service, "POST", "/v1/audio/speech", json=body).status_code == 413

    async def drip():
        for _ in range(100):
            yield b"x" * 100

    headers = {"content-type": "application/json"}
    assert asked(service, "POST", "/v1/audio/speech", content=drip(), headers=headers).status_code == 413
    monkeypatch.setattr(service.config.limits, "audio_seconds", 0.1)
    wave = np.zeros(16_000, "<i2").tobytes()
    file = {"file": ("a.wav", _wav(wave))}
    refused = asked(service, "POST", "/v1/audio/transcriptions", files=file, data={"model": "m"})
    assert refused.status_code in (400, 413)


def _wav(samples):
    from vita_audio_pl.serving.sound_files import _wav_header

    return _wav_header(16_000, len(samples)) + samples


def test_a_full_queue_says_when_to_come_again(run_server, make_service):
    service = make_service(limits={"queue": 0}, slots=1)
    server = run_server(service)
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    goes_on = threading.Event()
    service.engine.link.send(lambda loop: goes_on.wait())  # the one slot stays taken for as long as the test wants
    conversation = service.engine.conversation()
    conversation.add("user", "the cow")
    ended = []
    options = service.options(Decoding(), spoken=False, most=20)
    service.engine.answer(conversation, options, lambda *_: None, lambda *end: ended.append(end))
    with pytest.raises(RateLimitError, match=r"try again in \d+ s") as refused:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}])
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert 'answers_total{outcome="refused"} 1' in text_of(service.metrics.families())
    goes_on.set()
    wait_until(lambda: ended and not service.busy, "the slot")  # also of the answer that was refused nothing is left
    assert client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}]).usage
    server.stop()


async def _realtime(url):
    return await websockets.connect(url.replace("http", "ws") + "/realtime?model=m", max_size=None)


async def _say(socket, **event):
    await socket.send(json.dumps(event))


ASK = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the cow"}]}}  # fmt: skip


def test_counters_keep_their_digits():
    [line] = [line for line in text_of([("n", "counter", "N.", [("", 1234567.0)])]).splitlines() if line[0] != "#"]
    assert line.endswith(" 1234567")


def test_a_server_that_is_told_to_end_lets_answers_end_first(run_server, make_service):
    service = make_service(max_new_tokens=300)
    server = run_server(service)

    async def check():
        socket = await _realtime(server.url)
        await _say(socket, **ASK)
        await _say(socket, type="response.create")
        while (json.loads(await socket.recv()))["type"] != "response.created":
            pass
        server.server.should_exit = True
        events = []
        try:
            while True:
                events.append(json.loads(await socket.recv()))
        except websockets.ConnectionClosed:
            pass
        return events

    events = asyncio.run(check())
    done = [event for event in events if event["type"] == "response.done"]
    assert [event["response"]["status"] for event in done] in (["completed"], ["incomplete"])
    server.thread.join()


def test_a_silent_session_is_closed_and_too_long_a_turn_is_cleared(run_server, make_service):
    service = make_service(limits={"audio_seconds": 1.0})
    server = run_server(service)

    async def talk_long():
        socket = await _realtime(server.url)
        await _say(socket, type="session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})  # fmt: skip
        for _ in range(3):
            await _say(socket, type="input_audio_buffer.append", audio=base64.b64encode(bytes(24_000)).decode())
        await _say(socket, type="input_audio_buffer.clear")
        events = []
        while not events or events[-1]["type"] != "input_audio_buffer.cleared":
            events.append(json.loads(await socket.recv()))
        await socket.close()
        return [event["error"]["message"] for event in events if event["type"] == "error"]

    async def say_nothing():
        socket = await _realtime(server.url)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            while True:
                await socket.recv()
        return closed.value.rcvd.reason

    [error] = asyncio.run(talk_long())
    assert "longer than the 1 s" in error
    service.config.limits.idle_seconds = 0.2
    assert asyncio.run(say_nothing()) == "nothing came for 0.2 s"
    server.stop()


def test_a_round_that_fails_ends_its_answers_and_not_the_server(service, monkeypatch):
    told = []

    async def ask():
        session = Session(service, lambda text, _: told.append(json.loads(text)), lambda _: None)
        await session.take(json.dumps(ASK))
        for fault in (True, False):
            if fault:
                monkeypatch.setattr(service.engine.link.loop.decoder, "step", lambda: 1 / 0)
            else:
                monkeypatch.undo()
            await session.take('{"type": "response.create"}')
            while told[-1]["type"] != "response.done":
                await asyncio.sleep(0.01)
        await session.close()

    asyncio.run(ask())
    failed, served = [event["response"] for event in told if event["type"] == "response.done"]
    assert failed["status"] == "failed" and "division" not in json.dumps(failed)
    assert served["status"] in ("completed", "incomplete")
    assert asked(service, path="/health").status_code == 200 and service.engine.asked == 0


def test_a_fault_of_ours_shows_no_traceback(service, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(service_module.Service, "ask", broken)
    app = create_app(service)

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/audio/speech", json={"input": "a", "voice": "v"})

    answer = asyncio.run(ask())
    assert answer.status_code == 500 and "secret" not in answer.text and "log" in answer.json()["error"]["message"]


def test_nothing_is_measured_during_the_first_verified_or_constrained_answer(
    make_service, random_model, codec, smoke_world, monkeypatch
):
    measured = []

    def noted(name, found):
        return lambda *given: measured.append(name) or found(*given)

    monkeypatch.setattr(costs, "pass_costs", noted("costs", lambda runtime: PassCosts(1, 0, 0, 0)))
    monkeypatch.setattr(Runtime, "vocabulary_slice", noted("slice", Runtime.vocabulary_slice))
    service = make_service(of=(random_model(codec, smoke_world / "codec"), codec))
    assert measured == ["costs", "slice"]
    decoding = {"verify": "greedy", "constrain": True}
    request = {"messages": [{"role": "user", "content": "the cow"}], "decoding": decoding}
    assert asked(service, "POST", "/v1/chat/completions", json=request).status_code == 200
    service.close()
    assert len(measured) == 2


def test_a_server_starts_with_recorded_kernels_that_lack_costs_and_parts_of_the_vocabulary(
    make_service, random_model, codec, smoke_world, monkeypatch
):
    def lack(*given):
        raise UserError("it was recorded with another model")

    monkeypatch.setattr(costs, "pass_costs", lack)
    monkeypatch.setattr(Runtime, "vocabulary_slice", lack)
    service = make_service(of=(random_model(codec, smoke_world / "codec"), codec))
    assert asked(service, path="/health").status_code == 200
    service.close()
