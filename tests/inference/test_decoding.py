"""The decoder computes the training function's tokens, whatever is cached, batched or chunked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.margins import assert_most_likely, assert_same_answers
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference import decoder as decoder_module
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern

PATTERNS = {
    "turbo": [1, 10],
    "boost": [1, 10, 4, 10],
    "balance": [1, 4, 3, 8, 4, 10],
    "vanilla": [8192, 0],
    "short": [2, 3],
    "more than heads": [1, 13],
    "lagging heads": [1, 3, 2, 1],
}


@pytest.mark.parametrize("mode", PATTERNS)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_tokens_equal_the_training_function_without_a_cache(model, prompts, mode, length):
    pattern, [prompt] = DecodePattern.of(PATTERNS[mode]), prompts(length)
    [answer] = generate(model, [prompt], pattern, max_new_tokens=30)
    assert_most_likely(model, pattern, prompt, answer.ids)
    assert answer.writers == pattern.writers(30, model.n_heads).tolist()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 5),
    mode=st.sampled_from(sorted(PATTERNS)),
    verify=st.sampled_from(["none", "greedy"]),
)
def test_what_is_decoded_beside_a_prompt_does_not_change_its_answer(model, runtime, lengths, batch_size, mode, verify):
    random = torch.Generator().manual_seed(sum(lengths))
    batch = [torch.randint(0, 97, (n,), generator=random).tolist() for n in lengths]
    pattern, limits = DecodePattern.of(PATTERNS[mode]), {"max_new_tokens": 25, "stop_ids": [5], "verify": verify}
    together = generate(runtime, batch, pattern, batch_size=batch_size, **limits)
    alone = [generate(runtime, [prompt], pattern, **limits)[0] for prompt in batch]
    writes = pattern if verify == "none" else DecodePattern.of("vanilla")
    assert_same_answers(model, writes, batch, [a.ids for a in together], [a.ids for a in alone])


@pytest.mark.parametrize("mode", ["boost", "lagging heads", "vanilla"])
def test_prompts_longer_than_a_chunk_are_read_in_rounds_to_the_same_end(model, prompts, monkeypatch, mode):
    pattern, batch = DecodePattern.of(PATTERNS[mode]), prompts(70, 3, 41)
    whole = generate(model, batch, pattern, max_new_tokens=60)
    # a window of 16 rows: heads have to read along, both during the prompt and where the pattern leaves them behind
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", 8)
    chunked = generate(model, batch, pattern, max_new_tokens=60)
    assert_same_answers(model, pattern, batch, [a.ids for a in chunked], [a.ids for a in whole])
    assert chunked[0].backbone_passes == whole[0].backbone_passes + 8


def test_a_stop_token_ends_the_answer_wherever_it_is_written(tiny_model, prompts):
    model, [prompt] = tiny_model(), prompts(7)
    pattern = DecodePattern.of("turbo")
    [free] = generate(model, [prompt], pattern, max_new_tokens=40)
    for place in (0, 1, 3, 17):
        stop = free.ids[place]
        first = free.ids.index(stop)
        [answer] = generate(model, [prompt], pattern, max_new_tokens=40, stop_ids=[stop])
        assert answer.ids == free.ids[: first + 1] and answer.stopped
    assert not free.stopped


def test_one_runtime_serves_many_decoders_and_keeps_nothing(tiny_model, prompts):
    model, [prompt] = tiny_model(), prompts(12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runtime = Runtime(model)
    answers = [generate(runtime, [prompt], DecodePattern.of("boost"), max_new_tokens=30)[0].ids for _ in range(2)]
    assert answers[0] == answers[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_decoder_serves_one_list_of_prompts_after_another(model, runtime, prompts):
    decoder, pattern = Decoder(runtime, slots=2, capacity=64), DecodePattern.of("boost")
    for batch in (
        prompts(5, 9, 3),
        prompts(12, 4, seed=1),
    ):  # three in two slots: the last one takes a place that is free again
        kept = generate(runtime, batch, pattern, max_new_tokens=30, decoder=decoder)
        anew = generate(runtime, batch, pattern, max_new_tokens=30, batch_size=2)
        assert_same_answers(model, pattern, batch, [a.ids for a in kept], [a.ids for a in anew])
        assert decoder.free_slots == 2


def test_memory_is_that_of_the_caches_and_does_not_grow(runtime, prompts):
    decoder = Decoder(runtime, slots=2, capacity=200)
    held = decoder.cache.nbytes
    per_token = 4 * (2 + 3) * 2 * 2 * 8 + 4 * 3 * 32  # keys and values of 5 layers, outputs of 3 predictors
    if not runtime.chained:
        per_token = 4 * 2 * 2 * 2 * 8 + 4 * 32  # of the backbone alone
    assert held == 2 * 200 * per_token
    for prompt in prompts(100, 90, 80):
        sequence = decoder.open(prompt, Options(DecodePattern.of("boost"), 90))
        while not sequence.finished:
            decoder.step()
        decoder.close(sequence)
    assert decoder.cache.nbytes == held


def test_heads_not_needed_take_no_memory(runtime):
    assert Decoder(runtime, capacity=64, n_heads=0).cache.nbytes < Decoder(runtime, capacity=64).cache.nbytes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"verify": "maybe"}, "verify='maybe' is unknown"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_new_tokens": 5000}, "exceed the model's 4096 positions"),
        ({"prompts": [[3], []]}, "prompt 2 of 2: the prompt is empty"),
        ({"prompts": [[3, 97]]}, "the model's vocabulary has 97"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_a_sentence(runtime, change, says):
    arguments = {"prompts": [[1, 2]], "max_new_tokens": 4} | change
    with pytest.raises(UserError, match="(?s)" + says):
        generate(runtime, arguments.pop("prompts"), DecodePattern.of("boost"), **arguments)


def test_logits_that_are_not_numbers_are_reported_and_not_written(tiny_model, prompts):
    model = tiny_model()
    model.lm_head.weight[3] = float("nan")
    with pytest.raises(UserError, match="prompt 1 of 1: the model's output was not a number"):
        generate(model, prompts(4), DecodePattern.of("vanilla"), max_new_tokens=4)
