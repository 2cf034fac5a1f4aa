"""`python -m vita_audio_pl.data info|stats|lint|plan|preview`: look at prepared data."""

import sys
from pathlib import Path

from rich.console import Console

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.data.prepared import prepared_names
from vita_audio_pl.data.tools import tables
from vita_audio_pl.data.tools.lint import lint_source, quarantine
from vita_audio_pl.data.tools.settings import COMMANDS, DataToolsConfig
from vita_audio_pl.errors import UserError


def look(config: DataToolsConfig) -> None:
    """Shows what the command asks for."""
    console = Console() if sys.stdout.isatty() else Console(width=220)
    shards = Path(config.data.folder)
    names = [config.source] if config.source else list(prepared_names(shards))
    if not names:
        raise UserError(f"nothing is prepared in {shards}: run python -m vita_audio_pl.prepare, or set data.shards=DIR")
    if config.command == "info":
        console.print(tables.info_table(tables.prepared_in(shards, names)))
    elif config.command == "lint":
        lint(config, console, names)
    else:
        # these need torch, which takes seconds to import
        from vita_audio_pl.data.tools.training_view import show_plan, show_preview, show_stats

        {"stats": show_stats, "plan": show_plan, "preview": show_preview}[config.command](config, console, names)


def lint(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Reads every byte of the sources; ends with status 1 if anything is wrong."""
    folder = Path(config.data.folder)
    findings = [lint_source(folder / name) for name in names]
    console.print(tables.lint_table(findings))
    for found in findings:
        sentences = [f"{found.source} sample {sample}: {told}" for sample, told in sorted(found.broken.items())]
        for sentence in [*found.problems, *sentences]:
            console.print(sentence, highlight=False, markup=False)
        if config.quarantine:
            quarantine(folder / found.source, found)
    if not all(found.clean for found in findings):
        raise SystemExit(1)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:  # `data lint` reads better than `data command=lint`
        sys.argv[1] = f"command={sys.argv[1]}"
    run_entry_point(look, "data_tools", DataToolsConfig)


if __name__ == "__main__":
    main()
