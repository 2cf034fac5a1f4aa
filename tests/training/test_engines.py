"""Every engine, in two gloo processes on the CPU, trains what one process does, and goes on from its checkpoints."""

import csv
import json
import shutil
from pathlib import Path

import probe
import pytest
import torch
import toy
from safetensors.torch import load_file
from toy_process import train_in_a_process

from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.stage.starting_model import starting_model
from vita_audio_pl.training.stage.train import find_parent, train_stage
from vita_audio_pl.training.step.freezing import freeze
from vita_audio_pl.training.step.optimiser import parameter_groups

CHAIN = ("align", "mtp1", "mtp10", "sft")
ENGINES = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
COMMON = (
    "run_name=toy", "callbacks.save_every=3", "callbacks.keep_last=9", "callbacks.samples.every_steps=3",
    "callbacks.samples.max_new_tokens=12", "stage.weight_decay=10",
)  # fmt: skip
PADDING = 256  # elements that DeepSpeed adds to a group at most, so that ranks get equal shares
MARKS = {
    ("fsdp2", "sft", True): [],
    ("ddp", "mtp10", False): [pytest.mark.slow, pytest.mark.ci],
    ("deepspeed_zero2", "sft", False): [pytest.mark.slow, pytest.mark.ci],
}
CASES = [
    pytest.param(*case, marks=MARKS.get(case, [pytest.mark.slow]))
    for case in [(engine, stage, tied) for engine in ENGINES for stage in CHAIN for tied in (True, False)]
]


def settings(stage: str, tied: bool, parent: StageFolder | None) -> list[str]:
    start = [] if parent is None else [f"init_from={parent.model}"]
    return [f"stage={stage}", *COMMON, f"model.tie_word_embeddings={str(tied).lower()}", *start]


