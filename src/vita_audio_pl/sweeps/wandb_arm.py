"""A finished arm of an ablation as a wandb run, with everything that a report reads."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vita_audio_pl.reporting.experiment.wandb_arms import ARM_TYPE
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.storage.secrets import command_line_without_credentials, without_credentials
from vita_audio_pl.training.run_folder.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.tracking.lineage import changed_settings, group_of, run_id, use_model

_UPLOAD_SECONDS = 900
_COSTS = ("cpu_seconds", "wall_seconds")


def log_arm(config: TrainConfig, folder: Path, mode: Literal["online", "offline"]) -> None:
    """Log a finished arm as a run with one artifact: everything that `report experiment=... wandb=...` reads.

    For each stage, shared or not, the run has its weights' hash, the run that trained them, their path and their cost,
    and in its summary the last stage's results on the test split (`arm/tts/speech_wer/own`).

    Args:
        folder: folder of the arm, with its `arm.json`.
        mode: `offline` or `online`; online it returns after the upload.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    arm = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
    stages = {
        one["stage"]: {"weights": StageManifest.read(folder / one["stage"] / "model").weights} | one
        for one in arm["stages"]
    }
    artifact = wandb.Artifact(
        f"arm-{run_id(config.run_name)}", ARM_TYPE, metadata={"question": config.experiment.question, "stages": stages}
    )
    for path in sorted(_files_of(folder, config.variant.stages)):
        artifact.add_file(str(path), name=str(path.relative_to(folder)))
    with (
        command_line_without_credentials(),
        wandb.init(
            project=config.logger.wandb_project,
            entity=config.logger.wandb_entity,
            name=config.run_name,
            id=run_id(config.run_name),
            group=group_of(config.run_name),
            job_type=ARM_TYPE,
            tags=[config.experiment.name, config.variant.name, config.scale.name],
            notes=without_credentials(config.experiment.question),
            config={
                "changed": changed_settings(config),
                "settings": arm["settings"],
                "seed": config.seed,
                "stages": stages,
                "evaluation": arm["evaluation"],
            },
            dir=folder,
            mode=mode,
            resume="allow",
        ) as run,
    ):
        run.summary.update(_figures_of(arm, folder))
        if not run.offline:
            for stage in stages.values():
                use_model(run, stage["weights"])
        logged = run.log_artifact(artifact)
        if not run.offline:
            logged.wait(timeout=_UPLOAD_SECONDS)


def _figures_of(arm: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Results and cost of an arm, under names that all arms share (without stage or bench)."""
    own = [stage for stage in arm["stages"] if not stage["reused"]]
    figures = {
        f"{ARM_TYPE}/{name}": sum(one.get(name, 0.0) for one in [*own, arm["evaluation"]])  # as its sweep spent it
        for name in _COSTS
    }
    last = arm["stages"][-1]["stage"]
    for bench in _benches(folder):
        for result in RunFiles.read(folder, bench).results:
            if (result.stage, result.split) == (last, "test"):
                values = {name: figure["value"] for name, figure in result.figures["metrics"].items()}
                values |= {name: result.figures[name] for name in ("backbone_passes", "head_passes")}
                figures |= {f"{ARM_TYPE}/{result.task}/{name}/{result.mode}": values[name] for name in values}
    return figures


def _files_of(folder: Path, stages: list[str]) -> list[Path]:
    of_stages = [folder / stage / name for stage in stages for name in ("metrics.csv", f"model/{MANIFEST}")]
    measured = (
        path for path in (folder / "eval").rglob("*") if path.is_file() and not {"wandb", ".ranks"} & {*path.parts}
    )
    return [folder / "arm.json", *of_stages, *measured]


def _benches(folder: Path) -> list[str]:
    return sorted({path.parents[3].name for path in folder.glob("eval/*/*/*/*/result.json")})
