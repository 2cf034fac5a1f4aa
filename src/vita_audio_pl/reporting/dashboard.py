"""The project's wandb workspace as code: what a chain of stages shows, saved to wandb or as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.reporting.settings import PathsConfig

SECTIONS: dict[str, dict[str, str | list[str]]] = {
    "Loss": {
        "objective": ["train/loss", "val/loss"],
        "backbone": ["train/loss_main", "val/loss_main"],
        "heads": r"train/loss_head_\d+",
        "held out, by source": r"val/[^/]+/loss_main",
    },
    "Accuracy": {
        "backbone": ["train/accuracy_main", "val/accuracy_main"],
        "heads": r"train/accuracy_head_\d+",
        "heads, on the tokens they write": r"train/served_accuracy_head_\d+",
    },
    "Optimiser": {
        "gradient norm": ["grad_norm"],
        "learning rates": r"lr/.*",
        "steps left out": ["skipped_steps"],
    },
    "Speed": {
        "tokens per second": ["tokens_per_second"],
        "samples per second": ["samples_per_second"],
        "hours of audio per second": ["audio_hours_per_second"],
        "share of the devices' peak (MFU)": ["mfu"],
        "TFLOP/s of a device": ["tflops_per_device"],
        "memory (GiB)": ["memory_gib"],
        "share of time that waits for data and for checkpoints": ["data_wait_share", "checkpoint_wait_share"],
    },
    "Samples": {
        "WER of speech, as the judge hears it": r"samples/[^/]+/speech_wer",
        "WER of transcripts": ["samples/asr/wer"],
        "accepted answers": r"samples/[^/]+/(text|speech)_accuracy",
    },
    "Data": {"shares of sources": r"source/.*", "padding": ["padding_share"]},
}
"""Section -> title of a plot -> names of metrics, or a regular expression over them."""
TABLES = {"Samples": ["samples/answers"]}
"""Section -> names of logged tables, shown below its plots: what the model answered, with its audio."""


@dataclass
class DashboardConfig:
    """Everything that `python -m vita_audio_pl.report dashboard` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    entity: str = ""  # wandb user or team; needed to save it there
    project: str = "vita-audio-pl"
    name: str = "Stages of a chain"
    output: str | None = None  # the workspace as JSON, written offline too; null = runs/dashboard.json
    upload: bool = False  # save it to wandb, which needs a key and the network

    def check(self) -> None:
        if self.upload and not self.entity:
            raise UserError("upload=true saves the workspace under a wandb user or team: give entity=NAME")


def build_workspace(config: DashboardConfig) -> Any:
    """The workspace, with the stages of a run grouped.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2.interface import LinePlot, WeavePanelSummaryTable
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'vita-audio-pl[dashboard]'") from error

    def plot(title: str, metrics: str | list[str]) -> LinePlot:
        if isinstance(metrics, str):
            return LinePlot(title=title, x="Step", metric_regex=metrics)
        return LinePlot(title=title, x="Step", y=[*metrics])

    return workspaces.Workspace(
        entity=config.entity,
        project=config.project,
        name=config.name,
        sections=[
            workspaces.Section(
                name=name,
                panels=[
                    *(plot(*each) for each in plots.items()),
                    *(WeavePanelSummaryTable(table_name=table) for table in TABLES.get(name, ())),
                ],
                is_open=True,
            )
            for name, plots in SECTIONS.items()
        ],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )


def write_dashboard(config: DashboardConfig) -> None:
    """Write the workspace as JSON and, if asked, save it to wandb."""
    workspace = build_workspace(config)
    path = Path(config.output or f"{config.paths.runs}/dashboard.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    model = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    path.write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
    print(f"workspace  {path.resolve()}")
    if config.upload:
        workspace.save()
        print(f"saved      {workspace.url}")
