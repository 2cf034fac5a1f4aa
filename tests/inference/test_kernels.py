"""Kernels are measured once, chosen for what a mode multiplies, recorded, and hold no weight twice."""

import json

import pytest
import torch
from transformers import Qwen2Config

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, costs, generate, kernels
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import MEASURED_ROWS, Kernels, Serving, Timings, quickest
from vita_audio_pl.inference.products import KERNELS, LAYOUTS, Plan
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

VANILLA, TURBO = (Serving(DecodePattern.of(mode)) for mode in ("vanilla", "turbo"))


def times(**seconds):
    """The same for all numbers of rows, or a function of them; kernels that are not named are slow."""
    names = [name for layout in LAYOUTS for name in KERNELS[layout]]
    given = {name: seconds.get(name, 100.0) for name in names}
    return {name: {r: s(r) if callable(s) else s for r in MEASURED_ROWS} for name, s in given.items()}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """`measure` is quick and counted; timings go into a folder of the test's own."""
    measured = []
    monkeypatch.setattr(kernels, "measure", lambda *shape: measured.append(shape) or times(linear=3.0, transposed=2.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_timings", {})
    return measured


def test_the_layout_is_the_quickest_for_the_rows_of_the_mode():
    costs = times(
        transposed=lambda rows: rows, linear=lambda rows: 2 + rows / 2, left=lambda rows: 99 if rows > 4 else 1.5
    )
    one, eleven = {1: 5}, {11: 1}
    assert quickest(costs, [one], ["rows", "columns"]).layout == "columns"
    plan = quickest(costs, [eleven], ["rows", "columns"])
    assert plan.layout == "rows" and dict(plan.kernels)[1] == "left" and dict(plan.kernels)[11] == "linear"
    # both at once: columns would be 11 / 7.5 behind for eleven rows, rows 1.5 for one
    assert quickest(costs, [one, eleven], ["rows", "columns"]).layout == "columns"
    assert quickest(costs, [{}, eleven], ["rows", "columns"]).layout == "rows"


def test_shapes_are_measured_once_for_all_processes(made_up, tmp_path):
    assert Kernels(serves=[VANILLA]).plan("backbone", 512, 256, 10).layout == "columns"
    assert Kernels(serves=[TURBO]).plan("heads", 512, 256, 10).layout == "columns" and made_up == [(512, 256)]
    kernels._timings.clear()  # as a new process
    Kernels().plan("backbone", 512, 256, 10)
    [file] = (tmp_path / "vita_audio_pl" / "kernels").iterdir()
    record = json.loads(file.read_text())
    assert made_up == [(512, 256)] and record["format"] == 3 and record["torch"] == torch.__version__
    for damage in ("{", "[]", json.dumps(record | {"format": 2}), json.dumps(record | {"times": {"512x256": {}}})):
        file.write_text(damage)
        kernels._timings.clear()
        Kernels().plan("backbone", 512, 256, 10)
    assert len(made_up) == 5


def test_what_others_measured_meanwhile_is_kept_and_a_folder_that_cannot_be_is_no_error(made_up, tmp_path):
    one, other, nowhere = Timings(tmp_path / "a"), Timings(tmp_path / "a"), Timings(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    one.of(512, 256), other.of(256, 256), nowhere.of(256, 256)
    other.passes("model", lambda: PassCosts(1, 2, 3, 4))
    later = Timings(tmp_path / "a")
    later.of(512, 256), later.of(256, 256)
    assert later.passes("model", lambda: None) == PassCosts(1, 2, 3, 4) and len(made_up) == 3


def test_recorded_choices_are_made_again_whatever_is_measured_here(made_up, tmp_path, monkeypatch):
    first = Kernels()
    plan = first.plan("vocabulary", 20000, 256, 10)
    first.pays("screen:20000x256", lambda: None, lambda: torch.ones(500, 500).exp())
    first.costs("model", lambda: PassCosts(1, 2, 3, 4))
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"kernels": first.record(), "wer": 0.1}))
    monkeypatch.setattr(kernels, "measure", None)
    again = Kernels(str(file))
    assert again.plan("vocabulary", 20000, 256, 10) == plan
    assert again.pays("screen:20000x256", lambda: None, lambda: None) == first.does["screen:20000x256"]
    assert again.costs("model", lambda: None) == PassCosts(1, 2, 3, 4)
    with pytest.raises(UserError, match="has no choice for heads:7x7: it was recorded with another model"):
        again.plan("heads", 7, 7, 10)
    with pytest.raises(
        UserError, match="has no costs of passes for model, int8: .* record it again with the same quantize"
    ):
        again.costs("model, int8", lambda: PassCosts(1, 2, 3, 4))
    assert again.record()["passes"].keys() == {"model"}
    file.write_text(file.read_text().replace("transposed", "unheard-of"))
    older = tmp_path / "older.json"
    older.write_text(json.dumps(first.record() | {"format": 2}))
    with pytest.raises(UserError, match="of another version, so record it again"):
        Kernels(str(older))
    for wrong in (str(file), str(tmp_path / "missing.json"), "fastest"):
        with pytest.raises(UserError, match="must be auto, one of rows, columns"):
            Kernels(wrong)


def test_recorded_costs_are_found_whatever_is_answered_first(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "measure_rounds", lambda runtime: PassCosts(1, 2, 3, 4))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    model = SpeechLM(SpeechLMConfig(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2), 1)).eval()
    first = Runtime(model)
    assert first.costs == PassCosts(1, 2, 3, 4)
    (tmp_path / "kernels.json").write_text(json.dumps(first.kernels.record()))
    monkeypatch.setattr(costs, "measure_rounds", lambda runtime: None)
    again = Runtime(model, kernels=str(tmp_path / "kernels.json"))
    again.kernels.plans["vocabulary:9x32"] = Plan.of("rows")  # of a constrained answer
    assert again.costs == first.costs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_weight_is_held_twice(layout):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024}
    model = SpeechLM(SpeechLMConfig(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2), 2)).eval()
    weights = sum(p.numel() for p in model.parameters())
    runtime = Runtime(model, kernels=layout, release=True)
    generate(runtime, [[1, 2, 3]], DecodePattern.of("turbo"), max_new_tokens=4)
    left = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters() if p.device.type != "meta"}
    products = [runtime.vocabulary]
    for layer in (*runtime.layers, *(head.layer for head in runtime.heads)):
        products += [layer.qkv, layer.output, layer.gate_up, layer.down]
    products += [head.join for head in runtime.heads]
    place = (
        id if layout == "packed" else lambda memory: memory.untyped_storage().data_ptr()
    )  # oneDNN has no pointer to show
    held = {place(p._memory): p for p in products}
    held = {place: p.outputs * p.inputs for place, p in held.items()}
    assert sum((left | held).values()) < 1.02 * weights
