"""Every command of the README runs, one after another as a reader gives them, on the smallest world and for a few steps."""

import re
import shlex

from tests.end_to_end.conftest import RUN
from tests.end_to_end.doc_commands import ROOT, commands_of
from vita_audio_pl.models.load import load_model
from vita_audio_pl.training.run_folder.manifest import StageManifest

FEW_STEPS = (
    "data=spoken_world_smoke", "data.workers=0", "stage.steps=2", "stage.rows_per_step=2", "n_heads=2",
    "decode_pattern=[1,2]", "data.validation_rows=2", "logger=csv",
)  # fmt: skip


def small(command: str) -> list[str]:
    words = shlex.split(command.removeprefix("python ").replace("demo-full-seed1", RUN))
    if "scale=published" in words:  # its data and sizes are a cluster's; here it is composed and checked
        return [*words, "--cfg", "job"]
    if "vita_audio_pl.train" in words:
        words += FEW_STEPS if "with_parents=true" not in words else FEW_STEPS[:-1]  # once with all loggers
    if any(word.startswith("variant=") for word in words):
        words.append("variant.stages=[align]")  # the whole chain is trained by the command before it
    if "limit=50" in words:
        words = [*(word for word in words if word != "limit=50"), "limit=3", "bench=spoken_world_smoke"]
    return words


def test_readme_commands_run_and_a_stage_that_is_finished_is_not_trained_again(copied_demo):
    spoken = next((copied_demo.folder / "runs" / RUN / "report").rglob("*.wav"))
    (copied_demo.folder / "speech.wav").write_bytes(spoken.read_bytes())
    commands = commands_of(ROOT / "README.md")
    assert len(commands) >= 10
    told = {re.sub(r".*vita_audio_pl\.", "", command): copied_demo.run(*small(command)) for command in commands}

    assert "stage 'align' is done" in told["train stage=align"]
    assert "[1/1] stage mtp1" in told["train stage=mtp10 with_parents=true"]
    assert "stage 'mtp10' is done" in told["train stage=mtp10 with_parents=true"]
    assert "[3/4] stage mtp10 of vita_audio_boost-small-seed0 is finished" in told["train stage=chain"]
    assert told["train stage=chain"].count("is done") == 1 and "stage 'sft' is done" in told["train stage=chain"]
    run = copied_demo.folder / "runs" / "vita_audio_boost-small-seed0"
    heads = [StageManifest.read(run / stage / "model").n_heads for stage in ("align", "mtp1", "mtp10", "sft")]
    assert heads == [0, 1, 2, 2] and load_model(run / "sft" / "model").n_heads == 2
    assert list((run / "mtp1").glob("wandb/offline-run-*")) and list((run / "mtp1" / "tensorboard").iterdir())
