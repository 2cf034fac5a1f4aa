"""The schema of `conf/train.yaml`: every setting of a training run, its type and its meaning.

Each dataclass may have a `check()`, called on the composed configuration; settings of several groups that do not
go together are in `checks.py`.
"""

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.errors import UserError

ENGINES = ("single", "ddp", "fsdp2", "deepspeed")


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)


@dataclass
class PathsConfig:
    """Folders, relative to the current directory unless absolute."""

    data: str = "data"
    runs: str = "runs"


@dataclass
class ScaleConfig:
    """A size of everything: `small` runs on a laptop, `published` is the paper's."""

    name: str = MISSING


@dataclass
class VariantConfig:
    """One published system: which stages it takes and which stage may follow which."""

    name: str = MISSING
    stages: list[str] = MISSING  # the chain, in order
    parents: dict[str, list[str]] = MISSING  # stage -> stages that it may start from; [] = from a plain backbone
    speech_input: str = "codes"  # how the user's speech enters: `codes` (discrete) or `encoder` (continuous)

    @property
    def hears_by_encoder(self) -> bool:
        """Whether audio outside answers is heard through an encoder (the Plus variants)."""
        return self.speech_input == "encoder"

    def check(self) -> None:
        require(self.speech_input in ("codes", "encoder"), f"variant.speech_input: '{self.speech_input}' is neither "
                "'codes' nor 'encoder'")  # fmt: skip
        for stage in self.stages:
            require(stage in self.parents, f"variant.parents says nothing of stage '{stage}' of variant '{self.name}': "
                    f"add the stages that it may start from, [] for a plain backbone")  # fmt: skip


@dataclass
class StageConfig:
    """One training stage; the rows of the paper's table."""

    name: str = MISSING
    n_heads: int | None = None  # MCTP heads in this stage; null keeps the parent's
    freeze: list[str] = field(default_factory=list)  # regular expressions over parameter names; each must match
    learning_rate: float = 0.0  # peak
    head_rate_factor: float = 1.0  # the heads' rate is this times `learning_rate`
    sequence_length: int = 0  # tokens in a packed row
    rows_per_step: int = 0  # packed rows in an optimiser step, over all devices and accumulation
    steps: int = 0  # optimiser steps
    weight_decay: float = 0.0
    mixture: str = ""  # file of data_recipes/mixtures without .yaml, or a path to a .yaml

    def check(self) -> None:
        if self.name == "chain":  # stands for all stages of the variant and has no numbers of its own
            return
        for name in ("sequence_length", "rows_per_step", "steps"):
            require(getattr(self, name) >= 1, f"stage.{name} is {getattr(self, name)}: it must be at least 1")
        require(self.learning_rate > 0, f"stage.learning_rate is {self.learning_rate}: it must be positive")
        require(self.n_heads is None or self.n_heads >= 0, f"stage.n_heads is {self.n_heads}: it cannot be negative")
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"stage.freeze: '{pattern}' is not a regular expression: {error}") from error


@dataclass
class StageOverrides:
    """Settings of `StageConfig` given from outside, for one stage by name; null leaves the stage's own."""

    n_heads: int | None = None
    freeze: list[str] | None = None
    learning_rate: float | None = None
    head_rate_factor: float | None = None
    sequence_length: int | None = None
    rows_per_step: int | None = None
    steps: int | None = None
    weight_decay: float | None = None
    mixture: str | None = None


@dataclass
class LoraConfig:
    """Low-rank adapters on the backbone's layers; what they adapt is frozen, and they are merged at the hand-over."""

    rank: int = 0  # 0 = none
    alpha: float | None = None  # adapters are scaled by alpha / rank; null = 2 * rank
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )

    def check(self) -> None:
        require(self.rank >= 0, f"model.lora.rank is {self.rank}: it must be 0 (none) or more")
        require(0 <= self.dropout < 1, f"model.lora.dropout is {self.dropout}: it must lie in [0, 1)")


@dataclass
class ModelConfig:
    """The backbone: its dimensions, where its pretrained weights are, and how its layers and the heads are run."""

    name: str = MISSING
    pretrained: str | None = None  # folder of a Qwen2 checkpoint; null = random weights
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    attention: str | None = None  # per_document, sdpa, flex, flash; null = flash on GPUs in 16 bits, else per_document
    activation_checkpointing: str = "none"  # blocks computed again in the backward pass: backbone, heads or all
    checkpoint_every: int = 1  # of these blocks, every n-th
    compile: str = "none"  # blocks compiled by torch.compile: backbone, heads or all
    lora: LoraConfig = field(default_factory=LoraConfig)

    def check(self) -> None:
        require(self.hidden_size % self.num_attention_heads == 0, f"model.hidden_size {self.hidden_size} is not a "
                f"multiple of model.num_attention_heads {self.num_attention_heads}")  # fmt: skip
        require(self.num_attention_heads % self.num_key_value_heads == 0, f"model.num_attention_heads "
                f"{self.num_attention_heads} is not a multiple of model.num_key_value_heads "
                f"{self.num_key_value_heads}")  # fmt: skip


