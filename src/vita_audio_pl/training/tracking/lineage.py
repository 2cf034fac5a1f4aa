"""Lineage in wandb: where a model came from, and which settings were changed."""

import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only

from vita_audio_pl.config.component import plain
from vita_audio_pl.evaluation.runs.wandb_log import never_fatal
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.training.checks import settings_of_stage
from vita_audio_pl.training.run_folder.identity import flatten
from vita_audio_pl.training.run_folder.layout import WANDB_ID
from vita_audio_pl.training.run_folder.manifest import MANIFEST, StageManifest
from vita_audio_pl.training.settings import TrainConfig

_FORBIDDEN_IN_IDS = re.compile(r"[/\\#?%:]+")


def run_id(name: str) -> str:
    """A name as a valid wandb id."""
    return _FORBIDDEN_IN_IDS.sub("-", name)


def kept_id(folder: Path, name: str) -> str:
    """The wandb id of a stage, drawn when it begins so that runs of the same name differ, and stored in its folder."""
    path = folder / WANDB_ID
    with suppress(OSError, ValueError, TypeError, KeyError):  # an unreadable one is replaced
        return str(json.loads(path.read_bytes())["id"])
    id = f"{run_id(name)[:100]}-{secrets.token_hex(4)}"
    if getattr(rank_zero_only, "rank", 0) == 0:
        write_json(path, {"format": 1, "id": id})
    return id


def group_of(run_name: str) -> str:
    """The wandb group: the ablation of `<ablation>/<arm>`, else the run of the stage."""
    return run_name.partition("/")[0]


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that differ from the defaults of variant, scale and stage, flat; empty outside a command."""
    if not HydraConfig.initialized() or not GlobalHydra.instance().is_initialized():
        return {}
    usual = settings_of_stage(config.stage.name, [f"variant={config.variant.name}", f"scale={config.scale.name}"])
    mine, theirs = (flatten(plain(one)) for one in (config, usual))
    return {name: value for name, value in mine.items() if theirs.get(name) != value}


def log_lineage(run: Any, model: Path, sources: Mapping[str, Path]) -> None:
    """Log a stage's model and its training data as artifacts; online also the parent as an input.

    The data artifact has the sources' manifests; the model artifact has the manifest and a reference to the weights,
    which are not uploaded. Both are named after their content, so a parent is found by its hash. wandb cannot mark
    inputs offline: there, and if wandb does not have the parent, only the hash in the metadata leads
    back to it (`parent_weights`; `parent_in_wandb` says whether it is linked). The stage is already finished, so
    failures of wandb are not raised.

    Args:
        run: an open wandb run.
        model: model folder of the stage.
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
        linked = False if run.offline or parent is None else use_model(run, parent)
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


def use_model(run: Any, weights: str) -> bool:
    """Mark a model as an input of an online run; false, with a printed message, if wandb does not have it."""
    remedy = "it was made offline, in another project or elsewhere; its hash in the metadata is what leads back to it"
    with never_fatal(f"{_model_artifact(weights)} to link {run.name} with", remedy):
        run.use_artifact(f"{_model_artifact(weights)}:latest")
        return True
    return False
