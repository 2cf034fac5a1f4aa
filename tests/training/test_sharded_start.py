"""Ranks that shard a model read their own rows of what it starts from, and start from the same bits as one process."""

import gc
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy
from ranks import run_ranks
from start_memory import watch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from vita_audio_pl.models import drawn
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceEncoder
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.training.stage.sharded_start import ShardedStart
from vita_audio_pl.training.stage.starting_model import starting_model


def private() -> int:
    """Bytes that this process has written to since it was forked."""
    return int(re.findall(r"Private_Dirty:\s*(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[0]) << 10


def backbone(tied: bool, vocabulary: int, kind=Qwen2Config, **sizes: int) -> Qwen2Config | Qwen3Config:
    usual = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
    return kind(
        vocab_size=vocabulary, num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.2, **usual | sizes
    )


def filled(rank: int, ranks: int, folder, layout: str, *overrides: str) -> tuple[SpeechLM, SpeechLM | None]:
    """The model of a stage, in shards, and on rank 0 the one that a single process starts with."""
    devices = ("trainer=fsdp2", f"trainer.devices={ranks}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    start_of = (f"model.pretrained={folder}",) if layout == "backbone" else ()
    config = toy.toy_config("runs", *devices, *start_of, *overrides)
    words = toy.HEARING if config.variant.has_audio_encoder else toy.VOCABULARY
    parent = folder if layout == "released" else None
    torch.manual_seed(5)  # of adapters
    start = ShardedStart.of(config, words, parent)
    assert start is not None and all(parameter.is_meta for parameter in start.model.parameters())
    mesh = SimpleNamespace(device_mesh={"data_parallel": init_device_mesh("cpu", (ranks,))})
    config.trainer.engine.build(config.trainer).shard(start.model, mesh)
    start.fill(torch.device("cpu"))
    torch.manual_seed(5)
    return start.model, starting_model(config, words, parent) if rank == 0 else None


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
        ("backbone", 0, False, Qwen2Config, ("stage=align", "variant=vita_audio_plus_boost", "model.lora.rank=2")),
        ("released", 1, False, Qwen2Config, ("stage=mtp10", "variant=vita_audio_plus_boost", "model.lora.rank=3")),
        ("random", 0, True, Qwen2Config, ("stage=align", "trainer.precision=bf16-true")),
        (
            "random",
            0,
            False,
            Qwen3Config,
            ("stage=sft", "variant=vita_audio_plus_boost", "model.family=qwen3", "model.head_dim=8"),
        ),
        ("random", 0, True, Qwen2Config, ("stage=sft", "model.heads=parallel")),
    ],
)
def test_every_bit_is_what_one_process_starts_with(layout, heads, tied, kind, overrides, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(drawn, "_PIECE", 48)
    hears = "variant=vita_audio_plus_boost" in overrides
    words = toy.HEARING if hears else toy.VOCABULARY
    size = words.size if layout == "released" else words.size - 9  # the stage's has more
    form = "parallel" if "model.heads=parallel" in overrides else "mctp"
    model = SpeechLM(SpeechLMConfig(backbone(tied, size, kind), heads, heads=form))
    encoder = toy.toy_encoder(tmp_path / "encoder")
    overrides = (*overrides, f"encoder.folder={encoder}", f"model.tie_word_embeddings={str(tied).lower()}")
    if hears and layout == "released":
        add_speech_input(model, SenseVoiceEncoder.load(encoder), words.context_of_audio)
    save = {"released": save_released, "backbone": save_backbone}.get(layout)
    if save is not None:
        save(model, tmp_path / "start")
    ranks = 4 if "replicas" in " ".join(overrides) else 2

    def start(rank: int) -> list[str]:
        found, wanted = filled(rank, ranks, tmp_path / "start", layout, *overrides)
        wrong = []
        if wanted is not None and found.config.backbone.eos_token_id != wanted.config.backbone.eos_token_id:
            wrong.append(f"ends at {found.config.backbone.eos_token_id}")
        expected = {} if wanted is None else dict(wanted.named_parameters())
        for name, parameter in found.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = parameter.full_tensor()
            if rank == 0 and not (whole.dtype == expected[name].dtype and torch.equal(whole, expected.pop(name))):
                wrong.append(name)
        return [*wrong, *expected]

    assert run_ranks(start, tmp_path / "ranks", ranks) == [[]] * ranks


def test_a_stage_without_heads_starts_without_a_form_of_heads():
    config = toy.toy_config("runs", "stage=align", "model.heads=parallel")
    sharded = ShardedStart.of(config, toy.VOCABULARY, None)
    assert sharded is not None
    assert [start.config.heads for start in (sharded.model, starting_model(config, toy.VOCABULARY, None))] == [
        "mctp"
    ] * 2


def test_a_weight_whose_values_were_not_noted_is_refused():
    with (drawing := drawn.Drawing()):
        layer = torch.nn.Linear(3, 2)
        layer.scale = torch.nn.Parameter(torch.ones(2))
        layer.table = torch.nn.Parameter(torch.empty(4, 2))
        torch.nn.init.zeros_(layer.table[0])
    for name in ("scale", "table"):  # which is filled in part
        with pytest.raises(RuntimeError, match=f"^{name} begins with values that were not noted"):
            drawing.named([("bias", layer.bias), (name, getattr(layer, name))])
    drawing.named([("bias", layer.bias)])
    assert drawing.names == {"bias"}


@pytest.mark.slow
@pytest.mark.parametrize("start_of", ["files", "random"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_rank_takes_its_share_of_memory_and_one_tensor(precision, start_of, tmp_path):
    """Above what it takes before: at most 1.25 (float32) or 0.75 (bfloat16) times a bfloat16 copy on each of two ranks.

    `SIZE=1.5B` measures a model of that size (its files take 3 GB); RANKS=4 that many.
    """
    large, ranks = os.environ.get("SIZE") == "1.5B", int(os.environ.get("RANKS", "2"))
    hidden, inner, layers, words = (1536, 8960, 28, 151_000) if large else (896, 4864, 24, 20_000)
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
    }
    with torch.device("meta"):
        shape = Qwen2ForCausalLM(backbone(True, words, **sizes))
    copy = 2 * sum(parameter.numel() for parameter in shape.parameters())
    kept: list[ShardedStart] = []
    given = [f"model.pretrained={tmp_path / 'start'}"]
    if start_of == "files":
        torch.manual_seed(0)
        Qwen2ForCausalLM._from_config(backbone(True, words, **sizes), dtype=torch.bfloat16).save_pretrained(
            tmp_path / "start"
        )
    else:
        given = [f"model.{name}={value}" for name, value in sizes.items()]
        given += ["model.num_key_value_heads=2", "model.tie_word_embeddings=true"]

    def started(vocabulary, *given: str) -> None:
        devices = (
            "trainer=fsdp2",
            f"trainer.devices={ranks}",
            "trainer.accelerator=cpu",
            f"trainer.precision={precision}",
        )
        config = toy.toy_config("runs", "stage=align", *devices, *given)
        found = ShardedStart.of(config, vocabulary, None)
        mesh = SimpleNamespace(device_mesh={"data_parallel": init_device_mesh("cpu", (ranks,))})
        config.trainer.engine.build(config.trainer).shard(found.model, mesh)
        found.fill(torch.device("cpu"))
        kept.append(found)

    def start(rank: int) -> float:
        started(toy.VOCABULARY)  # imports, some of them late
        gc.collect()  # which writes to all objects that came with the fork
        before = private()
        most = [before]
        threading.Thread(target=watch, args=(most, private), daemon=True).start()
        started(SimpleNamespace(size=words, pad=0, im_end=1), *given)
        return (max(*most, private()) - before) / copy

    shares = run_ranks(start, tmp_path / "ranks", ranks)
    print(f"{precision}, {start_of}, {ranks} ranks: {max(shares):.2f} times a bfloat16 copy of {copy / 2**30:.2f} GiB")
    assert max(shares) <= {"32-true": 1.25, "bf16-true": 0.75}[precision]


@pytest.mark.parametrize("trainer", ["cpu_ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_of_the_engines_fsdp2_alone_begins_with_a_model_without_memory(trainer):
    config = toy.toy_config("runs", f"trainer={trainer}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    assert config.trainer.engine.fills_shards == (trainer == "fsdp2")
