"""What cannot be trained is refused in one sentence, before the first step."""

import builtins

import pytest
import toy

from vita_audio_pl.errors import UserError
from vita_audio_pl.training.engines import build_engine
from vita_audio_pl.training.settings import TrainerConfig
from vita_audio_pl.training.trainer import check_devices, micro_batches


def refused(says: str, *overrides: str, run=micro_batches, tmp: str = "runs") -> None:
    with pytest.raises(UserError, match=says) as error:
        run(toy.toy_config(tmp, "stage=align", *overrides))
    assert "\n" not in str(error.value)


def test_devices_that_do_not_divide_the_batch():
    refused("stage.rows_per_step=4 cannot be shared by 3 devices", "trainer=cpu_ddp", "trainer.devices=3")
    refused("each of 2 devices takes 2 .* trainer.rows_per_device=3 does not divide", "trainer=cpu_ddp",
            "trainer.rows_per_device=3")  # fmt: skip


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
        build_engine(TrainerConfig(name="deepspeed_zero2", engine="deepspeed", accelerator="cpu"))


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
        state.write_text(state.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError, match="has format 9; this version reads 1"):
        trained("align", "callbacks.save_every=3")
