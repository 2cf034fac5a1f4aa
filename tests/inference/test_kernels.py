"""Kernels are measured once, chosen for what a mode multiplies, recorded, and hold no weight twice."""

import json
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, costs, generate, kernels, trials
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import Candidate, Kernels, Matrix, Serving, Timings, quickest
from vita_audio_pl.inference.products import KERNELS, LAYOUTS, Packed, Plan
from vita_audio_pl.inference.trials import MEASURED_ROWS, Shape
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

VANILLA, TURBO = (Serving(DecodePattern.of(mode)) for mode in ("vanilla", "turbo"))

EVENLY = [1.0, 1.0]


def times(**seconds):
    """The same for all numbers of rows, or a function of them; kernels that are not named are slow."""
    names = [name for layout in LAYOUTS for name in KERNELS[layout]]
    given = {name: seconds.get(name, 100.0) for name in names}
    return {name: {r: s(r) if callable(s) else s for r in MEASURED_ROWS} for name, s in given.items()}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """`measure` is quick and counted; timings go into a folder of the test's own."""
    measured = []
    made = times(linear=3.0, transposed=2.0)
    monkeypatch.setattr(kernels, "measure", lambda counts: measured.append(counts) or dict.fromkeys(counts, made))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_timings", {})
    return measured


def test_the_layout_is_the_quickest_for_the_rows_of_the_mode():
    costs = times(
        transposed=lambda rows: rows, linear=lambda rows: 2 + rows / 2, left=lambda rows: 99 if rows > 4 else 1.5
    )
    one, eleven = {1: 5}, {11: 1}

    def chosen(*uses):
        [plan] = quickest([Candidate(costs, uses, ["rows", "columns"])], [1.0] * len(uses))
        return plan

    assert chosen(one).layout == "columns"
    plan = chosen(eleven)
    assert plan.layout == "rows" and dict(plan.kernels)[1] == "left" and dict(plan.kernels)[11] == "linear"
    # both at once: columns would be 11 / 7.5 behind for eleven rows, rows 1.5 for one
    assert chosen(one, eleven).layout == "columns"
    assert chosen({}, eleven).layout == "rows"


def test_a_matrix_that_matters_little_to_one_mode_is_laid_out_for_the_other():
    """Alone, each would be a compromise; in the second mode the small one is a twentieth of the work."""

    def matrix(often_one, often_eleven):
        costs = times(transposed=lambda rows: 1 if rows < 11 else 2, packed=lambda rows: 2 if rows < 11 else 1)
        return Candidate(costs, [{1: often_one}, {11: often_eleven}], ["columns", "packed"])

    assert [plan.layout for plan in quickest([matrix(10, 1), matrix(1, 10)], EVENLY)] == ["columns", "packed"]


@pytest.mark.parametrize(("lost", "layout"), [(0.2, "columns"), (0.02, "packed")])
def test_refused_drafts_may_lose_next_to_nothing_by_layouts_that_are_for_kept_ones(made_up, monkeypatch, lost, layout):
    """Packed is half as slow for the rows of kept drafts, and a little slower for one row."""
    made = times(transposed=lambda rows: 1 if rows < 8 else 1.5, packed=lambda rows: 1 + lost if rows < 8 else 1)
    monkeypatch.setattr(kernels, "measure", lambda counts: dict.fromkeys(counts, made))
    verified = Kernels(serves=[TURBO._replace(verifies=True)])
    assert verified.plan(Matrix("backbone", 512, 256), 10).layout == layout


seconds = st.dictionaries(st.sampled_from(["linear", "transposed", "packed"]), st.floats(1, 9), min_size=3, max_size=3)


in_two_modes = st.lists(
    st.tuples(seconds, seconds, st.integers(0, 20), st.integers(0, 20)).map(
        lambda drawn: Candidate(
            {name: dict.fromkeys(MEASURED_ROWS, few) | {11: drawn[1][name]} for name, few in drawn[0].items()},
            [{1: drawn[2]}, {11: drawn[3]}],
            LAYOUTS,
        )
    ),
    min_size=1,
    max_size=4,
)


def spent_on(candidates, mode, layouts):
    return sum(
        each.times[kernel][rows] * count
        for each, layout in zip(candidates, layouts, strict=True)
        for rows, count in each.uses[mode].items()
        for kernel in KERNELS[layout]
        if kernel in each.times
    )


def test_a_matrix_that_the_slowest_mode_does_not_use_is_laid_out_for_the_others():
    compromise = times(linear=lambda rows: 1 if rows < 11 else 9, transposed=lambda rows: 3 if rows < 11 else 1)
    backbone = Candidate(compromise, [{1: 1}, {11: 1}], ["rows", "columns"])
    heads = Candidate(times(linear=0.2, transposed=0.1), [{}, {11: 1}], ["rows", "columns"])
    assert [plan.layout for plan in quickest([backbone, heads], EVENLY)][1] == "columns"


