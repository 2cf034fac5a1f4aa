"""Weights in few bits are rounded as torchao rounds them, multiplied as what they stand for, and never taken for exact ones."""

import copy
import json
import sys

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.margins import assert_most_likely, assert_same_answers, scores_of
from vita_audio_pl.config.decoding import QUANTIZE
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import model_facts
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.exporting import export_model
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.inference.quantised_products import Numbers, _by_torchao, quantised_product
from vita_audio_pl.inference.rows import Span
from vita_audio_pl.inference.screening import has_integer_products
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.merging import merge_models
from vita_audio_pl.model_card import model_card
from vita_audio_pl.models.adapters import save_adapters
from vita_audio_pl.models.heads import FORMS
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.lora import add_lora, merge_lora
from vita_audio_pl.models.quantised import QuantisedLinear, linear_layers, quantise, unpacked
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.weight_files import weights_hash
from vita_audio_pl.storage.checksums import sum_of_folder
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.model_folders import read_manifest
from vita_audio_pl.text.tokenizer import TextTokenizer

ao = pytest.importorskip("torchao.quantization")
from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs  # noqa: E402

BOOST = DecodePattern.of([1, 3, 2, 3])
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 6e-3}
"""Of a product with the rounded weight, beside its own size: 16 bits round each output by up to 2^-8."""


