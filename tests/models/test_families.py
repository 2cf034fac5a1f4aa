"""Every family of backbones computes what transformers' own model of it computes, in training, in decoding and plainly."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.margins import assert_most_likely
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.rows import Span
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.backbone import open_backbone, save_backbone
from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.models.initialise import add_heads
from vita_audio_pl.models.load import load_model, open_model
from vita_audio_pl.models.objectives import EveryHead
from vita_audio_pl.models.reference import Document, ReferenceModel
from vita_audio_pl.models.released import backbone_dict, open_released, save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
)  # fmt: skip
KINDS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2, wide heads": (Qwen2Config, Qwen2ForCausalLM, {"head_dim": 12}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 12}),
    "qwen3, biased": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "attention_bias": True}),
    "qwen3, unsaid head_dim": (Qwen3Config, Qwen3ForCausalLM, {}),
}


@pytest.fixture(params=KINDS)
def kind(request):
    assert {name.split(",")[0] for name in KINDS} == set(FAMILIES)
    return KINDS[request.param]


@torch.no_grad()
def drawn(model):
    """Norms and biases start as ones and zeros, which would hide where they are left out."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith(".bias"):
            parameter.normal_(std=0.3)
    return model.eval()


def own(kind, tied=False):
    """transformers' model."""
    torch.manual_seed(1)
    config, model, fields = kind
    return drawn(model(config(**SIZES, **fields, tie_word_embeddings=tied)))


def with_heads(kind, n_heads=3, tied=False):
    torch.manual_seed(2)
    config, _, fields = kind
    backbone = config(**SIZES, **fields, tie_word_embeddings=tied)
    return drawn(SpeechLM(SpeechLMConfig(backbone, n_heads)))


def plainly(model):
    reference = ReferenceModel(model.config.backbone, model.n_heads)
    reference.load_state_dict(model.state_dict())
    return reference


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (9, 21)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_hidden_states_and_logits_are_those_of_transformers(kind, tied, pack, tmp_path):
    theirs = own(kind, tied)
    theirs.save_pretrained(tmp_path)
    if not kind[2]:  # as a file that leaves out what transformers has a value for
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k != "head_dim"}))
    ours, batch = load_model(tmp_path).eval(), pack([LENGTHS])
    documents = [batch.input_ids[:, :9], batch.input_ids[:, 9:30]]
    with torch.no_grad():
        said = [theirs(ids, output_hidden_states=True) for ids in documents]
        states = [each.hidden_states[-1][0] for each in said]
        logits = [each.logits[0] for each in said]
        torch.testing.assert_close(ours.hidden_states(batch)[0][0], torch.cat(states), **CLOSE)
        torch.testing.assert_close(ours.logits(batch)[0][0], torch.cat(logits), **CLOSE)
        for ids, expected in zip(documents, states, strict=True):
            torch.testing.assert_close(plainly(ours).hidden_states(ids[0])[0], expected, **CLOSE)
    runtime = Runtime(ours, release=True)
    cache = runtime.new_cache(slots=2, capacity=32, n_heads=0)
    for spans in ([Span(0, 0, 4), Span(1, 0, 4)], [Span(0, 4, 9), Span(1, 4, 21)]):  # the second reads the first's keys
        ids = [i for span in spans for i in documents[span.slot][0, span.start : span.stop].tolist()]
        with torch.inference_mode():
            hidden = runtime.run(0, runtime.rows(0, spans, ids), cache)
        for found, expected in ((hidden, states), (runtime.logits(hidden), logits)):
            wanted = torch.cat([expected[span.slot][span.start : span.stop] for span in spans])
            torch.testing.assert_close(found, wanted, **CLOSE)


