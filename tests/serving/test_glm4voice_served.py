"""GLM-4-Voice's codec behind the server: sound in chunks without a gap, and listening while the user still speaks."""

import asyncio
import base64
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from openai import OpenAI

from tests.serving.test_manners import _realtime, _say
from vita_audio_pl.codecs.glm4voice import GLM4VoiceCodec
from vita_audio_pl.codecs.glm4voice.crossfade_stream import CrossfadeStream
from vita_audio_pl.codecs.glm4voice.encode_stream import EncodeStream
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.resampling import Resampler

CASES = Path(__file__).parents[1] / "parity" / "codecs" / "glm4voice"


@pytest.fixture(scope="module")
def glm4voice():
    return GLM4VoiceCodec(CASES / "tokenizer", CASES / "decoder", flow_steps=2)


@pytest.fixture(scope="module")
def glm_server(run_server, make_service, random_model, glm4voice):
    of = random_model(glm4voice, None), glm4voice
    running = run_server(make_service(of=of, max_new_tokens=120))
    yield running
    running.stop()


def pushes_of(monkeypatch, kind):
    """What streams of this kind are given from now on, push by push."""
    found, push = [], kind.push
    monkeypatch.setattr(kind, "push", lambda self, piece: (found.append(piece.copy()), push(self, piece))[1])
    return found


def test_an_answer_is_spoken_in_chunks_without_a_gap(glm_server, glm4voice, answered, monkeypatch):
    pushes = pushes_of(monkeypatch, CrossfadeStream)
    client = OpenAI(base_url=glm_server.url, api_key="none", max_retries=0)
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="alloy", input="the big red cow", response_format="pcm"
    ) as response:
        data = b"".join(response.iter_bytes())
    codes = answered[-1][1].generation.codes(glm_server.service.loaded.vocabulary)
    monkeypatch.undo()
    assert len(pushes) > 1 and np.concatenate(pushes).tolist() == codes.tolist()
    stream, resampler = glm4voice.decode_stream(), Resampler(glm4voice.sample_rate, OUTPUT_RATE)
    wave = np.concatenate([*map(stream.push, pushes), stream.finish()])
    seconds = len(glm4voice.decode(codes)) / glm4voice.sample_rate
    expected = resampler.push(wave, last=True)
    found = np.frombuffer(data, "<i2") / 32767
    assert len(found) == len(expected) and len(found) / OUTPUT_RATE == pytest.approx(seconds, abs=0.01)
    np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=1e-3)


def test_a_turn_is_encoded_while_it_comes_as_the_whole_recording_is(glm_server, glm4voice, answered, monkeypatch):
    pieces = pushes_of(monkeypatch, EncodeStream)
    samples = soundfile.read(CASES / "tokenizer_cases" / "w7p3s.flac", dtype="int16")[0]
    data = samples.astype("<i2").tobytes()

    async def talk():
        socket = await _realtime(glm_server.url)
        form = {"type": "audio/pcm", "rate": 16_000}
        await _say(socket, type="session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None, "format": form}}})  # fmt: skip
        for start in range(0, len(data), 16_000):
            await _say(socket, type="input_audio_buffer.append", audio=base64.b64encode(data[start : start + 16_000]).decode())  # fmt: skip
        await _say(socket, type="input_audio_buffer.commit")
        await _say(socket, type="response.create")
        while (event := json.loads(await socket.recv()))["type"] != "response.done":
            assert event["type"] != "error", event
        await socket.close()

    asyncio.run(talk())
    heard = glm_server.service.loaded.vocabulary.codes_of(answered[-1][0].prompt)
    assert len(pieces) > 10
    assert heard.tolist() == glm4voice.encode([samples.astype(np.float32) / 32768])[0].tolist()
