"""Weights that others trained start a run, and go in and out bit by bit: published VITA-Audio layouts, plain Qwen2 and Qwen3 folders."""

import json
import shutil

import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.exporting import export_model, spell_out
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.models.families import family_of
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.lora import merged_parameters
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.notebook import train_config
from vita_audio_pl.storage.model_folders import find_model
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.run_folder.origin import describe_rates
from vita_audio_pl.training.stage.data import prepared_data
from vita_audio_pl.training.stage.starting_model import backbone_config, starting_model
from vita_audio_pl.training.stage.train import train_stage

BOOST, BALANCE = [1, 10, 4, 10], [1, 4, 3, 8, 4, 10]
LAYOUTS = {
    "vita_audio_boost": (3, False, BOOST),
    "vita_audio_balance": (3, False, BALANCE),
    "vita_audio_plus_vanilla": (0, True, None),
    "vita_audio_plus_boost": (3, True, BOOST),
}
ENCODER = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1)
TOKENIZER = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)


def published(folder, variant, *overrides):
    """A folder as it is published: bfloat16 in several files, no manifest, codec or settings of ours."""
    n_heads, hears, pattern = LAYOUTS[variant]
    words = TOKENIZER.vocabulary(32, continuous_input=hears)
    torch.manual_seed(3)
    backbone = backbone_config(toy.toy_config(folder, *overrides).model, words)
    backbone.tie_word_embeddings = False
    model = SpeechLM(SpeechLMConfig(backbone, n_heads))
    if hears:
        add_speech_input(model, SenseVoiceEncoder(ENCODER), words.context_of_audio)
    save_released(model.to(torch.bfloat16), folder, decode_pattern=pattern, max_shard_bytes=30_000)
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("context_of_audio_id", None)
    (folder / "config.json").write_text(json.dumps(settings))
    TOKENIZER.save(folder)
    spell_out(folder / "tokenizer.json", words)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


QWEN3 = ("model.family=qwen3", "model.head_dim=12")


def plain_qwen2(folder, *overrides):
    """A base model as transformers saves it, with its tokenizer."""
    torch.manual_seed(4)
    settings = toy.toy_config(folder, "model.intermediate_size=48", *overrides).model
    backbone = backbone_config(settings, TOKENIZER.vocabulary(32))
    backbone.vocab_size = 336  # rows past the tokenizer's end, as Qwen2.5 has them
    family_of(backbone).causal_lm(backbone).to(torch.bfloat16).save_pretrained(folder)
    TOKENIZER.save(folder)
    return folder


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Trains two steps of the toy data, in the words of `TOKENIZER`, and returns the stage's folder."""

    def train(stage, *overrides, **data):
        config = toy.toy_config(tmp_path / "runs", f"stage={stage}", "run_name=mine", "stage.steps=2", *overrides)
        hears = config.variant.has_audio_encoder
        words = TOKENIZER.vocabulary(32, continuous_input=hears)
        monkeypatch.setattr(toy, "HEARING" if hears else "VOCABULARY", words)
        made = toy.toy_data(tmp_path / "world", toy.ToyData(hears=hears), **data)
        shutil.rmtree(tmp_path / "world" / "tokenizer")
        TOKENIZER.save(tmp_path / "world" / "tokenizer")
        object.__setattr__(made, "tokenizer", TOKENIZER.fingerprint)
        return StageFolder(train_stage(config, made).parent)

    return train


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("variant", LAYOUTS)
def test_a_published_folder_starts_a_run_whose_export_comes_back(variant, start, tmp_path):
    source = published(tmp_path / "published", variant)
    n_heads, hears, pattern = LAYOUTS[variant]
    copied = tmp_path / "copied"
    export_model(source, copied)
    original = load_speech_model(source)
    assert same(load_model(copied), original.model) and original.model.n_heads == n_heads
    assert original.vocabulary == TOKENIZER.vocabulary(32, continuous_input=hears)
    assert pattern is None or list(original.pattern.runs) == pattern

    encoder = [f"encoder.folder={toy.toy_encoder(tmp_path / 'encoder')}"] if hears else []
    folder = start("sft", f"variant={variant}", f"init_from={source}", *encoder)
    manifest = StageManifest.read(folder.model)
    assert manifest.pretrained and manifest.n_heads == n_heads and manifest.parent_stage is None
    trained = load_speech_model(folder.root).model
    assert not torch.equal(trained.lm_head.weight, original.model.lm_head.weight.float())
    if hears:
        weights = [model.speech_input.audio_model.state_dict() for model in (trained, original.model)]
        assert all(torch.equal(value, weights[1][name].float()) for name, value in weights[0].items())
    for name, layout in (("again", "released"), ("plain", "backbone")):
        export_model(folder.root, tmp_path / name, layout)
        assert same(load_speech_model(tmp_path / name).model, trained)
        assert StageManifest.of(tmp_path / name).vocabulary == manifest.vocabulary


