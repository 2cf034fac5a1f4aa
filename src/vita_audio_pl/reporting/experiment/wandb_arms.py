"""Fetches the arms of an ablation from wandb, where each left an artifact with all that a report reads."""

from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.owned import atomic_folder

ARM_TYPE = "arm"
"""Type of the artifacts, and job type of the runs that made them."""


def fetch_arms(project: str, experiment: str, runs: Path, api: Any = None) -> list[Path]:
    """Download the arms of an ablation that are not in `runs/<experiment>` yet, each whole or not at all.

    Args:
        project: `ENTITY/PROJECT`.
        api: wandb's public API, made here if None.

    Returns:
        The folders that were made.

    Raises:
        UserError: wandb cannot be reached, the project has no arm of that ablation, or a folder is in the way.
    """
    import wandb

    try:
        api = api or wandb.Api()
        found = list(api.runs(project, filters={"group": experiment, "jobType": ARM_TYPE}))
        folders = []
        for run in found:
            folder = runs / experiment / run.name.rpartition("/")[2]
            if (folder / "arm.json").is_file():
                continue
            if folder.exists():
                raise UserError(
                    f"{folder} is in the way: it is not a complete arm; move it away, and the arm is downloaded"
                )
            logged = [artifact for artifact in run.logged_artifacts() if artifact.type == ARM_TYPE]
            if logged:
                _download(max(logged, key=lambda artifact: int(artifact.version.removeprefix("v"))), folder)
                folders.append(folder)
    except (wandb.Error, ValueError, OSError) as error:
        raise UserError(
            f"the arms of '{experiment}' could not be fetched from wandb project {project}: {error}"
        ) from error
    if not found:
        raise UserError(
            f"wandb project {project} has no arms of '{experiment}': look for runs of job type '{ARM_TYPE}'"
        )
    return folders


def _download(artifact: Any, folder: Path) -> None:
    """Download into `folder`, which is there when all files are."""
    with atomic_folder(folder, "arm of an ablation", marked=False) as aside:
        artifact.download(root=str(aside))
