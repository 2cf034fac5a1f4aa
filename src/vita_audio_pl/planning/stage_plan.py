"""The plan of one stage: parameters, memory, FLOPs, time and cost."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vita_audio_pl.data.staging import tokenizer_folder
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.blocks import checkpoint_activations
from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.models.flops import StepFlops, Work, frames_and_pairs, rows_and_pairs
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.layout import PackedLayout
from vita_audio_pl.models.lora import add_lora
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.planning.host import HostMemory, engines, host_memory
from vita_audio_pl.planning.memory import Memory, step_memory
from vita_audio_pl.planning.rows import expected_row
from vita_audio_pl.planning.settings import PlanConfig
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.engines.gpus import GPUS, Gpu
from vita_audio_pl.training.stage.starting_model import backbone_config
from vita_audio_pl.training.stage.trainer import micro_batches
from vita_audio_pl.training.step.freezing import freeze
from vita_audio_pl.training.step.objective import configured_objective

GIB = 2.0**30
_MOST_DEVICES = 1024  # that are proposed; or 64 times those that were asked for
ROOM = 0.92
"""Share of a GPU's memory for tensors: the rest is the CUDA context, workspaces and fragmentation."""


@dataclass(frozen=True)
class StagePlan:
    """Requirements of a stage. Bytes and operations are those of one step.

    Attributes:
        trained, frozen: parameters by part of the model.
        memory: memory of one device; host: host memory of start, saving and hand-over.
        problem: what does not fit, and which engine and how many devices would; None where all fits.
        tokens: tokens of the whole stage; audio_hours: hours of audio in their codes.
        hours: duration; gpu_hours: summed over all devices; cost: at the given price.
    """

    stage: str
    engine: str
    devices: int
    steps: int
    trained: dict[str, int]
    frozen: dict[str, int]
    memory: Memory
    host: HostMemory
    problem: str | None
    flops: float
    tokens: int
    audio_hours: float
    hours: float
    gpu_hours: float
    cost: float | None

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def spread(config: PlanConfig) -> PlanConfig:
    """The configuration for `devices`, divided into nodes.

    Raises:
        UserError: the devices do not fill whole nodes.
    """
    spread_out = _in_nodes(config)
    spread_out.trainer.engine.check_devices(spread_out.trainer)
    return spread_out


