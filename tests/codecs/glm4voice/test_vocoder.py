"""Mel to wave: the published implementation's numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vita_audio_pl.codecs.glm4voice.hift import Vocoder
from vita_audio_pl.codecs.glm4voice.settings import DecoderSettings


@pytest.mark.parametrize("name", ["case_t1", "case_t12", "case_loud_t8", "stream_0", "stream_1", "stream_2"])
@torch.no_grad()
def test_pitch_source_and_wave_are_the_published_ones(cases, name):
    folder = cases / "vocoder_cases"
    stored, seed = load_file(folder / f"{name}.safetensors"), json.loads((folder / "seeds.json").read_text())[name]
    vocoder = Vocoder.load(
        DecoderSettings.read(cases / "decoder" / "config.yaml").vocoder, cases / "decoder" / "hift.pt"
    )
    if "loud" in name:  # reaches the limit of the wave
        vocoder.conv_post.bias[:9] += 3.0
    pitch = vocoder.pitch(stored["mel"])
    torch.testing.assert_close(pitch, stored["f0"], atol=2e-3, rtol=0)
    phases, noise = vocoder.m_source.draw(pitch.shape[1], torch.Generator().manual_seed(seed))
    source = vocoder.m_source(stored["f0"], phases, noise)
    # a running sum in float32 depends on its order
    torch.testing.assert_close(source, stored["source_before_cache"], atol=1e-3, rtol=0)
    torch.testing.assert_close(vocoder(stored["mel"], stored["source"]), stored["wave"], atol=1e-5, rtol=0)


def test_cut_mel_with_the_cached_source_joins_as_published(decoder, cases):
    folder = cases / "vocoder_cases"
    parts = [load_file(folder / f"stream_{number}.safetensors") for number in range(3)]
    waves = [decoder.vocoder(part["mel"], part["source"]) for part in parts]
    joined = torch.cat((waves[0][:, :-256], waves[1][:, :-256], waves[2]), dim=1)
    torch.testing.assert_close(joined, load_file(folder / "stream_all.safetensors")["wave_stitched"], atol=1e-5, rtol=0)


def test_a_source_that_goes_on_keeps_its_phase(decoder):
    source = decoder.vocoder.m_source
    pitch = torch.full((1, 40), 123.0)
    phases, noise = source.draw(40, torch.Generator().manual_seed(0))
    whole = source(pitch, phases, noise)
    none = torch.zeros(1, 9, 1)
    first = source(pitch[:, :15], phases, noise[..., : 15 * 256], none)
    rest = source(pitch[:, 15:], phases, noise[..., 15 * 256 :], source.cycles_after(pitch[:, :15], none))
    torch.testing.assert_close(torch.cat((first, rest), dim=2), whole, atol=1e-3, rtol=0)


def test_folded_weights_are_saved_under_the_public_names(decoder, cases):
    stored = torch.load(cases / "decoder" / "hift.pt", weights_only=True)
    again = decoder.vocoder.state_dict()
    assert again.keys() == stored.keys()
    for name in stored:
        if name.endswith("weight_g"):  # the gain's sign can hide in the direction, never the other way round
            torch.testing.assert_close(again[name], stored[name].abs(), atol=1e-6, rtol=1e-5)


def test_real_size_has_the_public_names_shapes_and_number_of_values(real_layout, tmp_path):
    real = json.loads((real_layout / "real_configs.json").read_text())
    values = {
        "flow": real["glm-4-voice-decoder/config.yaml (flow)"],
        "hift": real["glm-4-voice-decoder/config.yaml (hift)"],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    with torch.device("meta"):
        vocoder = Vocoder(DecoderSettings.read(tmp_path / "config.yaml").vocoder)
    shapes = {name: list(tensor.shape) for name, tensor in vocoder.state_dict().items()}
    assert shapes == json.loads((real_layout / "hift_keys.json").read_text())
    assert sum(tensor.numel() for tensor in vocoder.state_dict().values()) == 20_460_591
