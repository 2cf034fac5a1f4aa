"""What a person names as a model, found on disk: the one place that all commands ask."""

import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.names import safe_name

CONFIG, MANIFEST = "config.json", "manifest.json"
MODELS = "models"  # of a stage: made of its checkpoints
ADAPTERS = "adapters.json"
"""In a model folder that holds adapters alone: says which model they were trained on."""
_MOST_RUNS = 10  # that a sentence lists
_MOST_ADAPTERS = 20  # trained on one another


def find_model(name: Path | str, runs: Path | str = "runs") -> Path:
    """The model folder that a person names: the one with `config.json`.

    Args:
        name: a model folder (published, a base model's, `.../model`, adapters), its folder in a cache of the Hugging Face
            hub, the folder of a stage or of a run, or the name of a run in `runs`.

    Raises:
        UserError: there is no model, or the name is ambiguous.
    """
    found = find_model_if_there(name, runs)
    if found is not None:
        return found
    folder = next((place for place in _places(name, runs) if place.exists()), None)
    if folder is None:
        finished = sorted({path.parents[2].name for path in Path(runs).glob(f"*/*/model/{MANIFEST}")})
        there = f"; {runs} has {', '.join(finished[:_MOST_RUNS])}" if finished else "; train one, or give a folder"
        raise UserError(f"there is no model folder {Path(name)}, and no run of that name in {runs}{there}")
    raise UserError(
        f"{folder} is not a model folder: it has no {CONFIG}, nor has a stage in it; the stage that makes it may not be finished"
    )


def find_model_if_there(name: Path | str, runs: Path | str = "runs") -> Path | None:
    """As `find_model`; None where there is no model.

    Raises:
        UserError: the name is ambiguous, or a checkpoint is named.
    """
    for place in _places(name, runs):
        for folder in (place, place / "model", *_in_cache(place)):
            if (folder / CONFIG).is_file():
                return folder
        if is_checkpoint(place):
            raise UserError(
                f"{place} is a checkpoint; make a model folder of it: python -m vita_audio_pl.export source={place} target=DIR"
            )
        if any(place.glob(f"*/model/{MANIFEST}")):
            return place / last_stage(place) / "model"
    return None


def _in_cache(place: Path) -> list[Path]:
    """The folder that a cache of the Hugging Face hub keeps a model in, for the name of the model's folder there."""
    main = place / "refs" / "main"
    if main.is_file():
        return [place / "snapshots" / safe_name(main.read_text(encoding="utf-8").strip())]
    return (
        list(place.iterdir())
        if place.name == "snapshots" and place.is_dir() and len(list(place.iterdir())) == 1
        else []
    )


def _places(name: Path | str, runs: Path | str) -> list[Path]:
    """Where the name may lead."""
    named = Path(name)
    return [named] if named.is_absolute() or str(name) in ("", ".") else [named, Path(runs) / named]


def find_run(name: Path | str, runs: Path | str = "runs") -> Path:
    """The folder of the run that a person names: itself, one of its stages, its model folder, or its name in `runs`.

    Raises:
        UserError: there is none.
    """
    inside = Path(runs) / name
    if inside.is_dir() and not is_part_of_run(inside):
        return inside
    return home_of(find_model(name, runs), runs)


def home_of(model: Path, runs: Path | str) -> Path:
    """Where what is made of a model stands: its run or, of a folder that is in none, `<runs>/<name of the folder>`.

    A published model may lie in a folder that others read, too: nothing is written there.
    """
    if (run := run_of(model)) is not None:
        return run
    home = Path(runs) / safe_name(model.absolute().name)
    if not any(home.glob(f"*/model/{CONFIG}")):
        return home
    return home.with_name(f"{home.name}-{sha256(os.fsencode(model.absolute())).hexdigest()[:8]}")  # a run has that name


def is_part_of_run(folder: Path) -> bool:
    """Whether the folder is a stage of a run, or its model, rather than a run."""
    return (folder / CONFIG).is_file() or (folder / "model" / CONFIG).is_file()


def run_of(model: Path) -> Path | None:
    """The run that a model folder lies in, as `RUN/STAGE/model` or, of a checkpoint, `RUN/STAGE/models/step-N`."""
    model = model.absolute()
    if model.name == "model" and (model / MANIFEST).is_file():
        return model.parents[1]
    return model.parents[2] if model.parent.name == MODELS else None


def may_name_checkpoint(name: Path | str) -> bool:
    """Whether a name looks like that of a checkpoint, or of the folder that holds them."""
    return re.fullmatch(r"checkpoints|step-\d+(\.\w+)?", Path(name).name) is not None


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint that a stage left, or holds them."""
    return (folder / "state.json").is_file() or (folder.name == "checkpoints" and any(folder.glob("step-*")))


def last_stage(run: Path) -> str:
    """The finished stage of a run that none of its other stages started from.

    Raises:
        UserError: no stage is finished, or the run has several ends.
    """
    manifests = {path.parents[1].name: read_manifest(path.parent) for path in sorted(run.glob(f"*/model/{MANIFEST}"))}
    starts = {manifest.get("parent_weights") for manifest in manifests.values()}
    ends = [stage for stage, manifest in manifests.items() if manifest.get("weights") not in starts]
    if len(ends) != 1:
        raise UserError(
            f"{run} has {'no finished stage' if not ends else 'several last stages, ' + ', '.join(ends)}; name the stage, as "
            f"{run / (ends or ['sft'])[0]}"
        )
    return ends[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a model folder; empty where there is none.

    Raises:
        UserError: it is no JSON object.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); the model folder is damaged") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path} must hold an object; the model folder is damaged")
    return manifest


def base_of(folder: Path) -> Path | None:
    """The model that the adapters in a model folder were trained on; None where the folder holds a whole model.

    Raises:
        UserError: it is not where it was.
    """
    path = folder / ADAPTERS
    if not path.is_file():
        return None
    try:
        places = [str(place) for place in json.loads(path.read_bytes())["base"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not say which model the adapters belong to ({error}); copy it again") from None
    for place in places:
        if (folder / place / CONFIG).is_file():
            return Path(os.path.normpath(folder / place))
    raise UserError(
        f"{folder} holds adapters of the model {places[-1]}, which is not there; move it back, or write its place into 'base' "
        f"of {path}"
    )


def part_of(folder: Path, name: str) -> Path | None:
    """A folder that goes with a model (`tokenizer`, `codec`, `speech_input`): in its own, or in that of the model which it
    adapts; None where there is none.
    """
    return next((place / name for place in (folder, whole_model(folder)) if (place / name).is_dir()), None)


def whole_model(folder: Path) -> Path:
    """The model folder with all weights: `folder`, or the one that its adapters lead to.

    Raises:
        UserError: it is not where it was.
    """
    for _ in range(_MOST_ADAPTERS):
        base = base_of(folder)
        if base is None:
            return folder
        folder = base
    raise UserError(f"{folder} holds adapters of adapters, {_MOST_ADAPTERS} deep: export the model first")
