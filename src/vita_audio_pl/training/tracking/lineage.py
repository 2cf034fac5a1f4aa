"""What wandb is told beside curves: where a model came from, what was changed, and all that a report of an arm reads."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from vita_audio_pl.config.component import plain
from vita_audio_pl.evaluation.runs.wandb_log import never_fatal
from vita_audio_pl.reporting.run_files import RunFiles
from vita_audio_pl.storage.secrets import command_line_without_credentials, without_credentials
from vita_audio_pl.sweeps.chain import settings_of_stage
from vita_audio_pl.training.run_folder.identity import flatten
from vita_audio_pl.training.run_folder.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.settings import TrainConfig

ARM_TYPE = "arm"
_FORBIDDEN_IN_IDS = re.compile(r"[/\\#?%:]+")
_UPLOAD_SECONDS = 900
_COSTS = ("cpu_seconds", "wall_seconds")


def run_id(name: str) -> str:
    """A fixed id of a run, so that going on with it continues its curves."""
    return _FORBIDDEN_IN_IDS.sub("-", name)


def group_of(run_name: str) -> str:
    """What runs are grouped by: the ablation of `<ablation>/<arm>`, else the run whose stages they are."""
    return run_name.partition("/")[0]


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that differ from what variant, scale and stage alone would give, flat; empty outside a command."""
    if not HydraConfig.initialized():
        return {}
    usual = settings_of_stage(config.stage.name, [f"variant={config.variant.name}", f"scale={config.scale.name}"])
    mine, theirs = (flatten(plain(one)) for one in (config, usual))
    return {name: value for name, value in mine.items() if theirs.get(name) != value}


def log_lineage(run: Any, model: Path, sources: Mapping[str, Path]) -> None:
    """Log a stage's model and the data that it was trained on as artifacts; with a network also its parent.

    The data artifact has the sources' manifests; the model artifact has the manifest, and a reference to the weights,
    which stay where they are. Both are named after their content, so a parent is found by its hash. wandb refuses to
    mark inputs offline: there, and where wandb does not have the parent, the hash in the metadata is all that leads
    back to it (`parent_weights`; `parent_in_wandb` says whether it is linked). The stage is finished when this is
    called, so no failure of wandb is raised.

    Args:
        run: an open wandb run.
        model: the model folder that the stage handed over.
        sources: manifest of each source by name.
    """
    import wandb

    manifest = StageManifest.read(model)
    content = hashlib.blake2b(b"".join(path.read_bytes() for path in sources.values()), digest_size=8).hexdigest()
    name = _model_artifact(manifest.weights)
    with never_fatal(f"whole record of {name}", f"the stage is finished nevertheless, and its model is {model}"):
        data = wandb.Artifact(f"data-{content}", "dataset", metadata={"sources": list(sources)})
        for source, path in sources.items():
            data.add_file(str(path), name=f"{source}/{path.name}")
        parent = manifest.parent_weights
        linked = False if run.offline or parent is None else _use_model(run, parent)
        facts = dataclasses.asdict(manifest) | {"data": data.name, "parent_in_wandb": linked}
        del facts["config"]
        trained = wandb.Artifact(name, "model", metadata=facts)
        trained.add_file(str(model / MANIFEST), name=MANIFEST)
        for path in sorted(model.glob("*.safetensors")):
            trained.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
        run.log_artifact(trained, aliases=["latest", manifest.stage])
        # last, because online it waits for the upload
        run.log_artifact(data) if run.offline else run.use_artifact(data)


def _model_artifact(weights: str) -> str:
    return f"model-{weights}"


def _use_model(run: Any, weights: str) -> bool:
    """Mark a model as an input of an online run; false, and a sentence, where wandb does not have it."""
    remedy = "it was made offline, in another project or elsewhere; its hash in the metadata is what leads back to it"
    with never_fatal(f"{_model_artifact(weights)} to link {run.name} with", remedy):
        run.use_artifact(f"{_model_artifact(weights)}:latest")
        return True
    return False


def log_arm(config: TrainConfig, folder: Path, mode: str) -> None:
    """Log a finished arm as a run with one artifact: all that `report experiment=... wandb=...` reads of it.

    The run says of each stage, reused or not, which weights it has, who made them, where they are and what they cost,
    and has the last stage's figures on the test split in its summary (`arm/tts/speech_wer/own`).

    Args:
        folder: of the arm, with its `arm.json`.
        mode: `offline` or `online`; online it returns when the artifact has arrived.
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
                _use_model(run, stage["weights"])
        logged = run.log_artifact(artifact)
        if not run.offline:
            logged.wait(timeout=_UPLOAD_SECONDS)


def _figures_of(arm: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """What an arm reached and cost, under names that all arms share: they have the stage and the bench in no name."""
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