def test_a_published_folder_that_does_not_fit_the_data_is_refused(start, tmp_path):
    source = published(tmp_path / "published", "vita_audio_boost")
    with pytest.raises(UserError, match="wants 1 heads, but its parent .* has 3; heads can only be added"):
        start("mtp1", f"init_from={source}")
    with pytest.raises(UserError, match="its speech input .* is codes, and this run's is encoder"):
        start("sft", "variant=vita_audio_plus_boost", f"init_from={source}")
    other = TextTokenizer.train(["another text altogether, with words of its own"], 300)
    other.save(source)
    spell_out(source / "tokenizer.json", other.vocabulary(32))
    with pytest.raises(UserError, match="its (vocabulary|text tokenizer) .* use the data that it was trained on"):
        start("sft", f"init_from={source}")


@pytest.mark.parametrize("kind", [(), QWEN3], ids=["qwen2", "qwen3"])
def test_a_plain_backbone_grows_by_the_audio_tokens_and_brings_its_sizes(kind, start, tmp_path):
    source = plain_qwen2(tmp_path / "plain", *kind)
    align = start("align", f"init_from={source}")
    manifest = StageManifest.read(align.model)
    assert manifest.pretrained and manifest.config["model"]["pretrained"] == str(source)
    assert manifest.config["model"]["intermediate_size"] == 48  # the folder's, not the configured 32
    model = load_model(align.model)
    assert model.config.backbone.vocab_size == TOKENIZER.vocabulary(32).size
    before = load_file(source / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    assert (model.state_dict()["model.layers.0.mlp.up_proj.weight"] - before).abs().max() < 0.1
    lora = ("model.lora.rank=2",) if kind else ()
    later = StageManifest.read(start("mtp1", *lora).model)  # and so do the stages after it
    assert later.pretrained and later.config["model"]["head_dim"] == (12 if kind else None)
    if kind:
        head = load_model(tmp_path / "runs/mine/mtp1/model").heads[0].layer
        assert head.self_attn.q_norm.weight.shape == (12,) and head.self_attn.q_proj.bias is None
        export_model(tmp_path / "runs/mine/mtp1", tmp_path / "exported", "backbone")
        assert same(load_model(tmp_path / "exported"), load_model(tmp_path / "runs/mine/mtp1/model"))


def test_rates_are_those_for_pretrained_weights_unless_given(start, tmp_path):
    qwen2, boost = plain_qwen2(tmp_path / "qwen2"), published(tmp_path / "boost", "vita_audio_boost")
    runs = f"paths.runs={tmp_path / 'runs'}"

    def rates(*overrides):
        config = train_config(runs, *overrides)
        return (config.stage.learning_rate, config.stage.head_rate_factor), describe_rates(config)

    assert rates("stage=align") == ((3e-3, 1.0), None)
    found, told = rates("stage=align", f"init_from={qwen2}")
    assert found == (6e-5, 1.0) and "stage.learning_rate=6e-05" in told and "0.003" in told
    assert rates("stage=align", f"model.pretrained={qwen2}")[0] == (6e-5, 1.0)
    assert rates("stage=sft", f"init_from={boost}")[0] == (5e-5, 10.0)
    assert rates("stage=align", f"init_from={qwen2}", "stage.learning_rate=2e-4") == ((2e-4, 1.0), None)
    assert rates("stage=align", f"init_from={qwen2}", "per_stage.align.learning_rate=2e-4") == ((2e-4, 1.0), None)
    start("align", "run_name=random")
    assert rates("stage=mtp1", "run_name=random") == ((3e-3, 1.0), None)
    start("align", "run_name=adapted", f"init_from={qwen2}")
    assert rates("stage=mtp1", "run_name=adapted")[0] == (1e-3, 1.0)


def test_what_a_folder_decides_cannot_be_said_otherwise(tmp_path):
    qwen2 = plain_qwen2(tmp_path / "qwen2")
    with pytest.raises(UserError, match=r"model.hidden_size=64 is given, but the model in .* has 16; leave"):
        train_config("stage=align", f"init_from={qwen2}", "model.hidden_size=64")
    fields = json.loads((qwen2 / "config.json").read_text())
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps(fields | {"model_type": "llama"}))
    with pytest.raises(UserError, match="model_type 'llama', and it has to be one of qwen2, qwen3, qwen2_mtp"):
        train_config("stage=align", f"init_from={tmp_path / 'llama'}")
    with pytest.raises(
        UserError, match=r"is a plain backbone, and stage 'sft' .* starts from mtp10; begin with stage=align"
    ):
        train_config("stage=sft", f"init_from={qwen2}")


