"""Evaluation results in wandb: one run per evaluated run, grouped with its training stages."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vita_audio_pl.config.decoding import label_of
from vita_audio_pl.storage.secrets import command_line_without_credentials

EVALUATION_TABLE = "evaluation"


@contextmanager
def never_fatal(missing: str, remedy: str) -> Iterator[None]:
    """Turns a failure of wandb into one printed sentence, so that finished work stays finished.

    Args:
        missing: what wandb does not have then.
        remedy: what that means, or how to mend it.
    """
    try:
        yield
    except Exception as error:  # wandb's, its service's and the transport's exceptions have no other common base
        print(f"wandb has no {missing} ({type(error).__name__}: {error}): {remedy}", file=sys.stderr, flush=True)


def figures_by_key(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Every figure under `<bench>/<split>/<task>/<metric>/<stage>/<mode>`, and `/<profile>` where it is not strict.

    Verified drafts are a mode of their own, `boost+verify`, and so are drawn tokens, `boost+sampled`.
    """
    figures = {}
    for result in results:
        mode = label_of(result)
        for metric, figure in result["metrics"].items():
            place = (result["bench"], result["split"], result["task"], metric, result["stage"], mode)
            profile = "" if result["profile"] == "strict" else f"/{result['profile']}"
            figures["/".join(place) + profile] = figure["value"]
    return figures


def log_to_wandb(
    results: Sequence[dict[str, Any]], folder: Path, group: str, mode: Literal["offline", "online"], project: str
) -> None:
    """Log every figure under its key (`figures_by_key`), and all of them as one table.

    Where wandb cannot be reached, the evaluation is finished nevertheless.

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
    rows = []
    for result in results:
        for metric, figure in result["metrics"].items():
            values = [figure[name] for name in ("value", "low", "high", "utterances")]
            rows.append([*(result[name] for name in names), metric, *values, *(result[name] for name in costs)])
    remedy = f"they are in {folder}; the same command sends them once wandb can be reached"
    with (
        never_fatal(f"figures of {group}", remedy),
        command_line_without_credentials(),
        wandb.init(
            project=project,
            name=f"{group}/evaluation",
            group=group.partition("/")[0],
            job_type="evaluate",
            dir=folder,
            mode=mode,
        ) as run,
    ):
        run.log(figures_by_key(results) | {EVALUATION_TABLE: wandb.Table(columns, rows)})
