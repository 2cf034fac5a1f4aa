"""Loads a server and says what its clients heard: `python benchmarks/serving.py model=DIR`.

It starts `python -m vita_audio_pl.serve` as a process of its own and talks to it over WebSocket on loopback, in writing, so that no
encoder's time is in the figures:

- one client against a direct call: seconds to the first chunk of sound, and to the first sample that can be heard, since
  answers may begin with silence;
- eight clients at once against one, by turns, since a shared machine's speed changes by the minute: both at p50 and p90, gaps
  in playback, and speech a second while all of them are at it; each opens a session for every answer;
- CPU time that server and clients take for a second of speech, one client and eight: they share the machine;
- first audible sound of a conversation's third turn against its first, of questions that are answered aloud in all three turns;
- clients that come, interrupt and vanish at random: memory before and after, slots that are free, and every answer that ran to
  its end against the one that a lone client got.

`--layers N` serves the model with layers added that change nothing, so that a larger model gives the same answers.
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import websockets
from arguments import count, mistakes_told

from vita_audio_pl.benchmarking.decoding import AUDIBLE

SENTENCES = (
    "the teacher has three tickets",
    "the girl sees the big yellow cow",
    "the teacher has four tickets",
    "the big cow sees the girl",
)
RATE = 24_000
STARTING = 0.5
"""Seconds of a turn whose speech is not counted, while the first answers begin."""


class Heard:
    """What a client heard of one answer: when sound came, how much, its text and its codes' writers."""

    def __init__(self) -> None:
        self.asked = time.perf_counter()
        self.arrivals: list[tuple[float, float]] = []  # seconds since it was asked, seconds of sound
        self.audible = float("nan")  # seconds until a chunk with an audible sample came
        self.text = ""
        self.seconds = 0.0
        self.status = ""

    @property
    def first(self) -> float:
        return self.arrivals[0][0] if self.arrivals else float("nan")

    @property
    def speech(self) -> float:
        return sum(seconds for _, seconds in self.arrivals)

    @property
    def gap(self) -> float:
        """Longest silence of a player that begins with the first sound."""
        end, gap = self.first, 0.0
        for at, seconds in self.arrivals:
            gap = max(gap, at - end)
            end = max(end, at) + seconds
        return gap


def audible(wave: np.ndarray) -> bool:
    """Whether a chunk `(samples,)` in [-1, 1] can be heard, as `benchmark what=decoding` counts it."""
    return wave.size > 0 and float(np.abs(wave).max()) >= AUDIBLE


class Client:
    """One session."""

    def __init__(self, socket: Any):
        self.socket = socket

    async def send(self, **event: Any) -> None:
        await self.socket.send(json.dumps(event))

    async def ask(self, text: str, events: int | None = None) -> Heard:
        """Asks and listens to the end, or to so many events."""
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": f"Convert the text to speech.\n{text}"}],
        }
        await self.send(type="conversation.item.create", item=item)
        heard = Heard()
        await self.send(type="response.create")
        while events is None or events > 0:
            event = json.loads(await self.socket.recv())
            events = None if events is None else events - 1
            if event["type"] == "response.output_audio.delta":
                wave, now = np.frombuffer(base64.b64decode(event["delta"]), "<i2"), time.perf_counter() - heard.asked
                heard.arrivals.append((now, wave.size / RATE))
                if np.isnan(heard.audible) and audible(wave / 2**15):
                    heard.audible = now
            elif event["type"] == "response.output_audio_transcript.delta":
                heard.text += event["delta"]
            elif event["type"] == "error":
                raise RuntimeError(event["error"]["message"])
            elif event["type"] == "response.done":
                heard.status = event["response"]["status"]
                heard.seconds = time.perf_counter() - heard.asked
                break
        return heard


async def opened(port: int) -> Client:
    socket = await websockets.connect(f"ws://127.0.0.1:{port}/v1/realtime", max_size=None)
    client = Client(socket)
    await client.send(type="session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
    return client


def cpu_times(server: psutil.Process) -> np.ndarray:
    """CPU seconds so far: of the server, of its processes in the order of their start, and of this one, which is the clients'."""
    children = sorted(server.children(recursive=True), key=lambda child: (child.create_time(), child.pid))
    times = [process.cpu_times() for process in (server, *children)]
    return np.array([*(each.user + each.system for each in times), time.process_time()])


def memory_of(server: psutil.Process) -> int:
    """Bytes that the server and its processes hold."""
    return sum(int(process.memory_info().rss) for process in (server, *server.children(recursive=True)))


def deepened(model: Path, layers: int, folder: Path) -> Path:
    """A copy of a model folder with so many layers: the added ones put out zeros, so that the answers are the same."""
    from safetensors.torch import load_file, save_file

    from vita_audio_pl.storage.checksums import sum_of_folder, write_checksums

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("model.safetensors", "checksums.json"))
    config = json.loads((model / "config.json").read_text())
    own = config["num_hidden_layers"] - config["num_nextn_predict_layers"]
    weights: dict[str, Any] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        number = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        at = int(number[1]) if number else 0
        if number and at >= own:
            name = f"model.layers.{at + layers - own}.{number[2]}"
        weights[name] = weight
        for added in range(own, layers) if number and at == 0 else ():
            silent = number[2] in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            weights[f"model.layers.{added}.{number[2]}"] = weight.new_zeros(weight.shape) if silent else weight.clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config["num_hidden_layers"] += layers - own
    (folder / "config.json").write_text(json.dumps(config))
    write_checksums(folder, sum_of_folder(folder))
    return folder