def train_here(root: Path, *overrides: str) -> StageFolder:
    config = toy.toy_config(root / "runs", *overrides)
    data = toy.ToyData(text_weight=config.rendering.text_weight)
    with pytest.MonkeyPatch.context() as patch:
        probe.keep_answering_weights(patch.setattr)
        return StageFolder(train_stage(config, toy.toy_data(root / "world", data, prompts=True)).parent)


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
        return [float(row[name]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_same_weights(found: Path, expected: Path) -> None:
    """Ranks sum in another order than one process does, so weights agree but for rounding."""
    weights, wanted = load_file(found), load_file(expected)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            weights[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_training(found: StageFolder, expected: StageFolder, after: int = 0) -> None:
    """Losses and gradient norms of the steps after `after`, and the final weights."""
    assert column(found, "step") == list(range(after + 1, 7))
    for name in ("train/loss", "grad_norm"):
        assert column(found, name) == pytest.approx(column(expected, name)[after:], rel=1e-4), name
    assert_same_weights(*(folder.model / "model.safetensors" for folder in (found, expected)))


def assert_same_samples(found: StageFolder, expected: StageFolder) -> None:
    """Every prompt was answered after three steps and at the end, by a model with the weights of that step.

    The weights are compared and not the answers, in which a near tie may fall either way.
    """
    for step in ("000003", "000006"):
        assert_same_weights(*(folder.root / f"answering-{step}.safetensors" for folder in (found, expected)))
        rows = [
            [json.loads(line) for line in (folder.samples / f"step-{step}" / "samples.jsonl").read_text().splitlines()]
            for folder in (found, expected)
        ]
        asked = [[(row["id"], row["task"], row["asked"], row["reference"]) for row in answered] for answered in rows]
        assert asked[0] == asked[1] and len(asked[0]) == 3
        assert all(0 < row["tokens"] <= 12 for row in rows[0])


def assert_only_what_trains_has_state(found: StageFolder, engine: str, overrides: list[str]) -> None:
    """Groups with their rates and decay on every rank; moments for what trains and nothing else, shared by the ranks."""
    config = toy.toy_config(found.root, *overrides)
    model = starting_model(config, toy.VOCABULARY, find_parent(config))
    trained = freeze(model, config.stage.freeze).trained_parameters
    stage = config.stage
    groups = parameter_groups(model, stage.learning_rate, stage.head_rate_factor, stage.weight_decay)
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert {group["weight_decay"] for group in groups} == {0.0, 10.0} and sum(sizes.values()) == trained
    ranks = [json.loads((found.root / f"probe.rank-{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert rank["frozen_with_gradient"] == []
        assert rank["asked_by_lightning"] == 0  # about signals, in every micro-batch: ours does
        assert rank["hashed"] <= 2 * -(-len(list(model.parameters())) // 2)  # its half, at the start and at the end
        assert rank["groups"] == {group["name"]: [group["peak_lr"], group["weight_decay"]] for group in groups}
    padding = PADDING if engine.startswith("deepspeed") else 0
    held = sum(rank["elements_with_moments"] for rank in ranks) / (2 if engine == "ddp" else 1)
    assert trained <= held <= trained + padding * len(groups)
    if engine == "deepspeed_zero2":
        for name, size in sizes.items():
            assert size <= sum(rank["elements"][name] for rank in ranks) <= size + PADDING


def start_from(checkpoint: Path, root: Path, stage: str) -> None:
    folder = root / "runs" / "toy" / stage
    shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    shutil.copy(checkpoint.parents[1] / MARK, folder / MARK)  # without it the folder would not be ours


@pytest.mark.parametrize(("engine", "stage", "tied"), CASES)
def test_two_processes_train_what_one_does_and_exchange_checkpoints(engine, stage, tied, one_process, tmp_path):
    expected = one_process(stage, tied)
    number = CHAIN.index(stage)
    common = settings(stage, tied, one_process(CHAIN[number - 1], tied) if number else None)
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", f"trainer={engine}"]

    assert train_in_a_process(tmp_path / "two", *common, *two) == 0  # 2 ranks x 1 row x 2 micro-batches = 1 x 4 rows
    found = StageFolder(tmp_path / "two" / "runs" / "toy" / stage)
    assert_same_training(found, expected)
    assert_same_samples(found, expected)
    assert_only_what_trains_has_state(found, engine, common)

    start_from(found.checkpoints / "step-00000003.ckpt", tmp_path / "back", stage)
    back = train_here(tmp_path / "back", *common)
    assert_same_training(back, expected, after=3)

    start_from(expected.checkpoints / "step-00000003.ckpt", tmp_path / "over", stage)
    assert train_in_a_process(tmp_path / "over", *common, *two) == 0
    assert_same_training(StageFolder(tmp_path / "over" / "runs" / "toy" / stage), expected, after=3)


@pytest.mark.slow
def test_a_run_has_one_process_losses_through_four_engines_and_every_number_of_ranks(tmp_path):
    """Each turn begins with the checkpoint that the one before, of another engine or of as many ranks, wrote two steps on."""
    common = [
        "stage=sft",
        "stage.steps=10",
        "stage.rows_per_step=12",
        "callbacks.save_every=2",
        "callbacks.keep_last=9",
    ]
    common += ["run_name=toy", "callbacks.samples.every_steps=0"]
    alone = ["trainer=cpu"]
    assert train_in_a_process(tmp_path / "alone", *common, *alone, "init_from=null", "variant.parents.sft=[]") == 0
    found = expected = StageFolder(tmp_path / "alone" / "runs" / "toy" / "sft")
    turns = [("fsdp2", 4, 2), ("deepspeed_zero2", 2, 1), ("ddp", 3, 1), ("fsdp2", 2, 1), ("cpu", 1, 1)]
    losses: list[float] = []
    for turn, (engine, ranks, replicas) in enumerate(turns):
        root = tmp_path / str(turn)
        if turn:
            start_from(found.checkpoints / f"step-{2 * turn:08d}.ckpt", root, "sft")
        on = [f"trainer={engine}", f"trainer.devices={ranks}", "trainer.accelerator=cpu", "trainer.precision=32-true"]
        on += [f"trainer.engine.replicas={replicas}"] if engine == "fsdp2" else []
        assert train_in_a_process(root, *common, *on, "variant.parents.sft=[]", "trainer.rows_per_device=1") == 0
        found = StageFolder(root / "runs" / "toy" / "sft")
        assert column(found, "step")[0] == 2 * turn + 1
        losses += column(found, "train/loss")[:2]
        for step in range(2 * turn + 2, 12, 2):
            place = f"step-{step:08d}.ckpt/state.json"
            data = [json.loads((each.checkpoints / place).read_text())["data"] for each in (found, expected)]
            assert data[0] == data[1]
    assert losses == pytest.approx(column(expected, "train/loss"), rel=1e-5)


@pytest.mark.slow
def test_adapters_begin_in_shards_and_train_what_one_process_does(tmp_path):
    common = ["stage=align", *COMMON, "callbacks.samples.every_steps=0", "model.lora.rank=2"]
    assert train_in_a_process(tmp_path / "one", *common) == 0
    two = ["trainer=fsdp2", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    assert train_in_a_process(tmp_path / "two", *common, *two) == 0
    found, expected = (StageFolder(tmp_path / root / "runs" / "toy" / "align") for root in ("two", "one"))
    assert_same_training(found, expected)
