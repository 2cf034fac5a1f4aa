"""Settings of earlier versions, by command, and what they are called today: the old name is refused with the new one."""

from collections.abc import Sequence
from typing import Any

_STAGES = ("align", "mtp1", "mtp10", "sft")
_TRAINING = {
    "callbacks.go_on_from": "callbacks.resume_from_step",
    "objective.name": "objective",
    "optim.betas": "optim.optimizer.betas",
    "optim.eps": "optim.optimizer.eps",
    "optim.warmup_share": "optim.schedule.warmup_share",
    "optim.warmup": "optim.schedule.warmup",
    "optim.min_rate_share": "optim.schedule.min_rate_share",
    "trainer.zero_stage": "trainer.engine.stage",
    "trainer.offload": "trainer.engine.offload",
    **{f"experiment.steps.{stage}": f"per_stage.{stage}.steps" for stage in _STAGES},
}
RENAMED: dict[str, dict[str, str]] = {
    "train": _TRAINING,
    "plan": _TRAINING,
    "data_tools": {
        **_TRAINING,
        "row_length": "stage.sequence_length",
        "rows": "stage.rows_per_step",
        "text_weight": "rendering.text_weight",
        "audio_weight": "rendering.audio_weight",
        "lead_in": "rendering.lead_in_codes",
        "tokenizer": "data.tokenizer_folder",
    },
    "evaluate": {"constrain_audio": "constrain", "heard": "transcripts"},
    "benchmark": {"decoding.agreement": "decoding.agreements"},
}


def rename_settings(held: dict[str, Any], command: str) -> dict[str, Any]:
    """Settings that an earlier version wrote, nested by group, under today's names; in place."""
    for old, new in RENAMED[command].items():
        *groups, name = old.split(".")
        node = _group(held, groups)
        if node is None or name not in node or old.startswith(f"{new}."):
            continue
        *groups, today = new.split(".")
        place = _group(held, groups)
        if place is not None:
            place.setdefault(today, node.pop(name))
    return held


def _group(held: dict[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    node: Any = held
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
