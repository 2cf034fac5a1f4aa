"""The decoding benchmark does the real work, counts it right, and its settings are checked."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from vita_audio_pl.benchmarking import decoding
from vita_audio_pl.benchmarking.decoding import (
    Measurement,
    Playback,
    ScriptedDecoder,
    Vocoder,
    benchmark_decoding,
    constraint_of,
    run_sessions,
    script,
)
from vita_audio_pl.benchmarking.decoding_run import Runtimes, run_decoding_benchmark
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize, Setting
from vita_audio_pl.benchmarking.decoding_show import times_as_fast
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.config.fields import check_settings
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import graphs
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.kernels import Kernels
from vita_audio_pl.inference.products import PlannedProduct
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import Options
from vita_audio_pl.interleave import DecodePattern

TINY = DecodingSize(hidden_size=32, intermediate_size=48, layers=2, vocabulary=300, codes=100, heads=10)
FREE_HEADS = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays, on any machine


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(random_model(TINY, 400).eval().requires_grad_(False))
    runtime.costs = FREE_HEADS
    return runtime


@pytest.mark.parametrize("agreement", [1.0, 0.6])
@pytest.mark.parametrize(("mode", "verify"), [("vanilla", "none"), ("boost", "none"), ("boost", "greedy")])
def test_a_scripted_run_writes_its_script_and_times_its_chunks(runtime, mode, verify, agreement):
    constraint = constraint_of(TINY)
    scripts = {slot: script(mode, 100, constraint, slot) for slot in range(2)}
    decoder = ScriptedDecoder(runtime, scripts, 1.0 if verify == "none" else agreement, slots=2, capacity=150)
    into = Measurement(Setting(mode, verify, 2))
    options = Options(DecodePattern.of(mode), 100, constraint=constraint, verify=verify)
    sequences = run_sessions(decoder, [[3] * 20, [4] * 30], options, constraint, into)
    assert [s.result().ids for s in sequences] == [scripts[0], scripts[1]]
    ends = sum(line.count(constraint.end) for line in scripts.values())
    rounds_may_end_two = verify == "greedy"
    assert len(into.first_chunk) == 2
    assert len(into.between_chunks) + 2 == ends or rounds_may_end_two
    assert into.tokens == [200] and into.audio_seconds[0] > 0
    if verify == "greedy":
        tried, kept = np.array(into.drafted), np.array(into.accepted)
        assert (kept <= tried).all() and ((kept == tried).all() == (agreement == 1.0))


def test_a_chunk_counts_once_its_sound_is_there(runtime):
    """A codec that holds the first ten codes back is heard with Boost's second span, not with its first."""
    constraint, heard = constraint_of(TINY), []
    decoder = ScriptedDecoder(runtime, {0: script("boost", 100, constraint, 0)}, 1.0, slots=1, capacity=150)

    def sound(session, codes):
        heard.append(sum(heard[-1:]) + len(codes))
        samples = 0 if heard[-1] < 10 else 640
        return np.full(samples, 0.5 if heard[-1] > 20 else 0.009, np.float32)  # the first sound is silence

    into = Measurement(Setting("boost"))
    options = Options(DecodePattern.of("boost"), 100, constraint=constraint)
    run_sessions(decoder, [[3] * 20], options, constraint, into, sounds=Vocoder(sound, 8000))
    spans = len(heard)
    assert into.first_chunk[0] < into.first_audible[0] and len(into.first_audible) == 1
    assert into.passes_to_audible == [(9, 30)] and len(into.chunk_factors) == spans - 1 and len(into.gaps) == 1
    assert heard[0] == 8 and len(into.first_chunk) == 1 and len(into.between_chunks) == spans - 2
    run_sessions(
        decoder, [[3] * 20], options, constraint, into, sounds=Vocoder(lambda session, codes: np.zeros(0), 8000)
    )
    assert len(into.first_chunk) == 1  # never heard


def test_playback_waits_where_there_is_nothing_to_play():
    playback = Playback(begun=10.0)
    assert playback.push(0.5, now=11.0) == 2.0  # a second of work for half a second of sound
    assert playback.push(1.0, now=11.2) == pytest.approx(0.2) and playback.gaps == 0.0
    playback.push(1.0, now=13.0)  # the sound ended at 12.5
    assert playback.gaps == pytest.approx(0.5)


