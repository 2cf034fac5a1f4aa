"""Weights go in and out bit by bit, and nothing that does not fit goes in."""

import json
import os
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.backbone import open_backbone, save_backbone
from vita_audio_pl.models.initialise import add_heads, resize_vocabulary
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.released import read_released_config, save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.tensor_file import LateTensor, file_order, write_tensors
from vita_audio_pl.models.weight_files import save_weights
from vita_audio_pl.storage.model_folders import find_model


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def qwen2(folder, tied, shard="1GB"):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def test_published_checkpoints_come_back_bit_by_bit(parity, tmp_path):
    published = load_file(parity / "k3/model.safetensors")
    model = load_model(parity / "k3")
    save_released(model, tmp_path, decode_pattern=[1, 10, 4, 10], first_code=300, max_shard_bytes=200_000)
    shards = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert len(shards) > 3
    written = {key: tensor for shard in shards for key, tensor in shard.items()}
    assert written.keys() == published.keys()
    assert all(torch.equal(written[key], published[key]) for key in published)
    assert same(load_model(tmp_path), model)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, parity / "k3"))
    assert theirs.items() <= ours.items()
    assert json.loads((tmp_path / "generation_config.json").read_text())["mtp_inference_mode"] == [1, 10, 4, 10]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_model_comes_back_from_both_formats(tied, dtype, tiny, tmp_path):
    model = tiny(n_heads=3, tied=tied).to(dtype)
    for save in (save_released, save_backbone):
        save(model, tmp_path / save.__name__)
        again = load_model(tmp_path / save.__name__)
        assert same(again, model) and again.n_heads == 3 and again.lm_head.weight.dtype == dtype
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    keys = load_file(tmp_path / "save_released/model.safetensors").keys()
    assert ("lm_head.weight" in keys) == (not tied)


