"""The official client, sync, async and realtime, drives every endpoint; what is served is what `generate` writes."""

import asyncio
import base64
import io

import httpx
import numpy as np
import pytest
import soundfile
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from tests.margins import assert_same_answers
from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.data.speaking.endpoint import Endpoint
from vita_audio_pl.inference import generate
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.serving.pcm import OUTPUT_RATE


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def recording(smoke_world):
    """A sentence of the small world as a WAV at another rate than the model's."""
    path = min((smoke_world / "audio").glob("*/*.flac"))
    file = io.BytesIO()
    soundfile.write(file, read_audio(path, 22_050), 22_050, format="WAV")
    return file.getvalue()


def assert_served_as_generated(loaded, answered, count):
    """Every answer that ran to its end has the tokens of a direct call with the same prompt and options."""
    whole = [(ticket, ended.generation) for ticket, ended in answered if ended.generation is not None]
    assert len(whole) == count
    for ticket, found in whole:
        prompt, options = ticket.prompt, ticket.options
        expected = generate(
            loaded.runtime,
            [prompt],
            options.pattern,
            max_new_tokens=options.max_new_tokens,
            stop_ids=options.stop_ids,
            sampling=options.sampling,
            verify=options.verify,
            constraint=options.constraint,
        )[0]
        pattern = options.pattern if options.verify == "none" else DecodePattern.of("vanilla")
        ids = expected.ids[: len(found.ids)]
        assert_same_answers(loaded.model, pattern, [prompt], [found.ids], [ids], constraint=options.constraint)


def test_what_is_served_speaks_answers_for_a_corpus(server):
    """The voice of `prepare voice=endpoint` with this server behind it."""
    said = "the big red cow lives in the barn"
    voice = Endpoint(url=server.url)
    voice.check()
    wave, rate = voice.build().speak(said)
    again = Endpoint(url=server.url, response_format="flac").build().speak(said)
    assert rate == again[1] == OUTPUT_RATE and len(wave) == len(again[0]) > 0


@pytest.mark.parametrize("kind", ["wav", "pcm", "mp3", "opus", "flac"])
def test_speech_is_streamed_in_every_format(client, loaded, codec, answered, kind):
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="alloy", input="the big red cow", response_format=kind
    ) as response:
        pieces = list(response.iter_bytes())
    (ticket, ended) = answered[-1]
    codes = ended.generation.codes(loaded.vocabulary)
    assert codes.size
    seconds = codes.size / codec.codes_per_second
    data = b"".join(pieces)
    if kind == "pcm":
        wave = np.frombuffer(data, "<i2") / 32767
    else:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        assert rate == OUTPUT_RATE
    assert abs(len(wave) / OUTPUT_RATE - seconds) < 0.15  # encoders fill frames up
    stream = codec.decode_stream()
    expected = np.concatenate([stream.push(codes), stream.finish()])
    assert np.std(wave) == pytest.approx(np.std(expected), rel=0.2)
    assert_served_as_generated(loaded, answered, 1)
    if kind != "pcm":  # the server reads what it writes
        client.audio.transcriptions.create(model="tiny", file=(f"answer.{kind}", data))


def test_transcriptions_in_every_form(client, loaded, answered, recording):
    ask = client.audio.transcriptions.create
    text = ask(model="tiny", file=("a.wav", recording)).text
    assert ask(model="tiny", file=("a.wav", recording), response_format="text").strip() == text
    events = list(ask(model="tiny", file=("a.wav", recording), stream=True))
    assert "".join(e.delta for e in events[:-1]).strip() == events[-1].text == text
    assert_served_as_generated(loaded, answered, 3)


def test_chat_with_audio_in_and_out_goes_on_by_the_audios_id(client, loaded, answered, recording):
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording).decode(), "format": "wav"}}
    messages = [{"role": "system", "content": "Speak."}, {"role": "user", "content": [sound]}]
    ask = {"model": "tiny", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    first = client.chat.completions.create(messages=messages, **ask).choices[0].message
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(first.audio.data)))
    assert rate == OUTPUT_RATE and len(wave)
    messages += [{"role": "assistant", "audio": {"id": first.audio.id}}, {"role": "user", "content": "where"}]
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **ask | {"audio": {"voice": "alloy", "format": "pcm16"}}, stream_options={"include_usage": True}))  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    audios = [delta.audio for delta in deltas if getattr(delta, "audio", None)]
    assert any(audio.transcript or audio.data for audio in audios)
    assert chunks[-1].usage.completion_tokens == len(answered[-1][1].generation.ids)
    codes = answered[-2][1].generation.codes(loaded.vocabulary)
    assert loaded.vocabulary.codes_of(answered[-1][0].prompt).tolist()[-len(codes) :] == codes.tolist()
    written = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "where is the cow"}])
    assert written.choices[0].message.audio is None
    assert_served_as_generated(loaded, answered, 3)


