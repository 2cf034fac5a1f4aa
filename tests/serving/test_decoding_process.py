"""Decoding in a process of its own: what is sent to it, what comes back, and its end."""

import asyncio
import json
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
import websockets

from tests.patience import wait_until
from tests.serving.test_manners import ASK, _realtime, _say
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving import decoding_loop, links
from vita_audio_pl.serving.decoding_loop import DecodingLoop, sendable
from vita_audio_pl.serving.engine import Lost
from vita_audio_pl.serving.links import ProcessLink, _sendable
from vita_audio_pl.serving.requests import Decoding
from vita_audio_pl.serving.settings import ServeConfig
from vita_audio_pl.text.turns import AudioFrames


def test_a_process_that_is_killed_ends_its_answers_and_then_the_server(run_server, load):
    server = run_server(load(max_new_tokens=3000))
    link = server.service.engine.link

    async def check():
        socket = await _realtime(server.url)
        await _say(socket, **ASK)
        await _say(socket, type="response.create")
        events = []
        try:
            while True:
                events.append(json.loads(await socket.recv()))
                if events[-1]["type"] == "response.created":
                    os.kill(link.pid, signal.SIGKILL)
        except websockets.ConnectionClosed as closed:
            return events, closed.rcvd.reason

    events, reason = asyncio.run(check())
    [done] = [event["response"] for event in events if event["type"] == "response.done"]
    assert done["status"] == "failed" and "has lost the process" in done["status_details"]["error"]["message"]
    assert reason == "the server is ending" and not server.service.healthy
    server.thread.join()
    assert server.server.lost.startswith("killed")


def test_a_model_that_cannot_be_loaded_is_refused_with_the_sentence_of_its_process(tmp_path):
    with pytest.raises(UserError, match="nowhere") as refused:
        ProcessLink(ServeConfig(model=str(tmp_path / "nowhere")))
    assert "Traceback" not in str(refused.value)


def test_errors_are_sent_whatever_they_hold():
    class Held(Exception):
        def __init__(self, first, second):
            super().__init__(first)
            self.holds = lambda: second

    assert type(_sendable(UserError("a sentence"))) is UserError
    assert type(_sendable(MemoryError("much"))) is MemoryError
    assert "Held: one" in str(_sendable(Held("one", "two")))


def test_features_of_recordings_are_sent_once_and_known_again(service):
    """The loop finds what a recording's encoder states were made of by the object."""
    history = service.engine.conversation()
    loop = DecodingLoop(None, lambda updates: None)
    options = sendable(service.options(Decoding(), spoken=False, most=8))

    def asked():
        """Which recordings were sent, and those that the loop then has."""
        clips = pickle.loads(pickle.dumps(history.sendable_clips()))
        loop.answer(0, history.number, [1], clips, options, None)
        return [features is not None for _, features in clips], loop._waiting.pop().clips

    def add(level):
        history.items.append(history.chat_format.input_turn("user", AudioFrames(np.full((3, 560), level, np.float32))))

    add(1)
    sent, first = asked()
    assert sent == [True] and first[0].unique().tolist() == [1]
    add(2)
    sent, both = asked()
    assert sent == [False, True] and both[0] is first[0] and both[1].unique().tolist() == [2]
    gone = history.items.pop(0)
    sent, second = asked()
    assert sent == [False] and second[0] is both[1]
    history.items.append(gone)  # the loop has let go of it
    sent, swapped = asked()
    assert sent == [False, True] and [clip.unique().item() for clip in swapped] == [2, 1]
    history.items.append(gone)  # said twice
    sent, twice = asked()
    assert sent == [False] * 3 and twice[1] is twice[2] is swapped[1]


def test_answers_that_ran_together_begin_together_and_a_lone_one_at_once(make_service, monkeypatch):
    monkeypatch.setattr(decoding_loop, "_GATHER", 600.0)
    service = make_service()
    begun, ended = [], []

    def ask():
        conversation = service.engine.conversation()
        conversation.add("user", "the cow")
        options = service.options(Decoding(), spoken=False, most=5)
        service.engine.answer(conversation, options, lambda *_: begun.append(1), lambda *_: ended.append(1))

    goes_on = threading.Event()
    service.engine.link.send(lambda loop: goes_on.wait())
    ask()
    ask()
    goes_on.set()
    wait_until(lambda: len(ended) == 2, "both")
    begun.clear()
    ask()
    time.sleep(0.3)
    assert not begun
    ask()
    wait_until(lambda: len(ended) == 4, "both again")
    monkeypatch.setattr(decoding_loop, "_GATHER", 0.0)
    ask()
    wait_until(lambda: len(ended) == 5, "a lone one, which waits no longer")
    monkeypatch.setattr(decoding_loop, "_GATHER", 600.0)
    ask()
    wait_until(lambda: len(ended) == 6, "one after a lone one")
    service.close()


def test_a_process_that_does_not_answer_is_ended_and_the_server_with_it(run_server, load, monkeypatch):
    monkeypatch.setattr(links, "_SPELL", 0.3)
    server = run_server(load())
    time.sleep(4 * links._SPELL * links._SPELLS)  # it has nothing to tell, and is there
    assert server.service.healthy
    os.kill(server.service.engine.link.pid, signal.SIGSTOP)
    server.thread.join(60)
    assert server.server.lost.startswith("it did not answer for")
    service = server.service
    conversation = service.engine.conversation()
    conversation.add("user", "the cow")
    with pytest.raises(Lost):
        options = service.options(Decoding(), spoken=False, most=8)
        service.engine.answer(conversation, options, lambda *_: None, lambda *_: None)
