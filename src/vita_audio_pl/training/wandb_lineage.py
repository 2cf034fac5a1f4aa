"""What wandb is told beside curves: where a model came from, what was changed, and all that a report of an arm reads."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from vita_audio_pl.config.schema import TrainConfig
from vita_audio_pl.training.chain import settings_of_stage
from vita_audio_pl.training.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.run_folder import flatten

ARM_TYPE = "arm"
_FORBIDDEN_IN_IDS = re.compile(r"[/\\#?%:]+")


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
    mine, theirs = (flatten(dataclasses.asdict(one)) for one in (config, usual))
    return {name: value for name, value in mine.items() if theirs.get(name) != value}


def log_lineage(run: Any, model: Path, sources: Mapping[str, Path]) -> None:
    """Log a stage's model and the data that it was trained on as artifacts; with a network also its parent.

    The data artifact has the sources' manifests; the model artifact has the manifest, and a reference to the weights,
    which stay where they are. Both are named after their content, so a parent is found by its hash. wandb cannot mark
    inputs offline: there they are in the metadata alone.

    Args:
        run: an open wandb run.
        model: the model folder that the stage handed over.
        sources: manifest of each source by name.
    """
    import wandb

    manifest = StageManifest.read(model)
    content = hashlib.blake2b(b"".join(path.read_bytes() for path in sources.values()), digest_size=8).hexdigest()
    data = wandb.Artifact(f"data-{content}", "dataset", metadata={"sources": list(sources)})
    for name, path in sources.items():
        data.add_file(str(path), name=f"{name}/{path.name}")
    facts = dataclasses.asdict(manifest)
    del facts["config"]
    trained = wandb.Artifact(f"model-{manifest.weights}", "model", metadata=facts | {"data": data.name})
    trained.add_file(str(model / MANIFEST), name=MANIFEST)
    for path in sorted(model.glob("*.safetensors")):
        trained.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
    if run.offline:
        run.log_artifact(data)
    else:
        run.use_artifact(data)
        if manifest.parent_weights is not None:
            run.use_artifact(f"model-{manifest.parent_weights}:latest")
    run.log_artifact(trained, aliases=["latest", manifest.stage])


def log_arm(config: TrainConfig, folder: Path, mode: str) -> None:
    """Log a finished arm as a run with one artifact: all that `report experiment=... wandb=...` reads of it."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    artifact = wandb.Artifact(
        f"arm-{run_id(config.run_name)}", ARM_TYPE, metadata={"question": config.experiment.question}
    )
    for path in sorted(_files_of(folder, config.variant.stages)):
        artifact.add_file(str(path), name=str(path.relative_to(folder)))
    with wandb.init(
        project=config.logger.wandb_project,
        name=config.run_name,
        id=run_id(config.run_name),
        group=group_of(config.run_name),
        job_type=ARM_TYPE,
        tags=[config.experiment.name, config.variant.name, config.scale.name],
        notes=config.experiment.question,
        config={"changed": changed_settings(config), "seed": config.seed},
        dir=folder,
        mode=mode,
        resume="allow",
    ) as run:
        run.log_artifact(artifact)


def _files_of(folder: Path, stages: list[str]) -> list[Path]:
    of_stages = [folder / stage / name for stage in stages for name in ("metrics.csv", f"model/{MANIFEST}")]
    measured = (path for path in (folder / "eval").rglob("*") if path.is_file() and "wandb" not in path.parts)
    return [folder / "arm.json", *of_stages, *measured]
