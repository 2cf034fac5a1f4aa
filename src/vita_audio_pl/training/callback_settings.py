"""Settings of everything around the training step: logging, validation, checkpoints, samples, the guard."""

from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.config.decoding import KERNELS, VERIFY_MEANING, VERIFY_MODES, DecodingConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.evaluation.judges.choice import JUDGES


@dataclass
class GuardConfig:
    """Steps whose gradient norm is not finite, or a spike, are skipped and counted."""

    bad_steps: int = setting(3, "bad steps in a row before the last good checkpoint is restored", at_least=1)
    rollbacks: int = setting(2, "restores per stage before the run stops", at_least=0)
    spike_factor: float | None = setting(
        None,
        "gradient norm, as a multiple of the usual one, that makes a step bad; null = only non-finite ones do",
        above=1,
    )


SAMPLE_TASKS = ("asr", "tts", "sqa", "text")


@dataclass
class SamplesConfig(DecodingConfig):
    """Held-out prompts that the model answers during training and at the end of a stage."""

    every_steps: int | None = setting(None, "steps between samples; null = a fifth of the stage; 0 = never", at_least=0)
    per_task: int = setting(2, "prompts per task", at_least=1)
    verify: str = setting("none", VERIFY_MEANING, choices=VERIFY_MODES)
    max_new_tokens: int | None = setting(None, "most tokens of an answer; null = 256", at_least=1)
    tasks: list[str] = setting(
        list(SAMPLE_TASKS), "tasks to sample, as far as the stage's data has them", choices=SAMPLE_TASKS
    )
    judge: Any = setting(
        None,
        "judge that transcribes spoken answers, or a component of your own; null = none",
        choices=tuple(JUDGES),
    )
    judge_model: str | None = setting(
        None,
        "folder of a Whisper or Paraformer checkpoint; null where the judge needs none",
        exists=True,
    )
    grammar: str | None = setting(
        None, "JSGF file for pocketsphinx; null = grammar.jsgf beside the shards", exists=True
    )
    kernels: str = setting(
        "rows",
        "layout of matrices; rows, torch's own, gives the same samples on any processor",
        exists=True,
        words=KERNELS,
    )

    @property
    def token_limit(self) -> int:
        """Of an answer."""
        return self.max_new_tokens or 256


@dataclass
class ProfileConfig:
    """Steps to profile, with output to `profile/` in the stage's folder."""

    at_step: int | None = setting(None, "first step to profile; null = no profile", at_least=1)
    steps: int = setting(3, "number of steps to profile", at_least=1)
    ranks: list[int] = setting([0], "ranks to profile", at_least=0)


@dataclass
class CallbacksConfig:
    """How often to log, validate and save; steps are optimiser steps."""

    log_every: int = setting(10, "steps between log lines", at_least=1)
    validate_every: int | None = setting(
        None, "steps between validations; null = at the end only", at_least=1, common=True
    )
    save_every: int | None = setting(
        None, "steps between checkpoints; null = a twentieth of the stage", at_least=1, common=True
    )
    keep_last: int = setting(2, "checkpoints to keep; 0 = all", at_least=0)
    local_checkpoints: str | None = setting(
        None,
        "folder on each node's fast disk, where checkpoints are written before they are copied; null = written in the run's folder",
    )
    keep_best_by: str | None = setting(
        None, "validation metric, such as val/loss, whose best checkpoint is also kept; null = none"
    )
    keep_best_when: str | None = setting(
        None, "whether lower or higher values are better; null = higher for accuracies", choices=("lower", "higher")
    )
    resume_from_step: int | None = setting(
        None, "resume from the checkpoint of this step, once per command; null = the newest", at_least=0
    )
    progress_bar: bool = True
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    requeue: bool = setting(True, "SLURM: requeue the job after SIGTERM or SIGUSR1")
    watchdog_seconds: float = setting(600.0, "seconds without progress after which hanging ranks are reported", above=0)
    extra: dict[str, Any] = setting({}, "your own callbacks: name -> _target_ and settings")


@dataclass
class LoggerConfig:
    """Loggers; `metrics.csv` is always written."""

    wandb: str = setting(
        "auto",
        "wandb logging; auto = online with a key, else offline",
        choices=("auto", "online", "offline", "off"),
        common=True,
    )
    wandb_project: str = setting("vita-audio-pl", "wandb project")
    wandb_entity: str | None = setting(None, "wandb team or user; null = the key's own")
    wandb_group: str | None = setting(None, "wandb group of the stages of a run; null = run_name")
    wandb_tags: list[str] = setting([], "wandb tags")
    tensorboard: bool = setting(True, "also write TensorBoard files")
    extra: dict[str, Any] = setting({}, "your own loggers: name -> _target_ and settings")
