"""A chain of stages, each in its own process: a fresh process group, and a hand-over through disk."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from vita_audio_pl.config.component import plain
from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.prepared import MANIFEST, Manifest, prepared_names
from vita_audio_pl.data.readers.jsonl import PREFERENCE
from vita_audio_pl.data.staging import shards_place
from vita_audio_pl.errors import UserError
from vita_audio_pl.leaving import STATUS
from vita_audio_pl.processes import check_status, run_command
from vita_audio_pl.training.checks import settings_of_stage
from vita_audio_pl.training.run_folder.identity import decisive_settings
from vita_audio_pl.training.run_folder.layout import StageFolder, stage_folder
from vita_audio_pl.training.run_folder.manifest import StageManifest, is_model_folder
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.invocation import again, invoked

COMMAND = ("-m", "vita_audio_pl.train")


def train_chain(config: TrainConfig, stages: Sequence[str], overrides: Sequence[str]) -> None:
    """Train `stages` in order; finished ones are skipped, the first failure ends the chain.

    Args:
        overrides: overrides of the command line, without the choice of stage. `init_from` applies to the first
            stage only.

    Raises:
        UserError: a stage failed; its own message is above.
    """
    if config.model.pretrained is not None:  # also where it was given as init_from
        overrides = [*overrides, f"model.pretrained={config.model.pretrained}"]
    with invoked(config.force) as invocation:
        for number, stage in enumerate(stages, 1):
            heading = f"[{number}/{len(stages)}] stage {stage} of {config.run_name}"
            folder = stage_folder(config, stage)
            if config.force:
                invocation.forced.append(folder)
            if is_finished(folder, settings_of_stage(stage, overrides), invocation.id):
                print(f"{heading} is finished ({again(config.force, invocation.id)})", flush=True)
                continue
            print(heading, flush=True)
            start = [f"init_from={config.init_from}"] if number == 1 and config.init_from is not None else []
            command = [sys.executable, *COMMAND, *overrides, *start, f"stage={stage}"]
            status = run_command(command, _environment(number))
            if status in STATUS.values() and is_finished(folder, settings_of_stage(stage, overrides), invocation.id):
                left = ", ".join(stages[number:]) or "none"
                raise UserError(
                    f"stopped after stage '{stage}', which is finished (left: {left}); rerun the same command to resume",
                    status,
                )
            check_status(status, f"stage '{stage}'", f"finished before it: {', '.join(stages[: number - 1]) or 'none'}")


def check_pairs_given(stages: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse, before the first of `stages` trains, given shards without the pairs of answers that a later one trains on.

    Remote shards are left to the stage itself, which copies them.

    Raises:
        UserError: says which stage, and how to train it.
    """
    for number, stage in enumerate(stages[1:], 1):
        config = settings_of_stage(stage, overrides)
        if not config.stage.on_pairs or not config.data.shards:
            continue
        shards = shards_place(config.data)
        if not isinstance(shards, Path) or not any(prepared_names(shards)):
            continue
        there = [shards / share.source for share in load_mixture(config.stage.mixture).shares]
        tasks = {Manifest.load(source).task for source in there if (source / MANIFEST).is_file()}
        if tasks != {PREFERENCE}:
            raise UserError(
                f"stage '{stage}' trains on pairs of answers, and data.shards={config.data.shards} has none for its mixture "
                f"'{config.stage.mixture}': train the stages before it first (stage=chain variant.stages=[{','.join(stages[:number])}]), "
                f"then stage={stage} with data.shards=DIR/shards and stage.mixture=DIR/mixture.yaml of pairs (docs/preference.md)"
            )


def _environment(number: int) -> dict[str, str]:
    """Environment of a stage's processes.

    torchrun's agent may keep one store for all processes, in which a stage would read the addresses of the previous one;
    with SLURM, and where torchrun's nodes come and go, one task may start a stage while the first still runs the previous
    stage's store. So each stage gets its own store, on its own port.
    """
    environment = dict(os.environ)
    if {"TORCHELASTIC_RUN_ID", "MASTER_PORT"} <= environment.keys():
        port = int(environment["MASTER_PORT"]) + number
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
    elif "SLURM_PROCID" in environment and "MASTER_PORT" in environment:
        environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + number)
    elif {
        "SLURM_PROCID",
        "SLURM_JOB_ID",
    } <= environment.keys():  # Lightning's port of a job, between 15000 and 24999
        environment["MASTER_PORT"] = str(15000 + (int(environment["SLURM_JOB_ID"]) + number) % 10000)
    return environment


def is_finished(folder: StageFolder, config: TrainConfig, invocation: str = "") -> bool:
    """Whether the folder holds the finished stage of these settings, made from the present parent.

    Decided from manifests, without starting a process; in doubt the stage's own process checks more closely.
    """
    if folder.starts_over(None, config.force, invocation) or not folder.finished:
        return False
    manifest = StageManifest.read(folder.model)
    parent = folder.root / manifest.parent if manifest.parent else None
    same = decisive_settings(manifest.config) == decisive_settings(plain(config))
    same = same and manifest.config["model"]["pretrained"] == config.model.pretrained
    return same and (
        parent is None or (is_model_folder(parent) and StageManifest.read(parent).weights == manifest.parent_weights)
    )


def command_overrides() -> list[str]:
    """Overrides of this process to pass to a stage's: all except the choice of stage and those that control the chain."""
    hydra_config = HydraConfig.get()
    steering = ("stage=", "with_parents=", "init_from=")
    kept = [override for override in hydra_config.overrides.task if not override.lstrip("+").startswith(steering)]
    extra = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [*(f"--config-dir={path.removeprefix('file://')}" for path in extra), *kept]


def missing_parents(config: TrainConfig) -> list[str]:
    """Stages that must run before the configured one, in order: its first allowed parent, that one's, and so on."""
    missing: list[str] = []
    stage = config.stage.name
    while allowed := config.variant.parents.get(stage, []):
        if any(stage_folder(config, parent).finished for parent in allowed):
            break
        stage = allowed[0]
        missing.insert(0, stage)
    return missing