def direct_call(model: str) -> Callable[[str], tuple[float, float]]:
    """A function that answers a sentence in this process and gives the seconds to its first chunk and first audible one."""
    import torch

    from vita_audio_pl.inference.answering import codec_of, open_session
    from vita_audio_pl.inference.loading import load_speech_model
    from vita_audio_pl.inference.options import GenerateConfig
    from vita_audio_pl.inference.streaming import AudioChunk, stream

    torch.set_num_threads(1)
    loaded = load_speech_model(model)
    codec = codec_of(loaded)

    def first_sound(text: str) -> tuple[float, float]:
        begun, first = time.perf_counter(), float("nan")
        with open_session(GenerateConfig(model=model, task="tts", text=text), loaded, codec) as session:
            for event in stream(session, loaded.tokenizer, loaded.vocabulary, codec):
                if isinstance(event, AudioChunk):
                    now = time.perf_counter() - begun
                    first = now if np.isnan(first) else first
                    if audible(event.wave):
                        return first, now
        return first, float("nan")

    return first_sound


async def first_sounds(port: int, repeats: int, direct: Callable[[str], tuple[float, float]]) -> np.ndarray:
    """Seconds by turns, `(repeats, 2, 2)`: of a direct call and of one client, to the first chunk and the first audible one."""
    seconds = []
    for number in range(repeats + 1):
        question = SENTENCES[number % len(SENTENCES)]
        client = await opened(port)
        called = direct(question)
        heard = await client.ask(question)
        seconds.append((called, (heard.first, heard.audible)))
        await client.socket.close()
    return np.array(seconds[1:])


async def many_clients(port: int, clients: int, seconds: float) -> tuple[list[Heard], float]:
    """What so many clients heard that ask again and again for so long, and the speech a second that they got in that time."""
    begun = time.perf_counter()
    end = begun + STARTING + seconds

    async def one(number: int) -> list[Heard]:
        heard = []
        while time.perf_counter() < end:
            client = await opened(port)
            heard.append(await client.ask(SENTENCES[(number + len(heard)) % len(SENTENCES)]))
            await client.socket.close()
        return heard

    heard = sum(await asyncio.gather(*map(one, range(clients))), [])
    arrived = [(h.asked + at, speech) for h in heard for at, speech in h.arrivals]
    return heard, sum(speech for at, speech in arrived if begun + STARTING <= at < end) / seconds


class Crowd:
    """Turns of so many clients."""

    def __init__(self, clients: int):
        self.clients = clients
        self.heard: list[Heard] = []
        self.speech: list[float] = []  # seconds a second, of each turn
        self.cpu: np.ndarray | float = 0.0

    def turn(self, port: int, seconds: float, server: psutil.Process) -> None:
        """They ask for so many seconds."""
        before = cpu_times(server)
        heard, speech = asyncio.run(many_clients(port, self.clients, seconds))
        self.cpu = self.cpu + cpu_times(server) - before
        self.heard += heard
        self.speech.append(speech)

    def told(self, one: "Crowd") -> str:
        """What they heard, against one client by turns."""
        waits = []
        for what, name in (("first", "first chunk"), ("audible", "first audible sound")):
            ones, ours = (np.nanquantile([getattr(h, what) for h in crowd.heard], (0.5, 0.9)) for crowd in (one, self))
            waits.append(
                f"{name} p50 {ours[0]:.3f} s, p90 {ours[1]:.3f} s ({ours[1] / ones[1]:.2f} times one's p90, "
                f"{ours[1] / ones[0]:.2f} times one's p50)"
            )
        times = np.array(self.speech) / one.speech
        server, *others, clients = 1000 * self.cpu / sum(h.speech for h in self.heard)
        processes = ", ".join(f"{other:.1f}" for other in others if other >= 0.05)
        return (
            f"clients {self.clients}: {'; '.join(waits)}; longest gap {max(h.gap for h in self.heard if h.arrivals):.3f} s; "
            f"{np.median(self.speech):.1f} s of speech a second, {np.median(times):.2f} times one's "
            f"({', '.join(f'{ratio:.2f}' for ratio in times)} by turns); CPU for a second of speech: server {server:.1f} ms, "
            f"its processes {processes or 0} ms, clients {clients:.1f} ms"
        )


async def turns(port: int, repeats: int) -> tuple[float, float] | None:
    """Median first audible sound of the first and of the third turn; None if the model is silent in one of every order's turns."""

    async def asked(questions: tuple[str, ...]) -> list[float]:
        client = await opened(port)
        heard = [await client.ask(question) for question in questions]
        await client.socket.close()
        return [h.audible for h in heard]

    for questions in itertools.permutations(SENTENCES, 3):
        if not np.isnan(await asked(questions)).any():
            firsts = np.median([await asked(questions) for _ in range(repeats)], axis=0)
            return float(firsts[0]), float(firsts[2])
    return None


