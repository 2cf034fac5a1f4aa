"""The schema of `conf/train.yaml`: every setting of a training run, with its type, range and meaning.

Checks across groups are in `checks.py`. Nothing here imports torch, so that `--help` and mistakes on the command
line are answered at once.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import require, setting
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.families import FAMILIES
from vita_audio_pl.training.callback_settings import CallbacksConfig, LoggerConfig

CHAIN = "chain"
BLOCKS = ("none", "backbone", "heads", "all")


@dataclass
class ScaleConfig:
    """A scale: `small` runs on a laptop, `published` is the paper's."""

    name: str = MISSING


@dataclass
class VariantConfig:
    """One published system: its stages, and which stage may follow which."""

    name: str = MISSING
    stages: list[str] = setting(MISSING, "stages of the chain, in order")
    parents: dict[str, list[str]] = setting(MISSING, "stage -> stages that it may start from; [] = a plain backbone")
    speech_input: str = setting(
        "codes",
        "how the user's speech enters the model: codes, or encoder (Plus)",
        choices=("codes", "encoder"),
    )

    @property
    def has_audio_encoder(self) -> bool:
        """Whether audio outside answers goes through an encoder (the Plus variants)."""
        return self.speech_input == "encoder"

    def check(self) -> None:
        for stage in self.stages:
            require(
                stage in self.parents,
                f"variant.parents says nothing of stage '{stage}' of variant '{self.name}': add the stages that it may "
                "start from, [] for a plain backbone",
            )


@dataclass
class StageConfig:
    """One training stage; the rows of the paper's table."""

    name: str = MISSING
    n_heads: int | None = setting(None, "number of heads; null = the parent's", at_least=0)
    freeze: list[str] = setting([], "regular expressions over parameter names to freeze; each must match")
    learning_rate: float = setting(MISSING, "peak learning rate", above=0, common=True)
    head_rate_factor: float = setting(1.0, "learning rate of the heads, as a multiple of learning_rate", above=0)
    sequence_length: int = setting(MISSING, "tokens in a packed row", at_least=1, common=True)
    rows_per_step: int = setting(
        MISSING,
        "packed rows per optimiser step, over all devices and accumulation (global batch size)",
        at_least=1,
        common=True,
    )
    steps: int = setting(MISSING, "optimiser steps; or stage.epochs", at_least=1, common=True)
    epochs: float | None = setting(
        None, "epochs instead of steps, such as 2 or 0.5 passes over the mixture; null = use steps", above=0
    )
    weight_decay: float = setting(0.0, "weight decay; norms and biases are exempt", at_least=0)
    mixture: str = setting(MISSING, "name in data_recipes/mixtures, or a path to a .yaml", common=True)
    beta: float = setting(
        0.0,
        "training on pairs of answers (DPO): how strongly the parent's probabilities hold the model, such as 0.1; 0 = not on pairs",
        at_least=0,
    )
    sft_weight: float = setting(
        0.0, "with beta: weight of the chosen answer's mean cross entropy beside the preference loss (RPO)", at_least=0
    )

    @property
    def on_pairs(self) -> bool:
        """Whether the stage trains on pairs of a chosen and a rejected answer."""
        return self.beta > 0

    def check(self) -> None:
        require(
            self.on_pairs or not self.sft_weight,
            f"stage.sft_weight={self.sft_weight:g} stands beside the loss of pairs of answers: give stage.beta, as 0.1",
        )
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"stage.freeze: '{pattern}' is not a regular expression: {error}") from error


@dataclass
class StageOverrides:
    """Overrides of `StageConfig` for one stage of a chain, by stage name; null = the stage's own value."""

    n_heads: int | None = None
    freeze: list[str] | None = None
    learning_rate: float | None = None
    head_rate_factor: float | None = None
    sequence_length: int | None = None
    rows_per_step: int | None = None
    steps: int | None = None
    epochs: float | None = None
    weight_decay: float | None = None
    mixture: str | None = None
    beta: float | None = None
    sft_weight: float | None = None