def test_every_combination_is_measured_and_vanilla_is_not_verified(runtime):
    protocol = DecodingProtocol(
        new_tokens=24, modes=["vanilla", "turbo"], sessions=[1, 2], constrain=[True], repetitions=1, first_chunks=2
    )
    measured = benchmark_decoding(lambda setting: runtime, protocol, TINY)
    verified = [f"turbo verify=greedy {kept} accepted constrained" for kept in ("all", "none")]
    labels = ["vanilla constrained", "turbo constrained", *verified]
    assert [m.setting.label for m in measured] == labels + [f"{label} x2" for label in labels]
    assert all(m.tokens_per_second > 0 and len(m.first_chunk) >= 2 for m in measured)
    turbo = measured[1]
    assert turbo.tokens_per_pass == 8 and set(turbo.parts) >= {"prefill", "backbone", "heads"}


def test_a_model_without_heads_is_measured_in_vanilla_alone(tmp_path):
    protocol = DecodingProtocol(new_tokens=24, repetitions=1, first_chunks=1, sessions=[1], constrain=[False])
    protocol.transformers, bare, screen = False, replace(TINY, heads=0), io.StringIO()
    where = {"device": "cpu", "dtype": torch.float32, "folder": tmp_path, "console": Console(file=screen, width=200)}
    run_decoding_benchmark(protocol, bare, **where)
    assert [row["label"] for row in json.loads((tmp_path / "decoding.json").read_text())["results"]] == ["vanilla"]
    assert "not measured in balance, boost, turbo: the model has no heads" in screen.getvalue()
    with pytest.raises(UserError, match="other modes need heads, of which the model has none"):
        run_decoding_benchmark(replace(protocol, modes=["boost"]), bare, **where)
    with pytest.raises(UserError, match="Vanilla is without verification"):
        run_decoding_benchmark(replace(protocol, modes=["vanilla"], verify=["greedy"]), TINY, **where)
    with pytest.raises(UserError, match="decoding_size is the size of a model with random weights"):
        run_decoding_benchmark(replace(protocol, model_folder="model"), TINY, **where)


def test_graphs_are_captured_in_the_warm_up_alone(runtime, monkeypatch):
    captured, seen = [], {}

    class Imitated:
        def __init__(self, device):
            pass

        def __call__(self, work):
            captured.append(work)
            result = work()
            return SimpleNamespace(replay=lambda: result.copy_(work())), result

    monkeypatch.setattr(graphs, "CudaCapture", Imitated)
    protocol = DecodingProtocol(
        new_tokens=24, modes=["vanilla", "turbo"], constrain=[False], repetitions=2, first_chunks=2, graphs=True
    )
    benchmark_decoding(
        lambda setting: runtime, protocol, TINY, progress=lambda text: seen.setdefault(text, len(captured))
    )
    assert (
        0 < seen["vanilla: repetition 1"] == seen["turbo verify=greedy all accepted x8: repetition 2"] == len(captured)
    )


