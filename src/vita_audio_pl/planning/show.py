"""Plans as tables and files."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vita_audio_pl.planning.stage_plan import GIB, StagePlan, count_of
from vita_audio_pl.storage.files import write_output_json

KINDS = ("weights", "gradients", "optimiser", "activations", "loss", "working")


def parameters_table(plans: Sequence[StagePlan]) -> Table:
    """Parameters by part; trained ones are marked."""
    table = _table("Parameters (millions); * trains", "stage")
    names = list(dict.fromkeys(name for plan in plans for name in (*plan.trained, *plan.frozen)))
    for name in (*names, "trained", "frozen"):
        table.add_column(name, justify="right")
    for plan in plans:
        cells = []
        for name in names:
            trained, frozen = plan.trained.get(name, 0), plan.frozen.get(name, 0)
            shown = [f"{trained / 1e6:,.2f}*"] * bool(trained) + [f"{frozen / 1e6:,.2f}"] * bool(frozen)
            cells.append(" + ".join(shown) or "-")
        totals = (sum(plan.trained.values()), sum(plan.frozen.values()))
        table.add_row(plan.stage, *cells, *(f"{total / 1e6:,.2f}" for total in totals))
    return table


def memory_table(plans: Sequence[StagePlan]) -> Table:
    """Memory of one device by kind."""
    engines = ", ".join(dict.fromkeys(f"trainer={plan.engine}, {count_of(plan.devices)}" for plan in plans))
    table = _table(f"Memory of one device (GiB), {engines}", "stage")
    for name in (*KINDS, "peak"):
        table.add_column(name, justify="right")
    hosts = any(plan.memory.host for plan in plans)
    if hosts:
        table.add_column("host", justify="right")
    for plan in plans:
        cells = [f"{getattr(plan.memory, kind) / GIB:.2f}" for kind in (*KINDS, "peak", *(["host"] if hosts else []))]
        table.add_row(plan.stage, *cells)
    table.caption = "kinds peak at different moments; the CUDA context and fragmentation (1 to 3 GiB) come on top"
    return table


def host_table(plans: Sequence[StagePlan]) -> Table:
    """Host memory of start, saving and hand-over, and what these write."""
    table = _table("Host memory and files (GiB): start, saving, hand-over", "stage")
    columns = {
        "start, a rank": "start",
        "a save, a rank": "save",
        "hand-over, rank 0": "hand_over",
        "most, a rank": "rank",
        "most, a node": "node",
        "written by a rank": "written",
        "checkpoint": "checkpoint",
        "model": "model",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for plan in plans:
        table.add_row(plan.stage, *(f"{getattr(plan.host, field) / GIB:.2f}" for field in columns.values()))
    table.caption = (
        "what imports take comes on top (0.5 to 1 GiB a process); nodes share the page cache among their ranks"
    )
    return table


def time_table(plans: Sequence[StagePlan], assumed: str) -> Table:
    """FLOPs, tokens, hours, cost."""
    table = _table(f"Work and time, {assumed}", "stage")
    priced = all(plan.cost is not None for plan in plans)
    columns = (
        "steps",
        "PFLOP a step",
        "tokens (G)",
        "audio hours",
        "hours",
        "GPU hours",
        *(["cost"] if priced else []),
    )
    for name in columns:
        table.add_column(name, justify="right")
    for plan in plans:
        cells = [f"{plan.steps:,}", f"{plan.flops / 1e15:,.3g}", f"{plan.tokens / 1e9:.3g}", f"{plan.audio_hours:,.0f}"]
        cells += [f"{plan.hours:,.2f}", f"{plan.gpu_hours:,.1f}", *([f"{plan.cost:,.0f}"] if priced else [])]
        table.add_row(plan.stage, *cells)
    if len(plans) > 1:
        sums = ["all", f"{sum(p.steps for p in plans):,}", "", f"{sum(p.tokens for p in plans) / 1e9:.3g}", ""]
        sums += [f"{sum(p.hours for p in plans):,.2f}", f"{sum(p.gpu_hours for p in plans):,.1f}"]
        table.add_row(*sums, *([f"{sum(p.cost or 0 for p in plans):,.0f}"] if priced else []), style="bold")
    return table


def write_plans(plans: Sequence[StagePlan], path: Path | str) -> None:
    """All numbers as JSON."""
    write_output_json(path, {"format": 1, "stages": [plan.to_dict() for plan in plans]})


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    return table
