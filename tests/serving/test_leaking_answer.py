"""The answer comes back through the microphone: it does not interrupt itself, and somebody who speaks over it does."""

import asyncio
import sys

import numpy as np
import pytest

from vita_audio_pl.codecs.audio import read_audio
from vita_audio_pl.serving.own_sound import OwnSound
from vita_audio_pl.serving.pcm import OUTPUT_RATE
from vita_audio_pl.serving.turn_taking import TurnTaker

LATE = 0.3  # seconds from the server's sending to the microphone, through network, loudspeaker and air


@pytest.fixture(scope="module")
def voices(smoke_world, codec):
    """An answer as the server's codec says it, and other sentences of a user."""
    paths = sorted((smoke_world / "audio").glob("*/*.flac"))[:4]
    answer, user = (
        np.concatenate([read_audio(path, codec.sample_rate) for path in two]) for two in (paths[:2], paths[2:])
    )
    return answer, user


def began(service, answer, microphone, told):
    """Seconds of the answer after which turns began."""

    async def listen():
        turns = TurnTaker(service)
        starts = []

        async def push(wave):
            for start in range(0, len(wave), OUTPUT_RATE // 10):
                async for begins, at_ms in turns.push(wave[start : start + OUTPUT_RATE // 10].astype(np.float32)):
                    starts.extend([at_ms / 1000 - 1.0] if begins else [])

        await push(np.zeros(OUTPUT_RATE))
        if told:
            turns.own.begin(OUTPUT_RATE)
            for start in range(0, len(answer), 7000):  # sent far ahead of what is played
                turns.own.send(answer[start : start + 7000])
        await push(microphone)
        return starts

    return asyncio.run(listen())


@pytest.mark.parametrize("decibels", [-20, -6])
def test_an_answer_that_leaks_does_not_interrupt_itself_and_a_voice_over_it_does(service, voices, decibels):
    from soxr import resample

    answer, user = (resample(voice, service.codec.sample_rate, OUTPUT_RATE) for voice in voices)
    noise = np.random.default_rng(0).standard_normal(len(answer) + OUTPUT_RATE) * 1e-4
    leak = noise
    leak[round(LATE * OUTPUT_RATE) :][: len(answer)] += answer * 10 ** (decibels / 20)
    assert began(service, answer, leak, told=False)  # a detector alone is interrupted
    assert began(service, answer, leak, told=True) == []
    over = leak.copy()
    over[OUTPUT_RATE : OUTPUT_RATE + len(user)] += user[: len(over) - OUTPUT_RATE]
    first = began(service, answer, over, told=True)[0]
    assert 0.4 < first < 2.0  # a turn begins 0.4 s before it was noticed


def meanwhile(function, other, step):
    """Calls `function`, and `other` before its bytecode instruction `step`, as another thread could; False if it has fewer."""
    done, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal done
        if frame.f_code is not function.__func__.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            done += 1
            if done == step:
                other()
        return trace

    sys.settrace(trace)
    try:
        function(*([16_000] if function.__name__ == "begin" else []))
    finally:
        sys.settrace(before)
    return done >= step


@pytest.mark.parametrize("begins", ["in the midst of a comparison", "with a comparison in its midst"])
def test_an_answer_that_begins_during_a_comparison_is_recognised(begins):
    noise = np.random.default_rng(0).standard_normal((2, 32_000)).astype(np.float32)
    old, new = noise[0], 3 * noise[1]  # louder: what is quieter soon after an echo counts as its rest
    step = 0
    while True:
        own = OwnSound()
        own.begin(16_000)
        for start in range(0, 32_000, 8_000):
            own.send(old[start : start + 8_000])
        own.hear(old[:12_000])
        step += 1
        if begins == "with a comparison in its midst":
            more = meanwhile(own.begin, own.explains, step)
            own.send(new)
        else:
            more = meanwhile(own.explains, lambda own=own: (own.begin(16_000), own.send(new)), step)
        if not more:
            break
        own.hear(new[:4096])  # from here on, the window compared holds nothing older
        for start in range(4096, 4096 + 5 * 512, 512):  # more than may stay unexplained
            own.hear(new[start : start + 512])
            assert own.explains(), step
    assert step > 10