async def vanishing(port: int, clients: int, seconds: float, expected: dict[str, str]) -> dict[str, int]:
    """Clients that come, ask, interrupt and leave without a word; what came of them."""
    counts = {"sessions": 0, "whole": 0, "wrong": 0, "interrupted": 0, "vanished": 0, "refused": 0}
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end:
            counts["sessions"] += 1
            try:
                client = await opened(port)
                question = draw.choice(SENTENCES)
                match draw.choice(["whole", "interrupted", "vanished"]):
                    case "whole":
                        heard = await client.ask(question)
                        counts["whole"] += 1
                        counts["wrong"] += heard.text != expected[question]
                    case "interrupted":
                        await client.ask(question, events=draw.randrange(3, 15))
                        await client.send(type="response.cancel")
                        await client.ask(question, events=draw.randrange(3, 15))
                        counts["interrupted"] += 1
                    case "vanished":
                        await client.ask(question, events=draw.randrange(1, 12))
                        counts["vanished"] += 1
                        client.socket.transport.abort()
                        continue
                await client.socket.close()
            except (RuntimeError, OSError, websockets.WebSocketException):
                counts["refused"] += 1  # busy, or the session before was not closed yet
            await asyncio.sleep(draw.random())

    await asyncio.gather(*map(one, range(clients)))
    return counts


def metric(port: int, name: str) -> float:
    text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = re.search(rf"^vita_audio_pl_{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--repeats", type=count, default=8)
    parser.add_argument("--turns", type=count, default=7, help="of one client and of eight")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--vanishing", type=float, default=600.0, help="seconds; 0 leaves it out")
    parser.add_argument("--clients", type=count, default=200, help="that vanish")
    parser.add_argument("--layers", type=count, help="of the model that is served; its own by default")
    options = parser.parse_args()
    model = str(Path(options.model.removeprefix("model=")).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        if options.layers:
            model = str(deepened(Path(model), options.layers, Path(scratch) / "model"))
        load(model, options)


def load(model: str, options: argparse.Namespace) -> None:
    """Measures, and says so line by line."""
    direct = direct_call(model)
    command = [sys.executable, "-m", "vita_audio_pl.serve", f"model={model}", "port=0", "slots=8"]
    command += ["limits.sessions=1000", "limits.sessions_a_client=1000", "limits.queue=400"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    )
    try:
        assert server.stdout is not None
        port = int(re.search(r"localhost:(\d+)", server.stdout.readline())[1])  # type: ignore[index]
        run: Callable[[Awaitable[Any]], Any] = asyncio.run  # type: ignore[assignment]
        process = psutil.Process(server.pid)
        both = run(first_sounds(port, options.repeats, direct))
        (called_first, called_audible), (client_first, first) = np.nanmedian(both, axis=0)
        for what, called, heard_by_client in (
            ("chunk", called_first, client_first),
            ("audible sound", called_audible, first),
        ):
            print(
                f"first {what}, by turns: direct call {called:.3f} s, one client {heard_by_client:.3f} s, "
                f"{heard_by_client / called:.2f} times"
            )
        print(f"  in the server itself: p50 {metric(port, 'first_sound_seconds.quantile=.0.5..'):.3f} s", flush=True)
        one, eight = Crowd(1), Crowd(8)
        for _ in range(options.turns):
            for crowd in (one, eight):
                crowd.turn(port, options.seconds, process)
        for crowd in (one, eight):
            print(crowd.told(one), flush=True)
        compared = run(turns(port, options.repeats))
        if compared is None:
            print("turns: in no order of these sentences are all three answered aloud, so they cannot be compared")
        else:
            opening, third = compared
            print(
                f"turns: first audible sound of the first {opening:.3f} s, of the third {third:.3f} s ({third / opening:.2f} times)"
            )
        if not options.vanishing:
            return
        expected = {q: run(many_answers(port, q)) for q in SENTENCES}
        run(vanishing(port, options.clients, min(60.0, options.vanishing / 3), expected))  # memory settles
        before = memory_of(process)
        counts = run(vanishing(port, options.clients, options.vanishing, expected))
        until = time.perf_counter() + 120
        while (
            metric(port, "running") or metric(port, "queue") or metric(port, "sessions")
        ) and time.perf_counter() < until:
            time.sleep(0.2)
        after = memory_of(process)
        print(
            f"{options.clients} vanishing clients for {options.vanishing:.0f} s: {counts}; memory {before / 2**20:.0f} to "
            f"{after / 2**20:.0f} MiB ({100 * (after / before - 1):+.1f} %); left running {metric(port, 'running'):.0f}, "
            f"waiting {metric(port, 'queue'):.0f}, sessions {metric(port, 'sessions'):.0f}"
        )
    finally:
        server.terminate()
        server.wait()


async def many_answers(port: int, question: str) -> str:
    client = await opened(port)
    heard = await client.ask(question)
    await client.socket.close()
    return heard.text


if __name__ == "__main__":
    with mistakes_told():
        main()