@dataclass
class CodecConfig:
    """Which audio codec made the codes."""

    name: str = MISSING
    codebook_size: int = MISSING


@dataclass
class EncoderConfig:
    """The audio encoder that the Plus variants hear through."""

    folder: str | None = None  # laid out as SenseVoiceSmall; null = speech_input beside the shards
    trains_in: list[str] = field(default_factory=list)  # stages; the published system trains it in none


@dataclass
class RenderingConfig:
    """How conversations become training rows, beside the interval ratio."""

    lead_in_codes: int = 0  # codes of silence before an answer's audio, so that speech does not outrun its text
    prompt_corruption: float = 0.0  # share of the prompt's codes replaced by random ones
    text_weight: float = 1.0  # loss weight of a text label
    audio_weight: float = 1.0  # loss weight of an audio label, markers included

    def check(self) -> None:
        require(self.lead_in_codes >= 0, f"rendering.lead_in_codes is {self.lead_in_codes}: it cannot be negative")


@dataclass
class ObjectiveConfig:
    """What the predictors are trained on; see `vita_audio_pl.models.objectives`."""

    name: str = MISSING
    weight: float = 1.0  # of the mean loss of the heads, beside the main loss; 1 where the backbone is frozen
    kernel: str = "torch"  # or `liger`, on CUDA only
    chunk_rows: int = 512  # rows whose logits exist at a time
    kl_share: float | None = None  # `distil` only: share of KL beside total variation
    detach_heads: bool = False  # the heads send no gradient into the backbone, even where it trains


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    warmup_share: float = 0.03  # of all steps
    warmup: str = "linear"  # or `log`: DeepSpeed's logarithmic ramp
    min_rate_share: float = 0.1  # of the peak, where the cosine ends
    clip_norm: float = 1.0

    def check(self) -> None:
        require(self.warmup in ("linear", "log"), f"optim.warmup is '{self.warmup}': choose 'linear' or 'log'")
        require(0 <= self.warmup_share < 1, f"optim.warmup_share is {self.warmup_share}: it must lie in [0, 1)")
        require(0 <= self.min_rate_share <= 1, f"optim.min_rate_share is {self.min_rate_share}: it must lie in [0, 1]")
        require(len(self.betas) == 2, f"optim.betas takes two numbers, not {self.betas}")
        require(self.clip_norm > 0, f"optim.clip_norm is {self.clip_norm}: it must be positive")


@dataclass
class TrainerConfig:
    """Engine and devices."""

    name: str = MISSING
    engine: str = MISSING  # single, ddp, fsdp2 or deepspeed
    accelerator: str = "cpu"  # or gpu
    devices: int = 1  # per node
    num_nodes: int = 1
    precision: str = "32-true"  # or bf16-mixed, bf16-true
    rows_per_device: int | None = None  # packed rows in a forward pass; null = all of a step's share
    threads: int | None = None  # CPU threads of a process; null = torch's default
    zero_stage: int = 2  # DeepSpeed: 2 shards optimiser state and gradients, 3 parameters too
    peak_tflops: float | None = None  # of a device, for MFU; null = the table's for a known GPU, else no MFU
    offload: bool = False  # DeepSpeed: optimiser state (and parameters at stage 3) in CPU memory

    def check(self) -> None:
        require(self.engine in ENGINES, f"trainer.engine is '{self.engine}': choose one of {', '.join(ENGINES)}")
        require(self.devices >= 1 and self.num_nodes >= 1, "trainer.devices and trainer.num_nodes must be at least 1")
        require(self.engine != "single" or self.world_size == 1, f"trainer={self.name} runs on one device: choose "
                "trainer=ddp for more")  # fmt: skip

    @property
    def world_size(self) -> int:
        return self.devices * self.num_nodes


@dataclass
class GuardConfig:
    """What happens to steps whose gradient norm is not finite, or a spike: they are left out, and counted."""

    bad_steps: int = 3  # in a row, then back to the last checkpoint
    rollbacks: int = 2  # of these in a stage, then the run stops
    spike_factor: float | None = None  # times the usual gradient norm; null = only what is not finite is bad

    def check(self) -> None:
        require(self.bad_steps >= 1, f"callbacks.guard.bad_steps is {self.bad_steps}: it must be at least 1")
        require(self.spike_factor is None or self.spike_factor > 1, f"callbacks.guard.spike_factor is "
                f"{self.spike_factor}: it must be above 1, or null")  # fmt: skip


