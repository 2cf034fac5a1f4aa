"""A stage takes over from its parent, trains what it says, and hands over; nothing else gets in."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.load import load_model
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.training.run_folder.layout import STAGE
from vita_audio_pl.training.run_folder.manifest import StageManifest


def parameters(folder):
    return {name: p.detach() for name, p in load_model(folder.model).named_parameters()}


@pytest.mark.parametrize(("form", "part"), [("mctp", "proj"), ("parallel", "residual")])
def test_four_stages_hand_over_what_they_promise(trained, form, part):
    align, mtp1, mtp10, sft = (trained(stage, f"model.heads={form}") for stage in ("align", "mtp1", "mtp10", "sft"))

    at_align, at_mtp1, at_mtp10, at_sft = map(parameters, (align, mtp1, mtp10, sft))
    for name, value in at_align.items():  # stages 2 and 3 freeze the language model, stage 4 trains it
        assert torch.equal(at_mtp1[name], value) and torch.equal(at_mtp10[name], value)
        assert not torch.equal(at_sft[name], value)
    assert {name.split(".")[1] for name in at_mtp10 if name.startswith("heads")} == {"0", "1", "2"}
    assert not torch.equal(at_mtp10[f"heads.0.{part}.weight"], at_mtp1[f"heads.0.{part}.weight"])
    assert not torch.equal(at_mtp10[f"heads.2.{part}.weight"], at_mtp10[f"heads.1.{part}.weight"])
    assert len([name for name in at_sft if name.startswith("heads")]) == 3 * {"mctp": 15, "parallel": 1}[form]

    manifest = StageManifest.read(sft.model)
    assert (manifest.stage, manifest.parent_stage, manifest.n_heads) == ("sft", "mtp10", 3)
    assert manifest.parent_weights == StageManifest.read(mtp10.model).weights
    assert (sft.root / manifest.parent).resolve() == mtp10.model.resolve()
    assert StageManifest.read(mtp10.model).frozen == len(at_align)
    for part in ("tokenizer", "codec", "config.json", "generation_config.json", "model.safetensors"):
        assert (sft.model / part).exists()
    generation = json.loads((sft.model / "generation_config.json").read_text())
    assert generation["mtp_inference_mode"] == [1, 10, 4, 10]


def test_a_finished_stage_says_so_and_force_trains_it_again(trained, capsys):
    first = trained("align")
    before = (first.model / "model.safetensors").stat().st_mtime_ns
    trained("align")
    assert "is finished" in capsys.readouterr().out
    assert (first.model / "model.safetensors").stat().st_mtime_ns == before
    again = trained("align", "force=true")
    assert (again.model / "model.safetensors").stat().st_mtime_ns > before


def test_all_that_a_stage_leaves_is_known_to_be_its_own(trained):
    folder = trained(
        "align", "callbacks.save_every=2", "logger.tensorboard=true", "callbacks.samples.every_steps=3", prompts=True
    )
    assert Owned.open(folder.root, STAGE).foreign() == []
    assert {"model", "samples", "checkpoints", "tensorboard", "ranks"} < {path.name for path in folder.root.iterdir()}


@pytest.mark.parametrize(
    ("overrides", "data", "says"),
    [
        (("stage=sft",), {}, "has no finished one; make it with 'python -m vita_audio_pl.train stage=mtp10'"),
        (("stage=mtp10", "init_from={align}"), {}, "starts from 'mtp1', but .* was made by stage 'align'"),
        (("stage=mtp1", "text_audio_interval_ratio=[1,4,3,8,4,10]"), {}, "its text_audio_interval_ratio is"),
        (("stage=mtp1",), {"codec": "codec-b"}, "its audio codec .* is codec-a, and this run's is codec-b"),
        (("stage=mtp1", "init_from=nowhere"), {}, "there is no model folder nowhere"),
        (("stage=align", "stage.steps=9"), {}, "holds another run: stage.steps is 6 there and 9 here"),
        (("stage=align", "stage.rows_per_step=5"), {}, "stage.rows_per_step is 4 there and 5 here"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(trained, overrides, data, says):
    align = trained("align")
    stage, *rest = (override.format(align=align.model) for override in overrides)
    with pytest.raises(UserError, match=says):
        trained(stage.removeprefix("stage="), *rest, **data)


def test_a_head_that_the_objective_never_serves_is_named(trained):
    trained("align")
    trained("mtp1")
    with pytest.raises(UserError, match=r"heads\.3.* should train, but got no gradient"):
        trained("mtp10", "n_heads=5", "objective=served_slots")


@pytest.mark.parametrize("rows_per_device", [1, 2])
def test_the_step_does_not_depend_on_how_its_rows_are_cut(trained, tmp_path, rows_per_device):
    whole = load_file(trained("align").model / "model.safetensors")
    cut = trained("align", "run_name=cut", f"trainer.rows_per_device={rows_per_device}")
    parts = load_file(cut.model / "model.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


def test_metrics_have_stable_columns(trained):
    trained("align")
    trained("mtp1")
    with (trained("mtp10", "trainer.peak_tflops=10").root / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 7)]
    for column in ("train/loss", "train/loss_head_0", "train/accuracy_head_2", "lr/heads", "lr/heads_no_decay",
                   "grad_norm", "tokens_per_second", "samples_per_second", "padding_share", "source/toy", "audio_hours_per_second",
                   "mfu", "memory_gib", "data_wait_share", "checkpoint_wait_share", "train/served_accuracy_head_0", "skipped_steps"):  # fmt: skip
        assert all(row[column] for row in rows), column
    assert rows[-1]["val/loss"] and rows[-1]["val/accuracy_main"]
    assert rows[-1]["val/toy/loss_main"] == rows[-1]["val/loss_main"]  # each held-out source apart, and all together
    assert 0 < float(rows[-1]["mfu"]) < 1 and 0 <= float(rows[-1]["data_wait_share"]) <= 1
    assert float(rows[-1]["padding_share"]) == pytest.approx(0.25)