@dataclass
class LoraConfig:
    """Low-rank adapters on the backbone's layers; the adapted weights are frozen. Merged when the stage hands over."""

    rank: int = setting(0, "LoRA rank; 0 = no adapters", at_least=0)
    alpha: float | None = setting(None, "scaling is alpha / rank; null = 2 * rank", above=0)
    dropout: float = setting(0.0, "dropout on the adapters' inputs", at_least=0, below=1)
    only: bool = setting(
        False,
        "train adapters alone, in the heads too, and save only these (a few MB)",
    )
    targets: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "linear layers to adapt"
    )

    def check(self) -> None:
        require(
            self.rank > 0 or not self.only, "model.lora.only=true trains adapters alone: give model.lora.rank, as 8"
        )


@dataclass
class ModelConfig:
    """The backbone: its dimensions, its pretrained weights, and how its layers and the heads are run."""

    name: str = MISSING
    pretrained: str | None = setting(
        None, "folder of a Qwen2.5 or Qwen3 checkpoint to start align from; null = random weights"
    )
    family: str = setting("qwen2", "architecture: qwen2 (also Qwen2.5) or qwen3 (dense)", choices=tuple(FAMILIES))
    hidden_size: int = setting(MISSING, "hidden size", at_least=1)
    intermediate_size: int = setting(MISSING, "width of the feed-forward layers", at_least=1)
    num_hidden_layers: int = setting(MISSING, "layers of the backbone", at_least=1)
    num_attention_heads: int = setting(MISSING, "attention heads", at_least=1)
    num_key_value_heads: int = setting(MISSING, "key-value heads", at_least=1)
    head_dim: int | None = setting(None, "size of a query or key; null = hidden_size / num_attention_heads", at_least=2)
    rope_theta: float = setting(1e6, "RoPE base", above=0)
    rms_norm_eps: float = setting(1e-6, "epsilon of RMSNorm", above=0)
    tie_word_embeddings: bool = setting(False, "tie the embeddings and the vocabulary matrix")
    max_position_embeddings: int = setting(32768, "longest row in tokens", at_least=1)
    attention: str | None = setting(
        None,
        "attention kernel: per_document, sdpa, flex or flash; null = flash on GPUs in 16 bits, else per_document",
        choices=("per_document", "sdpa", "flex", "flash"),
    )
    activation_checkpointing: str = setting(
        "none", "blocks to checkpoint: recomputed in the backward pass", choices=BLOCKS
    )
    checkpoint_every: int = setting(1, "checkpoint every n-th of these blocks", at_least=1)
    compile: str = setting("none", "blocks to compile with torch.compile", choices=BLOCKS)
    lora: LoraConfig = field(default_factory=LoraConfig)
    heads: str = setting(
        "mctp",
        "form of the heads: mctp, or parallel (the baseline: each reads the backbone's state alone, as Medusa's)",
        choices=("mctp", "parallel"),
    )

    @property
    def kernel(self) -> str:
        """`attention`, after the checks have replaced null."""
        assert self.attention is not None
        return self.attention

    def check(self) -> None:
        require(
            self.head_dim is not None or self.hidden_size % self.num_attention_heads == 0,
            f"model.hidden_size {self.hidden_size} is not a multiple of model.num_attention_heads "
            f"{self.num_attention_heads}",
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model.num_attention_heads {self.num_attention_heads} is not a multiple of model.num_key_value_heads "
            f"{self.num_key_value_heads}",
        )


@dataclass
class CodecConfig:
    """The audio codec of the data."""

    name: str = MISSING
    codebook_size: int = setting(MISSING, "codes in the codebook", at_least=1)


@dataclass
class EncoderConfig:
    """The audio encoder of the Plus variants."""

    folder: str | None = setting(
        None,
        "folder of the audio encoder, as SenseVoiceSmall has it; null = speech_input beside the shards",
        exists=True,
    )
    trains_in: list[str] = setting([], "stages in which the encoder trains; none as published")


@dataclass
class RenderingConfig:
    """How conversations are rendered as training rows, besides the interval ratio."""

    lead_in_codes: int = setting(
        0, "codes of silence before an answer's audio, so that speech does not get ahead of its text", at_least=0
    )
    prompt_corruption: float = setting(
        0.0, "share of the prompt's codes replaced with random ones", at_least=0, at_most=1
    )
    text_weight: float = setting(1.0, "loss weight of text labels", at_least=0)
    audio_weight: float = setting(1.0, "loss weight of audio labels, markers included", at_least=0)