@given(in_two_modes)
def test_no_other_layouts_are_as_quick_in_all_modes_and_quicker_in_one(candidates):
    def spent(layouts):
        return [spent_on(candidates, mode, layouts) for mode in (0, 1)]

    chosen = spent([plan.layout for plan in quickest(candidates, EVENLY)])
    for other in map(spent, product(LAYOUTS, repeat=len(candidates))):
        as_quick = all(theirs <= own for theirs, own in zip(other, chosen, strict=True))
        assert not (as_quick and any(theirs < own * (1 - 1e-6) for theirs, own in zip(other, chosen, strict=True)))


@given(in_two_modes)
def test_no_layout_everywhere_serves_the_slowest_mode_better(candidates):
    def spent(mode, layouts):
        return spent_on(candidates, mode, layouts)

    everywhere = [[layout] * len(candidates) for layout in LAYOUTS]
    free = [
        sum(min(each.times[kernel][rows] for kernel in each.times) * count for each in candidates for rows, count in
            each.uses[mode].items())
        for mode in (0, 1)
    ]  # fmt: skip

    def worst(layouts):
        return max((spent(mode, layouts) / free[mode] for mode in (0, 1) if free[mode]), default=1.0)

    chosen = [plan.layout for plan in quickest(candidates, EVENLY)]
    assert worst(chosen) <= min(map(worst, everywhere)) * (1 + 1e-9)


def test_shapes_are_measured_once_for_all_processes(made_up, tmp_path):
    backbone = Matrix("backbone", 512, 256)
    assert Kernels(serves=[VANILLA]).plan(backbone, 10).layout == "columns"
    assert Kernels(serves=[TURBO]).plan(Matrix("heads", 512, 256), 10).layout == "columns"
    assert made_up == [{Shape(512, 256): 1}]
    kernels._timings.clear()  # as a new process
    Kernels().plan(backbone, 10)
    [file] = (tmp_path / "vita_audio_pl" / "kernels").iterdir()
    record = json.loads(file.read_text())
    assert len(made_up) == 1 and record["format"] == 4 and record["torch"] == torch.__version__
    for damage in (
        "{",
        "[]",
        json.dumps(record | {"format": 3}),
        json.dumps(record | {"times": {"1 512x256": {"512x256": {}}}}),
    ):
        file.write_text(damage)
        kernels._timings.clear()
        Kernels().plan(backbone, 10)
    assert len(made_up) == 5
    Kernels().choose([backbone] * 28 + [Matrix("heads", 512, 256)], 10)  # in the pass of another model
    assert made_up[5:] == [{Shape(512, 256): 29}]


def test_what_others_measured_meanwhile_is_kept_and_a_folder_that_cannot_be_is_no_error(made_up, tmp_path):
    one, other, nowhere = Timings(tmp_path / "a"), Timings(tmp_path / "a"), Timings(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    wide, square = {Shape(512, 256): 1}, {Shape(256, 256): 2}
    one.of(wide), other.of(square), nowhere.of(square)
    other.passes("model", lambda: PassCosts(1, 2, 3, 4))
    later = Timings(tmp_path / "a")
    later.of(wide), later.of(square)
    assert later.passes("model", lambda: None) == PassCosts(1, 2, 3, 4) and len(made_up) == 3


def test_a_trial_gives_the_time_of_every_kernel_in_a_pass_over_all_matrices(monkeypatch):
    """Each product takes a second for each of its rows; what stands between them takes none of it."""
    clock, order = [0.0], []

    def product(planned, x):
        order.append((planned.outputs, planned.inputs))
        clock[0] += len(x)
        return x

    monkeypatch.setattr(trials.PlannedProduct, "__call__", product)
    monkeypatch.setattr(trials.PlannedProduct, "add_to", lambda planned, total, x: product(planned, x))
    monkeypatch.setattr(trials._Between, "__call__", lambda between, x: clock.__setitem__(0, clock[0] + 0.5) or x)
    monkeypatch.setattr(trials, "now", lambda: clock[0])
    found = trials.measure({Shape(64, 32): 4, Shape(32, 32): 2})
    assert order[:6] == [(64, 32), (32, 32), (64, 32), (64, 32), (32, 32), (64, 32)]
    for layout in LAYOUTS:
        for name, kernel in KERNELS[layout].items():
            served = [kernel.only_rows] if kernel.only_rows else MEASURED_ROWS
            assert found[Shape(32, 32)][name] == found[Shape(64, 32)][name] == {rows: rows for rows in served}


def test_a_matrix_that_is_timed_without_its_pass_is_not_found_in_a_cache(monkeypatch):
    multiplied = []

    def multiply(planned, x):
        multiplied.append(planned)
        return x

    monkeypatch.setattr(trials.PlannedProduct, "__call__", multiply)
    monkeypatch.setattr(trials, "LONE_BYTES", 5 * 4 * 64 * 32)
    monkeypatch.setattr(trials, "ROUNDS", 1)

    def copies(counts):
        multiplied.clear()
        trials.measure(counts)
        return len(set(map(id, multiplied))) / sum(map(len, KERNELS.values()))  # each has its own

    assert copies({Shape(64, 32): 1}) == 5
    assert copies({Shape(64, 32): 1, Shape(48, 32): 2}) == 3


def test_recorded_choices_are_made_again_whatever_is_measured_here(made_up, tmp_path, monkeypatch):
    first = Kernels()
    plan = first.plan(Matrix("vocabulary", 20000, 256), 10)
    first.pays("screen:20000x256", lambda: None, lambda: torch.ones(500, 500).exp())
    first.costs("model", lambda: PassCosts(1, 2, 3, 4))
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"kernels": first.record(), "wer": 0.1}))
    monkeypatch.setattr(kernels, "measure", None)
    again = Kernels(str(file))
    assert again.plan(Matrix("vocabulary", 20000, 256), 10) == plan
    assert again.pays("screen:20000x256", lambda: None, lambda: None) == first.does["screen:20000x256"]
    assert again.costs("model", lambda: None) == PassCosts(1, 2, 3, 4)
    with pytest.raises(UserError, match="has no choice for heads:7x7: it was recorded with another model"):
        again.plan(Matrix("heads", 7, 7), 10)
    with pytest.raises(
        UserError, match="has no costs of passes for model, int8: .* record it again with the same quantize"
    ):
        again.costs("model, int8", lambda: PassCosts(1, 2, 3, 4))
    assert again.record()["passes"].keys() == {"model"}
    file.write_text(file.read_text().replace("transposed", "unheard-of"))
    older = tmp_path / "older.json"
    older.write_text(json.dumps(first.record() | {"format": 3}))
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


