"""A step computes on the device that its batch is sent to, and nothing in it makes the host wait for that device.

torch's meta device stands for a GPU: it refuses the host's tensors beside its own, and to be read by the host.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.objectives import OBJECTIVES, build_objective
from vita_audio_pl.models.sensevoice import N_QUERIES, SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.step.tally import Tally

VOCABULARY = Vocabulary(n_text=30, n_codes=8, im_start=0, im_end=1, pad=2)
HEARING = replace(VOCABULARY, continuous_input=True)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none, and torch refuses even to say so."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())


@pytest.mark.parametrize("kernel", ["per_document", "sdpa"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_runs_on_the_device_of_its_batch_and_never_waits_for_it(objective, frozen, kernel, tiny, pack):
    model = tiny(vocab_size=VOCABULARY.size, attention=kernel).to("meta")
    model.requires_grad_(not frozen)
    model.heads.requires_grad_(True)
    batch = pack([[9, 5], [12]], vocabulary=VOCABULARY.size, weighted=True).to("meta")
    losses = model(batch, build_objective(objective, VOCABULARY), score_frozen_backbone=True)
    losses.total.backward()
    tally = Tally(model.n_heads, ["a"], (VOCABULARY.first_code, VOCABULARY.used))
    tally.add(losses, batch)
    found = [losses.total, tally._sums, *(p.grad for p in model.parameters() if p.requires_grad)]
    assert {tensor.device.type for tensor in found} == {"meta"}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("clips", [(3, 2), ()])
def test_a_step_that_hears_never_waits_either(clips, trains, tiny, pack):
    model = tiny(vocab_size=HEARING.size, detach_heads=True)
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3, n_mels=4, stack=3)
    add_speech_input(model, SenseVoiceEncoder(sizes).requires_grad_(trains), HEARING.context_of_audio)
    model.to("meta")
    batch = pack([[20, 9]], vocabulary=HEARING.n_text)
    batch.clips = tuple(torch.randn(frames, sizes.input_size) for frames in clips)
    batch.input_ids[0, 2 : 2 + sum(frames + N_QUERIES for frames in clips)] = HEARING.context_of_audio
    losses = model(batch.to("meta"), build_objective("every_head", HEARING))
    losses.total.backward()
    assert all(parameter.grad.is_meta for parameter in model.parameters() if parameter.requires_grad)


def test_the_meta_device_refuses_what_a_gpu_would_wait_for(tiny, pack):
    with pytest.raises(RuntimeError):
        tiny().to("meta")(pack([[9, 5]]), build_objective("every_head", VOCABULARY))
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="meta").item()
