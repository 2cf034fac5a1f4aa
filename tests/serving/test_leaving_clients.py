"""Clients that leave, at any moment and in any way: nothing of them stays, and nobody waits for them."""

import asyncio
import base64
import gc
import json
import threading
import weakref
from dataclasses import replace

import pytest
import websockets

from tests.patience import PATIENCE, wait_until
from tests.serving.loop_calls import in_loop, slots_of
from tests.serving.test_manners import ASK, _realtime, _say
from vita_audio_pl.serving import app
from vita_audio_pl.serving import service as service_module
from vita_audio_pl.serving.app import create_app
from vita_audio_pl.serving.realtime import Session
from vita_audio_pl.serving.requests import Decoding


async def chat(service, gone, **body):
    """Ask for a chat of which nobody reads the answer; its client is there until `gone()` returns."""
    messages = iter([{"type": "http.request", "body": json.dumps({"messages": [{"role": "user", "content": "the cow"}], **body}).encode()}])  # fmt: skip
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b"", "http_version": "1.1"}  # fmt: skip

    async def receive():
        for message in messages:
            return message
        await gone()
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    await create_app(service)(scope, receive, send)


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


def test_a_client_that_leaves_while_it_waits_for_the_whole_ends_its_answer(service, answered):
    goes_on = threading.Event()
    service.engine.link.send(lambda loop: goes_on.wait())  # no token is written before the client has left

    async def ask():
        request = asyncio.create_task(chat(service, lambda: asyncio.sleep(0)))
        while service.engine.asked == 0:
            await asyncio.sleep(0.01)
        goes_on.set()
        await request

    asyncio.run(ask())
    assert service.engine.asked == 0 and len(answered) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue_frees_its_place(make_service, stream):
    service = make_service(slots=1, max_new_tokens=3000)

    async def ask():
        first = service.engine.conversation()
        first.add("user", "the cow")
        endless = service.options(Decoding(), spoken=True)
        answer = service.ask(first, replace(endless, stop_ids=frozenset()))
        while not service.engine.running:
            await asyncio.sleep(0.01)
        gone = asyncio.Event()
        request = asyncio.create_task(chat(service, gone.wait, stream=stream))
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
        wait_until(lambda: detectors[0]() is None, "the thread that has heard the sound to let go of it")
        assert held._turns.detection
    finally:
        gc.enable()