def test_heads_train_and_are_served_as_the_plain_model_has_them(kind, pack):
    model, batch = with_heads(kind), pack([LENGTHS], n_heads=3)
    reference = plainly(model)
    documents = [Document(batch.input_ids[0, a:b], batch.labels[0, a:b]) for a, b in ((0, 9), (9, 30))]
    losses = model(batch, EveryHead())
    loss = reference.loss(documents, batch.divisor)
    torch.testing.assert_close(losses.total, loss, **CLOSE)
    losses.total.backward()
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
    assert type(model.heads[0].layer) is type(model.model.layers[0])
    prompt = batch.input_ids[0, :9].tolist()
    for mode in ("vanilla", "boost", "balance", "turbo"):
        pattern = DecodePattern.of(mode)
        [answer] = generate(model, [prompt], pattern, max_new_tokens=25)
        assert_most_likely(model, pattern, prompt, answer.ids)
    runtime = Runtime(model)
    runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays
    [verified] = generate(runtime, [prompt], DecodePattern.of("turbo"), max_new_tokens=25, verify="greedy")
    assert_most_likely(model, DecodePattern.of("vanilla"), prompt, verified.ids)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_large_matrices_are_laid_out_with_their_heads_norms(layout):
    torch.manual_seed(3)
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "initializer_range": 0.1}
    model = drawn(SpeechLM(SpeechLMConfig(Qwen3Config(**sizes, head_dim=64), 2)))
    pattern = DecodePattern.of([1, 2])
    [answer] = generate(Runtime(model, kernels=layout), [[5, 4, 3]], pattern, max_new_tokens=12)
    assert_most_likely(model, pattern, [5, 4, 3], answer.ids)


def test_half_precision_decodes_as_it_trains(kind, pack):
    """Both round, each in its own order: decoding is as near to float32 as training is."""
    model, batch = with_heads(kind, n_heads=0), pack([[21]])
    ids = batch.input_ids[0, :21].tolist()
    with torch.inference_mode():
        exact = model.hidden_states(batch)[0][0]
        model.bfloat16()
        trained = model.hidden_states(batch)[0][0].float()
        runtime = Runtime(model)
        cache = runtime.new_cache(slots=1, capacity=32, n_heads=0)
        decoded = runtime.run(0, runtime.rows(0, [Span(0, 0, 21)], ids), cache).float()
    assert (decoded - exact).norm() <= 1.5 * (trained - exact).norm()


@pytest.mark.parametrize("save", [save_released, save_backbone])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_folders_come_back_bit_by_bit_and_load_in_transformers(kind, tied, save, tmp_path, pack):
    model = with_heads(kind, tied=tied)
    save(model, tmp_path, decode_pattern=[1, 3], first_code=60, max_shard_bytes=30_000)
    again = load_model(tmp_path)
    assert backbone_dict(again.config.backbone) == backbone_dict(model.config.backbone)
    mine, theirs = again.state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    batch = pack([[12]])
    with torch.no_grad():
        logits = loaded(batch.input_ids[:, :12]).logits[0]
    torch.testing.assert_close(logits, model.logits(batch)[0][0].detach(), **CLOSE)
    if save is save_released:
        heads = loaded.speech_lm()
        assert all(torch.equal(one, two) for one, two in zip(heads.logits(batch), model.logits(batch), strict=True))


def test_first_heads_copy_a_layer_of_their_family(kind):
    model = with_heads(kind, n_heads=0)
    add_heads(model, 2)
    last = model.model.layers[-1].state_dict()
    for head in model.heads:
        copied = head.layer.state_dict()
        assert copied.keys() == last.keys() and all(torch.equal(copied[name], last[name]) for name in last)
    family = FAMILIES[model.config.backbone.model_type]
    if not model.config.backbone.to_dict().get("attention_bias"):
        assert set(last) == set(family.layer_parameters)


def test_another_kind_of_model_is_one_sentence(tmp_path):
    save_released(with_heads(KINDS["qwen3"]), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "llama"}))
    for load in (load_model, open_model):
        with pytest.raises(
            UserError, match="model_type 'llama', and it has to be one of qwen2, qwen3, qwen2_mtp, qwen3"
        ):
            load(tmp_path)
    for load, wanted in ((open_backbone, "qwen2, qwen3: "), (open_released, "qwen2_mtp, qwen3_mtp: ")):
        with pytest.raises(
            UserError, match=f"it has to be one of {wanted}backbones are Qwen2, Qwen2.5 and Qwen3, dense"
        ):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"head_dim": 7}))
    with pytest.raises(UserError, match="head_dim=7 must give num_attention_heads=4 heads of even size"):
        load_model(tmp_path)