def test_mode_and_verification_by_request(client, loaded, answered):
    messages = [{"role": "user", "content": "where is the cow"}]
    for mode in ("turbo", "boost", "balance", "vanilla", [2, 3]):
        for verify in ("none", "greedy"):
            client.chat.completions.create(
                model="tiny", messages=messages, extra_body={"decoding": {"mode": mode, "verify": verify}}
            )
    verified = [ended.generation.ids for ticket, ended in answered if ticket.options.verify == "greedy"]
    assert all(ids == verified[0] for ids in verified)
    assert_served_as_generated(loaded, answered, 10)
    text = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
    assert 'drafts_drafted_total{head="9"}' in text and 'first_sound_seconds{quantile="0.9"}' in text


def test_what_is_not_served_is_refused_in_a_sentence(client):
    with pytest.raises(BadRequestError, match="calls no functions"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}], tools=[{"type": "function", "function": {"name": "f"}}])  # fmt: skip
    with pytest.raises(BadRequestError, match="speed is fixed"):
        client.audio.speech.create(model="tiny", voice="a", input="a", speed=2)
    with pytest.raises(BadRequestError, match="not audio that can be read"):
        client.audio.transcriptions.create(model="tiny", file=("a.wav", b"no sound" * 30))
    with pytest.raises(NotFoundError, match="no such model"):
        client.models.retrieve("other")
    assert [model.id for model in client.models.list()] == ["runs-tiny"]


async def until(connection, kind):
    """Events up to one of this kind, its own included."""
    events = []
    async for event in connection:
        events.append(event)
        assert event.type != "error", event.error.message
        if event.type == kind:
            return events


def sound_of(events):
    data = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
    return np.frombuffer(data, "<i2")


def test_a_realtime_conversation_by_push_to_talk_is_cut_to_what_was_heard_and_goes_on(server, loaded, answered):
    async def talk():
        client = AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        async with client.realtime.connect(model="tiny") as connection:
            await until(connection, "session.created")
            sound = {"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}}
            await connection.session.update(session={"type": "realtime", "audio": sound, "decoding": {"verify": "greedy"}})  # fmt: skip
            await until(connection, "session.updated")
            noise = (np.random.default_rng(0).standard_normal(16_000) * 3000).astype("<i2").tobytes()
            for start in range(0, len(noise), 6400):
                await connection.input_audio_buffer.append(audio=base64.b64encode(noise[start : start + 6400]).decode())
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            events = await until(connection, "response.done")
            assert events[-1].response.status in ("completed", "incomplete")
            text = "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")
            codes = answered[-1][1].generation.codes(loaded.vocabulary)
            assert len(sound_of(events)) == pytest.approx(codes.size * 0.08 * OUTPUT_RATE, abs=OUTPUT_RATE * 0.1)
            [item] = [e.item for e in events if e.type == "response.output_item.done"]
            assert item.content[0].transcript == text
            await connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=330)
            await until(connection, "conversation.item.truncated")
            message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "where"}]}
            await connection.conversation.item.create(item=message)
            await connection.response.create(response={"output_modalities": ["text"]})
            events = await until(connection, "response.done")
            assert not len(sound_of(events)) and any(e.type == "response.output_text.done" for e in events)
            return codes

    codes = asyncio.run(talk())
    prompt = answered[-1][0].prompt
    last_turn = prompt[len(prompt) - prompt[::-1].index(loaded.vocabulary.begin_of_audio) :]
    heard = loaded.vocabulary.codes_of(prompt).tolist()
    assert heard[-4:] == codes[:4].tolist() and len(heard) == 13 + 4 and last_turn  # 1.0 s asked, 330 ms heard
    assert_served_as_generated(loaded, answered, 2)


def test_barge_in_ends_the_answer_and_drops_what_was_not_sent(server, loaded, answered, recording):
    """Speech found by the detector, an answer that it makes, and speech again, which interrupts it."""

    async def talk():
        client = AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        async with client.realtime.connect(model="tiny") as connection:
            await until(connection, "session.created")
            wave = read_audio(io.BytesIO(recording), OUTPUT_RATE)
            pause = np.zeros(OUTPUT_RATE, np.float32)

            async def say(*waves):
                samples = (np.concatenate(waves) * 32767).astype("<i2").tobytes()
                for start in range(0, len(samples), 9600):
                    await connection.input_audio_buffer.append(audio=base64.b64encode(samples[start : start + 9600]).decode())  # fmt: skip

            await say(pause, wave, pause)
            events = await until(connection, "response.created")
            kinds = [event.type for event in events]
            order = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed"]  # fmt: skip
            assert [kind for kind in kinds if kind in order] == order
            await connection.response.cancel()
            events = await until(connection, "response.done")
            assert events[-1].response.status == "cancelled"
            assert events[-1].response.status_details.reason == "client_cancelled"
            await say(pause, wave, pause)  # the answer that this makes is interrupted by what follows
            await say(wave, pause)
            await until(connection, "response.done")

    asyncio.run(talk())
    assert all(ended.error is None for _, ended in answered)
