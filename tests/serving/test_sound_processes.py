"""Sound made in other processes: the same as in this one, and what becomes of answers whose process ends."""

import os
import signal
import threading

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.patience import wait_until
from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.serving.resampling import Resampled
from vita_audio_pl.serving.sound_processes import RemoteSound, SoundLost, SoundProcesses

RATE = 24_000


def stream_of(processes):
    return RemoteSound(processes, RATE).decode_stream()


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
    here, there = [source.decode_stream() for _ in codes], [stream_of(processes) for _ in codes]
    left = {n: [*np.split(codes[n], cuts[n]), None] for n in range(5)}
    while left:
        n = int(random.choice(list(left)))
        chunk = left[n].pop(0)
        if not left[n]:
            del left[n]
        expected, given = (s[n].finish() if chunk is None else s[n].push(chunk) for s in (here, there))
        assert given.dtype == np.float32 and np.array_equal(given, expected)


def test_pieces_that_are_wanted_at_once_are_made_together_and_are_those_of_streams_here(loaded, codec, monkeypatch):
    """Those of one stream that fails are told so, and no other."""
    processes = SoundProcesses(loaded.codec_dir, 1, threads=1)
    processes.started()
    sent, send = [], processes._processes[0]._connection.send
    monkeypatch.setattr(
        processes._processes[0]._connection, "send", lambda message: (sent.append(len(message[0])), send(message))
    )
    random = np.random.default_rng(3)
    codes = [random.integers(0, codec.codebook_size, (6, 8)) for _ in range(12)]
    codes[5][3][0] = codec.codebook_size
    heard, everybody = [[] for _ in codes], threading.Barrier(len(codes))

    def listen(n):
        stream = stream_of(processes)
        for piece in codes[n]:
            everybody.wait(60)
            try:
                heard[n].append(stream.push(piece))
            except RuntimeError as error:
                heard[n].append(str(error))

    listeners = [threading.Thread(target=listen, args=(n,)) for n in range(len(codes))]
    for thread in listeners:
        thread.start()
    for thread in listeners:
        thread.join(60)
    for n, pieces in enumerate(heard):
        here = Resampled(codec, RATE).decode_stream()
        for number, piece in enumerate(pieces):
            if (n, number) == (5, 3):
                assert "codes must lie in" in piece
            else:
                assert np.array_equal(piece, here.push(codes[n][number]))
    assert sum(sent) == codes[0].shape[0] * len(codes) and 1 < max(sent) <= processes.at_once
    processes.close()


def test_an_error_of_the_codec_is_told_and_the_process_goes_on(codec, processes):
    stream = stream_of(processes)
    with pytest.raises(RuntimeError, match="codes must lie in"):
        stream.push(np.array([codec.codebook_size]))
    assert stream.push(codec.silence(8)).size


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stream_goes_on_in_another_process_as_if_nothing_had_happened(loaded, processes, sent):
    codec, patience = load_codec(loaded.codec_dir), processes.patience
    here, there = Resampled(codec, RATE).decode_stream(), stream_of(processes)
    chunks = np.random.default_rng(1).integers(0, codec.codebook_size, (6, 8))
    # one that is stopped while it loads is waited for as long as loading may take
    wait_until(lambda: all(process.ready for process in processes._processes), "both")
    before = set(processes.pids)
    processes.patience = 1.0
    for number, chunk in enumerate(chunks):
        if number == 3:
            for pid in processes.pids:  # of all, wherever the stream is
                os.kill(pid, sent)
        if number == 4:
            processes.patience = patience
        assert np.array_equal(there.push(chunk), here.push(chunk)), number
    assert np.array_equal(there.finish(), here.finish())
    wait_until(lambda: len(processes.pids) == 2 and not before & set(processes.pids), "the others")


def test_streams_that_nobody_holds_are_forgotten_there(codec, processes):
    kept = stream_of(processes)
    for _ in range(50):
        stream_of(processes).push(codec.silence(2))
    assert kept.push(codec.silence(8)).size
    assert sum(len(process.streams) for process in processes._processes) == 1
    assert sum(len(process._told - process.streams) for process in processes._processes) <= 2


def test_a_lone_clients_streams_begin_in_one_process_and_others_where_nothing_is_awaited(codec, processes):
    wait_until(lambda: all(process.ready for process in processes._processes), "both")
    stream_of(processes).push(codec.silence(2))  # what it leaves is forgotten
    lone = []
    for _ in range(3):
        stream = stream_of(processes)
        stream.push(codec.silence(2))
        stream.finish()
        lone.append(stream._place[0])
    assert lone[0] is lone[1] is lone[2]
    os.kill(lone[0].pid, signal.SIGSTOP)
    try:
        kept = stream_of(processes)
        waiting = threading.Thread(target=kept.push, args=(codec.silence(2),))
        waiting.start()
        wait_until(lambda: lone[0].wanted, "the question")
        for _ in range(2):
            other = stream_of(processes)
            assert other.push(codec.silence(8)).size and other._place[0] is not lone[0]
    finally:
        os.kill(lone[0].pid, signal.SIGCONT)
    waiting.join(timeout=30)


def test_who_waits_for_a_process_hears_of_the_end(loaded):
    made = SoundProcesses(loaded.codec_dir, 1, threads=1)
    told = []
    waiting = threading.Thread(
        target=lambda: told.append(pytest.raises(SoundLost, stream_of(made).push, np.zeros(4, int)))
    )
    waiting.start()
    made.close()
    waiting.join(timeout=30)
    assert told


def test_answers_are_whole_though_their_process_is_killed_and_health_says_so(server):
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    ask = {"model": "tiny", "voice": "alloy", "input": "a b c", "response_format": "pcm"}
    whole = client.audio.speech.create(**ask).content
    health = server.url.replace("/v1", "/health")
    os.kill(server.service.sound_processes.pids[0], signal.SIGKILL)
    wait_until(lambda: httpx.get(health).status_code == 503, "an honest answer")
    assert client.audio.speech.create(**ask).content == whole
    assert httpx.get(health).status_code == 200


def test_a_process_that_ends_while_it_loads_is_replaced_and_the_other_one_is_enough(loaded, codec):
    made = SoundProcesses(loaded.codec_dir, 2, threads=1)
    os.kill(made.pids[0], signal.SIGKILL)
    made.started()
    assert stream_of(made).push(codec.silence(8)).size
    made.close()


def test_a_codec_that_the_process_cannot_load_is_refused_at_the_start(tmp_path):
    made = SoundProcesses(tmp_path, 1, threads=1)
    with pytest.raises(UserError, match="sound_processes=0"):
        made.started()
    wait_until(lambda: not made.pids, "its end")
