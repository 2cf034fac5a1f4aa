"""The plan's numbers are those of the model that is then built."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.warm_python import warm_python
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.benchmarking.rows import make_batch
from vita_audio_pl.benchmarking.sizes import TrainingSize
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.models.flops import Work, rows_and_pairs
from vita_audio_pl.models.heads import HeadStack
from vita_audio_pl.models.objectives import build_objective
from vita_audio_pl.plan import plan
from vita_audio_pl.planning.memory import Memory, step_memory
from vita_audio_pl.planning.settings import PlanConfig
from vita_audio_pl.planning.stage_plan import check_memory, plan_stage, plan_vocabulary
from vita_audio_pl.training.checks import apply_stage_settings
from vita_audio_pl.training.step.freezing import freeze

GIVEN = ("model=qwen2_5_7b", "trainer=deepspeed_zero2", "devices=16")
TINY = (
    "scale=small", "trainer=cpu", "text_entries=300", "codec.codebook_size=100", "model.hidden_size=32", "model.intermediate_size=48",
    "model.num_hidden_layers=2", "model.num_attention_heads=4", "n_heads=3", "peak_tflops=0.1", "gpu_memory=4",
)  # fmt: skip


def settings(*overrides: str) -> PlanConfig:
    register_schema("plan", PlanConfig)
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        return to_dataclass(compose("plan", overrides=list(overrides)), apply_stage_settings)


def test_the_published_stage_has_the_published_model():
    """10.3 thousand million parameters, of which the ten heads train (arXiv 2505.03739, tables 1 and 2)."""
    plan = plan_stage(settings("stage=mtp10", *GIVEN), 10)
    layer = 3584 * (3584 + 2 * 512) + 3584 + 2 * 512 + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584
    assert plan.trained == {"heads": 10 * (layer + 2 * 3584 * 3584 + 2 * 3584)}
    assert plan.frozen == {
        "embeddings": 168_072 * 3584,
        "backbone": 28 * layer + 3584,
        "vocabulary layer": 168_072 * 3584,
    }
    assert plan.devices == 16 and plan.tokens == 8000 * 256 * 8192
    assert plan.gpu_hours == pytest.approx(plan.flops * 8000 / (989e12 * 0.4) / 3600)
    assert plan.cost == pytest.approx(2.5 * plan.gpu_hours)


@pytest.mark.parametrize(("size", "millions"), [("0_6b", 596.05), ("1_7b", 1720.57), ("4b", 4022.47), ("8b", 8190.74)])
def test_qwen3_has_the_published_number_of_parameters(size, millions):
    """With the 151,936 rows that its vocabulary has; ours has audio tokens in place of what lies past the tokenizer."""
    config = settings("stage=align", f"model=qwen3_{size}", *GIVEN[1:])
    counts, words = plan_stage(config, 0).trained, plan_vocabulary(config)
    rows = counts.pop("embeddings"), counts.pop("vocabulary layer", 0)
    width = {"0_6b": 1024, "1_7b": 2048, "4b": 2560, "8b": 4096}[size]
    assert words.n_text == 151_669 and rows[0] == words.size * width
    assert round((sum(counts.values()) + sum(map(bool, rows)) * 151_936 * width) / 1e6, 2) == millions


def test_parallel_heads_are_planned_as_one_matrix_each():
    plan = plan_stage(settings("stage=mtp10", "model.heads=parallel", *GIVEN), 10)
    chain = plan_stage(settings("stage=mtp10", *GIVEN), 10)
    assert plan.trained == {"heads": 10 * 3584 * 3584} and plan.frozen == chain.frozen
    assert plan.flops < chain.flops and plan.memory.activations < chain.memory.activations


@pytest.mark.parametrize(("stage", "heads"), [("align", 0), ("mtp1", 1), ("mtp10", 3), ("sft", 3)])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model_that_is_built(stage, heads, tied):
    config = settings(f"stage={stage}", f"model.tie_word_embeddings={str(tied).lower()}", *TINY)
    plan, vocabulary = plan_stage(config, heads), plan_vocabulary(config)
    size = TrainingSize(32, 48, 2, 4, 2, vocabulary.size, heads, tied)
    model = random_model(size, size.length)
    built = freeze(model, config.stage.freeze)
    assert (sum(plan.trained.values()), sum(plan.frozen.values())) == (
        built.trained_parameters,
        built.frozen_parameters,
    )


@pytest.mark.parametrize(("stage", "heads"), [("align", 0), ("mtp1", 1), ("mtp10", 4), ("sft", 4)])
@pytest.mark.parametrize("attention", ["per_document", "sdpa"])
@pytest.mark.parametrize(("family", "form"), [*((family, "mctp") for family in FAMILIES), ("qwen2", "parallel")])
def test_activations_are_what_autograd_keeps(stage, heads, attention, family, form):
    """Distinct tensors that a forward pass saves, without weights, attention's mask and the loss's own gradients."""
    size = TrainingSize(64, 160, 3, 4, 2, 500, heads, family=family, head_dim=24, length=256, documents=4)
    model, batch = random_model(size, size.length, attention=attention), make_batch(size, 0)
    model.config.heads, model.heads = form, HeadStack(model.config.backbone, heads, form)
    config = settings(f"stage={stage}", *TINY, f"model.attention={attention}")
    freeze(model, config.stage.freeze)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.bool and tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = model(batch, build_objective("every_head"))
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    tokens, pairs = rows_and_pairs(batch, heads).chunk(2)
    planned = step_memory(model, config, Work(tokens.tolist(), pairs.tolist(), losses.counts.tolist()), 1)
    assert planned.activations == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(("objective", "tables"), [("every_head", 1), ("distil", 8)])
def test_larger_chunks_of_logits_are_counted(objective, tables):
    """On a GPU in 16 bits: tables in float32, and the gradient's cast."""
    small, large = (
        plan_stage(settings("stage=mtp10", f"objective={objective}", f"objective.chunk_rows={rows}", *GIVEN), 10)
        for rows in (512, 4096)
    )
    grown = large.memory.loss - small.memory.loss
    assert grown == pytest.approx(3584 * 168_072 * (4 * tables + 2), rel=0.05)


