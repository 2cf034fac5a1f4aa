"""Every command in the documentation is one that its program accepts; those that a small run can answer are run."""

import importlib
import re
import shlex
import sys

import pytest

from tests.end_to_end.conftest import RUN
from tests.end_to_end.doc_commands import ROOT, commands_of, documented
from vita_audio_pl.reporting.concepts import PICTURES, draw_concepts

PAGES = sorted({page for page, _ in documented()})
# What takes a cluster, a network or an hour; the others run on the smallest world
NOT_RUN = re.compile(r"scale=published|submitit|hydra/|wandb=|/corpora/|DIR|what=(training|data|trainers)|vita_audio_pl\.(demo|prepare)\b| -m "
                     r"experiment|birds|plus_|plan\b")  # fmt: skip


def accepts(words: list[str], monkeypatch, capsys) -> None:
    """Compose and check a command as its program does, without doing what it asks."""
    name = words[1].removeprefix("vita_audio_pl.")
    module = importlib.import_module(f"vita_audio_pl.{name}" + (".__main__" if name == "data" else ""))
    asked = []
    task = next(task for task in (name, "look") if hasattr(module, task))
    monkeypatch.setattr(module, task, asked.append)
    # Hydra takes launchers, sweepers and axes apart before a job is composed; a job has one value of each axis
    words = (
        [word for word in words[2:] if word != "-m" and not word.startswith("hydra")]
        if "-m" in words[2:]
        else words[2:]
    )
    monkeypatch.setattr(sys, "argv", [name, *(re.sub(r"=([\w.]+),.*", r"=\1", word) for word in words)])
    module.main()
    assert len(asked) == 1, capsys.readouterr().err


def test_pages_show_commands():
    assert {"index", "commands", "evaluate", "ablations", "add-a-corpus"} <= set(PAGES)
    assert len(documented()) >= 50
    assert len(commands_of(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_accepted(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # a refusal shows as the exception that says why
    for of, command in documented():
        if of == page:
            accepts(shlex.split(command)[1:], monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", sorted({command for _, command in documented() if not NOT_RUN.search(command)}))
def test_documented_command_runs(smoke_demo, command):
    words = shlex.split(command.removeprefix("python ").replace("demo-full-seed1", RUN))
    if "vita_audio_pl.train" in words:
        words += ["data=spoken_world_smoke", "data.workers=0", "stage.steps=2", "stage.rows_per_step=2", "n_heads=2", "decode_pattern=[1,2]",
                  "data.validation_rows=2", "logger=csv", "run_name=" + re.sub(r"\W", "_", "_".join(words[2:]))]  # fmt: skip
    if "vita_audio_pl.data" in words:
        words.append("data=spoken_world_smoke")
    if "vita_audio_pl.evaluate" in words:
        words = [word.replace("limit=50", "limit=3").replace("suite=demo", "suite=demo_smoke") for word in words]
        words += [
            "bench=spoken_world_smoke",
            *([] if any("limit" in w or "suite" in w for w in words) else ["limit=3"]),
        ]
    smoke_demo.run(*words)


def test_pictures_of_the_concepts_are_drawn_and_shown(tmp_path):
    drawn = {path.name for path in draw_concepts(tmp_path)}
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert drawn == {f"{name}.png" for name in PICTURES} == set(re.findall(r"images/(\w+\.png)", page))
    assert all((ROOT / "docs" / "images" / name).is_file() for name in drawn)