def _in_nodes(config: PlanConfig) -> PlanConfig:
    trainer = config.trainer
    if config.devices is None:
        return config
    on_node = min(trainer.devices, config.devices)
    if config.devices % on_node:
        raise UserError(
            f"devices={config.devices} does not fill nodes of trainer.devices={on_node}; choose a multiple of {on_node}, "
            "or other trainer.devices"
        )
    settings = dataclasses.replace(trainer, devices=on_node, num_nodes=config.devices // on_node)
    return dataclasses.replace(config, trainer=settings)


def plan_vocabulary(config: PlanConfig) -> Vocabulary:
    """The vocabulary of the stage's model."""
    continuous = config.variant.has_audio_encoder
    prepared = tokenizer_folder(config.data)
    if config.text_entries is None and prepared.is_dir():
        return TextTokenizer.load(prepared).vocabulary(config.codec.codebook_size, continuous)
    entries = config.text_entries or FAMILIES[config.model.family].text_entries
    return Vocabulary(entries, config.codec.codebook_size, continuous, im_start=0, im_end=0, pad=0)


def plan_model(config: PlanConfig, vocabulary: Vocabulary, n_heads: int) -> SpeechLM:
    """The stage's model on the meta device, with parameters frozen as in the stage."""
    backbone, settings = backbone_config(config.model, vocabulary), config.model
    with torch.device("meta"):
        model = SpeechLM(
            SpeechLMConfig(backbone, n_heads, settings.kernel, config.objective.detach_heads, heads=settings.heads)
        )
        if vocabulary.continuous_input:
            add_speech_input(model, SenseVoiceEncoder(SenseVoiceConfig()), vocabulary.context_of_audio)
        lora = config.model.lora
        if lora.rank:
            add_lora(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.only)
    checkpoint_activations(model, config.model.activation_checkpointing, config.model.checkpoint_every)
    freeze(model, config.stage.freeze, train_encoder=config.stage.name in config.encoder.trains_in)
    return model


def plan_stage(config: PlanConfig, n_heads: int) -> StagePlan:
    """Plan the configured stage.

    Args:
        n_heads: MCTP heads of the stage's model.

    Raises:
        UserError: devices that do not share the rows evenly, or a GPU that is not in the table.
    """
    asked, config = config, spread(config)
    vocabulary = plan_vocabulary(config)
    model = plan_model(config, vocabulary, n_heads)
    objective = configured_objective(config, vocabulary)
    IntervalRatio.of(config.text_audio_interval_ratio)
    pattern = DecodePattern.of(config.decode_pattern)
    batch = expected_row(
        config.rows, config.stage.sequence_length, n_heads, pattern, vocabulary, vocabulary.continuous_input
    )
    layout = PackedLayout(batch)
    tokens, pairs = rows_and_pairs(batch, n_heads).chunk(2)
    own: list[slice | np.ndarray] = [slice(None), *(layout.head(k).tokens for k in range(n_heads))]
    scored = [float(objective.trains_on(layout, j)[each].sum()) for j, each in enumerate(own)]
    if not model.train_backbone:
        scored[0] = 0.0
    if not objective.weight:
        scored[1:] = [0.0] * n_heads

    def work(times: int) -> Work:
        def of(values: Iterable[float]) -> list[float]:
            return [times * float(value) for value in values]

        return Work(of(tokens.tolist()), of(pairs.tolist()), of(scored), *of(frames_and_pairs(batch)))

    flops = StepFlops(model, objective).of(work(config.stage.rows_per_step))
    devices = config.trainer.world_size
    seconds = flops * config.stage.steps / (devices * peak_tflops(config) * 1e12 * config.mfu)
    codes = float(vocabulary.is_code(batch.input_ids.numpy()).sum()) / config.stage.sequence_length
    tokens_in_all = config.stage.steps * config.stage.rows_per_step * config.stage.sequence_length
    trained, frozen = parts(model)
    gpu_hours = seconds / 3600 * devices

    def memory_of(other: PlanConfig) -> tuple[Memory, HostMemory]:
        rows, accumulate = micro_batches(other)
        step = step_memory(model, other, work(rows), accumulate)
        return step, host_memory(model, other, step)

    memory, host = memory_of(config)
    return StagePlan(
        stage=config.stage.name,
        engine=config.trainer.name,
        devices=devices,
        steps=config.stage.steps,
        trained=trained,
        frozen=frozen,
        memory=memory,
        host=host,
        problem=_problem(config, asked, memory_of),
        flops=flops,
        tokens=tokens_in_all,
        audio_hours=tokens_in_all * codes / config.codes_per_second / 3600,
        hours=seconds / 3600,
        gpu_hours=gpu_hours,
        cost=None if config.price is None else gpu_hours * config.price,
    )


def parts(model: SpeechLM) -> tuple[dict[str, int], dict[str, int]]:
    """Trained and frozen parameters, by part of the model; a tied one counts once, as embeddings."""
    names = {
        "model.embed_tokens": "embeddings",
        "model": "backbone",
        "lm_head": "vocabulary layer",
        "heads": "heads",
        "speech_input": "speech input",
    }
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for name, parameter in model.named_parameters():
        part = next(label for start, label in names.items() if name.startswith(f"{start}."))
        of = counts[parameter.requires_grad]
        of[part] = of.get(part, 0) + parameter.numel()
    return counts[True], counts[False]


def peak_tflops(config: PlanConfig) -> float:
    """Peak FLOP/s of one device.

    Raises:
        UserError: the GPU is not in the table, and no number is given.
    """
    return config.peak_tflops or _gpu(config).tflops


def memory_of_device(config: PlanConfig) -> float:
    """Memory of one device, bytes."""
    return (config.gpu_memory or _gpu(config).memory) * GIB


def _gpu(config: PlanConfig) -> Gpu:
    if config.gpu not in GPUS:
        raise UserError(
            f"gpu={config.gpu} is not in the table ({', '.join(GPUS)}); choose one, or give peak_tflops and gpu_memory"
        )
    return GPUS[config.gpu]


def check_memory(plans: Iterable[StagePlan]) -> None:
    """Refuse plans that do not fit.

    Raises:
        UserError: with what is missing, and what to change, for each stage.
    """
    problems = [plan.problem for plan in plans if plan.problem is not None]
    if problems:
        raise UserError("\n".join(problems))


def _problem(
    config: PlanConfig, asked: PlanConfig, memory_of: Callable[[PlanConfig], tuple[Memory, HostMemory]]
) -> str | None:
    """What does not fit, and what would.

    Args:
        asked: the configuration before its devices were divided into nodes, whose size it says.
    """
    device, node = memory_of_device(config) * ROOM, None if config.host_memory is None else config.host_memory * GIB
    if config.trainer.accelerator == "cpu":
        device = float("inf")

    def fits(other: PlanConfig) -> bool:
        memory, host = memory_of(other)
        return memory.peak <= device and (node is None or host.node <= node)

    if fits(config):
        return None
    memory, host = memory_of(config)
    devices, under = config.trainer.world_size, f"under trainer={config.trainer.name}"
    said, too_little = f"stage '{config.stage.name}' takes ", "trainer.rows_per_device or model"
    if node is not None and host.node > node:
        moments = {"its start": host.start, "saving": host.save, "the hand-over": host.hand_over}
        said += (
            f"{host.node / GIB:.0f} GiB of host memory on each node of {count_of(config.trainer.devices)} {under}, and "
            f"host_memory={config.host_memory:g}; most is {max(moments, key=lambda k: moments[k])}"
        )
        said += "; and " if memory.peak > device else ""
        too_little += ", or nodes with more memory"
    if memory.peak > device:
        largest = max(("weights", "gradients", "optimiser", "activations", "loss"), key=lambda k: getattr(memory, k))
        said += (
            f"{memory.peak / GIB:.0f} GiB on each of {count_of(devices)} {under}, and {config.gpu} holds {device / GIB:.0f} GiB; "
            f"most are {largest}"
        )
        if largest in ("activations", "loss"):
            ways = {"activations": "model.activation_checkpointing=all or a smaller trainer.rows_per_device"}
            return f"{said}: choose {ways.get(largest, 'a smaller trainer.rows_per_device')}"
    most = max(64 * devices, _MOST_DEVICES)
    for times in (2**n for n in range(most.bit_length())):
        if devices * times > most:
            break
        try:
            larger = _in_nodes(replace(asked, devices=devices * times))
        except UserError:  # they do not fill whole nodes
            continue
        enough = [how for how, other in engines(larger) if fits(other)]
        if enough:
            on = "" if times == 1 else f" with devices={devices * times}"
            return f"{said}: choose {' or '.join(enough[:2])}{on}"
    return f"{said}: neither other engines nor {most} devices hold it; choose a smaller {too_little}"


def count_of(devices: int) -> str:
    """Such as "8 devices"."""
    return f"{devices} device{'s' * (devices != 1)}"
