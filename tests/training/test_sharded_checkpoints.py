"""A rank writes and reads its share of a checkpoint alone, whatever engine and number of ranks wrote it, and training waits
for the copy of that share and for nothing else."""

import math
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
import xxhash
from lightning.pytorch.accelerators import CPUAccelerator
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.training.checkpoints import writer as checkpoint_writer
from vita_audio_pl.training.checkpoints.folders import GOOD, checkpoint_name, complete_checkpoints
from vita_audio_pl.training.checkpoints.parts import Checkpoint, open_checkpoint
from vita_audio_pl.training.checkpoints.restore import restore_newest
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import moments_of
from vita_audio_pl.training.run_folder.layout import STAGE
from vita_audio_pl.training.stage.starting_model import starting_model
from vita_audio_pl.training.step.objective import configured_objective
from vita_audio_pl.training.step.optimiser import parameter_groups

SHARE = 1.3
"""At most this times state / ranks is written and read by a rank."""


class Trainer:
    """What writer and restore ask of a trainer, with a model of its own under an engine."""

    max_steps = 99

    def __init__(self, trainer: str, rank: int, ranks: int, seed: int) -> None:
        sizes = ("model.hidden_size=32", "model.intermediate_size=96")
        engine = ("trainer=fsdp2", "trainer.engine.replicas=2") if trainer == "hsdp" else (f"trainer={trainer}",)
        settings = (*engine, f"trainer.devices={ranks}", "trainer.accelerator=cpu", "trainer.precision=32-true")
        config = toy.toy_config(Path("runs"), "stage=sft", *sizes, *settings, f"seed={seed}")
        self.engine = config.trainer.engine.build(config.trainer)
        self.model: SpeechLM = starting_model(config, toy.VOCABULARY, None)
        self.objective = configured_objective(config, toy.VOCABULARY)
        self.engine.shard(self.model, SimpleNamespace(device_mesh={"data_parallel": init_device_mesh("cpu", (ranks,))}))
        # Lightning's strategy wraps a model that every rank has whole
        self.wrapped = DistributedDataParallel(self.model) if trainer == "ddp" and ranks > 1 else self.model
        self.optimizers = [torch.optim.AdamW(parameter_groups(self.model, 1e-3, 2.0, 0.1))]
        self.zero = trainer.startswith("deepspeed")
        if self.zero:
            import deepspeed

            os.environ["LOCAL_RANK"] = str(rank)  # which DeepSpeed asks for
            deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
            strategy = self.engine.strategy()
            strategy.accelerator = CPUAccelerator()
            self.wrapped, self.optimizers = strategy._setup_model_and_optimizers(self.model, self.optimizers)
        self.global_step, self.global_rank, self.local_rank = 0, rank, rank
        self.world_size = self.num_devices = ranks
        self.is_global_zero, self.strategy = rank == 0, self

    def barrier(self, name: str) -> None:
        torch.distributed.barrier()

    def broadcast(self, value: object) -> object:
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def step(self) -> None:
        loss = self.wrapped(toy.toy_batch(0, self.global_step, slice(0, 2), 2), self.objective).total
        if self.zero:
            self.wrapped.backward(loss)
            self.wrapped.step()
        else:
            loss.backward()
            self.optimizers[0].step()
            self.optimizers[0].zero_grad()
        self.global_step += 1

    def shared_step(self, rows: int = 12, batches: int = 1) -> float:
        """A step of `rows` that the ranks share, in so many batches; its loss."""
        loss, share = 0.0, rows // self.world_size // batches
        for number in range(batches):
            self.engine.begin_batch(self.model, number == batches - 1)
            first = (number * self.world_size + self.global_rank) * share
            part = toy.toy_batch(0, self.global_step, slice(first, first + share), rows)
            losses = self.wrapped(part, self.objective).total
            (losses * self.engine.averaging(1)).backward()
            loss += losses.detach()
        if self.world_size > 1:
            torch.distributed.all_reduce(loss)
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        self.global_step += 1
        return float(loss)

    def fingerprint(self) -> str:
        """Of all weights and moments, whole."""
        digest = xxhash.xxh3_64()
        self.engine.held(self.model, self.optimizers[0])  # DeepSpeed then finds the moments of every group
        for name, parameter in self.model.named_parameters():
            if self.zero:
                from deepspeed.utils import safe_get_full_optimizer_state as whole_moment

                moments = [(kind, whole_moment(parameter, kind)) for kind in ("exp_avg", "exp_avg_sq")]
            else:
                moments = sorted(moments_of(self.optimizers[0], parameter).items())
            for kind, value in (("weight", self.engine.weight(parameter)), *moments):
                whole = value.full_tensor() if isinstance(value, DTensor) else value
                digest.update(f"{name} {kind}".encode() + whole.numpy().tobytes())
        return digest.hexdigest()


