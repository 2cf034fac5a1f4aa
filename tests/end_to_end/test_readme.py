"""Every command of the README runs, on the smallest world and for a few steps."""

import re
import shlex
from pathlib import Path

import pytest

from tests.end_to_end.conftest import RUN

README = Path(__file__).parents[2] / "README.md"
PREFIX = "python -m vita_audio_pl."
FEW_STEPS = (
    "data=spoken_world_smoke", "data.workers=0", "stage.steps=2", "stage.rows_per_step=2", "n_heads=2",
    "decode_pattern=[1,2]", "data.validation_rows=2", "logger=csv",
)  # fmt: skip


def readme_commands() -> list[str]:
    """Commands of the README's shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(PREFIX)]


def test_readme_names_its_commands():
    assert len(readme_commands()) >= 10


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", readme_commands())
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
