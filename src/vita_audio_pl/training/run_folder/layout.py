"""Where one stage of one run keeps its things, and the guard against mixing two runs in one folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.lease import hold, this_job
from vita_audio_pl.storage.metrics import read_metrics
from vita_audio_pl.storage.model_folders import MODELS
from vita_audio_pl.storage.owned import Kind, Owned, below
from vita_audio_pl.training.run_folder.identity import CHANGES, upgrade_identity
from vita_audio_pl.training.run_folder.manifest import is_model_folder
from vita_audio_pl.training.settings import TrainConfig

IDENTITY, FORCED, METRICS, CONFIG = "identity.json", "forced.json", "metrics.csv", "config.yaml"
WANDB_ID = "wandb_id.json"
_CHECKPOINT = ("part-*.safetensors", "part-*.json", "rng-*.json", "state.json", "rank-*.done", "reason.txt")
STAGE = Kind(
    "training stage",
    (
        IDENTITY,
        FORCED,
        METRICS,
        f"{METRICS}.tmp",
        f"{METRICS}.damaged*",
        CONFIG,
        CHANGES,
        "cost.json",
        "bad_steps.rank-*.jsonl",
        "profile/step-*.rank-*.*",
        WANDB_ID,
        "ranks/heartbeat.rank-*",
        "ranks/stacks.rank-*.txt",
        "ranks/nccl.*",
        "checkpoints/best.json",
        "checkpoints/ended.json",
        "checkpoints/went_back.json",
        "checkpoints/local.*",
        *(f"checkpoints/step-*/{name}" for name in _CHECKPOINT),
        f"{MODELS}/step-*",
        "samples/step-*/samples.jsonl",
        "samples/step-*/audio/*.wav",
        "tensorboard/events.out.tfevents.*",
        "tensorboard/hparams.yaml",
        "wandb/**",
    ),
    sign=(IDENTITY,),
)
"""What a stage leaves, beside `model` and the folders in `models`, which list their own files."""
LOCAL_CHECKPOINTS = Kind(
    "folder of checkpoints on a node's own disk",
    tuple(f"step-*/{name}" for name in _CHECKPOINT),
    sign=("step-*/state.json", "step-*/part-*.safetensors"),
)


@dataclass(frozen=True)
class StageFolder:
    """`runs/<run_name>/<stage>/` with `checkpoints/`, `model/`, `models/`, `samples/`, `metrics.csv`, `config.yaml`."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The model folder that the stage hands over; it exists once the stage is finished."""
        return self.root / "model"

    @property
    def models(self) -> Path:
        """Where models made of checkpoints lie, one folder a step."""
        return self.root / MODELS

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def finished(self) -> bool:
        return is_model_folder(self.model)

    def last_metric(self, name: str) -> float | None:
        """Last value of a column of `metrics.csv`; None where there is none."""
        rows, _ = read_metrics(self.root / METRICS)
        values = [row[name] for _, row in sorted(rows.items()) if name in row]
        return float(values[-1]) if values else None

    def last_settings(self) -> dict[str, Any]:
        """The group `stage` of the settings that the stage was last started with; empty where it never was."""
        try:
            settings = yaml.safe_load((self.root / CONFIG).read_text(encoding="utf-8"))
            return dict(settings["stage"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Makes this process the only one that writes here; of a run's ranks the first holds the folder for all.

        Raises:
            UserError: another run works here; the sentence says who.
        """
        with hold(self.root, "run", what, launch=this_job(), advice="choose another run_name"):
            yield

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the folder is this run's, or new.

        Args:
            identity: settings that decide the result, flat, JSON values.

        Raises:
            UserError: the folder holds a run with other settings; the sentence names the first that differ.
        """
        if differing := self._differing(identity):
            more = f" ({len(differing) - 3} more)" if len(differing) > 3 else ""
            raise UserError(
                f"{self.root} holds another run: {'; '.join(differing[:3])}{more}; choose another run_name, or force=true to "
                "start over"
            )

    def open(self, identity: Mapping[str, Any], force: bool, invocation: str) -> None:
        """Make the folder this run's before it trains; rank 0 calls it, and holds the folder.

        Args:
            identity: as for `check`.
            force: remove what an earlier run left, where `starts_over` says so.
            invocation: that this run belongs to.

        Raises:
            UserError: the folder holds another run, or what this program did not write.
        """
        anew = self.starts_over(identity, force, invocation)
        mine = Owned.claim(self.root, STAGE)
        if anew:
            mine.clear(first=[self.model.name])
        mine.remove_abandoned()
        self.check(identity)
        if self.model.exists() and (foreign := mine.foreign(self.model.name)):
            raise UserError(f"{self.root / foreign[0]} is in the way of the finished model: move it away")
        if force:
            write_json(self.root / FORCED, {"format": 1, "invocation": invocation, "open": True})
        else:
            mine.remove(FORCED)
        write_json(self.root / IDENTITY, dict(identity))

    def starts_over(self, identity: Mapping[str, Any] | None, force: bool, invocation: str) -> bool:
        """Whether `force` asks for what is here to be removed: once for an invocation, however often its job is started.

        What `force` started is resumed until it has finished, and is not started over by the same invocation.

        Args:
            identity: as for `check`; None where it is not known.
        """
        forced = self._forced()
        if not force or forced is None or forced["invocation"] == invocation:
            return force and forced is None
        return not forced["open"] or (identity is not None and bool(self._differing(identity)))

    def finish_forced(self, invocation: str) -> None:
        """Note that the command which began this stage with `force`, or went on with it, has finished."""
        if self._forced() is not None:
            write_json(self.root / FORCED, {"format": 1, "invocation": invocation, "open": False})

    def _forced(self) -> dict[str, Any] | None:
        """The invocation that began this stage with `force`; None where it was not begun so."""
        try:
            forced: dict[str, Any] = json.loads((self.root / FORCED).read_text(encoding="utf-8"))
            return {"invocation": forced["invocation"], "open": forced["open"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return {"invocation": "", "open": True}  # damaged: nothing is removed because of it

    def _differing(self, identity: Mapping[str, Any]) -> list[str]:
        """What differs from the run that is here, in words."""
        path = self.root / IDENTITY
        if not path.exists():
            return []
        wanted = json.loads(json.dumps(dict(identity)))
        try:
            held = upgrade_identity(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            return [
                f"{path} cannot be read ({error}; where config.yaml beside it has these settings, delete it to resume)"
            ]
        names = [name for name in wanted | held if wanted.get(name) != held.get(name)]
        return [f"{name} is {held.get(name)} there and {wanted.get(name)} here" for name in names]


def sample_folder(samples: Path, step: int) -> Path:
    """Where the samples of a step lie, below a stage's `samples`."""
    return samples / f"step-{step:06d}"


def stage_folder(config: TrainConfig, stage: str) -> StageFolder:
    """Folder of a stage of the configured run.

    Raises:
        UserError: its name leads out of `paths.runs`.
    """
    return StageFolder(below(below(Path(config.paths.runs), config.run_name, "run_name"), stage, "stage.name"))