def save(trainer: Trainer, folder: Path) -> None:
    """Checks on the way that training continues while nothing is written yet, and that it has not talked to other ranks."""
    go, write = threading.Event(), checkpoint_writer.write_part

    def held_back(*arguments):
        assert go.wait(60)
        return write(*arguments)

    writer = CheckpointWriter(folder, trainer.engine, keep=0)
    writer.prepare(trainer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_part", held_back)
        with CommDebugMode() as talk:
            writer.save(trainer, trainer.model, {})
        assert talk.get_total_counts() == 0
        saved = checkpoint_name(trainer.global_step)
        trainer.step()  # what is written afterwards is not changed by it
        assert not (folder / saved).exists()
        go.set()
        writer.finish()


def restored(trainer: Trainer, folder: Path) -> tuple[Checkpoint, int]:
    """The checkpoint, and how many bytes this rank read of it."""
    read, counted = Checkpoint.read, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "read", lambda self, wanted: counted.append(read(self, wanted)))
        found = restore_newest(trainer, folder, GOOD, model=trainer.model, engine=trainer.engine)
    assert found is not None
    trainer.global_step = found.step
    return found, sum(counted)


@pytest.fixture
def folder(tmp_path) -> Path:
    Owned.claim(tmp_path / "stage", STAGE)
    return tmp_path / "stage" / "checkpoints"


@pytest.mark.parametrize(
    "engine",
    [
        "fsdp2",
        "hsdp",
        "ddp",
        pytest.param("deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param("deepspeed_zero3", marks=pytest.mark.slow),
    ],
)
def test_shares_are_equal_and_any_engine_on_any_number_of_ranks_restores_every_bit(
    engine, folder, tmp_path, monkeypatch
):
    ranks = 4
    if engine.startswith("deepspeed"):
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        import deepspeed  # noqa: F401  # before the ranks are forked, each of which would import it

    def train(rank: int) -> str:
        trainer = Trainer(engine, rank, ranks, seed=0)
        for _ in range(2):
            trainer.step()
        before = trainer.fingerprint()
        save(trainer, folder)
        return before

    def go_on(rank: int) -> list:
        trainer = Trainer(engine, rank, ranks, seed=1)
        found, read = restored(trainer, folder)
        after = trainer.fingerprint()
        return [found.step, read, after]

    [fingerprint] = set(run_ranks(train, tmp_path / "first", ranks))
    checkpoint = open_checkpoint(folder / "step-00000002.ckpt")
    written = [part.bytes for part in checkpoint.parts.values()]
    share = sum(12 * math.prod(shape) for shape in checkpoint.state["shapes"].values()) / ranks  # float32, two moments
    again = run_ranks(go_on, tmp_path / "again", ranks)
    assert [(step, after) for step, _, after in again] == ranks * [(2, fingerprint)]
    most = max(read for _, read, _ in again)
    print(f"{engine}: a rank wrote {max(written) / share:.3f} and read {most / share:.3f} shares at most")
    assert len(written) == ranks and max(written) <= SHARE * share and most <= SHARE * share

    other = "fsdp2" if engine == "ddp" else "ddp"
    engine = "fsdp2" if engine == "hsdp" else engine  # on three ranks
    for turn, (name, fewer) in enumerate([(other, 2), (engine, 3), (other, 1)]):

        def move(rank: int, name=name, fewer=fewer) -> str:
            trainer = Trainer(name, rank, fewer, seed=2)
            restored(trainer, folder)
            assert trainer.fingerprint() == fingerprint
            trainer.global_step += 1
            save(trainer, folder)
            return trainer.engine.__class__.__name__

        assert len(set(run_ranks(move, tmp_path / f"move-{turn}", fewer))) == 1
        assert complete_checkpoints(folder)[-1].name == f"step-{3 + turn:08d}.ckpt"


def test_losses_are_those_of_one_process_through_changes_of_engine_and_ranks(folder, tmp_path):
    """Two steps each; under accumulation gradients are summed over ranks once a step, or once a batch and replica."""

    def alone(rank: int) -> list[float]:
        trainer = Trainer("cpu", 0, 1, seed=0)
        return [trainer.shared_step() for _ in range(10)]

    [expected] = run_ranks(alone, tmp_path / "alone", 1)
    losses: list[float] = []
    for turn, (name, ranks, batches) in enumerate(
        [("hsdp", 4, 3), ("ddp", 2, 1), ("fsdp2", 3, 2), ("hsdp", 2, 1), ("cpu", 1, 1)]
    ):

        def go_on(rank: int, turn=turn, name=name, ranks=ranks, batches=batches) -> list[float]:
            trainer = Trainer(name, rank, ranks, seed=0 if turn == 0 else 1)
            if turn:
                restored(trainer, folder)
            found = [trainer.shared_step(batches=batches) for _ in range(2)]
            writer = CheckpointWriter(folder, trainer.engine, keep=0)
            writer.prepare(trainer)
            writer.save(trainer, trainer.model, {})
            writer.finish()
            return found

        [found] = {tuple(rank) for rank in run_ranks(go_on, tmp_path / f"turn-{turn}", ranks)}
        losses += found
    assert losses == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
