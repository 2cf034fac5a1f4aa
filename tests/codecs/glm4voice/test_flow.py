"""Codes to mel: the published implementation's numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vita_audio_pl.codecs.glm4voice.flow import CodesToMel, stretched
from vita_audio_pl.codecs.glm4voice.settings import DecoderSettings

NAMES = [
    "tok1_steps1",
    "tok7_steps10",
    "tok10_steps3",
    "tok11_spk_steps10",
    "tok11_cfg0_steps10",
    "tok6_negative_steps3",
    "prompt_stage1_steps10",
    "prompt_shortfeat_steps3",
    "prompt_steps1",
]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_mel_is_the_published_one(decoder, cases, name):
    case = json.loads((cases / "flow_cases" / "cases.json").read_text())[name]
    stored = load_file(cases / "flow_cases" / f"{name}.safetensors")
    flow, codes = decoder.flow, torch.cat((stored["prompt_token"], stored["token"]), dim=1).long()
    frames = decoder.settings.frames(codes.shape[1])
    places = stretched(codes.shape[1], frames, codes.device)
    mean = flow.mean(flow.code_states(codes), places)
    torch.testing.assert_close(mean.transpose(1, 2), stored["mu_time_major"], atol=2e-5, rtol=0)
    mel = flow(
        codes,
        places,
        torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(42)),
        prompt=stored["prompt_feat"].transpose(1, 2),
        embedding=stored["embedding"],
        steps=case["steps"],
        guidance=case["guidance"],
    )
    torch.testing.assert_close(mel, stored["mel"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_estimator_weakens_padding_as_published(decoder, cases):
    stored = load_file(cases / "flow_cases" / "estimator_batch2_masked.safetensors")
    arguments = (stored[name] for name in ("x", "mu", "t", "spks", "cond", "mask"))
    velocity = decoder.flow.decoder.estimator(*arguments)
    torch.testing.assert_close(velocity, stored["out"], atol=5e-5, rtol=0)


def test_training_loss_is_the_published_one_and_trains_every_weight(cases):
    stored = load_file(cases / "flow_cases" / "compute_loss.safetensors")
    settings = DecoderSettings.read(cases / "decoder" / "config.yaml").flow
    flow = CodesToMel.load(settings, cases / "decoder" / "flow.pt").train().requires_grad_(True)
    arguments = (stored[name] for name in ("x1", "mask", "mu", "spks", "cond"))
    loss = flow.decoder.compute_loss(*arguments, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(loss, stored["loss"][0], atol=0, rtol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.decoder.parameters())


def test_frames_follow_the_exact_fraction(decoder):
    assert all(decoder.settings.frames(n) == 441 * n // 64 for n in range(3000))


def test_real_size_has_the_public_names_shapes_and_number_of_values(real_layout, cases, tmp_path):
    text = (cases / "decoder" / "config.yaml").read_text()
    real = json.loads((real_layout / "real_configs.json").read_text())
    values = {
        "flow": real["glm-4-voice-decoder/config.yaml (flow)"],
        "hift": real["glm-4-voice-decoder/config.yaml (hift)"],
    }
    assert "!new:" in text  # the tiny file has the public one's tags; JSON is YAML without them
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    with torch.device("meta"):
        flow = CodesToMel(DecoderSettings.read(tmp_path / "config.yaml").flow)
    shapes = {name: list(tensor.shape) for name, tensor in flow.state_dict().items()}
    assert shapes == json.loads((real_layout / "flow_keys.json").read_text())
    assert sum(parameter.numel() for parameter in flow.parameters()) == 111_166_208
