"""Files and folders of others lie wherever a command works: each command is run over them, and none of them is ever gone."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import toy

from vita_audio_pl.data.options import ExecutorOptions, PrepareConfig
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.exporting import export_model
from vita_audio_pl.prepare import prepare
from vita_audio_pl.reporting.run.write import write_report
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.train import train
from vita_audio_pl.training.step.module import SpeechLMModule

RECIPE = """
task: text
description: chats
languages: [en]
licence: none
home: made up
layout: chat.jsonl
reader: {kind: table, files: [chat.jsonl], columns: {id: id, user: q, assistant: a}, rows_per_part: 2}
"""
LIKE_OURS = ("model.tmp", "model.old", "notes.partial", "step-00000002.ckpt.tmp", "old.tar", "metrics.csv.bak", "x.tmp")
"""Names of others that look like those of our leftovers."""


@dataclass
class Workplace:
    """A folder in which commands were run, and what others have put between their files."""

    root: Path
    trained: Callable[..., object]
    precious: dict[Path, str] = field(default_factory=dict)

    def write_chats(self, text: str) -> None:
        rows = [{"id": str(n), "q": "who is it", "a": f"{text} {n}"} for n in range(6)]
        (self.root / "raw").mkdir(exist_ok=True)
        (self.root / "raw/chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.root / "chats.yaml").write_text(RECIPE)

    def prepare(self, **settings: object) -> None:
        places = {
            "source": str(self.root / "chats.yaml"),
            "root": str(self.root / "raw"),
            "shards": str(self.root / "shards"),
        }
        tokenizer = str(self.root / "world/tokenizer")
        prepare(PrepareConfig(**places, tokenizer_folder=tokenizer, executor=ExecutorOptions(workers=1), **settings))

    def commands(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Each command, in the forms that replace or remove something."""
        yield "train", lambda: self.trained("align", "callbacks.keep_last=1", "callbacks.save_every=1")
        yield (
            "begin anew",
            lambda: self.trained("align", "callbacks.keep_last=1", "callbacks.save_every=1", "force=true"),
        )
        yield "begin another run anew", lambda: self.trained("align", "seed=1", "stage.steps=3", "force=true")
        yield "prepare a part", lambda: self.prepare(parts=1)
        self.write_chats("another answer")
        yield "prepare what has changed", self.prepare
        yield "prune", lambda: self.prepare(prune=True)
        model = self.root / "runs/toy/align/model"
        yield "export over something", lambda: export_model(model, self.root / "world")
        run = RunFiles(self.root / "runs/toy", "none", (), (), {}, (), {})
        yield "report over something", lambda: write_report(run, self.root / "raw", "title")
        for place in ("world/shards", "raw/shards", "shards"):  # the spoken world is made beside none of them
            config = toy.toy_config(
                self.root / "runs", "run_name=w", f"data.shards={self.root / place}", "codec.codebook_size=16"
            )
            yield f"train on {place}", lambda config=config: train(config)

    def plant(self, folder: Path) -> None:
        """Puts files and folders of others into `folder`."""
        for name in ("precious", *LIKE_OURS):
            path = folder / name
            if not path.exists():
                path.mkdir()
                path = path / "precious.txt"
                path.write_text(f"precious {path}")
                self.precious[path] = path.read_text()
        self.precious[folder / "notes.md"] = "precious notes"
        (folder / "notes.md").write_text("precious notes")

    def lost(self) -> list[Path]:
        return [path for path, text in self.precious.items() if not path.is_file() or path.read_text() != text]


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch) -> Workplace:
    monkeypatch.chdir(tmp_path)

    def toy_stage(stage: str, *overrides: str) -> object:
        return trained(stage, "stage.steps=2", "callbacks.samples.every_steps=1", *overrides, prompts=True)

    place = Workplace(tmp_path, toy_stage)
    place.write_chats("an answer")
    toy_stage("align", "callbacks.keep_last=1", "callbacks.save_every=1")
    place.prepare()
    return place


@pytest.mark.parametrize("where", ["everywhere", "around"])
def test_nothing_of_others_is_ever_gone(where, workplace):
    """Where others' files lie in our folders, what would take them is refused; beside our folders, they hinder nothing."""
    folders = [Path(at) for at, _, _ in os.walk(workplace.root)]
    folders.remove(workplace.root / "world/tokenizer")  # which the toy itself makes anew
    own = {workplace.root / "runs/toy/align", workplace.root / "shards/chats"}
    around = [folder for folder in folders if not own & {folder, *folder.parents}]
    for folder in folders if where == "everywhere" else around:
        workplace.plant(folder)
    refused = []
    for name, run in workplace.commands():
        try:
            run()
        except UserError:
            refused.append(name)
        assert not workplace.lost(), f"'{name}' took {workplace.lost()[0]}"
    always = ["export over something", "report over something"]
    worlds = [f"train on {place}" for place in ("world/shards", "raw/shards", "shards")]
    expected = (
        ["begin anew", "begin another run anew", *always, *worlds] if where == "everywhere" else [*always, *worlds]
    )
    assert refused == expected


def test_checkpoints_that_we_did_not_write_are_never_touched(trained, tmp_path, monkeypatch, capsys):
    """What has a checkpoint's name and is none stops the run before it trains; a file beside ours keeps its checkpoint."""

    def train_on(stop: bool = False) -> object:
        local = f"callbacks.local_checkpoints={tmp_path / 'node'}"
        with monkeypatch.context() as patch:
            if stop:
                patch.setattr(SpeechLMModule, "on_train_batch_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return trained("align", "stage.steps=4", "callbacks.keep_last=1", "callbacks.save_every=1", local)

    with pytest.raises(SystemExit):
        train_on(stop=True)
    (node,) = (tmp_path / "node").iterdir()
    home = tmp_path / "runs/toy/align/checkpoints"
    for folder in (home, node):
        assert (folder / "step-00000002.ckpt/state.json").is_file()
        for name in (
            "step-00000003.ckpt",
            "step-00000003.ckpt.tmp",
            "step-00000003.doubt",
            "step-00000001.ckpt.old.tmp",
        ):
            for plant in (lambda path: write(path / "precious.txt"), write):  # a folder of others, and a file
                path = plant(folder / name)
                with pytest.raises(UserError, match="did not write|is not a checkpoint that this program wrote"):
                    train_on()
                path.unlink()
                if (folder / name).is_dir():
                    (folder / name).rmdir()
    beside = [folder / name for folder in (home, node) for name in (
        "step-000005/precious.txt", "step-00000002.ckpt.bak/precious.txt", "x.tmp/precious.txt", "step-00000002.ckpt/notes.txt",
    )]  # fmt: skip
    for path in beside:
        write(path)
    capsys.readouterr()
    train_on()
    assert all(path.read_text() == "precious" for path in beside)
    said = capsys.readouterr().out
    assert said.count("step-00000002.ckpt stays: ") == 2 and f"{node} stays: " in said
    assert sorted(path.name for path in home.glob("*.ckpt")) == ["step-00000002.ckpt", "step-00000004.ckpt"]


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    return path
