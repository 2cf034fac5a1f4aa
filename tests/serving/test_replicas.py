"""Two replicas behind one address, as a user starts them: sessions stay where they are, answers are known wherever they were given."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import websockets
from openai import BadRequestError, OpenAI

from tests.patience import PATIENCE, wait_until
from tests.serving.test_manners import ASK, _realtime, _say
from vita_audio_pl.serving.metrics import by_replica, text_of


@pytest.fixture
def start(tmp_path):
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    started = []

    def start(*settings):
        command = [sys.executable, "-m", "vita_audio_pl.serve", "replicas=2", "port=0", *settings]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def values(url, name):
    """What each replica says of one count."""
    text = httpx.get(url.replace("/v1", "/metrics"), timeout=None).text
    found = re.findall(rf'^vita_audio_pl_{name}{{[^}}]*replica="(\w+)"}} ([\d.]+)$', text, re.MULTILINE)
    totals = {}
    for replica, value in found:
        totals[replica] = totals.get(replica, 0) + float(value)
    return totals


async def answered(socket):
    """An answer to a question, to its end."""
    await _say(socket, **ASK)
    await _say(socket, type="response.create")
    while (event := json.loads(await socket.recv()))["type"] != "response.done":
        assert event["type"] != "error", event
    return event["response"]


@pytest.mark.slow
def test_two_replicas_share_an_address_and_know_each_others_answers(start, model_folder, ended):
    server = start(f"model={model_folder}", "slots=2", "max_new_tokens=48", "limits.message_bytes=20000")
    line = server.stdout.readline()
    assert "2 replicas" in line, line + server.stderr.read()
    processes = psutil.Process(server.pid).children(recursive=True)
    url = re.search(r"http://localhost:\d+", line)[0].replace("localhost", "127.0.0.1") + "/v1"
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE)
    ask = {"model": "m", "modalities": ["text", "audio"], "audio": {"voice": "v", "format": "wav"}}
    first = client.chat.completions.create(messages=[{"role": "user", "content": "the cow"}], **ask).choices[0].message
    messages = [
        {"role": "user", "content": "the cow"},
        {"role": "assistant", "audio": {"id": first.audio.id}},
        {"role": "user", "content": "where"},
    ]

    def goes_on(_):
        return client.chat.completions.create(messages=messages, **ask).choices[0].message.audio.id

    before = values(url, "answers_total")
    assert len(before) == 2
    with ThreadPoolExecutor(4) as pool:
        wait_until(  # the one that did not give the first answer goes on from it, too
            lambda: (
                list(pool.map(goes_on, range(4)))
                and all(count > before[name] for name, count in values(url, "answers_total").items())
            ),
            "answers of both replicas",
        )
    with pytest.raises(BadRequestError, match="not known any more"):
        unknown = [{"role": "assistant", "audio": {"id": "audio_0"}}, {"role": "user", "content": "where"}]
        client.chat.completions.create(messages=unknown, **ask)

    async def talk():
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(url.replace("http", "ws") + "/realtime", origin="https://elsewhere.org")
        large = await _realtime(url)
        await large.send("x" * 30_000)
        with pytest.raises(websockets.ConnectionClosed) as refused:
            while True:
                await large.recv()
        assert refused.value.rcvd.code == 1009
        sockets = [await _realtime(url)]
        while not all(values(url, "sessions").values()):
            sockets.append(await _realtime(url))
        turns = [[await answered(socket) for _ in range(2)] for socket in sockets[-2:]]
        for first, second in turns:  # the history is where the session is
            assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        await _say(sockets[0], **ASK)
        await _say(sockets[0], type="response.create")
        while (event := json.loads(await sockets[0].recv()))["type"] != "response.created":
            assert event["type"] != "error", event
        server.send_signal(signal.SIGTERM)
        done = []
        with pytest.raises(websockets.ConnectionClosed) as closed:
            while True:
                event = json.loads(await sockets[0].recv())
                done += [event["response"]["status"]] if event["type"] == "response.done" else []
        assert done in (["completed"], ["incomplete"]) and closed.value.rcvd.code == 1012

    asyncio.run(talk())
    _, errors = server.communicate(timeout=PATIENCE)
    assert server.returncode == 0 and "Traceback" not in errors, errors
    assert ended(processes)


def test_counts_of_replicas_are_told_apart():
    one = [("sessions", "gauge", "Open.", [("", 1)]), ("answers", "counter", "All.", [('{outcome="failed"}', 2)])]
    text = text_of(by_replica({"b": one, "a": one}))
    assert text.count("# TYPE vita_audio_pl_sessions gauge") == 1
    assert 'vita_audio_pl_sessions{replica="a"} 1\nvita_audio_pl_sessions{replica="b"} 1\n' in text
    assert 'vita_audio_pl_answers{outcome="failed",replica="b"} 2' in text
