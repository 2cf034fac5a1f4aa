"""The project's wandb workspace as code: panels for a chain of stages, saved to wandb or as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_output

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
        "WER of speech, as the judge transcribed it": r"samples/[^/]+/speech_wer",
        "WER of transcripts": ["samples/asr/wer"],
        "accepted answers": r"samples/[^/]+/(text|speech)_accuracy",
    },
    "Data": {"shares of sources": r"source/.*", "padding": ["padding_share"]},
}
"""Section -> title of a plot -> names of metrics, or a regular expression over them; x is the optimiser step."""
EVALUATION = {
    "WER of speech, as the judge transcribed it": r"[^/]+/[^/]+/[^/]+/speech_wer/.*",
    "WER of transcripts": r"[^/]+/[^/]+/asr/wer/.*",
    "WER of what is written beside speech": r"[^/]+/[^/]+/[^/]+/text_wer/.*",
    "accepted answers": r"[^/]+/[^/]+/[^/]+/(text|speech)_accuracy/.*",
}
"""Title of a plot -> what evaluation logs once: `<bench>/<split>/<task>/<metric>/<stage>/<mode>`."""
MODES = ("vanilla", "own", "own+verify", "turbo", "turbo+verify")
ARMS = {
    "TTS: WER of speech": [f"arm/tts/speech_wer/{mode}" for mode in MODES],
    "TTS: backbone passes of an answer": [f"arm/tts/backbone_passes/{mode}" for mode in MODES],
    "spoken questions: accepted answers, heard": [f"arm/sqa/speech_accuracy/{mode}" for mode in MODES],
    "CPU seconds that the arm added": ["arm/cpu_seconds"],
}
"""Title of a bar chart -> figures in the summaries of an ablation's arms, of the test split."""
TABLES = {"Samples": ["samples/answers"], "Evaluation": ["evaluation"]}
"""Section -> logged tables, shown below its plots: answers with their audio; every figure with its interval."""
STEP = "trainer/global_step"
"""What Lightning logs beside every figure; wandb's own step counts calls that log."""
MOST_RUNS = 100  # lines of a plot: wandb's usual 10 would leave out most of a sweep


@dataclass
class DashboardConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.report dashboard`."""

    entity: str = setting("", "wandb user or team, needed to save it there")
    project: str = setting("vita-audio-pl", "wandb project of the runs")
    name: str = "Stages of a chain"
    output: str | None = setting(None, "JSON file of the workspace, written offline too; null = runs/dashboard.json")
    upload: bool = setting(False, "save it to wandb (needs a key and the network)")

    def check(self) -> None:
        if self.upload and not self.entity:
            raise UserError("upload=true saves the workspace under a wandb user or team: give entity=NAME")


def build_workspace(config: DashboardConfig) -> Any:
    """The workspace: a line for each run, in a table of groups (ablation or run) and their stages.

    Panels follow the table's grouping and draw the mean of a group, so the grouping goes down to the run's name.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, WeavePanelSummaryTable
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'vita-audio-pl[dashboard]'") from error

    def plot(title: str, metrics: str | list[str]) -> Any:
        if isinstance(metrics, str):
            return LinePlot(title=title, x=STEP, metric_regex=metrics)
        return LinePlot(title=title, x=STEP, y=[*metrics])

    panels = {name: [plot(*each) for each in plots.items()] for name, plots in SECTIONS.items()}
    panels["Evaluation"] = [LinePlot(title=title, x="Step", metric_regex=regex) for title, regex in EVALUATION.items()]
    panels["Arms of an ablation"] = [
        BarPlot(title=title, metrics=[*names], max_runs_to_show=MOST_RUNS) for title, names in ARMS.items()
    ]
    for name, tables in TABLES.items():
        panels[name] += [WeavePanelSummaryTable(table_name=table) for table in tables]
    return workspaces.Workspace(
        entity=config.entity,
        project=config.project,
        name=config.name,
        sections=[workspaces.Section(name=name, panels=these, is_open=True) for name, these in panels.items()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=MOST_RUNS),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric(by) for by in ("Group", "JobType", "Name")]
        ),
    )


def write_dashboard(config: DashboardConfig) -> None:
    """Write the workspace as JSON and, if requested, save it to wandb."""
    workspace = build_workspace(config)
    path = Path(config.output or f"{config.paths.runs}/dashboard.json")
    model = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    write_output(path, (json.dumps(model, indent=2) + "\n").encode())
    print(f"workspace  {path.resolve()}")
    if config.upload:
        workspace.save()
        print(f"saved      {workspace.url}")
