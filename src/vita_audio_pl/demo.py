"""`python -m vita_audio_pl.demo`: the small spoken world, all stages, their evaluation, one page."""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import setting
from vita_audio_pl.processes import check_status, run_command
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.owned import below

SMOKE = (
    "data=spoken_world_smoke", "model.num_hidden_layers=3", "per_stage.align.steps=360", "per_stage.mtp1.steps=20",
    "per_stage.mtp10.steps=90", "per_stage.sft.steps=20",
)  # fmt: skip
COMMON = ("trainer=cpu_ddp", "callbacks.samples.every_steps=null")
TRAIN = {"full": COMMON, "smoke": (*COMMON, *SMOKE)}
BENCH = {"full": "spoken_world", "smoke": "spoken_world_smoke"}
SUITE = {"full": "demo", "smoke": "demo_smoke"}


@dataclass
class DemoConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.demo`."""

    size: str = setting(
        "full", "full, or smoke: a smaller world and model, fewer steps", choices=("full", "smoke"), common=True
    )
    seed: int = setting(1, "seed of the training; the world stays the same", at_least=0, common=True)
    run_name: str = setting("", "name of the run: output goes to <paths.runs>/<run_name>", common=True)
    train: list[str] = setting([], "more settings for the training command", common=True)
    evaluate: list[str] = setting([], "more settings for the evaluation command", common=True)


def demo(config: DemoConfig) -> None:
    """Run the steps one after another, each as the command that a user would type."""
    run, place = f"run_name={config.run_name}", [f"paths.data={config.paths.data}", f"paths.runs={config.paths.runs}"]
    size, bench = config.size, f"bench={BENCH[config.size]}"
    steps = {
        "prepare the world": ["prepare", f"size={size}"],
        "train": ["train", "stage=chain", run, f"seed={config.seed}", *TRAIN[size], *config.train],
        "evaluate": ["evaluate", f"suite={SUITE[size]}", run, bench, *config.evaluate],
        "report": ["report", run],
    }
    folder = below(Path(config.paths.runs), config.run_name, "run_name")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "durations.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    seconds: dict[str, float] = earlier.get("seconds", {})
    for number, (name, (module, *settings)) in enumerate(steps.items(), 1):
        command = [sys.executable, "-m", f"vita_audio_pl.{module}", *place, *settings]
        print(f"\n[{number}/{len(steps)}] {name}: python {' '.join(command[1:])}", flush=True)
        started = time.perf_counter()
        status = run_command(command)
        seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - started, 1)
        write_json(path, {"format": 1, "seconds": seconds})
        check_status(status, f"'{name}'")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    parts = ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items())
    print(f"done in {sum(seconds.values()) / 60:.1f} minutes ({parts}); the largest process took {largest:.1f} GiB")


def main() -> None:
    run_entry_point(demo, "demo", DemoConfig)


if __name__ == "__main__":
    main()
