"""Host memory of a stage's start, of saving and of the hand-over, and the bytes that these write.

What runs on CPUs was measured against this (`tests/training/test_stage_memory.py`); what goes by way of a GPU is counted by the
same code's steps. A parent stage is taken for a whole model with the encoder that the stage has, and so is an `init_from` that
is not found. Not included: what a process takes by its imports (0.5 to 1 GiB), its data workers, and the page cache,
which a node's processes share.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from vita_audio_pl.models.released import ENCODER_FOLDER
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.planning.memory import FLOAT, HALF, Memory
from vita_audio_pl.storage.model_folders import find_model_if_there, part_of, whole_model
from vita_audio_pl.training.checkpoints.host_copy import held_in_host_memory
from vita_audio_pl.training.engines.kinds import DDP, FSDP2, DeepSpeed, EngineSettings
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.sharded_start import VOCABULARY

_Config = TypeVar("_Config", bound=TrainConfig)
_DDP_BLOCK = 250 * 2**20  # bytes that DDP sends at once while it compares the ranks


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory, and of files.

    Attributes:
        start: the most that a rank takes until its first step.
        save: of a rank, beside training, while a checkpoint is written.
        hand_over: of rank 0, beside what it keeps after training, while the model folder is written.
        rank: the most that a rank takes at any moment; node: all ranks of a node.
        written: of each checkpoint, by one rank; also what it reads to resume.
        checkpoint: a whole one; model: the model folder's weights.
    """

    start: float
    save: float
    hand_over: float
    rank: float
    node: float
    written: float
    checkpoint: float
    model: float


def host_memory(model: SpeechLM, config: TrainConfig, step: Memory) -> HostMemory:
    """Plan the host memory of a stage.

    Args:
        model: with parameters frozen as in the stage; only shapes are read.
        step: memory of its training step on one device, which is host memory where that is a CPU.
    """
    trainer = config.trainer
    on_cpu, ranks = trainer.accelerator == "cpu", trainer.world_size
    parameter = HALF if trainer.precision == "bf16-true" else FLOAT
    sizes = [p.numel() for p in model.parameters()]
    total, largest = sum(sizes), max(sizes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    master = FLOAT if isinstance(trainer.engine, DeepSpeed) else parameter
    written = 3.0 * master * trained / ranks  # weights and two moments
    save = min(written, float(held_in_host_memory(int(written)))) if on_cpu else written
    hand_over = 0.0 if on_cpu else float(parameter * largest)
    origin = _Origin.of(config, model, parameter)
    if trainer.engine.shards:  # a tensor from the last checkpoint's parts, and one part of it as it is read
        hand_over = float(master * largest * (1 + 1 / ranks)) + FLOAT * origin.frozen_encoder
    if trainer.engine.shards and origin.rebuilt:
        hand_over = origin.whole
    kept = step.weights + step.optimiser + step.gradients if on_cpu else step.host
    start = _start(config, origin, total, trained, largest, parameter, on_cpu)
    trains = (step.peak if on_cpu else step.host) + save
    return HostMemory(
        start=start,
        save=save,
        hand_over=hand_over,
        rank=max(start, trains, kept + hand_over),
        node=max(trainer.devices * max(start, trains), trainer.devices * kept + hand_over),
        written=written,
        checkpoint=written * ranks,
        model=float(parameter * (total - _adapters(model))),
    )


def _start(
    config: TrainConfig, origin: "_Origin", total: int, trained: int, largest: int, parameter: int, on_cpu: bool
) -> float:
    """The most that a rank takes until its first step."""
    engine, ranks = config.trainer.engine, config.trainer.world_size
    if isinstance(engine, FSDP2) and not origin.adapters:  # rows of each tensor in turn; then whole ones are hashed
        share = float(parameter * total) * engine.replicas / ranks if on_cpu else 0.0
        return share + max(2.0 * parameter * largest, float(FLOAT * origin.encoder))
    whole = origin.whole
    if isinstance(engine, DDP) and on_cpu:
        return parameter * total + min(parameter * float(total), _DDP_BLOCK)
    if isinstance(engine, DeepSpeed):
        held = HALF if config.trainer.precision != "32-true" else FLOAT
        beside = (
            trained if engine.stage < 3 else total / ranks
        )  # a flat copy, on the device, or here if that has no room
        return max(whole, held * (total + beside))
    return whole


@dataclass(frozen=True)
class _Origin:
    """What a stage starts from.

    Attributes:
        whole: bytes of the whole model as it is built, in float32 where it is drawn.
        adapters: whether it starts from unmerged ones, under which every rank builds the whole model.
        rebuilt: whether rank 0 builds it to hand shards over, too: for those, and for drawn weights that are frozen.
        encoder: parameters of a speech encoder that the stage adds; frozen_encoder: the same, 0 if it trains.
    """

    whole: float
    adapters: bool
    rebuilt: bool
    encoder: int
    frozen_encoder: int

    @classmethod
    def of(cls, config: TrainConfig, model: SpeechLM, parameter: int) -> "_Origin":
        plain = not config.variant.parents.get(config.stage.name) and config.init_from is None
        random = plain and config.model.pretrained is None
        folder = None if config.init_from is None else find_model_if_there(config.init_from, config.paths.runs)
        adapters = folder is not None and whole_model(folder) != folder
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        drawn = [name for name in frozen if name in VOCABULARY or (random and not name.startswith("speech_input."))]
        adds = plain or (folder is not None and part_of(folder, ENCODER_FOLDER) is None)
        added = [] if model.speech_input is None or not adds else list(model.speech_input.encoder.parameters())
        return cls(
            whole=float((FLOAT if random else parameter) * sum(p.numel() for p in model.parameters())),
            adapters=adapters,
            rebuilt=adapters or (plain and bool(drawn)),
            encoder=sum(p.numel() for p in added),
            frozen_encoder=sum(p.numel() for p in added if not p.requires_grad),
        )


def _adapters(model: SpeechLM) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)


def engines(config: _Config) -> list[tuple[str, _Config]]:
    """The same stage under engines that share more and more, and how each is chosen after the words that chose this one."""
    kinds: list[tuple[str, EngineSettings]] = [
        ("ddp", DDP()),
        ("deepspeed_zero2", DeepSpeed(stage=2)),
        ("fsdp2", FSDP2()),
        ("fsdp2", FSDP2(reduce="batch")),
    ]

    def chosen(name: str, engine: EngineSettings) -> str:
        own = name == config.trainer.name and type(engine) is type(config.trainer.engine)  # else its file's settings
        before = vars(config.trainer.engine if own else type(engine)())
        changed = [
            f"trainer.engine.{key}={_word(value)}" for key, value in vars(engine).items() if value != before[key]
        ]
        return " ".join([f"trainer={name}", *changed])

    return [
        (chosen(name, engine), replace(config, trainer=replace(config.trainer, name=name, engine=engine)))
        for name, engine in kinds
    ]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
