"""Every command in the documentation is one that its program accepts; `test_documented_commands.py` runs them."""

import importlib
import re
import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir

from tests.end_to_end.doc_commands import ROOT, commands_of, documented, write_yaml_of
from vita_audio_pl.reporting.concepts import PICTURES, draw_concepts

ONE_OF_MANY = re.compile(r"=(?:interval\()?([\w.]+),.*")
PAGES = sorted({page for page, _ in documented()})


def accepts(words: list[str], monkeypatch, capsys) -> None:
    """Compose and check a command as its program does, without doing what it asks."""
    name = words[1].removeprefix("vita_audio_pl.")
    module = importlib.import_module(f"vita_audio_pl.{name}" + (".__main__" if name == "data" else ""))
    asked = []
    task = next(task for task in (name, "look") if hasattr(module, task))
    monkeypatch.setattr(module, task, asked.append)
    monkeypatch.setattr("vita_audio_pl.config.entry.check_paths", lambda settings: None)  # a page's files are examples
    # Hydra takes launchers, sweepers and axes apart before a job is composed; a job has one value of each axis
    hydras = [word for word in words[2:] if word.startswith("hydra")]
    if hydras:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            compose("train", hydras, return_hydra_config=True)
    # what finetune=MODEL stands for follows from a model that is there (tests/training/test_finetune.py)
    fine_tuning = ("finetune=", "shards=", "lora=") if any(word.startswith("finetune=") for word in words) else ()
    words = [word for word in words[2:] if word != "-m" and word not in hydras and not word.startswith(fine_tuning)]
    monkeypatch.setattr(sys, "argv", [name, *(ONE_OF_MANY.sub(r"=\1", word) for word in words)])
    module.main()
    assert len(asked) == 1, capsys.readouterr().err


def test_pages_show_commands():
    assert {"index", "commands", "evaluate", "ablations", "add-a-corpus"} <= set(PAGES)
    assert len(documented()) >= 50
    assert len(commands_of(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_accepted(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_yaml_of("ablations", tmp_path, "experiments/clip.yaml")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # a refusal shows as the exception that says why
    for of, command in documented():
        if of == page:
            accepts(shlex.split(command)[1:], monkeypatch, capsys)


def test_pictures_of_the_concepts_are_drawn_and_shown(tmp_path):
    drawn = {path.name for path in draw_concepts(tmp_path)}
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert drawn == {f"{name}.png" for name in PICTURES} == set(re.findall(r"images/(\w+\.png)", page))
    assert all((ROOT / "docs" / "images" / name).is_file() for name in drawn)
