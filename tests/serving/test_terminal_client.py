"""The terminal client as a process: recordings and text as turns, and what it says where there is no server for it."""

import logging
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.patience import PATIENCE
from tests.warm_python import warm_python
from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.inference.streaming import EventMaker, TextPiece
from vita_audio_pl.serving.pcm import OUTPUT_RATE


@pytest.fixture
def talk(tmp_path):
    def talk(url, *settings):
        url = url.replace("http", "ws") + "/realtime"
        command = [warm_python(), "-m", "vita_audio_pl.talk", f"url={url}", *settings]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE)

    return talk


def shown(loaded, generation):
    """An answer's text as clients see it."""
    maker = EventMaker(loaded.tokenizer, loaded.vocabulary)
    events = [*maker.push(generation.ids, generation.writers), *maker.finish()]
    return "".join(event.text for event in events if isinstance(event, TextPiece))


def test_recordings_and_text_are_turns_of_one_conversation(
    server, talk, loaded, codec, answered, smoke_world, tmp_path
):
    for number, path in enumerate(sorted((smoke_world / "audio").glob("*/*.flac"))[:2]):
        soundfile.write(tmp_path / f"{number}.wav", read_audio(path, 22_050), 22_050)
    ended = talk(server.url, "audio=[0.wav,1.wav]", 'text="where is the cow"', "mode=boost")
    assert ended.returncode == 0, ended.stderr.decode()
    generations = [end.generation for _, end in answered]
    assert len(generations) == 3 and len(answered[-1][0].prompt) > len(answered[0][0].prompt)
    assert ended.stdout.decode() == "".join(f"{shown(loaded, generation)}\n" for generation in generations)
    wave, rate = soundfile.read(tmp_path / "answer.wav")
    seconds = sum(generation.codes(loaded.vocabulary).size for generation in generations) / codec.codes_per_second
    assert rate == OUTPUT_RATE and seconds and len(wave) / rate == pytest.approx(seconds, abs=0.3)
    assert np.any(wave) and b"answer.wav" in ended.stderr


def test_what_was_answered_before_a_turn_is_refused_is_kept(
    run_server, make_service, talk, loaded, codec, answered, smoke_world, tmp_path
):
    voices = [read_audio(path, 22_050) for path in sorted((smoke_world / "audio").glob("*/*.flac"))[:2]]
    for name, wave in {"0": voices[0], "1": voices[1], "long": np.resize(voices[0], 21 * 22_050)}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 22_050)
    (tmp_path / "answer.wav").write_bytes(b"of an earlier talk")
    server = run_server(make_service(limits={"audio_seconds": 20}))
    ended = talk(server.url, "audio=[0.wav,1.wav,long.wav,1.wav]", "mode=boost")
    server.stop()
    assert ended.returncode == 2
    where, why = ended.stderr.decode().splitlines()
    assert "s of speech in answer.wav" in where and "longer than the 20 s allowed" in why
    wave, rate = soundfile.read(tmp_path / "answer.wav")
    n_codes = sum(end.generation.codes(loaded.vocabulary).size for _, end in answered[:2])
    assert n_codes and len(wave) / rate == pytest.approx(n_codes / codec.codes_per_second, abs=0.2)


def test_the_client_starts_without_what_only_the_server_needs():
    program = (
        "import sys, vita_audio_pl.talk, vita_audio_pl.serving.terminal\n"
        "print({'torch', 'transformers', 'openai', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.stdout == "set()\n", ended.stdout + ended.stderr


def test_a_server_that_is_not_there_or_wants_another_key_is_a_sentence(
    talk, run_server, make_service, tmp_path, caplog, monkeypatch
):
    nowhere = talk("http://:::99999/v1", "text=hello")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        refused = talk(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "text=hello")
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    keys.chmod(0o600)
    server = run_server(make_service(api_keys=str(keys)))
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    wrong = talk(server.url, "text=hello", "key=wrong")
    assert not caplog.records  # a refused handshake is complete
    right = talk(server.url, "text=hello", "key=right")
    for ended in (nowhere, refused, wrong):
        assert ended.returncode != 0 and not ended.stdout and b"Traceback" not in ended.stderr
        assert len(ended.stderr.decode().strip().splitlines()) == 1
    assert b"is no address" in nowhere.stderr
    assert b"cannot be reached" in refused.stderr and b"is the server running?" in refused.stderr
    assert b"a key is needed" in wrong.stderr and right.returncode == 0
    server.stop()
