"""SenseVoice: the published implementation's numbers, layouts, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from tests.margins import assert_same_choices
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder, load_front_end
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_input import SpeechInput

FOLDER = Path(__file__).parents[1] / "parity" / "codecs" / "sensevoice"
REAL = FOLDER.parent / "real_layout"
CLIPS = ["w0p09s", "w1s", "w5s"]
TINY = SenseVoiceConfig(width=32, heads=2, ffn_width=48, layers=2, text_layers=1)


def case(name: str) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    wave, _ = soundfile.read(FOLDER / "cases" / f"{name}.flac", dtype="float32")
    return wave, load_file(FOLDER / "cases" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def encoder() -> SenseVoiceEncoder:
    return SenseVoiceEncoder.load(FOLDER, keep_ctc=True)


@pytest.fixture(scope="module")
def front_end() -> SenseVoiceFrontEnd:
    return load_front_end(FOLDER)


@pytest.mark.parametrize("name", ["w0p09s", "w1s"])
def test_features_are_the_published_ones(front_end, name):
    wave, stored = case(name)
    # near-silent bins carry the rounding of the float32 transform
    torch.testing.assert_close(front_end.fbank(wave), stored["fbank_dither0"], atol=2e-3, rtol=0)
    features = front_end.features(wave)
    torch.testing.assert_close(features, stored["features_dither0"], atol=1e-3, rtol=0)
    assert len(features) == front_end.frames(len(wave))
    dithered = load_front_end(FOLDER, dither=1.0).features(wave, torch.Generator().manual_seed(2024))
    torch.testing.assert_close(dithered, stored["features_dither1_seed2024"], atol=1e-3, rtol=0)
    assert not torch.equal(features, dithered)


def test_frames_are_stacked_as_published(front_end):
    table = json.loads((FOLDER / "cases" / "lfr_table.json").read_text())
    for frames, rows in table.items():
        assert front_end.stacked(torch.arange(int(frames)).float()[:, None]).tolist() == rows


@pytest.mark.parametrize("name", CLIPS)
@torch.no_grad()
def test_states_are_the_published_ones(encoder, front_end, name):
    wave, stored = case(name)
    features = front_end.features(wave)
    states, lengths = encoder(features[None], torch.tensor([len(features)]))
    assert lengths.tolist() == [len(features) + 4]
    torch.testing.assert_close(states[0], stored["encoder_out"], atol=1e-4, rtol=0)
    scores = encoder.tokens(states)[0]
    assert_same_choices(scores.argmax(dim=-1), stored["ctc_argmax"], scores)
    if "features_dither0" in stored:
        states, _ = encoder(stored["features_dither0"][None], torch.tensor([len(features)]))
        torch.testing.assert_close(states[0], stored["encoder_out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_language_and_text_form_are_asked_for(encoder):
    _, stored = case("w1s")
    states, _ = encoder(stored["features_dither0"][None], torch.tensor([17]), "en", "withitn")
    torch.testing.assert_close(states[0], stored["encoder_out_en_withitn"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_does_not_reach_a_clip(encoder, front_end):
    waves, stored = zip(*(case(name) for name in CLIPS), strict=True)
    clips = [front_end.features(wave) for wave in waves]
    states, lengths = encoder(pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips]))
    for row, length, single in zip(states, lengths, stored, strict=True):
        torch.testing.assert_close(row[:length], single["encoder_out"], atol=1e-4, rtol=0)


def test_real_size_has_the_public_names_shapes_and_number_of_values():
    with torch.device("meta"):
        encoder = SenseVoiceEncoder(SenseVoiceConfig(ctc_tokens=25_055))
    shapes = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes == json.loads((REAL / "sensevoice_keys.json").read_text())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 233_999_167


def test_the_public_configuration_reads_as_the_real_size(tmp_path):
    real = json.loads((REAL / "real_configs.json").read_text())["SenseVoiceSmall/config.yaml"]
    (tmp_path / "config.yaml").write_text(json.dumps(real))
    assert SenseVoiceConfig.read(tmp_path / "config.yaml") == SenseVoiceConfig()


def test_clips_become_frames_plus_four_embeddings_end_to_end(encoder, front_end):
    torch.manual_seed(0)
    module = SpeechInput(encoder, hidden=24)
    clips = [front_end.features(case(name)[0]) for name in CLIPS]
    together = module(clips)
    assert together.shape == (sum(len(clip) + 4 for clip in clips), 24)
    alone = torch.cat([module([clip]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_frozen_encoder_trains_the_adapter_alone(front_end):
    module = SpeechInput(SenseVoiceEncoder(TINY), hidden=8)
    module.encoder.requires_grad_(False)
    module([front_end.features(case("w1s")[0])]).square().sum().backward()
    assert all(p.grad is None for p in module.encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.audio_projection.parameters())


def test_published_names_go_out_and_come_back(encoder, front_end):
    module = SpeechInput(encoder, hidden=8)
    state = module.released_state()
    assert set(state) == {f"model.audio_model.model.{name}" for name in encoder.state_dict()} | {
        f"model.audio_projection.{name}" for name in ("0.weight", "0.bias", "1.weight", "3.weight")
    }
    state["model.embed_tokens.weight"] = torch.ones(3)  # the language model's own
    again = SpeechInput.from_released(state, SenseVoiceConfig.read(FOLDER / "config.yaml"), 8, "the checkpoint")
    clip = front_end.features(case("w1s")[0])
    assert torch.equal(again([clip]), module([clip]))
    with pytest.raises(UserError, match=r"the checkpoint does not fit .*\(audio_projection.1.weight\)"):
        del state["model.audio_projection.1.weight"]
        SpeechInput.from_released(state, SenseVoiceConfig.read(FOLDER / "config.yaml"), 8, "the checkpoint")


def test_an_encoder_trained_here_saves_and_loads(tmp_path):
    tiny, waves = SenseVoiceEncoder(TINY), [case(name)[0] for name in CLIPS]
    fitted = SenseVoiceFrontEnd().fitted(waves)
    features = torch.cat([fitted.features(wave) for wave in waves])
    assert features.mean(dim=0).abs().max() < 1e-3 and (features.std(dim=0) - 1).abs().max() < 1e-3
    tiny.save(tmp_path, fitted)
    again, front_end = SenseVoiceEncoder.load(tmp_path), load_front_end(tmp_path)
    assert torch.equal(front_end.features(waves[1]), fitted.features(waves[1]))
    clip, length = fitted.features(waves[1])[None], torch.tensor([17])
    assert torch.equal(again(clip, length)[0], tiny(clip, length)[0])


@pytest.mark.parametrize("samples", [2, 3, 160, 399, 400, 401, 480_000])
def test_short_and_long_clips_have_the_frames_that_are_promised(front_end, samples):
    features = front_end.features(np.sin(np.arange(samples, dtype=np.float32)))
    assert len(features) == front_end.frames(samples) >= 1
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    "wave, sentence",
    [
        (np.zeros(0, np.float32), "wave of 0 samples"),
        (np.zeros(1, np.float32), "wave of 1 samples"),
        (np.full(800, np.nan, np.float32), "NaN"),
        (np.zeros((800, 2), np.float32), "one channel"),
        (np.zeros(800, np.int16), "floats in"),
    ],
)
def test_bad_waves_are_refused(front_end, wave, sentence):
    with pytest.raises(UserError, match=sentence):
        front_end.features(wave)


@pytest.mark.parametrize(
    "name, old, new, sentence",
    [
        ("config.yaml", "num_blocks: 3", "num_blocks: 4", "does not fit its configuration"),
        ("config.yaml", "window: hamming", "window: hann", "only 'hamming'"),
        ("config.yaml", "encoder_conf:", "encoder_configuration:", "'encoder_conf' is missing"),
        ("am.mvn", "<Rescale>", "<Scale>", "560 numbers after <Rescale>"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, name, old, new, sentence):
    for part in ("config.yaml", "am.mvn", "model.pt"):
        (tmp_path / part).write_bytes((FOLDER / part).read_bytes())
    path = tmp_path / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=sentence):
        load_front_end(tmp_path)
        SenseVoiceEncoder.load(tmp_path)


class _Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_damaged_and_malicious_weights_are_refused_and_never_run(tmp_path):
    for part in ("config.yaml", "am.mvn", "model.pt"):
        (tmp_path / part).write_bytes((FOLDER / part).read_bytes())
    path, proof = tmp_path / "model.pt", tmp_path / "executed"
    whole = path.read_bytes()
    for kept in (len(whole) - 100, 1000, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="model.pt.*(damaged|plain)"):
            SenseVoiceEncoder.load(tmp_path)
    torch.save({"embed.weight": _Touch(proof)}, path)
    with pytest.raises(UserError, match="model.pt"):
        SenseVoiceEncoder.load(tmp_path)
    path.write_bytes(whole)
    config = tmp_path / "config.yaml"
    config.write_text(f"evil: !apply:pathlib.Path.touch ['{proof}']\n" + config.read_text())
    SenseVoiceEncoder.load(tmp_path)
    assert not proof.exists()
