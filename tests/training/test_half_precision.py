"""Training in bfloat16 under every engine, on the CPU: it starts, and computes what float32 does but for rounding."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from toy import VOCABULARY, toy_config
from toy_process import train_in_a_process
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines.precision import DeepSpeedWeights, HalfWeights
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.stage.starting_model import starting_model

COMMON = ("stage.steps=2", "rendering.text_weight=4", "stage.learning_rate=0.01", "callbacks.samples.every_steps=0")
TWO = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.rows_per_device=1")


def losses(folder: StageFolder) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_weighted_labels_train_in_bfloat16(trained, precision):
    exact = losses(trained("align", *COMMON, "run_name=exact"))
    assert losses(trained("align", *COMMON, "run_name=half", f"trainer.precision={precision}")) == pytest.approx(
        exact, rel=0.02
    )


def test_norms_that_bfloat16_cannot_move_are_named_and_the_stage_is_handed_over(trained, capsys):
    # half the distance from 1.0 to the number below it is 2^-9: an update of 1e-3 is rounded away
    stage = ("trainer.precision=bf16-true", "stage.learning_rate=1e-3", "stage.weight_decay=0")
    folder = trained("align", *stage)
    assert "layernorm.weight" in (told := capsys.readouterr().out) and "trained, but did not change" in told
    manifest = StageManifest.read(folder.model)
    assert 0 < manifest.trained < len(load_file(folder.model / "model.safetensors")) and manifest.frozen == 0
    with pytest.raises(UserError, match="ended without changing any weight; raise stage.learning_rate or choose"):
        trained("align", "run_name=still", *stage, "stage.learning_rate=1e-60")


@pytest.mark.parametrize(
    "plugin", [HalfWeights(), DeepSpeedWeights("bf16-true")], ids=lambda plugin: type(plugin).__name__
)
def test_positions_are_exact_in_a_model_of_bfloat16(plugin, tmp_path):
    model = starting_model(toy_config(tmp_path, "stage=align", "trainer.precision=bf16-true"), VOCABULARY, None)
    plugin.convert_module(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    far = torch.zeros(1), torch.tensor([[8000]])
    torch.testing.assert_close(model.model.rotary_emb(*far), Qwen2RotaryEmbedding(model.config.backbone)(*far))


def test_fsdp2_trains_weighted_labels_in_bfloat16(trained, tmp_path):
    exact = losses(trained("align", *COMMON))
    assert train_in_a_process(tmp_path / "two", "stage=align", *COMMON, *TWO, "trainer=fsdp2") == 0
    assert losses(StageFolder(tmp_path / "two" / "runs" / "toy" / "align")) == pytest.approx(exact, rel=0.02)


def test_fsdp2_hands_over_float32_after_a_validation_that_gathered_frozen_weights_in_bfloat16(trained, tmp_path):
    """Embeddings and final norm, frozen in this stage, are those of the parent to the bit, and what trains is float32."""
    parent = trained("align", *COMMON).model
    start = ("stage=mtp1", f"init_from={parent}", "callbacks.validate_every=1")
    assert train_in_a_process(tmp_path / "two", *COMMON, *start, *TWO, "trainer=fsdp2") == 0
    folder = StageFolder(tmp_path / "two" / "runs" / "toy" / "mtp1")
    weights, before = (load_file(each / "model.safetensors") for each in (folder.model, parent))
    assert StageManifest.read(folder.model).frozen == len(before)
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    trains = {name: value for name, value in weights.items() if name not in before}
    assert trains and {value.dtype for value in weights.values()} == {torch.float32}
    saved = [load_file(path) for path in sorted(folder.checkpoints.glob("step-00000002.ckpt/part-*.safetensors"))]
    held = torch.cat([value.flatten() for part in saved for name, value in part.items() if name.startswith("weight/")])
    whole = torch.cat([value.flatten() for value in trains.values()])
    assert torch.equal(held.sort().values, whole.sort().values) and not torch.equal(whole, whole.bfloat16().float())


def test_zero2_trains_weighted_labels_in_bfloat16_and_leaves_out_a_step_that_is_not_finite(trained, tmp_path):
    exact = losses(trained("align", *COMMON, "stage.steps=3"))
    more = ("stage.steps=3", "poison=1", "callbacks.save_every=1", "callbacks.keep_last=9", "trainer=deepspeed_zero2")
    assert train_in_a_process(tmp_path / "two", "stage=align", *COMMON, *TWO, *more) == 0
    folder = StageFolder(tmp_path / "two" / "runs" / "toy" / "align")
    assert losses(folder)[:2] == pytest.approx(exact[:2], rel=0.02)
    assert json.loads((folder.root / "probe.rank-0.json").read_text())["accumulates_in"] == "torch.float32"

    [record] = [json.loads(line) for line in (folder.root / "bad_steps.rank-0.jsonl").read_text().splitlines()]
    assert record["step"] == 2
    last = folder.checkpoints / "step-00000003.ckpt"
    guard = json.loads((last / "state.json").read_text())["guard"]
    assert (guard["skipped"], guard["rollbacks"]) == (1, 0)  # weights and moments were not put back
    names = ("step-00000001.ckpt", "step-00000002.doubt", "step-00000003.ckpt")
    before, after, later = (load_file(folder.checkpoints / name / "part-00000.safetensors") for name in names)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in after)