@pytest.mark.parametrize("tied, shard", [(False, "1GB"), (True, "20KB")])
def test_a_base_model_answers_as_in_transformers(tied, shard, pack, tmp_path):
    theirs = qwen2(tmp_path, tied, shard)
    ours, batch = load_model(tmp_path), pack([[9]], vocabulary=96)
    with torch.no_grad():
        expected = theirs(batch.input_ids[:, :9]).logits
        torch.testing.assert_close(ours.logits(batch)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_backbone_generates_in_transformers_as_it_does_here(tied, tiny, pack, tmp_path):
    model = tiny(n_heads=2, tied=tied).eval()
    save_backbone(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config.num_hidden_layers == 2 and sum(p.numel() for p in plain.parameters()) == sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith("heads.")
    )
    ids = pack([[6]]).input_ids[:, :6]
    generated = plain.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for end in range(6, 14):
        batch = pack([[end]])
        batch.input_ids[:, :end] = generated[:, :end]
        assert model.logits(batch)[0][0, -1].argmax() == generated[0, end]


def test_a_larger_vocabulary_keeps_its_rows_and_draws_the_rest_around_their_mean(tiny):
    for tied in (False, True):
        model = tiny(tied=tied, spread=1.0, vocab_size=512)
        old = {name: p.detach().clone() for name, p in model.named_parameters()}
        resize_vocabulary(model, 4096, torch.Generator().manual_seed(0))
        for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
            rows = model.get_parameter(name)
            assert torch.equal(rows[:512], old[name]) and len(rows) == 4096
            new, mean = rows[512:].double(), old[name].double().mean(0)
            covariance = torch.cov(old[name].double().t(), correction=0) * 1e-9
            torch.testing.assert_close(new.mean(0), mean, atol=5e-6, rtol=0)
            drawn = (new - mean).t() @ (new - mean) / len(new)
            assert (drawn - covariance).abs().max() < 0.1 * covariance.diagonal().max()
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert model.lm_head(torch.zeros(1, 32)).shape == (1, 4096)


def test_a_smaller_vocabulary_cuts_untrained_rows(tiny):
    model = tiny()
    resize_vocabulary(model, 40)
    assert model.lm_head.weight.shape == (40, 32) and model.config.backbone.vocab_size == 40


def test_added_heads_train_apart_from_what_they_copy(tiny, pack):
    model = tiny(n_heads=0)
    add_heads(model, 3)
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    model(pack([[12]]), EveryHead()).total.backward()
    assert all(p.grad is not None for p in model.heads.parameters())
    with pytest.raises(UserError, match="3 heads and 2 are asked for"):
        add_heads(model, 2)


def test_7b_is_built_without_its_memory():
    backbone = Qwen2Config(vocab_size=168072, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28)
    model = SpeechLM.on_meta(SpeechLMConfig(backbone, n_heads=10))
    assert all(p.is_meta for p in model.parameters())


@pytest.fixture
def folder(tiny, tmp_path):
    save_released(tiny(), tmp_path / "good")
    return tmp_path / "good"


def change(folder, how):
    tensors = load_file(folder / "model.safetensors")
    how(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def nan(tensors):
    tensors["mtp_projs.1.weight"][3, 4] = float("nan")


BREAKAGES = {
    "missing key": (lambda f: change(f, lambda t: t.pop("model.norm.weight")), r"lacks 'model\.norm\.weight'"),
    "extra key": (lambda f: change(f, lambda t: t.update(extra=torch.ones(1))), "unexpectedly, 'extra'"),
    "shape": (lambda f: change(f, lambda t: t.update({"lm_head.weight": torch.ones(8, 32)})), r"\(8, 32\).*\(64, 32\)"),
    "not a number": (lambda f: change(f, nan), r"'mtp_projs\.1\.weight' .* NaN"),
    "heads": (lambda f: set_config(f, num_nextn_predict_layers=1, num_hidden_layers=3), "holds 2 heads .* says .*=1"),
    "vocabulary": (lambda f: set_config(f, vocab_size=72), r"'model\.embed_tokens\.weight' .* \(64, 32\).*\(72, 32\)"),
    "width": (lambda f: set_config(f, hidden_size=64, head_dim=16), r"'.*' in .* has shape"),
    "only heads": (lambda f: set_config(f, num_hidden_layers=2), "leaves no backbone"),
    "another kind": (lambda f: set_config(f, model_type="llama"), "model_type 'llama'"),
    "sliding": (lambda f: set_config(f, use_sliding_window=True), "sliding-window"),
    "no width": (lambda f: set_config(f, hidden_size=None), "hidden_size is null"),
    "no number": (lambda f: set_config(f, hidden_size="wide"), "hidden_size is 'wide'; expected a whole number"),
    "cut short": (lambda f: os.truncate(f / "model.safetensors", 9000), "is cut short"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_text("hello"), "cut short or is not"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "no folder": (shutil.rmtree, r"config\.json is missing"),
}


@pytest.mark.parametrize("breakage, sentence", BREAKAGES.values(), ids=BREAKAGES)
def test_what_does_not_fit_is_one_sentence_that_names_it(breakage, sentence, folder):
    breakage(folder)
    with pytest.raises(UserError, match=sentence) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(tiny, tmp_path):
    save_released(tiny(), tmp_path, max_shard_bytes=30_000)
    (tmp_path / sorted(tmp_path.glob("model-0*"))[1].name).unlink()
    with pytest.raises(UserError, match="model-00002-of-.* is missing; .* lists it"):
        load_model(tmp_path)


def test_a_pointer_of_git_lfs_and_a_pickle_are_named(tiny, tmp_path):
    save_released(tiny(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="model.safetensors only points to the file, .* run git lfs pull"):
        load_model(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match="has pytorch_model.bin, a pickle, which is not read: load it with transformers"
    ):
        load_model(tmp_path)


def test_a_model_is_found_in_a_cache_of_the_hub(tiny, tmp_path):
    model, cache = tiny(), tmp_path / "models--Lab--Tiny"
    save_released(model, tmp_path / "saved")
    kept = cache / "snapshots/0a1b"
    for folder in (kept, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True)
    (cache / "refs/main").write_text("0a1b\n")
    for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
        path.rename(cache / f"blobs/{number}")
        (kept / path.name).symlink_to(f"../../blobs/{number}")
    for name in (cache, cache / "snapshots", kept):
        assert find_model(name) == kept and same(load_model(find_model(name)), model)


def test_an_index_does_not_lead_out_of_its_folder(tiny, tmp_path):
    save_released(tiny(), tmp_path, max_shard_bytes=30_000)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(UserError, match="does not list files of its own folder"):
        load_model(tmp_path)


def test_a_published_folder_is_no_base_model_and_the_reverse(folder, tmp_path):
    with pytest.raises(UserError, match="'qwen2_mtp', and it has to be one of qwen2, qwen3:"):
        open_backbone(folder)
    qwen2(tmp_path / "base", tied=False)
    with pytest.raises(UserError, match="'qwen2', and it has to be one of qwen2_mtp, qwen3_mtp:"):
        read_released_config(tmp_path / "base")


def test_a_file_is_what_safetensors_would_have_written(tmp_path):
    torch.manual_seed(0)
    whole = {
        f"{index} {dtype}": torch.randn(3, 5).mul(9).to(dtype)
        for index, dtype in enumerate((torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float32))
    }
    whole |= {"none": torch.empty(0, 4), "one": torch.tensor(2.5)}
    layout = {name: (value.dtype, value.shape) for name, value in whole.items()}
    offsets = write_tensors(tmp_path / "ours", layout, (whole[name] for name in file_order(layout)))
    save_file(whole, tmp_path / "theirs", metadata={"format": "pt"})
    found, wanted = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert found.keys() == wanted.keys() and all(value.equal(wanted[name]) for name, value in found.items())
    data = (tmp_path / "ours").read_bytes()
    assert data[offsets["one"] :][:4] == whole["one"].numpy().tobytes() and offsets["one"] % 4 == 0
    with pytest.raises(ValueError, match="has place for"):
        write_tensors(tmp_path / "short", layout, [whole["one"]])


def test_weights_are_let_go_as_they_are_written(tmp_path):
    alive, most = weakref.WeakSet(), []

    def read() -> torch.Tensor:
        value = torch.ones(100)
        alive.add(value)
        most.append(len(alive))
        return value

    save_weights({str(n): LateTensor(torch.float32, (100,), read) for n in range(8)}, tmp_path, max_shard_bytes=1000)
    assert len(most) == 8 and max(most) <= 2
    assert len(list(tmp_path.glob("model-*-of-00004.safetensors"))) == 4