def test_what_does_not_fit_is_one_sentence():
    config = settings("stage=sft", "model=qwen2_5_7b", "trainer=ddp", "devices=8")
    with pytest.raises(UserError, match="takes .* GiB on each of 8 devices under trainer=ddp, and h100 holds 74 GiB"):
        check_memory([plan_stage(config, 10)])
    fits = settings("stage=sft", "model=qwen2_5_7b", "trainer=deepspeed_zero3", "devices=64")
    check_memory([plan_stage(fits, 10)])
    two = settings("stage=mtp10", *GIVEN, "trainer=ddp")
    with pytest.raises(UserError, match="^stage 'sft' takes .*\nstage 'mtp10' takes "):  # a chain says so of each stage
        check_memory([plan_stage(config, 10), plan_stage(fits, 10), plan_stage(two, 10)])


@pytest.mark.parametrize(
    ("given", "says", "way", "fewer"),
    [
        (
            ("model=qwen2_5_7b", "trainer=deepspeed_zero2", "devices=8", "host_memory=300"),
            "307 GiB of host memory on each node of 8 devices .* and host_memory=300; most is its start: choose",
            "trainer=fsdp2 trainer.engine.reduce=batch",
            None,
        ),
        (
            ("model=qwen2_5_72b", "trainer=fsdp2", "devices=16"),
            "419 GiB on each of 16 devices under trainer=fsdp2, .* most are gradients: choose",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=64",
            "devices=32",
        ),
        (  # of which twelve would fill no nodes of eight
            ("model=qwen2_5_72b", "trainer=fsdp2", "devices=6"),
            ".* GiB on each of 6 devices under trainer=fsdp2, .* most are .*: choose",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=96",
            None,
        ),
        (  # of which eight would be on one node
            ("model=qwen2_5_7b", "trainer=fsdp2", "gpu=h200", "devices=4", "host_memory=90"),
            ".* of host memory on each node of 4 devices .* and host_memory=90; .*: choose trainer=fsdp2 or",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=16",
            None,
        ),
        (  # one device is no node: eight of them share a node's memory again
            ("model=qwen2_5_72b", "trainer=fsdp2", "devices=1", "host_memory=100"),
            "929 GiB of host memory on each node of 1 device .*; and 1290 GiB on each of 1 device .*: choose",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=128",
            "devices=64",
        ),
        (  # what chose this engine is still on the command line
            ("model=qwen2_5_7b", "trainer=fsdp2", "devices=8", "trainer.engine.replicas=8"),
            ".* on each of 8 devices .* choose trainer=deepspeed_zero2 or",
            "trainer=fsdp2 trainer.engine.replicas=1 trainer.engine.reduce=batch",
            None,
        ),
        (
            ("model=qwen2_5_7b", "trainer=gpu", "devices=1"),
            ".* on each of 1 device under trainer=gpu, .*: choose trainer=deepspeed_zero2 or",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=4",
            "devices=2",
        ),
        (  # neither three nor six devices are enough, and twelve do not fill nodes of eight
            ("model=qwen2_5_14b", "trainer=fsdp2", "devices=3"),
            ".* on each of 3 devices under trainer=fsdp2, .*: choose trainer=deepspeed_zero2 or",
            "trainer=fsdp2 trainer.engine.reduce=batch with devices=24",
            "devices=6",
        ),
    ],
)
def test_what_does_not_fit_says_which_engine_and_how_many_devices_would(given, says, way, fewer):
    problem = plan_stage(settings("stage=sft", *given), 10).problem
    assert re.search(f"takes {says} {re.escape(way)}$", problem), problem
    advised = [*given, *way.replace(" with ", " ").split()]
    assert plan_stage(settings("stage=sft", *advised), 10).problem is None
    if fewer is not None:
        assert plan_stage(settings("stage=sft", *advised, fewer), 10).problem is not None


