"""Every command of the README runs, on the smallest world and for a few steps."""

import re
import shlex

import pytest

from tests.end_to_end.conftest import RUN
from tests.end_to_end.doc_commands import ROOT, commands_of

FEW_STEPS = (
    "data=spoken_world_smoke", "data.workers=0", "stage.steps=2", "stage.rows_per_step=2", "n_heads=2",
    "decode_pattern=[1,2]", "data.validation_rows=2", "logger=csv",
)  # fmt: skip


def test_readme_names_its_commands():
    assert len(commands_of(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("command", commands_of(ROOT / "README.md"))
def test_readme_command_runs(smoke_demo, command):
    words = shlex.split(command.removeprefix("python ").replace("demo-full-seed1", RUN))
    if "vita_audio_pl.train" in words:
        if "scale=published" in words:  # its data and sizes are a cluster's; here it is composed and checked
            smoke_demo.run(*words, "--cfg", "job")
            return
        named = any(word.startswith("run_name=") for word in words)
        words += [*FEW_STEPS] if named else [*FEW_STEPS, "run_name=" + re.sub(r"\W", "_", "_".join(words[2:]))]
    if any(word == "audio=speech.wav" for word in words):
        spoken = next((smoke_demo.folder / "runs" / RUN / "report").rglob("*.wav"))
        (smoke_demo.folder / "speech.wav").write_bytes(spoken.read_bytes())
    if "limit=50" in words:
        words = [*(word for word in words if word != "limit=50"), "limit=3", "bench=spoken_world_smoke"]
    smoke_demo.run(*words)
