"""One arm of an ablation: its stages, trained or shared with another arm, and its evaluation.

Stages are stored in `runs/shared_stages/<stage>-<hash>`; the hash covers everything that their weights depend on, and
the folder of an arm links to them. Arms with the same stage therefore share it, also across ablations.
"""

import hashlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose

from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.runs.evaluate import evaluation_keys
from vita_audio_pl.evaluation.runs.wandb_log import never_fatal
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.processes import check_status, run_command
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.storage.secrets import without_credentials
from vita_audio_pl.sweeps.chain import COMMAND
from vita_audio_pl.sweeps.sweep import Sweep
from vita_audio_pl.sweeps.wandb_arm import log_arm
from vita_audio_pl.training.checks import settings_of_stage
from vita_audio_pl.training.run_folder.layout import StageFolder, stage_folder
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.data import prepared_data
from vita_audio_pl.training.stage.train import find_parent, heads_of_stage, run_identity
from vita_audio_pl.training.tracking.loggers import wandb_mode

SHARED = "shared_stages"
ARM = "arm.json"
COST = "cost.json"
LOSS = "val/loss"
FULL_PRECISION = "32-true"
NOT_OF_AN_ARM = re.compile(
    r"(experiment(\..*)?|stage|seed|trainer(\.(?!precision$).*)?|(callbacks|logger|paths)(\..*)?"
    r"|data\.(workers|prefetch|cache))$"
)


@dataclass
class Cost:
    """Cost: CPU seconds of its processes, and wall-clock seconds.

    Attempts that were killed together with the command that had started them are not included.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def run(self, command: Sequence[str]) -> int:
        """Run a command, add its cost, and return its exit status."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        status = run_command(command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.cpu_seconds = round(self.cpu_seconds + spent, 2)
        self.wall_seconds = round(self.wall_seconds + time.perf_counter() - started, 2)
        return status


