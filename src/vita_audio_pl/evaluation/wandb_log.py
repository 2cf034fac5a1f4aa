"""Evaluation figures in wandb: one run per evaluated run, grouped with its training stages."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal


def log_to_wandb(
    results: Sequence[dict[str, Any]], folder: Path, group: str, mode: Literal["offline", "online"], project: str
) -> None:
    """Log every figure under `<bench>/<split>/<task>/<metric>/<stage>/<mode>`, and all of them as one table.

    Args:
        folder: gets the files of an offline run.
        group: name of the evaluated run; its training stages are grouped by it, too, or by what stands before its `/`.
        mode: `offline` or `online`.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder.mkdir(parents=True, exist_ok=True)
    names = ("bench", "split", "task", "stage", "mode", "verify", "profile", "judge", "limited_to")
    costs = ("backbone_passes", "head_passes", "tokens", "silent", "unfinished", "failed")
    columns: list[str | int] = [*names, "metric", "value", "low", "high", "utterances", *costs]
    rows, figures = [], {}
    for result in results:
        for metric, figure in result["metrics"].items():
            place = (result["bench"], result["split"], result["task"], metric, result["stage"], result["mode"])
            profile = "" if result["profile"] == "strict" else f"/{result['profile']}"
            figures["/".join(place) + profile] = figure["value"]
            values = [figure[name] for name in ("value", "low", "high", "utterances")]
            rows.append([*(result[name] for name in names), metric, *values, *(result[name] for name in costs)])
    with wandb.init(
        project=project,
        name=f"{group}/evaluation",
        group=group.partition("/")[0],
        job_type="evaluate",
        dir=folder,
        mode=mode,
    ) as run:
        run.log(figures | {"evaluation": wandb.Table(columns, rows)})