SAMPLE_TASKS = ("asr", "tts", "sqa", "text")
JUDGES = ("pocketsphinx", "whisper", "paraformer")


@dataclass
class SamplesConfig:
    """Fixed held-out prompts that the model answers while it trains, to be heard and read; and at the stage's end."""

    every_steps: int | None = None  # null = a fifth of the stage; 0 = never, not at the end either
    per_task: int = 2  # prompts of each task
    tasks: list[str] = field(default_factory=lambda: list(SAMPLE_TASKS))  # of those that the stage's data has
    max_new_tokens: int = 256  # of an answer
    judge: str | None = None  # who listens to spoken answers: pocketsphinx, whisper, paraformer; null = nobody
    judge_model: str | None = None  # folder of a Whisper or Paraformer checkpoint
    grammar: str | None = None  # JSGF file for pocketsphinx; null = grammar.jsgf beside the shards

    def check(self) -> None:
        name = "callbacks.samples"
        require(self.every_steps is None or self.every_steps >= 0, f"{name}.every_steps is {self.every_steps}: it cannot "
                "be negative; 0 is never, null a fifth of the stage")  # fmt: skip
        require(self.per_task >= 1, f"{name}.per_task is {self.per_task}: it must be at least 1")
        require(self.max_new_tokens >= 1, f"{name}.max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        for task in self.tasks:
            require(task in SAMPLE_TASKS, f"{name}.tasks: '{task}' is no task; choose from {', '.join(SAMPLE_TASKS)}")
        require(self.judge is None or self.judge in JUDGES, f"{name}.judge is '{self.judge}': choose one of "
                f"{', '.join(JUDGES)}, or null")  # fmt: skip


@dataclass
class CallbacksConfig:
    """How often the run is logged, checked and saved; steps are optimiser steps."""

    log_every: int = 10
    validate_every: int | None = None  # null = at the end only
    save_every: int | None = None  # null = a twentieth of the stage
    keep_last: int = 2
    local_checkpoints: str | None = None  # folder on a fast disk of each node: written there first, then copied
    keep_best_by: str | None = None  # figure of validation, as val/loss: its best checkpoint is kept beside the last
    progress_bar: bool = True
    guard: GuardConfig = field(default_factory=GuardConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    requeue: bool = True  # SLURM: put the job back into the queue after SIGTERM or SIGUSR1
    watchdog_seconds: float = 1800.0  # without progress, then the ranks that hang are named


@dataclass
class LoggerConfig:
    """Where the figures go; `metrics.csv` is always written."""

    wandb: str = "auto"  # online with a key and offline without; or online, offline, off
    wandb_project: str = "vita-audio-pl"
    tensorboard: bool = True

    def check(self) -> None:
        require(self.wandb in ("auto", "online", "offline", "off"), f"logger.wandb is '{self.wandb}': choose auto, "
                "online, offline or off")  # fmt: skip


@dataclass
class ExperimentConfig:
    """What an ablation asks, and how each of its arms is measured; set by the files in `experiments/`."""

    name: str = ""  # arms go to runs/<name>/<arm>; empty = no ablation
    question: str = ""
    suite: str = ""  # evaluation of every arm, an option of conf/suite; empty = none
    bench: str = "spoken_world"  # an option of conf/bench
    steps: dict[str, int] = field(default_factory=dict)  # of stages that the arms train for another time than usual
    evaluate: list[str] = field(default_factory=list)  # more settings for the evaluation command
    metric: str = "val/loss"  # of the last stage's metrics.csv, held out; handed to sweepers that optimise

    def check(self) -> None:
        require(re.fullmatch(r"[\w-]*", self.name) is not None, f"experiment.name is '{self.name}': it names a folder, "
                "so use letters, digits, - and _")  # fmt: skip


@dataclass
class TrainConfig:
    """Everything that `python -m vita_audio_pl.train` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    run_name: str = MISSING
    seed: int = 0
    text_audio_interval_ratio: list[int] = MISSING  # [t1, a1, ..., tn, an]; each a counts both markers
    decode_pattern: list[int] = MISSING  # [M, m, ...]: tokens by the backbone, tokens by the heads, in turn
    n_heads: int = 10  # of the finished model
    init_from: str | None = None  # model folder to start from, instead of the parent stage of this run
    with_parents: bool = False  # train missing parent stages first
    force: bool = False  # train a finished stage again; a job that is started again goes on all the same
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    variant: VariantConfig = field(default_factory=VariantConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    per_stage: dict[str, StageOverrides] = field(default_factory=dict)  # per_stage.mtp10.steps=..., for chains
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: DataOptions = field(default_factory=DataOptions)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