def test_what_memory_no_number_of_devices_adds_is_named():
    problem = plan_stage(
        settings("stage=sft", "model=qwen2_5_7b", "trainer=fsdp2", "devices=2", "host_memory=1"), 10
    ).problem
    assert re.search(
        "host memory .* and host_memory=1; most is .* and 120 GiB on each .* or nodes with more memory$", problem
    ), problem


def test_host_memory_and_files_are_those_of_the_engine():
    """Seven billion with ten heads: every rank of ZeRO-2 builds all of it in host memory, of FSDP2 no rank does."""
    whole, shared = (
        plan_stage(settings("stage=sft", *GIVEN[:1], f"trainer={e}", GIVEN[2]), 10)
        for e in ("deepspeed_zero2", "fsdp2")
    )
    total = sum(whole.trained.values())
    assert whole.host.start == 4 * total and whole.host.node >= 8 * whole.host.start
    assert shared.host.start < 0.2 * whole.host.start
    for each in (whole, shared):
        assert (each.host.checkpoint, each.host.written, each.host.model) == (12 * total, 12 * total / 16, 4 * total)


def test_what_shards_cannot_be_begun_or_handed_over_without_is_counted(tmp_path):
    """A whole model, under unmerged adapters and drawn weights that are frozen; and an encoder that the parent lacks."""

    def host(*given: str, **start):
        config = settings(*TINY[:1], *TINY[2:], "trainer=fsdp2", "trainer.precision=bf16-true", *given)
        for name, value in start.items():  # folders whose weights nobody reads
            setattr(config if name == "init_from" else config.model, name, value and str(value))
        plan = plan_stage(config, 3)
        return plan.host, sum(plan.trained.values()) + sum(plan.frozen.values())

    for name in ("whole", "hearing/speech_input", "adapters"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("whole", "hearing", "adapters"):
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "adapters" / "adapters.json").write_text('{"base": ["../whole"]}')
    parent, adapted = (host("stage=sft", init_from=tmp_path / name) for name in ("whole", "adapters"))
    assert adapted[0].start == adapted[0].hand_over == 2 * adapted[1]
    assert parent[0].start < adapted[0].start and parent[0].hand_over < adapted[0].hand_over
    for pretrained, width in ((None, 4), (tmp_path, 2)):  # drawn in float32
        (trains, total), (frozen, _) = (
            host("stage=align", f"stage.freeze={names}", pretrained=pretrained) for names in ("[]", "[embed_tokens]")
        )
        assert trains.hand_over < frozen.hand_over == width * total and trains.start == frozen.start
    plus = ("stage=sft", "variant=vita_audio_plus_boost")
    there, lacks = (host(*plus, init_from=tmp_path / name)[0] for name in ("hearing", "whole"))
    assert there.start < 20e6 and lacks.start > 800e6
    assert there.hand_over < 20e6 and lacks.hand_over > 800e6


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("devices=12",), "devices=12 does not fill nodes of trainer.devices=8"),
        (("gpu=abacus",), "gpu=abacus is not in the table"),
        (("trainer=gpu", "devices=8"), "runs on one device"),
    ],
)
def test_devices_that_cannot_be_are_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        config = settings("stage=align", "model=qwen2_5_7b", *wrong)
        if config.trainer.name == "gpu":
            config.trainer.devices = 8
            config.trainer.engine.check_devices(config.trainer)
        plan_stage(config, 0)


