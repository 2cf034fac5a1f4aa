"""One stage from start to hand-over."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vita_audio_pl.child_processes import LAUNCHER, end_with_launcher
from vita_audio_pl.config.component import plain
from vita_audio_pl.data.staging import beside
from vita_audio_pl.errors import UserError
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.flops import StepFlops
from vita_audio_pl.models.lora import NO_ADAPTER
from vita_audio_pl.storage.model_folders import find_model
from vita_audio_pl.training.callbacks.extra import ExtraCallbacks, check_watched, log_figures
from vita_audio_pl.training.callbacks.guard import StepGuard
from vita_audio_pl.training.callbacks.lifecycle import Checkpointing, HandOver, Resume, Stateful, check_best_by
from vita_audio_pl.training.callbacks.monitor import DueValidation, Monitor, ProgressReport
from vita_audio_pl.training.callbacks.preemption import Preemption
from vita_audio_pl.training.callbacks.profile import Profile
from vita_audio_pl.training.callbacks.reference import Reference
from vita_audio_pl.training.callbacks.sample_prompts import SamplePrompt
from vita_audio_pl.training.callbacks.samples import Samples
from vita_audio_pl.training.callbacks.training_check import TrainingCheck
from vita_audio_pl.training.callbacks.watchdog import Watchdog, record_collectives
from vita_audio_pl.training.checkpoints.folders import DOUBT, GOOD, checkpoints, last_checkpoint, may_go_back, step_of
from vita_audio_pl.training.checkpoints.local import LocalCheckpoints
from vita_audio_pl.training.checkpoints.parts import weights_of_checkpoint
from vita_audio_pl.training.checkpoints.writer import CheckpointWriter
from vita_audio_pl.training.engines.base import Engine
from vita_audio_pl.training.run_folder.identity import (
    CHANGES,
    FORMAT,
    decisive_settings,
    flatten,
    pretrained_identity,
    record_changes,
)
from vita_audio_pl.training.run_folder.layout import (
    CONFIG,
    REFERENCE,
    StageFolder,
    stage_folder,
)
from vita_audio_pl.training.run_folder.manifest import StageManifest, check_parent, model_damage
from vita_audio_pl.training.run_folder.origin import describe_rates
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.hand_over import Ended, ModelParts, TrainedModel, hand_over
from vita_audio_pl.training.stage.invocation import again, invoked
from vita_audio_pl.training.stage.launch import rank_of_launch
from vita_audio_pl.training.stage.sharded_start import ShardedStart
from vita_audio_pl.training.stage.starting_model import check_adapters, starting_model
from vita_audio_pl.training.stage.trainer import build_trainer, check_devices, micro_batches
from vita_audio_pl.training.step.freezing import Frozen, freeze
from vita_audio_pl.training.step.module import SpeechLMModule
from vita_audio_pl.training.step.objective import configured_objective
from vita_audio_pl.training.step.tally import validation_figures
from vita_audio_pl.training.tracking.lineage import log_lineage
from vita_audio_pl.training.tracking.loggers import build_loggers, wandb_run_ends

if TYPE_CHECKING:
    from vita_audio_pl.training.callbacks.sample_writer import SampleWriter


_DECIDE_REFERENCE = (
    *("data", "parent_weights", "pretrained_weights", "vocabulary", "rendering.lead_in_codes"),
    *("text_audio_interval_ratio", "decode_pattern"),
)


@dataclass(frozen=True, kw_only=True)
class StageData(ModelParts):
    """The data of a stage.

    Attributes:
        datamodule: yields packed batches; `consumed(batch)` advances the position in its state.
        codes_per_second: rate of the codec.
        source_names: sources by number.
        plan: fingerprint of everything that determines the order of rows.
        held_out: names of the sources with held-out data.
        manifests: manifests of the sources, by name; logged to wandb.
        prompts: held-out prompts that the model answers during training.
    """

    datamodule: L.LightningDataModule
    codes_per_second: float
    source_names: tuple[str, ...]
    plan: str
    held_out: tuple[str, ...]
    manifests: dict[str, Path] = field(default_factory=dict)
    prompts: tuple[SamplePrompt, ...] = ()


def find_parent(config: TrainConfig) -> Path | None:
    """Model folder that the stage starts from; None for a plain backbone.

    Raises:
        UserError: no parent is finished, with the command that makes it.
    """
    if config.init_from is not None:
        return find_model(config.init_from, config.paths.runs)
    stage = config.stage.name
    allowed = config.variant.parents.get(stage)
    if allowed is None:
        raise UserError(
            f"variant '{config.variant.name}' has no stage '{stage}', only {', '.join(config.variant.stages)}; choose one "
            f"of them, or say what it starts from with '+variant.parents.{stage}=[...]'"
        )
    if not allowed:
        return None
    for parent in allowed:
        if stage_folder(config, parent).finished:
            return stage_folder(config, parent).model
    there = stage_folder(config, allowed[0])
    damaged = f" ({model_damage(there.model)})" if there.model.exists() else ""
    raise UserError(
        f"stage '{stage}' starts from stage '{allowed[0]}', and {there.root} has no finished one{damaged}; "
        f"make it with 'python -m vita_audio_pl.train stage={allowed[0]}' and your other settings, or add "
        "with_parents=true, or name a model folder with init_from=DIR"
    )


def heads_of_stage(config: TrainConfig) -> int:
    """MCTP heads of the stage's model: its own number, or the parent's.

    Raises:
        UserError: as `find_parent`.
    """
    parent = find_parent(config)
    if config.stage.n_heads is not None:
        return config.stage.n_heads
    return 0 if parent is None else StageManifest.of(parent).n_heads


def train_stage(config: TrainConfig, data: StageData) -> Path:
    """Train the configured stage, or resume it; returns its model folder.

    Raises:
        UserError: wrong parent, a folder of another run, or contradictory settings; before the first step.
    """
    _quiet()
    end_with_launcher()
    rank = rank_of_launch(config.trainer)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # Lightning keeps it there, without declaring it
    check_devices(config.trainer)
    folder = stage_folder(config, config.stage.name)
    parent_folder = find_parent(config)
    parent = None if parent_folder is None else StageManifest.of(parent_folder)
    if parent is not None and parent_folder is not None:
        check_parent(
            parent,
            parent_folder,
            stage=config.stage.name,
            variant=config.variant.name,
            allowed=config.variant.parents.get(config.stage.name, []),
            n_heads=config.stage.n_heads,
            facts={
                "speech_input": config.variant.speech_input,
                "vocabulary": data.vocabulary.fingerprint,
                "tokenizer": data.tokenizer,
                "codec_fingerprint": data.codec_fingerprint,
                "text_audio_interval_ratio": list(config.text_audio_interval_ratio),
            },
        )
    check_adapters(config, parent, heads_of_stage(config))
    figures = validation_figures(heads_of_stage(config), data.held_out, config.stage.on_pairs) if data.held_out else []
    check_best_by(config.callbacks.keep_best_by, figures, log_figures(config.callbacks.extra))
    check_watched(config.callbacks.extra, figures, config.callbacks.validate_every)
    identity = run_identity(config, data, parent)
    if rates := describe_rates(config):
        _print(rates)
    with invoked(config.force) as invocation:
        if config.force and rank == 0:
            invocation.forced.append(folder)
        # in this order: rank 0, which may be ahead, makes the stage unfinished before it notes that it starts from scratch
        if not folder.starts_over(identity, config.force, invocation.id) and folder.finished:
            if rank == 0:
                folder.check(identity)
            way, back = again(config.force, invocation.id), config.callbacks.resume_from_step
            if back is not None and may_go_back(folder.checkpoints, back):
                way = f"to go back to step {back}, move this folder away and rerun; {way}"
            _print(f"stage '{config.stage.name}' of {config.run_name} is finished: {folder.model} ({way})")
            return folder.model
        if rank > 0:
            return _train(config, data, folder, parent_folder, parent)
        with folder.held(f"stage '{config.stage.name}' of {config.run_name}"):
            folder.open(identity, config.force, invocation.id)
            if folder.model.exists():
                _print(f"stage '{config.stage.name}' is not finished and will be resumed: {model_damage(folder.model)}")
            return _train(config, data, folder, parent_folder, parent)


def stage_module(config: TrainConfig, data: StageData, parent_folder: Path | None) -> tuple[SpeechLMModule, Frozen]:
    """The stage's LightningModule with frozen parameters, and a summary of what is frozen.

    Args:
        parent_folder: model folder that it starts from; None for a plain backbone.
    """
    engine = config.trainer.engine
    start = ShardedStart.of(config, data.vocabulary, parent_folder) if engine.fills_shards else None
    model = starting_model(config, data.vocabulary, parent_folder) if start is None else start.model
    frozen = freeze(
        model,
        [*config.stage.freeze, *([NO_ADAPTER] if config.model.lora.only else [])],
        train_encoder=config.stage.name in config.encoder.trains_in and not config.model.lora.only,
    )
    module = SpeechLMModule(
        model,
        configured_objective(config, data.vocabulary),
        config.stage,
        config.optim,
        engine.build(config.trainer),
        source_names=data.source_names,
        codes=(data.vocabulary.first_code, data.vocabulary.used),
        codes_per_second=data.codes_per_second,
        fill=None if start is None else start.fill,
    )
    return module, frozen


def _train(
    config: TrainConfig, data: StageData, folder: StageFolder, parent_folder: Path | None, parent: StageManifest | None
) -> Path:
    """Train in the stage's folder, which belongs to this run; collective."""
    L.seed_everything(config.seed, verbose=False)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    module, frozen = stage_module(config, data, parent_folder)
    engine, model = module.engine, module.speech_lm
    settings = plain(config)
    check = TrainingCheck(engine)
    save_every = config.callbacks.save_every or max(1, config.stage.steps // 20)

    def write() -> None:
        trained = TrainedModel(model)
        if (
            config.trainer.engine.shards
        ):  # nobody holds a whole model, and the last checkpoint's parts are read one by one
            saved = weights_of_checkpoint(last_checkpoint(folder.checkpoints, trainer.global_step))
            trained = TrainedModel.of(config, data.vocabulary, parent_folder, saved)
        ended = Ended(trainer.global_step, check.frozen, check.trained)
        hand_over(config, data, trained, ended, parent_folder, parent, folder.model)

    keep, local = config.callbacks.keep_last, config.callbacks.local_checkpoints
    on_nodes = None if local is None else LocalCheckpoints(Path(local), folder.checkpoints, keep)
    writer = CheckpointWriter(folder.checkpoints, engine, keep, on_nodes)
    guard = StepGuard(config.callbacks.guard, engine, writer, folder.root)
    module.skip_reason = guard.skip_reason
    monitor = Monitor(config.callbacks.log_every, StepFlops(model, module.objective), config.trainer, guard, writer)
    own = {name: callback.build() for name, callback in config.callbacks.extra.items()}
    stateful: dict[str, Stateful] = {"proof": check, "guard": guard, "callbacks": ExtraCallbacks(own, engine)}
    stateful |= {"tally": module.train_tally, "monitor": monitor}
    checkpointing = Checkpointing(
        writer, guard, stateful, save_every, config.callbacks.keep_best_by, config.callbacks.keep_best_when
    )
    preemption = Preemption(checkpointing, config.callbacks.requeue)
    callbacks = [
        *_reference(config, data, folder, parent),
        Resume(writer, engine, stateful, config.callbacks.resume_from_step),
        guard,  # a bad step is undone before it can be logged or saved
        check,
        monitor,
        *own.values(),  # before checkpointing, so that a checkpoint includes their effect
        checkpointing,
        preemption,
        Watchdog(folder.root / "ranks", config.callbacks.watchdog_seconds),
        *_samples(config, data, engine, model.n_heads, folder),
    ]
    if config.callbacks.progress_bar:
        callbacks.append(ProgressReport(monitor, config.stage.name))
    if config.callbacks.profile.at_step is not None:
        callbacks.append(Profile(config.callbacks.profile, folder.root / "profile"))
    callbacks += [DueValidation(monitor), HandOver(check, write, folder.checkpoints)]
    trainer = build_trainer(
        config,
        engine,
        callbacks,
        build_loggers(config, folder.root, settings),
        validate=bool(data.held_out),
        folder=folder.root,
    )
    resumed = checkpoints(folder.checkpoints, GOOD, DOUBT)[-1:]
    if trainer.is_global_zero:
        for change in record_changes(folder.root, settings, step_of(resumed[0]) if resumed else 0):
            _print(f"{change} since this stage was last started: bits may differ from here on ({CHANGES})")
        written = yaml.safe_dump({"format": 1, **settings}, sort_keys=False)
        (folder.root / CONFIG).write_text(written, encoding="utf-8")
    per_device, accumulate = micro_batches(config)
    if spare := per_device * accumulate * config.trainer.world_size - config.stage.rows_per_step:
        _print(f"stage.rows_per_step={config.stage.rows_per_step} do not divide: {spare} rows of every step stay empty")
    _print(
        f"stage '{config.stage.name}' of {config.run_name}: {config.stage.steps} steps of {config.stage.rows_per_step} rows "
        f"x {config.stage.sequence_length} tokens, {frozen.trained_parameters:,} parameters train and "
        f"{frozen.frozen_parameters:,} are frozen; from {parent_folder or 'a plain backbone'}; output in {folder.root}"
    )
    if config.trainer.accelerator != "cpu":
        record_collectives(folder.root / "ranks")
    os.environ[LAUNCHER] = str(os.getpid())  # ranks that Lightning starts end with this process
    with wandb_run_ends(trainer.loggers):
        trainer.fit(module, datamodule=data.datamodule)
        if preemption.left_at is not None:
            raise SystemExit(preemption.status)
        if trainer.global_step < trainer.max_steps:
            raise UserError(
                f"stage '{config.stage.name}' stopped at step {trainer.global_step} of {config.stage.steps}; rerun "
                "the same command to resume"
            )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                log_lineage(logger.experiment, folder.model, data.manifests)
    _print(f"stage '{config.stage.name}' is done: {folder.model}")
    return folder.model


def _reference(
    config: TrainConfig, data: StageData, folder: StageFolder, parent: StageManifest | None
) -> list[Reference]:
    """The callback that keeps how likely the parent finds the answers, where they come in pairs."""
    if not config.stage.on_pairs:
        return []
    decisive = run_identity(config, data, parent)
    return [
        Reference(folder.root / REFERENCE, {name: decisive[name] for name in _DECIDE_REFERENCE if name in decisive})
    ]


def _samples(config: TrainConfig, data: StageData, engine: Engine, n_heads: int, folder: StageFolder) -> list[Samples]:
    """The callback that lets the model answer `data.prompts`, if there are any and it is enabled."""
    settings = config.callbacks.samples
    if settings.every_steps == 0 or not data.prompts:
        return []

    def make_writer() -> "SampleWriter":
        from vita_audio_pl.training.callbacks.sample_writer import (
            SampleWriter,  # evaluation packages may be missing
        )

        return SampleWriter(
            settings,
            data.prompts,
            vocabulary=data.vocabulary,
            tokenizer_folder=data.tokenizer_folder,
            codec_folder=data.codec_folder,
            grammar=Path(settings.grammar) if settings.grammar else beside(config.data, "grammar.jsgf"),
            pattern=DecodePattern.of(config.decode_pattern if n_heads else "vanilla"),
            folder=folder.samples,
        )

    every = settings.every_steps or -(-config.stage.steps // 5)
    return [Samples(every, engine, config.model.lora, folder.samples, make_writer)]


def run_identity(config: TrainConfig, data: StageData, parent: StageManifest | None) -> dict[str, Any]:
    """Settings that a stage's weights depend on, flat; two runs with equal ones may share a folder."""
    decisive = {
        "format": FORMAT,
        **decisive_settings(plain(config)),
        "vocabulary": data.vocabulary.fingerprint,
        "codec": data.codec_fingerprint,
        "data": data.plan,
        "parent_weights": None if parent is None else parent.weights,
        "pretrained_weights": pretrained_identity(config.model.pretrained) if parent is None else None,
    }
    return flatten(decisive)


@rank_zero_only
def _print(text: str) -> None:
    print(text, flush=True)


def _quiet() -> None:
    """Silence Lightning's advice that does not apply: batches are planned and packed, workers are configured."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*LeafSpec.*",
        ".*`srun` command is available.*",  # a login node is not a job
        ".*is deprecated. Please use.*_single.*",  # torch's collectives, called by DeepSpeed
        ".*DeepSpeed handles gradient clipping internally.*",
    ):
        warnings.filterwarnings("ignore", message)