@dataclass
class OptimConfig:
    """Optimisation: gradient clipping, optimiser and learning-rate schedule."""

    optimizer: Any = setting(MISSING, "component: settings of an optimiser, or a class like those of torch.optim")
    schedule: Any = setting(MISSING, "component: learning-rate schedule")
    clip_norm: float = setting(1.0, "gradient clipping: largest global norm", above=0)


@dataclass
class TrainerConfig:
    """Engine and devices."""

    name: str = MISSING
    engine: Any = setting(
        MISSING,
        "component: how the model is distributed over devices",
        base="vita_audio_pl.training.engines.kinds.EngineSettings",
    )
    accelerator: str = setting("cpu", "type of device", choices=("cpu", "gpu"))
    devices: int = setting(1, "devices per node", at_least=1, common=True)
    timeout_seconds: float = setting(1800.0, "seconds that a rank waits for the others before the run ends", above=0)
    num_nodes: int = setting(1, "number of nodes", at_least=1, common=True)
    precision: str = setting(
        "32-true", "precision of weights and arithmetic", choices=("32-true", "bf16-mixed", "bf16-true"), common=True
    )
    rows_per_device: int | None = setting(
        None,
        "packed rows per forward pass (micro-batch size); null = the device's whole share of a step",
        at_least=1,
        common=True,
    )
    threads: int | None = setting(None, "CPU threads per process; null = torch's default", at_least=1)
    peak_tflops: float | None = setting(
        None, "peak TFLOP/s of a device, for MFU; null = the table's for a known GPU, else no MFU", above=0
    )
    extra: dict[str, Any] = setting({}, "more arguments of lightning.Trainer, by name")

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


@dataclass
class ExperimentConfig:
    """The question of an ablation, and how its arms are evaluated; set by the files in `experiments/`."""

    name: str = setting("", "name of the ablation: arms go to runs/<name>/<arm>; empty = no ablation")
    question: str = ""
    suite: str = setting("", "evaluation of every arm, a name in conf/suite; empty = none")
    bench: str = setting("spoken_world", "a name in conf/bench")
    evaluate: list[str] = setting([], "more settings for the evaluation command")
    metric: str = setting(
        "val/loss", "validation metric of the last stage's metrics.csv, given to sweepers that optimise"
    )

    def check(self) -> None:
        require(
            re.fullmatch(r"[\w-]*", self.name) is not None,
            f"experiment.name is '{self.name}': it names a folder, so use letters, digits, - and _",
        )


@dataclass
class TrainConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.train`."""

    run_name: str = setting(MISSING, "name of the run: stages go to <paths.runs>/<run_name>/<stage>", common=True)
    seed: int = setting(0, "seed of weights, data order and dropout", at_least=0, at_most=2**32 - 1, common=True)
    text_audio_interval_ratio: list[int] = setting(
        MISSING,
        "runs of text and audio tokens in turn: [t1, a1, ..., tn, an]; each a counts both markers",
        at_least=1,
        common=True,
    )
    decode_pattern: list[int] = setting(
        MISSING,
        "runs of tokens that backbone and heads write in turn: [M, m, ...]",
        at_least=0,
        common=True,
    )
    n_heads: int = setting(10, "heads of the final model", at_least=0, common=True)
    init_from: str | None = setting(
        None,
        "model to start from: a run, a stage, a model folder, adapters, published weights, a Qwen2.5 or Qwen3 folder; null = the parent stage of this run",
        common=True,
    )
    with_parents: bool = setting(False, "train missing parent stages first", common=True)
    force: bool = setting(
        False,
        "train from scratch, once: until this command has finished, rerunning it resumes (docs/cluster.md)",
        common=True,
    )
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    variant: VariantConfig = field(default_factory=VariantConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    per_stage: dict[str, StageOverrides] = setting({}, "settings of one stage of a chain: per_stage.mtp10.steps=...")
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: DataOptions = field(default_factory=DataOptions)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    objective: Any = setting(
        MISSING,
        "component: the training objective of backbone and heads",
        base="vita_audio_pl.models.objective_settings.ObjectiveSettings",
    )
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
