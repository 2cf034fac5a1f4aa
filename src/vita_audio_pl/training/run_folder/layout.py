"""The folder of one stage of a run, and the checks that keep two runs from sharing it."""

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
REFERENCE = "reference.json"
"""How likely the parent finds the answers of a stage on pairs."""
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
        REFERENCE,
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
"""Files of a stage, besides `model` and the folders in `models`, which list their own files."""
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
        """The model folder that the stage writes; exists once the stage is finished."""
        return self.root / "model"

    @property
    def models(self) -> Path:
        """Models made from checkpoints, one folder per step."""
        return self.root / MODELS

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def finished(self) -> bool:
        return is_model_folder(self.model)

    def last_metric(self, name: str) -> float | None:
        """Last value of a column of `metrics.csv`; None if there is none."""
        rows, _ = read_metrics(self.root / METRICS)
        values = [row[name] for _, row in sorted(rows.items()) if name in row]
        return float(values[-1]) if values else None

    def last_settings(self) -> dict[str, Any]:
        """The `stage` settings that the stage was last started with; empty if it never was."""
        try:
            settings = yaml.safe_load((self.root / CONFIG).read_text(encoding="utf-8"))
            return dict(settings["stage"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Hold the lease that makes this process the only writer; rank 0 holds it for all ranks.

        Raises:
            UserError: another run holds it; with its host and process.
        """
        with hold(self.root, "run", what, launch=this_job(), advice="choose another run_name"):
            yield

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the folder belongs to this run, or is new.

        Args:
            identity: settings that the weights depend on, flat, JSON values.

        Raises:
            UserError: the folder belongs to a run with other settings; names the first that differ.
        """
        if differing := self._differing(identity):
            more = f" ({len(differing) - 3} more)" if len(differing) > 3 else ""
            raise UserError(
                f"{self.root} holds another run: {'; '.join(differing[:3])}{more}; choose another run_name, or force=true to "
                "start over"
            )

    def open(self, identity: Mapping[str, Any], force: bool, invocation: str) -> None:
        """Claim the folder for this run before it trains; called on rank 0, which holds the lease.

        Args:
            identity: see `check`.
            force: remove the files of an earlier run, if `starts_over` says so.
            invocation: id of the invocation that this run belongs to.

        Raises:
            UserError: the folder belongs to another run, or has files that this program did not write.
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
        """Whether `force` removes what is here: once per invocation, however often its job is restarted.

        A stage started with `force` is resumed until it has finished, and the same invocation does not start it over.

        Args:
            identity: see `check`; None if unknown.
        """
        forced = self._forced()
        if not force or forced is None or forced["invocation"] == invocation:
            return force and forced is None
        return not forced["open"] or (identity is not None and bool(self._differing(identity)))

    def finish_forced(self, invocation: str) -> None:
        """Record that the command which started this stage with `force`, or resumed it, has finished."""
        if self._forced() is not None:
            write_json(self.root / FORCED, {"format": 1, "invocation": invocation, "open": False})

    def _forced(self) -> dict[str, Any] | None:
        """The invocation that started this stage with `force`; None if none did."""
        try:
            forced: dict[str, Any] = json.loads((self.root / FORCED).read_text(encoding="utf-8"))
            return {"invocation": forced["invocation"], "open": forced["open"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return {"invocation": "", "open": True}  # damaged; nothing is removed because of it

    def _differing(self, identity: Mapping[str, Any]) -> list[str]:
        """Differences from the run in this folder, as text."""
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
    """Folder of the samples of a step, below a stage's `samples`."""
    return samples / f"step-{step:06d}"


def stage_folder(config: TrainConfig, stage: str) -> StageFolder:
    """Folder of a stage of the configured run.

    Raises:
        UserError: its name leads out of `paths.runs`.
    """
    return StageFolder(below(below(Path(config.paths.runs), config.run_name, "run_name"), stage, "stage.name"))
