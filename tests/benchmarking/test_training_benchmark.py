"""The benchmark compares like with like, and ours costs less."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.warm_python import warm_python
from vita_audio_pl.benchmarking.flops import step_flops
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.benchmarking.rows import make_batch
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.benchmarking.training import benchmark_training, naive_loss
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.objectives import EveryHead, build_objective

SMALL = TrainingSize(
    hidden_size=64, intermediate_size=128, layers=1, vocabulary=20000, heads=4, length=512, attention_heads=2
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("frozen", [True, False])
def test_the_naive_step_is_the_same_function(frozen):
    model, batch = random_model(SMALL, SMALL.length), make_batch(SMALL, 0)
    if frozen:
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    gradients = []
    for step in (lambda: naive_loss(model, batch), lambda: model(batch, EveryHead()).total):
        model.zero_grad()
        loss = step()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for naive, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("stage", ["mtp10", "sft"])
def test_ours_takes_fewer_operations_and_less_memory_for_the_same_loss(stage):
    """Operations as PyTorch dispatches them, which no machine's load and no clock change."""
    size = replace(SMALL, length=256)
    result = benchmark_training(stage, size, repetitions=1)
    assert result.loss_difference < 1e-5 and result.memory_share("every_head") < 0.5

    model, batch = random_model(size, size.length), make_batch(size, 0)
    if stage == "mtp10":
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    operations = {}
    for name, loss in (
        ("naive", lambda: naive_loss(model, batch)),
        ("every_head", lambda: model(batch, EveryHead()).total),
        ("served_slots", lambda: model(batch, build_objective("served_slots")).total),
    ):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        operations[name] = counter.get_total_flops()
    assert operations["served_slots"] < operations["every_head"] < operations["naive"] / 1.3


def test_operations_are_counted_by_the_formula():
    size = TrainingSize(hidden_size=64, intermediate_size=128, layers=1, vocabulary=1000, heads=1, length=10,
                        documents=1, attention_heads=2, key_value_heads=2)  # fmt: skip
    model, batch = random_model(size, size.length), make_batch(size, 0)
    layer = 4 * 64 * 64 + 3 * 64 * 128
    attention = [4 * 64 * n * (n + 1) // 2 for n in (10, 9)]
    backbone = 3 * (2 * layer * 10 + attention[0] + 2 * 64 * 1000 * 6)
    head = 3 * (2 * (layer + 2 * 64 * 64) * 9 + attention[1] + 2 * 64 * 1000 * 6)
    assert step_flops(model, batch, EveryHead()) == backbone + head


def test_the_command_shows_a_table_and_writes_the_numbers(tmp_path):
    command = [warm_python(), "-m", "vita_audio_pl.benchmark", "what=training", "stages=[mtp10]", "repetitions=1"]
    small = ["benchmark_size.length=64", "benchmark_size.vocabulary=500", f"output={tmp_path / 'out.json'}"]
    shown = subprocess.run([*command, *small], capture_output=True, text=True, check=True).stdout
    assert "naive every_head" in shown and "served_slots" in shown
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["steps"]["every_head"]["seconds"] > 0


def test_a_wrong_stage_is_one_sentence():
    with pytest.raises(UserError, match="must be one of mtp1, mtp10, sft"):
        benchmark_training("align", SMALL)