@dataclass
class Arm:
    """Contents of an arm's `arm.json`.

    Attributes:
        run_name: `<experiment>/<arm>`, its folder below `paths.runs`.
        settings: its overrides, except the seed and those that do not change what is learned.
        stages: per stage its shared folder, the run that trained it, whether that was another one, and its cost.
        evaluation: what was evaluated, and its cost; empty before that.
        number: number of the arm in its sweep.
        finished: whether stages and evaluation are done.
        logged: whether wandb has it in its present state.
    """

    experiment: str
    question: str
    run_name: str
    settings: dict[str, str]
    seed: int
    stages: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    finished: bool = False
    logged: bool = False

    @classmethod
    def of(cls, config: TrainConfig, overrides: Sequence[str], sweep: Sweep) -> "Arm":
        """The arm of a configuration and its overrides; named after its values on the axes."""
        shown = (without_credentials(override) for override in overrides if not override.startswith("--"))
        pairs = (override.lstrip("+~").partition("=") for override in shown)
        settings = {key: value for key, _, value in pairs if not NOT_OF_AN_ARM.match(key)}
        words = [_word(key, value) for key, value in settings.items() if key in sweep.axes] or ["base"]
        others = {key: value for key, value in settings.items() if key not in sweep.axes}
        if others:  # arms of another sweep over the same axes are different arms
            words.append(hashlib.blake2b(json.dumps(others).encode(), digest_size=2).hexdigest())
        experiment, seed = config.experiment, config.seed
        run_name = f"{experiment.name}/{'_'.join(words)}-seed{seed}"
        question = without_credentials(experiment.question)
        return cls(experiment.name, question, run_name, settings, seed, number=sweep.number)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{ARM}.{os.getpid()}"
        aside.write_text(
            json.dumps({"format": 1, **asdict(self)}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(aside, folder / ARM)


def _word(key: str, value: str) -> str:
    """A value as part of a folder name, with its key unless the value is clear by itself."""
    word = re.sub(r"[^\w.]+", "-", value).strip("-")
    speaks = re.fullmatch(r"[a-z]\w*", value) and value not in ("true", "false", "null")
    return word if speaks else f"{key.rpartition('.')[2]}-{word}"


def train_arm(
    config: TrainConfig, overrides: Sequence[str], sweep: Sweep, prepare_data: Callable[[TrainConfig], None]
) -> float | None:
    """Train, or share, the stages of an arm in order, then evaluate it.

    Args:
        overrides: overrides of `config`, without the choice of stage.
        sweep: the sweep, and the arm's place in it.
        prepare_data: makes a stage's data where it can be made, and sets `data.shards`.

    Returns:
        `experiment.metric` of the last stage, for sweepers that optimise it.

    Raises:
        UserError: a stage or the evaluation failed (its own message is above), or a setting is not allowed here.
    """
    for key, remedy in (
        ("run_name", "experiment.name=NAME chooses the folder of all arms"),
        ("force", f"remove the stages in question from {Path(config.paths.runs) / SHARED}"),
    ):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise UserError(
                f"an ablation names its arms and finds finished stages itself, so {key} has no place: {remedy}"
            )
    _check_sweep(config, sweep)
    prepare_data(config)
    arm = Arm.of(config, overrides, sweep)
    config.run_name = arm.run_name
    folder = Path(config.paths.runs) / arm.run_name
    earlier = _read(folder / ARM)
    print(f"arm {arm.run_name}: stages {', '.join(config.variant.stages)}", flush=True)
    for number, stage in enumerate(config.variant.stages):
        start = [f"init_from={config.init_from}"] if number == 0 and config.init_from is not None else []
        of_stage = [*overrides, f"run_name={arm.run_name}", *start]
        arm.stages.append(_stage(arm, stage, of_stage, config.data.shards, prepare_data))
        arm.write(folder)
    if config.experiment.suite:
        arm.evaluation = _evaluate(config, arm, earlier.get("evaluation", {}))
    arm.finished = True
    unchanged = earlier.get("stages") == arm.stages and earlier.get("evaluation") == arm.evaluation
    arm.logged = unchanged and bool(earlier.get("logged"))
    arm.write(folder)
    mode = wandb_mode(config.logger.wandb)
    if mode != "off" and not arm.logged:
        with never_fatal(f"arm {arm.run_name}", "it is finished nevertheless; the same command sends it"):
            log_arm(config, folder, mode)
            arm.logged = True
            arm.write(folder)
    return stage_folder(config, config.variant.stages[-1]).last_metric(config.experiment.metric)


def _check_sweep(config: TrainConfig, sweep: Sweep) -> None:
    """Refuse axes that make all arms equal, and optimising a metric whose meaning differs between arms."""
    for axis in sweep.axes:
        if axis != "seed" and NOT_OF_AN_ARM.match(axis):
            raise UserError(
                f"{axis} is an axis of this sweep, but does not change what is learned, so all its arms would be the same; "
                "remove it from the axes and set it for all"
            )
    if sweep.optimises and config.experiment.metric == LOSS:
        for axis in sweep.axes:
            if axis == "objective" or axis.startswith("objective."):
                raise UserError(
                    f"{axis} is an axis of this search, and {LOSS} is the objective's own, so the search would find the "
                    "smallest objective; experiment.metric=val/served_accuracy hydra.sweeper.direction=maximize compares them, and "
                    f"~hydra.sweeper.params.{axis} removes it from the axes"
                )


def _stage(
    arm: Arm,
    stage: str,
    overrides: Sequence[str],
    shards: str | None,
    prepare_data: Callable[[TrainConfig], None],
) -> dict[str, Any]:
    """Train a stage of the arm unless it exists; returns its entry for `arm.json`."""
    config = settings_of_stage(stage, overrides)
    if config.stage.on_pairs:  # of its own parent's answers, unless they are given
        prepare_data(config)
    else:
        config.data.shards = shards
    shared = StageFolder(Path(config.paths.runs) / SHARED / f"{stage}-{content_hash(config)}")
    shared.root.mkdir(parents=True, exist_ok=True)
    _link(stage_folder(config, stage).root, shared.root)
    with hold(shared.root, "arm", f"arm {arm.run_name}, which makes this stage", wait=True):
        known = _read(shared.root / COST)
        made_by = known.pop("made_by", arm.run_name)
        cost = Cost(**known)
        if shared.finished:
            whose = "finished" if made_by == arm.run_name else f"reused, made by {made_by}"
            print(f"  stage {stage} is {whose}: {shared.root}", flush=True)
        else:
            made_by = arm.run_name
            status = cost.run([sys.executable, *COMMAND, *overrides, f"stage={stage}"])
            if (shared.root / MARK).exists():  # a stage that ended before it took its folder has to find it empty again
                write_json(shared.root / COST, {"format": 1, **asdict(cost), "made_by": made_by})
            check_status(status, f"stage '{stage}' of {arm.run_name}")
    return {
        "stage": stage,
        "folder": str(shared.root),
        "made_by": made_by,
        "reused": made_by != arm.run_name,
        **asdict(cost),
    }


def content_hash(config: TrainConfig) -> str:
    """Hash of everything that the stage's weights depend on: settings, data, the parent's weights, precision."""
    parent = find_parent(config)
    manifest = None if parent is None else StageManifest.of(parent)
    identity = run_identity(config, prepared_data(config, heads_of_stage(config)), manifest)
    if config.trainer.precision != FULL_PRECISION:
        identity["precision"] = config.trainer.precision
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()


def _link(link: Path, target: Path) -> None:
    """Make `link` a relative link to `target`; a link to another stage of `target`'s folder is replaced.

    Raises:
        UserError: something else has that name.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve().parent == target.parent.resolve():
        link.unlink()
    elif os.path.lexists(link):
        raise UserError(
            f"{link} is in the way: an arm has links to {target.parent} there; move it, or take another name"
        )
    link.symlink_to(os.path.relpath(target, link.parent))


def _evaluate(config: TrainConfig, arm: Arm, earlier: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the arm's last stage, unless exactly that was done: same weights, bench, judge and settings.

    Returns:
        Its entry for `arm.json`.
    """
    experiment, paths = config.experiment, config.paths
    settings = [f"suite={experiment.suite}", f"bench={experiment.bench}", *experiment.evaluate]
    places = [f"run_name={arm.run_name}", f"paths.data={paths.data}", f"paths.runs={paths.runs}"]
    of = {
        "weights": StageManifest.read(stage_folder(config, config.variant.stages[-1]).model).weights,
        "by": without_credentials(settings),
        "keys": evaluation_keys(_evaluate_config([*places, *settings])),
    }
    if earlier.get("of") == of:
        print("  evaluation is finished", flush=True)
        return earlier
    shared = [f"transcripts={Path(paths.runs) / SHARED / 'transcripts.jsonl'}"]
    wandb = [f"wandb={wandb_mode(config.logger.wandb)}", f"wandb_project={config.logger.wandb_project}"]
    cost = Cost()
    status = cost.run([sys.executable, "-m", "vita_audio_pl.evaluate", *places, *shared, *wandb, *settings])
    check_status(status, f"the evaluation of {arm.run_name}")
    return {"of": of, **asdict(cost)}


def _evaluate_config(settings: Sequence[str]) -> EvaluateConfig:
    """The configuration of the evaluation's own process; call inside an entry point, whose search path it uses."""
    register_schema("evaluate", EvaluateConfig)
    config: EvaluateConfig = to_dataclass(compose("evaluate", list(settings)))
    return config


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without its format; empty if there is no file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: value for name, value in found.items() if name != "format"}
