"""Who may come in, how many, and how they leave; nothing that one client does holds up another."""

import asyncio
import base64
import gc
import json
import os
import threading
import weakref
from dataclasses import replace

import httpx
import numpy as np
import pytest
import websockets
from openai import OpenAI, RateLimitError

from tests.patience import PATIENCE, wait_until
from tests.serving.loop_calls import in_loop, slots_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, costs
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.serving import app
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


def test_clients_that_vanish_and_clients_that_do_not_read_hold_up_nobody(run_server, make_service):
    service = make_service(limits={"sessions_a_client": 3, "unread_bytes": 2**20}, max_new_tokens=400)
    server = run_server(service)

    async def check():
        gone = await _realtime(server.url)
        lazy = await _realtime(server.url)
        for socket in (gone, lazy):
            await _say(socket, **ASK)
            await _say(socket, type="response.create")
        while (json.loads(await gone.recv()))["type"] != "response.created":
            pass
        third = await _realtime(server.url)
        fourth = await _realtime(server.url)
        messages = [json.loads(await fourth.recv())]
        assert messages[0]["error"]["code"] == "rate_limit_exceeded" and "try again" in messages[0]["error"]["message"]
        gone.transport.abort()  # without a word
        await _say(third, **ASK)
        await _say(third, type="response.create")
        while (event := json.loads(await third.recv()))["type"] != "response.done":
            pass
        assert event["response"]["status"] in ("completed", "incomplete")
        await third.close()
        await lazy.close()

    asyncio.run(check())
    wait_until(lambda: not service.sessions and service.engine.asked == 0, "all slots", 120)
    assert slots_of(service) == (2, 0)
    server.stop()


def test_a_client_that_never_reads_again_is_cut_off(run_server, make_service, monkeypatch):
    monkeypatch.setattr(app, "_FAREWELL", 0.2)
    service = make_service(limits={"unread_bytes": 2**20})
    server = run_server(service)

    async def check():
        socket = await _realtime(server.url)
        long = {**ASK["item"], "id": "z" * 200_000}
        await _say(socket, type="conversation.item.create", item=long)
        socket.transport.pause_reading()
        while service.sessions:
            try:
                await asyncio.wait_for(_say(socket, type="conversation.item.retrieve", item_id=long["id"]), 0.2)
            except (TimeoutError, websockets.ConnectionClosed):
                await asyncio.sleep(0.05)
        socket.transport.abort()

    asyncio.run(asyncio.wait_for(check(), PATIENCE))
    wait_until(lambda: not server.server.server_state.connections, "the connection to be gone")
    server.stop()


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


def test_answers_leave_nothing_behind(service, monkeypatch):
    """Not even for the garbage collector: sound is large, and a server runs for months."""
    answers = []
    ask = service_module.Service.ask

    def noted(*args, **options):
        answer = ask(*args, **options)
        answers.append(weakref.ref(answer))
        return answer

    monkeypatch.setattr(service_module.Service, "ask", noted)

    async def talk(leaves):
        told = []
        session = Session(service, lambda text, _: told.append(text), lambda _: None)
        await session.take(json.dumps(ASK))
        await session.take('{"type": "response.create"}')
        while not leaves and not any('"response.done"' in text for text in told):
            await asyncio.sleep(0.01)
        await session.close()

    gc.collect()
    gc.disable()
    try:
        for leaves in (False, True, False):
            asyncio.run(talk(leaves))
        wait_until(lambda: service.engine.asked == 0 and not service.pool.waiting, "the last sound")
        in_loop(service)
        wait_until(lambda: not any(answer() for answer in answers), "the end of what was made for answers", 10)
    finally:
        gc.enable()


def test_an_answer_is_open_for_as_long_as_somebody_may_take_its_events(service):
    conversations = []

    async def ask():
        conversations.append(conversation := service.engine.conversation())
        conversation.add("user", "the cow")
        return service.ask(conversation, service.options(Decoding(), spoken=True, most=20))

    async def only_its_end():
        answer = await ask()
        assert service.busy
        await answer.finished()
        return service.busy

    async def dropped():
        await ask()  # nobody ever asks for its events, nor for its end
        while service.busy:
            await asyncio.sleep(0.01)

    assert asyncio.run(only_its_end()) is False
    asyncio.run(dropped())
    for conversation in conversations:
        service.engine.close(conversation)


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


def test_a_client_that_leaves_while_it_waits_for_the_whole_ends_its_answer(service, answered):
    goes_on = threading.Event()
    service.engine.link.send(lambda loop: goes_on.wait())  # no token is written before the client has left
    body = json.dumps({"messages": [{"role": "user", "content": "the cow"}]}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b"", "http_version": "1.1"}  # fmt: skip

    async def ask():
        messages = iter([{"type": "http.request", "body": body}])

        async def receive():
            return next(messages, {"type": "http.disconnect"})

        async def send(_):
            pass

        request = asyncio.create_task(create_app(service)(scope, receive, send))
        while service.engine.asked == 0:
            await asyncio.sleep(0.01)
        goes_on.set()
        await request

    asyncio.run(ask())
    assert service.engine.asked == 0 and len(answered) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue_frees_its_place(make_service, stream):
    service = make_service(slots=1, max_new_tokens=3000)
    body = json.dumps({"messages": [{"role": "user", "content": "the cow"}], "stream": stream}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b"", "http_version": "1.1"}  # fmt: skip

    async def ask():
        first = service.engine.conversation()
        first.add("user", "the cow")
        endless = service.options(Decoding(), spoken=True)
        answer = service.ask(first, replace(endless, stop_ids=frozenset()))
        while not service.engine.running:
            await asyncio.sleep(0.01)
        messages, gone = iter([{"type": "http.request", "body": body}]), asyncio.Event()

        async def receive():
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_):
            pass

        request = asyncio.create_task(create_app(service)(scope, receive, send))
        while service.engine.waiting == 0:
            await asyncio.sleep(0.01)
        gone.set()
        await request
        assert service.engine.running == 1 and service.engine.waiting == 0
        answer.cancel()
        await answer.finished()
        service.engine.close(first)

    asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    wait_until(lambda: not service.busy, "the last answer")
    assert slots_of(service) == (1, 0)
    service.close()


def test_a_session_that_has_heard_sound_leaves_no_detector_behind(service):
    detectors = []

    async def talk():
        session = Session(service, lambda *_: None, lambda _: None)
        await session.take(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(24_000)).decode()}))  # fmt: skip
        detectors.append(weakref.ref(session._turns._activity))
        await session.close()
        return session  # somebody may hold it for longer

    gc.disable()
    try:
        held = asyncio.run(talk())
        assert detectors[0]() is None and held._turns.detection
    finally:
        gc.enable()


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