@pytest.mark.parametrize("cost", ["0.001", -1.0, float("nan"), float("inf"), None, [1.0]])
def test_costs_that_are_none_are_refused_in_a_file_and_measured_anew_from_the_cache(tmp_path, cost):
    record = Kernels(passes={"x": PassCosts(1.0, 0.1, 0.1, 0.1)}).record()
    record["passes"]["x"]["backbone"] = cost
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="must be auto"):
        Kernels(str(file))
    kept = Timings(tmp_path / "kept")
    kept.passes("x", lambda: PassCosts(1.0, 0.1, 0.1, 0.1))
    (stored,) = (tmp_path / "kept").iterdir()
    told = json.loads(stored.read_text())
    told["passes"]["x"]["backbone"] = cost
    stored.write_text(json.dumps(told))
    assert Timings(tmp_path / "kept").passes("x", lambda: PassCosts(2.0, 0.1, 0.1, 0.1)).backbone == 2.0


def test_a_file_without_choices_chooses_nothing(tmp_path):
    """As a model too small to be laid out leaves it; it must not mean auto."""
    (tmp_path / "kernels.json").write_text(json.dumps(Kernels().record()))
    with pytest.raises(UserError, match="has no choice for vocabulary:20000x256: it was recorded with another model"):
        Kernels(str(tmp_path / "kernels.json")).plan(Matrix("vocabulary", 20000, 256), 10)


def test_the_result_of_a_benchmark_of_one_setting_can_be_given(tmp_path):
    record = Kernels(passes={"x": PassCosts(1.0, 0.1, 0.1, 0.1)}).record()
    file = tmp_path / "decoding.json"
    file.write_text(json.dumps({"format": 1, "about": {"kernels": {"boost x1, auto": record}}}))
    assert kernels.read_choices(file).passes == {"x": PassCosts(1.0, 0.1, 0.1, 0.1)}
    file.write_text(
        json.dumps({"format": 1, "about": {"kernels": {"boost x1, auto": record, "vanilla x1, auto": record}}})
    )
    with pytest.raises(UserError, match=r"those of 2 settings, one under each name in about\.kernels: save one"):
        kernels.read_choices(file)


@pytest.mark.parametrize(
    "harm",
    [
        lambda times: {"7x7": times},
        lambda times: {"20000x256": spoilt(times, float("nan"))},
        lambda times: {"20000x256": spoilt(times, -1.0)},
    ],
)
def test_times_that_are_none_are_measured_again(made_up, tmp_path, harm):
    matrix = Matrix("vocabulary", 20000, 256)
    Kernels().plan(matrix, 10)
    (stored,) = (tmp_path / "vita_audio_pl" / "kernels").iterdir()
    told = json.loads(stored.read_text())
    (name,) = told["times"]
    told["times"][name] = harm(told["times"][name]["20000x256"])
    stored.write_text(json.dumps(told))
    kernels._timings.clear()
    Kernels().plan(matrix, 10)
    assert len(made_up) == 2


def spoilt(times, seconds):
    return {kernel: dict.fromkeys(by, seconds) for kernel, by in times.items()}


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

    def place(memory):
        packed = isinstance(memory, Packed)
        return torch.ops.mkldnn.data_ptr(memory.opaque) if packed else memory.untyped_storage().data_ptr()

    held = {place(p._memory): p for p in products}
    held = {place: p.outputs * p.inputs for place, p in held.items()}
    assert sum((left | held).values()) < 1.02 * weights
