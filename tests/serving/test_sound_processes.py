"""Sound made in other processes: the same as in this one, and what becomes of answers whose process ends."""

import os
import signal

import numpy as np
import psutil
import pytest

from tests.patience import wait_until
from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.serving.resampling import Resampled
from vita_audio_pl.serving.sound_processes import SoundProcesses

RATE = 24_000


@pytest.fixture(scope="module")
def processes(loaded):
    made = SoundProcesses(loaded.codec_dir, 2, threads=1)
    yield made
    made.close()


def test_streams_in_processes_give_the_samples_of_streams_here_whatever_their_order(loaded, processes):
    codec, random = load_codec(loaded.codec_dir), np.random.default_rng(0)
    source = Resampled(codec, RATE)
    codes = [random.integers(0, codec.codebook_size, 40) for _ in range(5)]
    cuts = [sorted(random.choice(np.arange(1, 40), size=n, replace=False)) for n in (0, 1, 4, 9, 39)]
    here, there = [source.decode_stream() for _ in codes], [processes.stream(RATE) for _ in codes]
    left = {n: [*np.split(codes[n], cuts[n]), None] for n in range(5)}
    while left:
        n = int(random.choice(list(left)))
        chunk = left[n].pop(0)
        if not left[n]:
            del left[n]
        expected, given = (s[n].finish() if chunk is None else s[n].push(chunk) for s in (here, there))
        assert given.dtype == np.float32 and np.array_equal(given, expected)


def test_an_error_of_the_codec_is_told_and_the_process_goes_on(codec, processes):
    stream = processes.stream(RATE)
    with pytest.raises(RuntimeError, match="codes must lie in"):
        stream.push(np.array([codec.codebook_size]))
    assert stream.push(codec.silence(8)).size


def test_a_process_that_is_killed_takes_its_streams_with_it_and_is_replaced(codec, processes):
    streams = [processes.stream(RATE) for _ in range(2)]
    for stream in streams:
        stream.push(codec.silence(8))
    before = list(processes.pids)
    os.kill(before[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="has ended"):
        streams[0].push(codec.silence(8))
    assert streams[1].push(codec.silence(8)).size
    assert processes.stream(RATE).push(codec.silence(8)).size
    assert processes.pids[0] != before[0] and processes.pids[1] == before[1]


def test_streams_that_nobody_holds_are_forgotten_there(codec, processes):
    kept = processes.stream(RATE)
    for _ in range(50):
        processes.stream(RATE).push(codec.silence(2))
    assert sum(len(process.streams) for process in processes._processes) == 1
    assert kept.push(codec.silence(8)).size
    assert sum(len(process._told - process.streams) for process in processes._processes) <= 1


def test_after_a_process_was_killed_answers_are_whole_again(server):
    from openai import OpenAI

    sound, client = server.service.sound_processes, OpenAI(base_url=server.url, api_key="none", max_retries=0)
    ask = {"model": "tiny", "voice": "alloy", "input": "a b c", "response_format": "pcm"}
    whole = client.audio.speech.create(**ask).content
    [killed] = sound.pids
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(killed) or psutil.Process(killed).status() == "zombie", "its end")
    assert client.audio.speech.create(**ask).content == whole
    assert sound.pids != [killed]
