"""Public checkpoint folders: what does not fit, is damaged or wants code run is refused in a sentence."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_audio_pl.codecs.glm4voice import SpeechDecoder, SpeechTokenizer
from vita_audio_pl.errors import UserError


@pytest.fixture
def folder(cases, tmp_path) -> Path:
    """A copy of both folders to spoil."""
    for part in ("tokenizer", "decoder"):
        shutil.copytree(cases / part, tmp_path / part)
    return tmp_path


def test_a_file_of_the_whole_trained_model_loads_too(folder, waves, tokenizer):
    path = folder / "tokenizer" / "model.safetensors"
    public = load_file(path)
    trained = {f"model.encoder.{name}": tensor for name, tensor in public.items()}
    for name, tensor in public.items():
        if name.startswith("layers.1."):
            trained[f"model.encoder.{name.replace('layers.1', 'layers.2')}"] = tensor.clone()
    trained |= {
        "model.encoder.layer_norm.weight": torch.ones(64),
        "model.decoder.embed_tokens.weight": torch.ones(2, 2),
    }
    save_file(trained, path)
    codes = SpeechTokenizer.load(folder / "tokenizer").encode([waves["w1s"]])[0]
    assert codes.tolist() == tokenizer.encode([waves["w1s"]])[0].tolist()


class _Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["flow.pt", "hift.pt"])
@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickle_that_calls_a_function_is_not_executed(folder, name, container):
    proof = folder / "executed"
    path = folder / "decoder" / name
    if container == "torch":
        torch.save({"weight": _Touch(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": _Touch(proof)}, protocol=2))
    with pytest.raises(UserError, match=name):
        SpeechDecoder.load(folder / "decoder")
    assert not proof.exists()


def test_yaml_tags_are_not_executed(folder):
    proof = folder / "executed"
    path = folder / "decoder" / "config.yaml"
    evil = f"evil: !apply:pathlib.Path.touch ['{proof}']\nworse: !!python/object/apply:os.mkdir ['{proof}']\n"
    path.write_text(evil + path.read_text())
    assert SpeechDecoder.load(folder / "decoder").sample_rate == 22_050
    assert not proof.exists()


def test_truncated_files_are_refused(folder):
    for part, name in (("decoder", "flow.pt"), ("decoder", "hift.pt"), ("tokenizer", "model.safetensors")):
        path = folder / part / name
        whole = path.read_bytes()
        for kept in (len(whole) - 100, 1000, 0):
            path.write_bytes(whole[:kept])
            with pytest.raises(UserError, match=f"{name}.*(damaged|plain)"):
                (SpeechDecoder if part == "decoder" else SpeechTokenizer).load(folder / part)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda state: state.pop("encoder_proj.bias"), "1 tensors are missing .encoder_proj.bias"),
        (lambda state: state.update(stray=torch.ones(3)), "1 tensors do not belong .stray"),
        (lambda state: state.update({"encoder_proj.bias": torch.ones(81)}), r"encoder_proj.bias is \(81,\).*\(80,\)"),
        (lambda state: state["encoder_proj.bias"].fill_(float("nan")), "encoder_proj.bias holds values that are not"),
        (lambda state: state.update({"encoder_proj.bias": torch.ones(80, dtype=torch.int8)}), "type torch.int8"),
        (lambda state: state.update(note="text"), "'note' is not a tensor"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, sentence):
    path = folder / "decoder" / "flow.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(UserError, match=sentence):
        SpeechDecoder.load(folder / "decoder")


@pytest.mark.parametrize(
    "part, name, field, value, sentence",
    [
        ("tokenizer", "config.json", "d_model", 128, "does not fit its configuration"),
        ("tokenizer", "config.json", "d_model", None, "d_model is null"),
        ("tokenizer", "config.json", "quantize_position", 10**9, "a whole number from 1 to 256"),
        ("tokenizer", "config.json", "encoder_causal_attention", True, "only false is supported"),
        ("tokenizer", "config.json", "pooling_position", 3, "pooling_position lies after"),
        ("tokenizer", "preprocessor_config.json", "sampling_rate", 8000, "only 16000 is supported"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_by_field(folder, part, name, field, value, sentence):
    path = folder / part / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=sentence):
        SpeechTokenizer.load(folder / part)


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ("macaron_style: false", "macaron_style: true", "macaron_style is true; only false"),
        ("channels: [24, 24]", "channels: [20, 20]", "divide by 8"),
        ("!ref <sample_rate>", "!ref <nowhere>", "does not have"),
        ("sample_rate: 22050", "sample_rate: !ref <sample_rate>", "leads back to itself"),
        ("n_fft: 16", "n_fft: sixteen", "n_fft is 'sixteen'"),
        ("hift: !new", "vocoder: !new", "the field 'hift' is missing"),
    ],
)
def test_decoder_configurations_that_do_not_fit_are_refused_by_field(folder, old, new, sentence):
    path = folder / "decoder" / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        SpeechDecoder.load(folder / "decoder")


@pytest.mark.parametrize(
    "name", ["tokenizer/config.json", "tokenizer/model.safetensors", "decoder/config.yaml", "decoder/hift.pt"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.split("/")[1]):
        SpeechTokenizer.load(folder / "tokenizer")
        SpeechDecoder.load(folder / "decoder")