@pytest.mark.parametrize(
    "trainer", [("trainer=gpu", "devices=1"), ("trainer=fsdp2", "trainer.engine.replicas=3", "devices=24")]
)
def test_engines_are_checked_on_the_devices_that_are_asked_for(trainer, capsys):
    """The scale's own are 16."""
    plan(settings("stage=align", "model=qwen2_5_0_5b", *trainer))
    assert f"{trainer[0]}, {trainer[-1].partition('=')[2]} device" in capsys.readouterr().out
    with pytest.raises(UserError, match="these are 8 x 1: choose trainer=ddp for more|does not divide the 8 devices"):
        plan(settings("stage=align", "model=qwen2_5_0_5b", *trainer[:-1], "devices=8"))


def test_encoders_and_adapters_are_in_the_plan():
    plus = plan_stage(settings("stage=align", "variant=vita_audio_plus_vanilla", *GIVEN), 0)
    assert plus.frozen["speech input"] > 200e6 and plus.trained["speech input"] == 512 * 3584 + 3584**2 + 2 * 512
    adapted = plan_stage(settings("stage=align", "model.lora.rank=16", *GIVEN), 0)
    assert sum(adapted.trained.values()) < 2e9 < sum(adapted.frozen.values())


def test_sharding_shrinks_what_it_shards():
    def states(engine: str, devices: int) -> Memory:
        given = (f"trainer={engine}", f"devices={devices}")
        return plan_stage(settings("stage=sft", "model=qwen2_5_7b", *given), 10).memory

    for engine in ("fsdp2", "deepspeed_zero3"):
        small, large = states(engine, 8), states(engine, 64)
        assert small.weights == pytest.approx(8 * large.weights) and small.optimiser == pytest.approx(
            8 * large.optimiser
        )
    zero2 = states("deepspeed_zero2", 8)
    assert zero2.weights == states("deepspeed_zero2", 64).weights > states("deepspeed_zero3", 8).weights
    assert states("deepspeed_zero3_offload", 8).optimiser == 0 < states("deepspeed_zero3_offload", 8).host


@pytest.mark.slow
def test_the_command_plans_every_stage_of_a_variant(tmp_path):
    command = [warm_python(), "-m", "vita_audio_pl.plan", "stage=chain", *GIVEN, f"output={tmp_path / 'plan.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "150"})
    assert done.returncode in (0, 2), done.stderr
    assert [each["stage"] for each in json.loads((tmp_path / "plan.json").read_text())["stages"]] == [
        "align",
        "mtp1",
        "mtp10",
        "sft",
    ]
    assert "GPU hours" in done.stdout and "Traceback" not in done.stderr


MEASURE = """
import dataclasses, json, sys, torch
sys.path.insert(0, {here!r})
from test_plan_command import *
from vita_audio_pl.benchmarking.cost import measure
stage, heads, tied, accumulate = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tied", int(sys.argv[4])
size = TrainingSize(256, 1024, 6, 4, 2, 12000, heads, tied, length=2048, documents=6)
config = settings(f"stage={{stage}}", *TINY, f"model.tie_word_embeddings={{str(tied).lower()}}")
torch.set_num_threads(1)
batch, objective = make_batch(size, 0), build_objective("every_head")
def warm():
    small = dataclasses.replace(size, hidden_size=32, intermediate_size=64, vocabulary=500)
    model = random_model(small, small.length)
    model(make_batch(small, 0), objective).total.backward()
warm()
facts = {{}}
def train():
    model = random_model(size, size.length)
    freeze(model, config.stage.freeze)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for step in range(2):
        optimiser.zero_grad()
        for _ in range(accumulate):
            losses = model(batch, objective)
            losses.total.backward()
        optimiser.step()
    tokens, pairs = rows_and_pairs(batch, heads).chunk(2)
    work = Work(tokens.tolist(), pairs.tolist(), losses.counts.tolist())
    facts["planned"] = step_memory(model, config, work, accumulate).peak
_, cost = measure(train, torch.device("cpu"), memory=True)
print(json.dumps(facts | {{"measured": cost.peak_bytes}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["align 0 untied 1", "align 0 tied 2", "mtp1 1 untied 1", "mtp10 6 untied 1", "mtp10 6 tied 2", "sft 6 tied 1", "sft 6 untied 2"]
)  # fmt: skip
def test_memory_is_within_fifteen_percent_of_a_process(case, tmp_path):
    script = MEASURE.format(here=os.path.dirname(__file__))
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *case.split()], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    print(case, facts["planned"] / facts["measured"])
    assert facts["planned"] == pytest.approx(facts["measured"], rel=0.15)
