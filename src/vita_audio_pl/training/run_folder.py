"""Where one stage of one run keeps its things, and the guard against mixing two runs in one folder."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.lease import hold, is_lease, this_job
from vita_audio_pl.storage.owned import below
from vita_audio_pl.training.manifest import is_model_folder
from vita_audio_pl.training.settings import TrainConfig

IDENTITY = "identity.json"
METRICS = "metrics.csv"


@dataclass(frozen=True)
class StageFolder:
    """`runs/<run_name>/<stage>/` with `checkpoints/`, `model/`, `samples/`, `metrics.csv`, `config.yaml`."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The model folder that the stage hands over; it exists once the stage is finished."""
        return self.root / "model"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def finished(self) -> bool:
        return is_model_folder(self.model)

    def last_metric(self, name: str) -> float | None:
        """Last value of a column of `metrics.csv`; None where there is none."""
        path = self.root / METRICS
        if not path.exists():
            return None
        with path.open(newline="") as file:
            values = [row[name] for row in csv.DictReader(file) if row.get(name)]
        return float(values[-1]) if values else None

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Makes this process the only one that writes here; of a run's ranks the first holds the folder for all.

        Raises:
            UserError: another run works here; the sentence says who.
        """
        with hold(self.root, "run", what, launch=this_job(), advice="choose another run_name"):
            yield

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's, or confirm that it is.

        Args:
            identity: settings that decide the result, flat, JSON values.

        Raises:
            UserError: the folder holds a run with other settings; the sentence names the first that differ.
        """
        path = self.root / IDENTITY
        wanted = json.loads(json.dumps(dict(identity)))
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in wanted | held if wanted.get(key) != held.get(key)]
            if differing:
                shown = "; ".join(f"{key} is {held.get(key)} there and {wanted.get(key)} here" for key in differing[:3])
                more = f" ({len(differing) - 3} more)" if len(differing) > 3 else ""
                raise UserError(
                    f"{self.root} holds another run: {shown}{more}; choose another run_name, or force=true to start over"
                )
            return
        self.root.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, path)

    def clear(self) -> None:
        """Remove what an earlier run of this stage left; the leases of those who work in the folder stay."""
        for path in self.root.iterdir() if self.root.exists() else ():
            if is_lease(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def sample_folder(samples: Path, step: int) -> Path:
    """Where the samples of a step lie, below a stage's `samples`."""
    return samples / f"step-{step:06d}"


def stage_folder(config: TrainConfig, stage: str) -> StageFolder:
    """Folder of a stage of the configured run.

    Raises:
        UserError: its name leads out of `paths.runs`.
    """
    return StageFolder(below(below(Path(config.paths.runs), config.run_name, "run_name"), stage, "stage.name"))


def starts_over(config: TrainConfig) -> bool:
    """Whether what the stage's folder holds is to be removed: `force`, at the first start of a job.

    A job that its scheduler or torchrun starts again repeats the same command, and has to go on.
    """
    restarts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return config.force and not any(int(count or 0) for count in restarts)
