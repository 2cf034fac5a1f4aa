"""Other wires than PCM over plain HTTP: G.711 as telephones send it, recordings of two channels, and TLS."""

import asyncio
import base64
import io
import os
import shutil
import ssl
import subprocess

import httpx
import numpy as np
import pytest
import soundfile
from openai import AsyncOpenAI, OpenAI

from tests.patience import PATIENCE
from tests.warm_python import warm_python
from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.serving.pcm import SampleFormat


@pytest.fixture(scope="module")
def wave(smoke_world):
    """A sentence of the small world at 8 kHz."""
    return read_audio(min((smoke_world / "audio").glob("*/*.flac")), 8_000)


def encoded(wave, rate, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype=subtype)
    return file.getvalue()


async def asked(connection, sound, settings):
    """Sends a recording with these audio settings; the session's own, and the bytes of the answer."""
    session = {"type": "realtime", "audio": settings, "decoding": {"mode": "boost"}}
    await connection.session.update(session=session)
    await connection.input_audio_buffer.append(audio=base64.b64encode(sound).decode())
    await connection.input_audio_buffer.commit()
    await connection.response.create()
    answer, agreed = b"", None
    async for event in connection:
        assert event.type != "error", event.error.message
        if event.type == "session.updated":
            agreed = event.session.audio
        elif event.type == "response.output_audio.delta":
            answer += base64.b64decode(event.delta)
        elif event.type == "response.done":
            return agreed, answer


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_is_taken_and_given_as_telephones_speak_it(server, loaded, codec, answered, wave, kind, subtype):
    file = io.BytesIO()
    soundfile.write(file, wave, 8_000, format="RAW", subtype=subtype)
    heard, _ = soundfile.read(io.BytesIO(file.getvalue()), samplerate=8_000, channels=1, format="RAW", subtype=subtype)

    async def talk(sound, settings):
        client = AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        async with client.realtime.connect(model="tiny") as connection:
            return await asked(connection, sound, settings)

    side = {"format": {"type": kind}}
    agreed, answer = asyncio.run(talk(file.getvalue(), {"input": side | {"turn_detection": None}, "output": side}))
    assert agreed.input.format.type == agreed.output.format.type == kind
    pcm = {"format": {"type": "audio/pcm", "rate": 8_000}, "turn_detection": None}
    same = np.round(heard * 32_768).astype("<i2").tobytes()  # G.711's levels are 16-bit numbers
    _, plain = asyncio.run(talk(same, {"input": pcm}))
    prompts = [loaded.vocabulary.codes_of(ticket.prompt).tolist() for ticket, _ in answered]
    assert prompts[0] == prompts[1] and len(prompts[0]) == -(-len(wave) // 640)  # 80 ms a code
    codes = answered[0][1].generation.codes(loaded.vocabulary)
    assert len(answer) == pytest.approx(codes.size * 640, abs=320) and len(answer) * 6 == pytest.approx(len(plain), abs=600)  # fmt: skip
    spoken, _ = soundfile.read(io.BytesIO(answer), samplerate=8_000, channels=1, format="RAW", subtype=subtype)
    reference = SampleFormat().samples(plain)
    assert np.std(spoken) == pytest.approx(np.std(reference), rel=0.2)  # what is above 4 kHz is gone


def test_recordings_of_two_channels_and_of_mu_law_are_transcribed_as_one(server, answered, wave, loaded):
    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    files = [encoded(np.stack([wave, wave], axis=1), 8_000), encoded(wave, 8_000), encoded(wave, 8_000, "ULAW")]
    texts = [client.audio.transcriptions.create(model="tiny", file=("a.wav", file)).text for file in files]
    prompts = [ticket.prompt for ticket, _ in answered]
    assert prompts[0] == prompts[1] and texts[0] == texts[1] and len(prompts[2]) == len(prompts[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate and its key, made as the documentation says."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out"]
    subprocess.run([*command, "certificate.pem", *names], cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem", folder / "key.pem"


def test_tls_by_two_files_for_every_client(run_server, make_service, certificate, wave, tmp_path):
    pem, key = certificate
    server = run_server(make_service(tls_certificate=str(pem), tls_key=str(key)))
    url = server.url.replace("http", "https")
    trusted = ssl.create_default_context(cafile=pem)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/models")
    with httpx.Client(verify=trusted) as http:
        client = OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)
        assert client.audio.speech.create(model="tiny", voice="a", input="the cow", response_format="pcm").content

    async def talk():
        client = AsyncOpenAI(base_url=url, api_key="none", http_client=httpx.AsyncClient(verify=trusted))
        async with client.realtime.connect(model="m", websocket_connection_options={"ssl": trusted}) as connection:
            return await asked(connection, SampleFormat().encode(wave), {"input": {"turn_detection": None}})

    assert asyncio.run(talk())[1]
    command = [warm_python(), "-m", "vita_audio_pl.talk", f"url={url.replace('https', 'wss')}/realtime", "text=hello"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE, text=True)
    assert refused.returncode != 0 and not refused.stdout and len(refused.stderr.strip().splitlines()) == 1
    assert "self-signed certificate" in refused.stderr and "SSL_CERT_FILE=" in refused.stderr
    trusting = os.environ | {"SSL_CERT_FILE": str(pem)}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE, text=True, env=trusting)
    assert ended.returncode == 0 and ended.stdout and "Traceback" not in ended.stderr
    server.stop()
