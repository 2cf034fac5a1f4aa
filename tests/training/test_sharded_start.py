"""Ranks that shard a model read their own rows of what it starts from, and start from the same bits as one process."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch
import toy
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.weight_files import WeightFolder
from vita_audio_pl.training.stage.sharded_start import ShardedStart
from vita_audio_pl.training.stage.starting_model import starting_model


def backbone(tied: bool, vocabulary: int, kind=Qwen2Config, **sizes: int) -> Qwen2Config | Qwen3Config:
    usual = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
    return kind(
        vocab_size=vocabulary, num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.2, **usual | sizes
    )


def filled(rank: int, ranks: int, folder, parent: bool, *overrides: str) -> tuple[SpeechLM, SpeechLM | None]:
    """The model of a stage, in shards, and on rank 0 the one that a single process starts with."""
    devices = ("trainer=fsdp2", f"trainer.devices={ranks}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    start_of = () if parent else (f"model.pretrained={folder}",)
    config = toy.toy_config("runs", *devices, *start_of, *overrides)
    start = ShardedStart.of(config, toy.VOCABULARY, folder if parent else None)
    assert start is not None and all(parameter.is_meta for parameter in start.model.parameters())
    mesh = SimpleNamespace(device_mesh={"data_parallel": init_device_mesh("cpu", (ranks,))})
    config.trainer.engine.build(config.trainer).shard(start.model, mesh)
    start.fill(torch.device("cpu"))
    return start.model, starting_model(config, toy.VOCABULARY, folder if parent else None) if rank == 0 else None


@pytest.mark.parametrize(
    ("layout", "heads", "tied", "kind", "overrides"),
    [
        ("released", 0, False, Qwen2Config, ("stage=mtp1",)),
        ("released", 1, True, Qwen3Config, ("stage=mtp10", "trainer.engine.replicas=2")),
        ("released", 3, False, Qwen2Config, ("stage=sft", "trainer.precision=bf16-true")),
        ("released", 0, False, Qwen2Config, ("stage=mtp1", "model.heads=parallel")),
        ("released", 1, False, Qwen2Config, ("stage=mtp10", "model.heads=parallel")),
        ("backbone", 0, True, Qwen3Config, ("stage=align",)),
        ("backbone", 0, False, Qwen2Config, ("stage=align", "variant.parents.align=[]")),
    ],
)
def test_every_bit_is_what_one_process_starts_with(layout, heads, tied, kind, overrides, tmp_path):
    torch.manual_seed(0)
    words = toy.VOCABULARY.size if layout == "released" else toy.VOCABULARY.size - 9  # the stage's has more
    form = "parallel" if "model.heads=parallel" in overrides else "mctp"
    model = SpeechLM(SpeechLMConfig(backbone(tied, words, kind), heads, heads=form))
    {"released": save_released, "backbone": save_backbone}[layout](model, tmp_path / "start")
    ranks = 4 if "replicas" in " ".join(overrides) else 2

    def start(rank: int) -> list[str]:
        found, wanted = filled(rank, ranks, tmp_path / "start", layout == "released", *overrides)
        wrong = []
        expected = {} if wanted is None else dict(wanted.named_parameters())
        for name, parameter in found.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = parameter.full_tensor()
            if rank == 0 and not (whole.dtype == expected[name].dtype and torch.equal(whole, expected.pop(name))):
                wrong.append(name)
        return [*wrong, *expected]

    assert run_ranks(start, tmp_path / "ranks", ranks) == [[]] * ranks


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_rank_takes_its_share_of_memory_and_one_tensor(precision, tmp_path):
    """Above what it takes before: at most 1.25 (float32) or 0.75 (bfloat16) times a bfloat16 copy on each of two ranks."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    words = 20_000
    with torch.device("meta"):
        shape = Qwen2ForCausalLM(backbone(True, words, **sizes))
    copy = 2 * sum(parameter.numel() for parameter in shape.parameters())
    torch.manual_seed(0)
    Qwen2ForCausalLM(backbone(True, words, **sizes)).to(torch.bfloat16).save_pretrained(tmp_path / "start")

    def start(rank: int) -> float:
        own = psutil.Process(os.getpid())
        before = own.memory_full_info().uss
        most = [before]
        rows = WeightFolder.rows

        def watched(*given):
            read = rows(*given)
            most.append(own.memory_full_info().uss)
            return read

        WeightFolder.rows = watched
        words = SimpleNamespace(size=20_000)
        devices = ("trainer=fsdp2", "trainer.devices=2", "trainer.accelerator=cpu", f"trainer.precision={precision}")
        config = toy.toy_config("runs", "stage=align", *devices, f"model.pretrained={tmp_path / 'start'}")
        found = ShardedStart.of(config, words, None)
        mesh = SimpleNamespace(device_mesh={"data_parallel": init_device_mesh("cpu", (2,))})
        config.trainer.engine.build(config.trainer).shard(found.model, mesh)
        found.fill(torch.device("cpu"))
        return (max(*most, own.memory_full_info().uss) - before) / copy

    shares = run_ranks(start, tmp_path / "ranks", 2)
    print(f"{precision}: {max(shares):.2f} times a bfloat16 copy of {copy / 2**30:.2f} GiB")
    assert max(shares) <= {"32-true": 1.25, "bf16-true": 0.75}[precision]


@pytest.mark.parametrize("trainer", ["cpu_ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_of_the_engines_fsdp2_alone_begins_with_a_model_without_memory(trainer):
    config = toy.toy_config("runs", f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    assert config.trainer.engine.fills_shards == (trainer == "fsdp2")