def layer(outputs=200, inputs=192, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


def held(made):
    return Numbers(made.scheme, made.numbers, made.scales, made.zeros)


def distance(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture
def model():
    """2 layers and 3 heads, norms that are not 1; every width holds groups of 32."""
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=336,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    made = SpeechLM(SpeechLMConfig(backbone, 3)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    return made


@pytest.fixture
def folder(model, tmp_path):
    tokenizer = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)
    words = tokenizer.vocabulary(32)
    assert words.size == model.config.backbone.vocab_size
    source = tmp_path / "sft" / "model"
    save_released(model, source, decode_pattern=[1, 3, 2, 3], first_code=words.first_code)
    tokenizer.save(source / "tokenizer")
    return source


def plain_twin(model):
    """The same model for the training forward, whose weights are what the numbers stand for."""
    twin = copy.deepcopy(model)
    for name, part in model.named_modules():
        if isinstance(part, QuantisedLinear):
            linear = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None)
            linear.weight = nn.Parameter(part.dequantised(), requires_grad=False)
            if part.scheme == "int8_dynamic":  # torchao's own tensor, which rounds the inputs, too
                rounds = QuantizeTensorToInt8Kwargs(ao.PerRow())
                shape = [1, part.in_features]
                weight = ao.Int8Tensor(part.numbers, part.scales, shape, torch.float32, act_quant_kwargs=rounds)
                linear.weight = nn.Parameter(weight, requires_grad=False)
            linear.bias = part.bias
            owner, _, attribute = name.rpartition(".")
            setattr(twin.get_submodule(owner), attribute, linear)
    twin.config.quantize = None
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_as_torchao_rounds_them(dtype):
    linear = layer(dtype=dtype)
    weight = linear.weight.detach()
    made = QuantisedLinear.of(linear, "int8")
    by_config = nn.Sequential(copy.deepcopy(linear))
    ao.quantize_(by_config, ao.Int8WeightOnlyConfig(set_inductor_config=False))
    assert torch.equal(made.dequantised(), by_config[0].weight.dequantize(torch.float32))
    assert made.numbers.dtype == torch.int8 and QuantisedLinear.of(linear, "int8_dynamic").scheme == "int8_dynamic"
    made = QuantisedLinear.of(linear, "int4")
    numbers, shape = unpacked(made.numbers), made.scales.shape
    restored = ao.dequantize_affine(
        numbers, (1, 64), made.scales, made.zeros, torch.uint8, 0, 15, output_dtype=torch.float32
    )
    assert (
        torch.equal(made.dequantised(), restored) and made.numbers.numel() == weight.numel() // 2 and shape == (200, 3)
    )
    # nearest of the 16 steps: nowhere further away than half a step, but for the rounding of the step itself
    steps = made.scales.repeat_interleave(64, dim=1)
    assert bool(((made.dequantised() - weight.float()).abs() <= 0.5001 * steps + 1e-6).all())
    assert int(numbers.min()) == 0 and int(numbers.max()) == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", QUANTIZE)
@pytest.mark.parametrize("shape", [(200, 192), (1536, 1024), (48, 96), (40, 32)])
def test_products_are_those_of_what_the_numbers_stand_for(scheme, dtype, shape):
    made = QuantisedLinear.of(layer(*shape, dtype=dtype), scheme)
    product = quantised_product(held(made), made.bias, dtype)
    by_torchao = _by_torchao(held(made), dtype)[0] if scheme != "int4" else None
    for rows in (1, 3, 40):
        x, total = torch.randn(rows, shape[1]).to(dtype), torch.randn(rows, shape[0]).to(dtype)
        found, exact = product(x), F.linear(x.float(), made.dequantised(), made.bias.float())
        assert found.dtype == dtype and found.is_contiguous()
        close = CLOSE[torch.bfloat16 if scheme == "int4" else dtype]
        if by_torchao is not None:  # whose tensors round the inputs, too, where the scheme says so
            twice = 2 if scheme == "int8_dynamic" else 1  # they round to 16 bits between the two scales, as well
            assert distance(found, by_torchao(x) + made.bias) < twice * close
        if scheme != "int8_dynamic":
            assert distance(found, exact) < close
        unrounded = layer(*shape, dtype=dtype).float()(x.float())
        assert 1e-4 < distance(unrounded, exact) < (0.1 if scheme == "int4" else 0.01)
        assert torch.equal(product.add_to(total.clone(), x), total + found)


@pytest.mark.parametrize("inputs", [64, 104])
def test_numbers_that_lie_anywhere_in_a_mapped_file_are_multiplied(inputs):
    made = QuantisedLinear.of(layer(64, inputs, torch.bfloat16), "int8")
    place = torch.zeros(made.numbers.numel() + 8, dtype=torch.int8)
    place[8:] = made.numbers.flatten()
    moved = Numbers("int8", place[8:].view_as(made.numbers), made.scales)
    x = torch.randn(5, inputs, dtype=torch.bfloat16)
    expected = F.linear(x.float(), made.dequantised())
    assert distance(quantised_product(moved, None, torch.bfloat16)(x), expected) < CLOSE[torch.bfloat16]


@pytest.mark.skipif(not has_integer_products(), reason="this processor sums no products of 8-bit integers")
def test_rounded_inputs_give_each_row_the_same_whatever_is_multiplied_beside_it():
    made = QuantisedLinear.of(layer(300, 256), "int8_dynamic")
    product, x = quantised_product(held(made), None, torch.float32), torch.randn(11, 256)
    x[3] = 0
    together = product(x)
    assert all(torch.equal(together[row : row + 1], product(x[row : row + 1])) for row in range(11))
    assert not together[3].any()


def test_a_gpus_4_bit_layout_pads_what_does_not_fill_its_tiles():
    """Shapes alone, on torch's device without memory: nothing here ever multiplied on a GPU."""
    for outputs, inputs in ((300, 192), (3584, 18944)):
        with FakeTensorMode(), torch.device("meta"):
            made, x = QuantisedLinear("int4", outputs, inputs, False), torch.empty(3, inputs, dtype=torch.bfloat16)
            product = quantised_product(held(made), None, torch.bfloat16)
            assert product(x).shape == (3, outputs) and product(x).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_quantised_model_decodes_what_its_rounded_weights_say(scheme, model):
    quantise(model, scheme)
    assert not [part for name, part in model.named_modules() if name.startswith(("model.layers", "heads."))
                and isinstance(part, nn.Linear)]  # fmt: skip
    twin, prompts = plain_twin(model), [[5, 7, 11, 13], [3, 2, 1]]
    runtime = Runtime(copy.deepcopy(model), release=True)
    found, vanilla = first_logits(runtime, prompts[0]), DecodePattern.of("vanilla")
    exact = scores_of(twin, vanilla, prompts[0][:1], prompts[0][1:] + [0])
    # an input that lies between two steps of 8 bits goes either way; 4 bits multiply in bfloat16
    assert distance(found, exact) < {"int8": 1e-5, "int8_dynamic": 0.02, "int4": 0.03}[scheme]
    if scheme == "int8":
        for prompt, answer in zip(prompts, generate(runtime, prompts, BOOST, max_new_tokens=40), strict=True):
            assert_most_likely(twin, BOOST, prompt, answer.ids)
    verified = generate(runtime, prompts, BOOST, max_new_tokens=40, verify="greedy")
    plain = generate(runtime, prompts, vanilla, max_new_tokens=40)
    if scheme != "int4":  # whose products in bfloat16 round otherwise for several rows
        assert_same_answers(twin, vanilla, prompts, *([a.ids for a in answers] for answers in (verified, plain)))


@torch.inference_mode()
def first_logits(runtime, prompt):
    cache = runtime.new_cache(slots=1, capacity=16, n_heads=3)
    hidden = runtime.run(0, runtime.rows(0, [Span(0, 0, len(prompt))], prompt), cache)
    return runtime.logits(hidden)


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_no_quantised_weight_is_held_twice(scheme, model):
    exact = {name: p.nbytes for name, p in model.named_parameters()}
    inside = sum(exact[f"{name}.weight"] for name in linear_layers(model))
    beside = sum(exact.values()) - inside
    quantise(model, scheme)
    numbers = [StorageWeakRef(p.untyped_storage()) for p in model.parameters() if p.dtype == torch.int8]
    assert sum(p.nbytes for p in model.parameters()) < beside + inside * (0.33 if scheme != "int4" else 0.2)
    runtime = Runtime(model, release=True)
    left = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters() if p.device.type != "meta"}
    for each in (*runtime.layers, *(head.layer for head in runtime.heads)):
        for product in (each.qkv, each.output, each.gate_up, each.down):
            left |= {place(t): t.nbytes for t in product.held}
    for head in runtime.heads:
        left |= {place(t): t.nbytes for t in head.join.held}
    assert sum(left.values()) < 1.05 * beside + inside * (0.33 if scheme != "int4" else 0.2)
    if scheme == "int8_dynamic" and has_integer_products():  # multiplied from oneDNN's copies alone
        assert numbers and all(each.expired() for each in numbers)