def test_the_command_writes_its_figures(tmp_path):
    protocol = DecodingProtocol(new_tokens=24, modes=["vanilla", "boost"], repetitions=1, first_chunks=1, sessions=[1])
    pytest.importorskip("torchao")
    protocol.quantize = ["int8"]
    screen = io.StringIO()
    run_decoding_benchmark(
        protocol, TINY, device="cpu", dtype=torch.float32, folder=tmp_path, console=Console(file=screen, width=200)
    )
    record = json.loads((tmp_path / "decoding.json").read_text())
    labels = [row["label"] for row in record["results"]]
    assert labels[0] == "vanilla" and labels[-1] == "transformers" and "boost verify=greedy none accepted" in labels
    assert record["results"][0]["times_vanilla"] == 1.0 and record["results"][-1]["times_transformers"] == 1.0
    assert "boost verify=greedy none accepted int8" in labels and "vanilla int8" in labels
    assert (
        record["about"]["memory_quantised"]["int8"]["held_mib"] > 0 and "boost x1, int8" in record["about"]["kernels"]
    )
    assert record["about"]["memory"]["weights_mib"] > 0 and "boost verified x1, auto" in record["about"]["kernels"]
    assert (tmp_path / "decoding.png").stat().st_size > 1000
    assert "boost verify=greedy" in (tmp_path / "decoding.md").read_text() and "tokens/s" in screen.getvalue()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"modes": ["fast"]}, "'fast' is no decode_pattern"),
        ({"verify": ["maybe"]}, "decoding.verify is 'maybe': choose one of"),
        ({"agreements": [2.0]}, "decoding.agreements is 2.0: it must be at most 1"),
        ({"sessions": [0]}, "decoding.sessions is 0: it must be at least 1"),
        ({"samples": "a.jsonl"}, "needs decoding.model_folder"),
        *(
            ({axis: []}, f"decoding.{axis} is empty, so nothing would be done")
            for axis in ("modes", "sessions", "verify", "constrain", "kernels", "agreements")
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        check_settings(DecodingProtocol(**wrong), "decoding.")


def test_codes_that_leave_no_row_for_text_are_refused_by_their_name():
    with pytest.raises(UserError, match="decoding_size.codes is 89: of decoding_size.vocabulary=100 rows, at most 88"):
        check_settings(DecodingSize(vocabulary=100, codes=89))
    size = DecodingSize(vocabulary=100, codes=88)
    check_settings(size)
    assert set(script("boost", 50, constraint_of(size), 0)) >= {3, size.first_code}


def test_heads_that_do_not_fit_are_refused_by_the_names_of_their_settings():
    with pytest.raises(UserError, match=r"decoding_size.attention_heads=4 must divide decoding_size.hidden_size=30"):
        random_model(replace(TINY, hidden_size=30), 64, group="decoding_size")


def test_recorded_choices_are_measured_as_themselves_beside_equal_plans(tmp_path):
    """Costs of passes decide where heads draft, and are not in the plans."""
    recorded = Kernels(passes={"x": FREE_HEADS}).record()
    (tmp_path / "kernels.json").write_text(json.dumps(recorded))
    runtimes = Runtimes(lambda: random_model(TINY, 64).eval(), DecodingProtocol())
    file = str(tmp_path / "kernels.json")
    chosen, given = (runtimes(Setting("boost", "greedy", kernels=kernels)) for kernels in ("auto", file))
    assert given is not chosen and given.kernels.choice == file
    assert runtimes(Setting("turbo", "greedy", kernels=file)) is given


@pytest.mark.slow
@pytest.mark.ci
def test_heads_and_batches_pay_in_the_published_proportions(monkeypatch):
    """Layers, heads and vocabulary in the published proportions; time is counted in the weights that products read,
    which is what a decoder waits for, and which no machine's load changes."""
    read = 0

    def reading(product, x, multiply=PlannedProduct.__call__):
        nonlocal read
        read += product.outputs * product.inputs
        return multiply(product, x)

    monkeypatch.setattr(PlannedProduct, "__call__", reading)
    monkeypatch.setattr(decoding, "clock_of", lambda device: lambda: float(read))
    size = DecodingSize(hidden_size=64, intermediate_size=128, layers=28, vocabulary=5000, codes=500)
    runtime = Runtime(random_model(size, 256).eval().requires_grad_(False), kernels="rows")
    runtime.costs = FREE_HEADS
    protocol = DecodingProtocol(
        new_tokens=56,
        modes=["vanilla", "boost", "turbo"],
        sessions=[1, 8],
        constrain=[False],
        repetitions=1,
        first_chunks=1,
    )
    by_label = {m.setting.label: m for m in benchmark_decoding(lambda setting: runtime, protocol, size)}
    speed = {label: m.tokens_per_second for label, m in by_label.items() if label != "transformers"}
    assert speed["turbo"] > 1.8 * speed["vanilla"] and speed["boost"] > 1.3 * speed["vanilla"]
    assert speed["vanilla x8"] > 2.5 * speed["vanilla"]
    assert speed["boost verify=greedy all accepted"] > 0.9 * speed["boost"]
    assert 2 * min(by_label["boost"].first_chunk) < min(by_label["vanilla"].first_chunk)


def test_settings_are_compared_within_a_round():
    def measured(seconds):
        return Measurement(Setting("vanilla", "none", 1, False, None), tokens=[128] * len(seconds), seconds=seconds)

    slowing = [1.0, 1.6, 1.5]  # the machine's own speed, of which one got the quickest moment alone
    other = measured([1.4, 1.6, 1.5])
    assert times_as_fast(measured(slowing), other) == 1.0 and times_as_fast(measured([]), measured([])) == 0.0
    assert times_as_fast(measured([s / 2 for s in slowing]), measured(slowing)) == 2.0
