"""What cannot be trained is refused in one sentence, before the first step."""

import builtins
from types import SimpleNamespace

import pytest
import toy

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS, read_sealed, write_sealed
from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.engines.kinds import DeepSpeed
from vita_audio_pl.training.run_folder.manifest import model_damage
from vita_audio_pl.training.settings import TrainerConfig
from vita_audio_pl.training.stage.trainer import check_devices, micro_batches


def refused(says: str, *overrides: str, run=micro_batches, tmp: str = "runs") -> None:
    with pytest.raises(UserError, match=says) as error:
        run(toy.toy_config(tmp, "stage=align", *overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", range(1, 12))
@pytest.mark.parametrize("ranks", range(1, 5))
@pytest.mark.parametrize("at_most", [None, 1, 2, 3])
def test_every_rank_has_place_for_its_share_of_any_number_of_rows(rows, ranks, at_most):
    settings = SimpleNamespace(
        stage=SimpleNamespace(rows_per_step=rows), trainer=SimpleNamespace(world_size=ranks, rows_per_device=at_most)
    )
    per_device, accumulate = micro_batches(settings)
    assert per_device <= (at_most or rows) and ranks * per_device * accumulate >= rows
    assert ranks * per_device * (accumulate - 1) < rows  # no batch is empty on all ranks


@pytest.mark.parametrize(
    ("there", "says"), [(0, "this one has none; choose trainer=cpu"), (2, "this one has 2; give trainer.devices=2")]
)
def test_too_few_gpus(there, says, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    refused(says, "trainer=ddp", "stage.rows_per_step=8", run=lambda config: check_devices(config.trainer))


def test_an_engine_that_is_not_installed(monkeypatch):
    plain = builtins.__import__

    def without_deepspeed(name, *arguments, **options):
        if "engines.zero" in name or name.startswith("deepspeed"):
            raise ImportError("No module named 'deepspeed'")
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_deepspeed)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(
        UserError, match="trainer=deepspeed_zero2 needs DeepSpeed, which cannot be imported .*pip install"
    ):
        DeepSpeed().build(TrainerConfig(name="deepspeed_zero2", accelerator="cpu"))


def test_a_finished_stage_says_so_and_offers_force(trained, capsys):
    first = trained("align")
    before = (first.model / "manifest.json").stat().st_mtime_ns
    again = trained("align")
    assert "is finished" in (told := capsys.readouterr().out) and "force=true trains it again" in told
    assert (again.model / "manifest.json").stat().st_mtime_ns == before


def test_a_checkpoint_folder_of_another_run(trained):
    trained("align")
    with pytest.raises(UserError, match="holds another run: .*seed is 0 there and 1 here.*force=true"):
        trained("align", "seed=1")


def test_a_checkpoint_of_another_model(trained):
    folder = trained("align", "callbacks.save_every=3")
    (folder.model / "manifest.json").unlink()
    for state in folder.checkpoints.glob("*/state.json"):
        write_sealed(state, {**read_sealed(state), "format": 9})
    with pytest.raises(UserError, match="has format 9; this version reads 3"):
        trained("align", "callbacks.save_every=3")


def test_a_finished_stage_whose_weights_are_not_there_is_handed_over_again(trained, capsys):
    folder = trained("align")
    weights = folder.model / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (weights.unlink, lambda: weights.write_bytes(whole[:-100])):
        damage()
        assert not folder.finished
        with pytest.raises(UserError, match=r"has no finished one \(.*model.safetensors (is missing|has \d+ bytes)"):
            trained("mtp1")
        assert trained("align").finished and weights.read_bytes() == whole
        assert "stage 'align' is not finished and will be resumed: " in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b'{"seed": 1', bytes(60), b"[]x", b"[1]"])
def test_an_identity_that_cannot_be_read_is_told(trained, tmp_path, data):
    path = tmp_path / "runs" / "toy" / "align" / "identity.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"identity.json cannot be read .*delete it to resume.*force=true"):
        trained("align")
    assert path.read_bytes() == data


def test_metrics_that_a_crash_damaged_are_read_as_far_as_they_are_whole(trained, capsys):
    folder = trained("align")
    (folder.model / "manifest.json").unlink()
    metrics = folder.root / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes() + bytes(300))
    kept = metrics.read_bytes()
    trained("align")
    assert "1 lines of " in capsys.readouterr().out and (folder.root / "metrics.csv.damaged").read_bytes() == kept
    assert folder.last_metric("step") is None and folder.last_metric("train/loss") is not None


def test_an_older_model_folder_without_checksums_is_finished_where_its_weights_are(trained):
    folder = trained("align").model
    (folder / CHECKSUMS).unlink()
    (folder / MARK).unlink()
    assert model_damage(folder) is None
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "are missing, cut or cannot be read" in model_damage(folder)