def test_a_pretrained_model_and_shards_of_another_tokenizer_are_refused(tmp_path):
    qwen2 = plain_qwen2(tmp_path / "qwen2")
    prepared = tmp_path / "world" / "shards" / "a"
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text("{}")
    TextTokenizer.train(["words of the small world"], 270, tmp_path / "world" / "tokenizer")
    config = train_config("stage=align", f"model.pretrained={qwen2}", f"data.shards={tmp_path / 'world' / 'shards'}")
    with pytest.raises(
        UserError, match=r"reads the ids of its own tokenizer .* prepare the data with tokenizer_folder="
    ):
        prepared_data(config, 0)


def test_a_model_is_named_by_its_run_its_stage_or_its_folder(start, tmp_path):
    start("align")
    folder = start("mtp1")
    runs = tmp_path / "runs"
    for name in ("mine", "mine/mtp1", runs / "mine", runs / "mine/mtp1", folder.model):
        assert find_model(name, runs) == folder.model
    checkpoint = sorted(folder.checkpoints.glob("step-*"))[-1]
    with pytest.raises(UserError, match="is a checkpoint; make a model folder of it"):
        find_model(checkpoint, runs)
    with pytest.raises(UserError, match="there is no model folder nobody, and no run of that name in"):
        find_model("nobody", runs)
    (runs / "mine/align/model/manifest.json").unlink()
    (runs / "mine/align/model/config.json").unlink()
    with pytest.raises(UserError, match="is not a model folder: it has no config.json"):
        find_model("mine/align", runs)


def test_adapters_alone_are_the_model_that_was_trained(start, tmp_path):
    source = published(tmp_path / "published", "vita_audio_boost")
    only = ("model.lora.rank=8", "model.lora.only=true")
    folder = start("sft", f"init_from={source}", *only).model
    held = load_file(folder / "model.safetensors")
    assert all(".lora_" in name for name in held) and any(name.startswith("heads.2.") for name in held)
    assert any(bool(value.any()) for name, value in held.items() if ".lora_B" in name)
    assert not (folder / "codec").exists() and not (folder / "tokenizer").exists()

    config = toy.toy_config(tmp_path / "runs", "stage=sft", "run_name=mine", *only)
    adapted = starting_model(config, TOKENIZER.vocabulary(32), source)
    adapted.load_state_dict(held, strict=False)
    loaded = load_speech_model(folder.parent, dtype=torch.float32).model
    assert {name: value.tolist() for name, value in merged_parameters(adapted).items()} == {
        name: value.tolist() for name, value in loaded.named_parameters()
    }
    assert not torch.equal(
        loaded.model.layers[0].mlp.up_proj.weight, load_model(source).model.layers[0].mlp.up_proj.weight
    )
    export_model("mine", tmp_path / "whole", dtype=torch.float32, runs=tmp_path / "runs")
    assert same(load_speech_model(tmp_path / "whole").model, loaded)

    again = start(
        "sft", f"init_from={folder}", "variant.parents.sft=[sft]", "run_name=again", *only
    )  # adapters on adapters
    assert load_speech_model(again.root).model.n_heads == 3
    with pytest.raises(UserError, match="hands over adapters of a whole model, and this stage adds audio tokens"):
        start("align", f"init_from={plain_qwen2(tmp_path / 'qwen2')}", "run_name=base", *only)
    shutil.rmtree(source)
    published(source, "vita_audio_balance")
    weights = load_file(next(source.glob("model-00001*")))
    save_file({name: value + 1 for name, value in weights.items()}, next(source.glob("model-00001*")))
    with pytest.raises(UserError, match="were trained on other weights than those in"):
        load_speech_model(folder)
    shutil.rmtree(source)
    with pytest.raises(UserError, match="holds adapters of the model .*published, which is not there; move it back"):
        load_speech_model(folder)
