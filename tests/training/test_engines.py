"""Every engine, in two gloo processes on the CPU, trains what one process does, and goes on from its checkpoints."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file
from toy_process import train_in_a_process

from vita_audio_pl.training.run_folder import StageFolder
from vita_audio_pl.training.stage import train_stage

CHAIN = ("align", "mtp1", "mtp10", "sft")
ENGINES = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
COMMON = ("run_name=toy", "callbacks.save_every=3", "callbacks.keep_last=9")
QUICK = {
    ("ddp", "sft", False),
    ("fsdp2", "sft", True),
    ("deepspeed_zero2", "sft", False),
}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [(engine, stage, tied) for engine in ENGINES for stage in CHAIN for tied in (True, False)]
]


def settings(stage: str, tied: bool, parent: StageFolder | None) -> list[str]:
    start = [] if parent is None else [f"init_from={parent.model}"]
    return [f"stage={stage}", *COMMON, f"model.tie_word_embeddings={str(tied).lower()}", *start]


def train_here(root: Path, *overrides: str) -> StageFolder:
    config = toy.toy_config(root / "runs", *overrides)
    return StageFolder(train_stage(config, toy.toy_data(root / "world")).parent)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Folder of a stage trained in one process; its parents are trained on the way, each once."""
    folders: dict[tuple[str, bool], StageFolder] = {}

    def folder_of(stage: str, tied: bool) -> StageFolder:
        if (stage, tied) not in folders:
            number = CHAIN.index(stage)
            parent = folder_of(CHAIN[number - 1], tied) if number else None
            root = tmp_path_factory.mktemp(f"{stage}-{tied}")
            folders[stage, tied] = train_here(root, *settings(stage, tied, parent))
        return folders[stage, tied]

    return folder_of


def column(folder: StageFolder, name: str) -> list[float]:
    with (folder.root / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def assert_same_training(found: StageFolder, expected: StageFolder, after: int = 0) -> None:
    """Losses and gradient norms of the steps after `after`, and the final weights."""
    assert column(found, "step") == list(range(after + 1, 7))
    for name in ("train/loss", "grad_norm"):
        assert column(found, name) == pytest.approx(column(expected, name)[after:], rel=1e-4), name
    weights, wanted = (load_file(folder.model / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            weights[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def start_from(checkpoint: Path, root: Path, stage: str) -> None:
    shutil.copytree(checkpoint, root / "runs" / "toy" / stage / "checkpoints" / checkpoint.name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "stage", "tied"), CASES)
def test_two_processes_train_what_one_does_and_exchange_checkpoints(engine, stage, tied, one_process, tmp_path):
    expected = one_process(stage, tied)
    number = CHAIN.index(stage)
    common = settings(stage, tied, one_process(CHAIN[number - 1], tied) if number else None)
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", f"trainer={engine}"]

    assert train_in_a_process(tmp_path / "two", *common, *two) == 0  # 2 ranks x 1 row x 2 micro-batches = 1 x 4 rows
    found = StageFolder(tmp_path / "two" / "runs" / "toy" / stage)
    assert_same_training(found, expected)

    start_from(found.checkpoints / "step-00000003.ckpt", tmp_path / "back", stage)
    back = train_here(tmp_path / "back", *common)
    assert_same_training(back, expected, after=3)

    start_from(expected.checkpoints / "step-00000003.ckpt", tmp_path / "over", stage)
    assert train_in_a_process(tmp_path / "over", *common, *two) == 0
    assert_same_training(StageFolder(tmp_path / "over" / "runs" / "toy" / stage), expected, after=3)