def place(tensor):
    """Of its memory; oneDNN shows none."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_an_exported_model_is_the_one_that_was_quantised_while_it_loaded(scheme, dtype, folder, tmp_path):
    export_model(folder, tmp_path / "small", dtype=dtype, quantize=scheme, max_shard_bytes=100_000)
    export_model(tmp_path / "small", tmp_path / "again")
    loaded = [load_speech_model(folder, dtype=dtype, quantize=scheme), *map(load_speech_model, (tmp_path / "small", tmp_path / "again"))]  # fmt: skip
    states = [each.model.state_dict() for each in loaded]
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in states[0])
    assert {each.model.config.quantize for each in loaded} == {scheme}
    answers = [
        [a.ids for a in generate(each.runtime, [[5, 7, 11]], BOOST, max_new_tokens=30)] for each in loaded
    ]  # fmt: skip
    assert answers[0] == answers[1] == answers[2]
    kinds = {str(tensor.dtype) for tensor in states[0].values()}
    assert kinds >= {"torch.uint8" if scheme == "int4" else "torch.int8", "torch.float32"}


def test_a_quantised_export_has_weights_of_its_own_and_on_its_card_only_results_of_such(folder, tmp_path):
    write_json(folder / "manifest.json", {"stage": "sft", "weights": "exact"})
    metrics = {"wer": {"value": 0.1, "low": 0.0, "high": 0.2, "utterances": 320}}
    for mode, more in (("vanilla", {}), ("boost", {"quantize": "int8"}), ("turbo", {"quantize": "int4"})):
        result = {"bench": "b", "stage": "sft", "split": "test", "task": "asr", "mode": mode, "profile": "strict",
                  "utterances": 320, "metrics": metrics, "weights": "exact", "backbone_passes": 1.0, "silent": 0, "unfinished": 0}  # fmt: skip
        place = folder.parents[1] / f"eval/b/sft/test/{mode}"
        place.mkdir(parents=True)
        write_json(place / "result.json", result | more)
    cards = {}
    for scheme in (None, "int8"):
        made = tmp_path / f"made-{scheme}"
        export_model(folder, made, quantize=scheme)
        weights = read_manifest(made)["weights"]
        assert model_facts(made)[1] == weights  # as a result of it tells
        assert weights == ("exact" if scheme is None else weights_hash(sum_of_folder(made)))
        load_speech_model(made)  # by its checksums
        export_model(made, tmp_path / f"again-{scheme}")
        assert read_manifest(tmp_path / f"again-{scheme}")["weights"] == weights
        card = model_card(folder, made, "released", None)
        cards[scheme] = [mode for mode in ("vanilla", "boost", "turbo") if f"sft {mode}" in card]
    assert cards == {None: ["vanilla"], "int8": ["boost"]}


def test_adapters_are_merged_before_they_are_rounded(folder, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    model = load_model(folder)
    add_lora(model, 4, heads=True)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.1)
    adapters = {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name}
    place = tmp_path / "adapters"
    place.mkdir()
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    save_adapters(adapters, place, folder, model, 4, None, targets, place)
    merge_lora(model)
    quantise(model, "int8")
    found = load_model(place, quantize="int8").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    # what cannot be is said before any weights are read
    monkeypatch.setattr("vita_audio_pl.models.load.load_strictly", None)
    with pytest.raises(UserError, match="quantize is 'int3'; it must be one of"):
        load_model(place, quantize="int3")
    monkeypatch.setattr("vita_audio_pl.models.quantised.GROUPS", (5,))
    with pytest.raises(UserError, match="int4 rounds 5 inputs together, and a layer has 64"):
        load_model(place, quantize="int4")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    for model_folder in (place, folder):
        with pytest.raises(UserError, match="needs the package torchao"):
            load_model(model_folder, quantize="int8")


def test_quantised_weights_are_refused_where_exact_ones_are_needed(folder, tmp_path, monkeypatch):
    export_model(folder, tmp_path / "small", quantize="int4")
    small = tmp_path / "small"
    for layout in ("backbone", "vllm"):
        with pytest.raises(UserError, match=f"format={layout} is for transformers and vLLM"):
            export_model(folder, tmp_path / "new", layout, quantize="int8")
        with pytest.raises(UserError, match=f"format={layout} is for transformers and vLLM"):
            export_model(small, tmp_path / "new", layout)
    with pytest.raises(UserError, match="held in int4 already; leave quantize out"):
        load_speech_model(small, quantize="int8")
    with pytest.raises(UserError, match="holds weights in int4, which cannot be merged; give the model that it was"):
        merge_models([folder, small], tmp_path / "new")
    with pytest.raises(UserError, match="transformers does not read weights that this package has quantised"):
        AutoModelForCausalLM.from_pretrained(small)
    with pytest.raises(UserError, match="quantize is 'int3'; it must be one of int8, int8_dynamic, int4"):
        load_speech_model(folder, quantize="int3")
    config = json.loads((folder / "config.json").read_text())
    for wrong, said in (
        ({"quantization_config": {"quant_method": "gptq"}}, "another tool has quantised these weights"),
        ({"quantize": "int8"}, "lacks 'model.layers.0"),
        ({"quantize": "int2"}, "quantize is 'int2'; it must be one of"),
    ):
        (folder / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(UserError, match=said):
            load_model(folder)
    assert not (tmp_path / "new").exists()


def test_parallel_heads_are_told_the_export_that_keeps_them(folder, model, tmp_path):
    parallel = SpeechLM(SpeechLMConfig(model.config.backbone, 3, heads="parallel"))
    (folder / "model.safetensors").unlink()
    save_released(parallel, folder, decode_pattern=[1, 3, 2, 3])
    with pytest.raises(UserError, match="leave quantize out and use format=backbone, which keeps them"):
        export_model(folder, tmp_path / "new", quantize="int8")


def test_what_cannot_be_held_in_4_bits_is_a_sentence_and_so_is_a_missing_package(tiny_model, monkeypatch):
    with pytest.raises(UserError, match="int4 rounds 32 inputs together, and a layer has 48; use int8"):
        quantise(tiny_model(), "int4")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"needs the package torchao; install vita-audio-pl\[quantize\]"):
        quantise(tiny_model(), "int8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_on_a_gpu_a_head_costs_what_is_read_for_it(scheme, form, model):
    model = SpeechLM(SpeechLMConfig(model.config.backbone, 3, heads=form)).eval().requires_grad_(False)
    if scheme is not None:
        quantise(model, scheme)
    read = {part: sum(p.nbytes for p in owner.parameters()) / 4 for part, owner in
            (("head", model.heads[0]), ("layers", model.model.layers), ("vocabulary", model.lm_head))}  # fmt: skip
    runtime = Runtime(model, release=True)
    runtime.device = torch.device("cuda")
    costs = runtime.costs
    assert costs.head == pytest.approx(read["head"] + read["vocabulary"], abs=1)
    assert costs.backbone == pytest.approx(read["layers"] + read["vocabulary"], abs=2)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_gpu_multiplies_what_the_numbers_stand_for(scheme):
    linear = layer(1536, 1024, torch.bfloat16).cuda()
    made = QuantisedLinear.of(linear, scheme)
    for rows in (1, 11, 40):
        x = torch.randn(rows, 1024, dtype=torch.bfloat16, device="cuda")
        found = quantised_product(held(made), made.bias, torch.bfloat16)(x)
        assert distance(found, F.linear(x.float(), made.dequantised(), made.bias.float())) < 0.02
