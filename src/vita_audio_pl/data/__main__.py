"""`python -m vita_audio_pl.data info|status|card|stats|lint|overlap|plan|preview`: look at prepared data.

An entry point: what `stats`, `plan` and `preview` show is built by the functions that training uses, from its settings.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import setting
from vita_audio_pl.config.screen import screen
from vita_audio_pl.data.card import MixtureCard, card_of, judged_in
from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.prepared import Manifest, PreparedSource, nothing_prepared, prepared_names
from vita_audio_pl.data.staging import beside, send_quarantine, shards_place, source_folders, tokenizer_there
from vita_audio_pl.data.tools import tables
from vita_audio_pl.data.tools.lint import lint_source, quarantine
from vita_audio_pl.data.tools.status import status_of, status_table
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.copies import reaching
from vita_audio_pl.storage.files import check_own, json_bytes, write_output
from vita_audio_pl.storage.places import Place, names_in
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import CHAIN, TrainConfig

if TYPE_CHECKING:
    from vita_audio_pl.data.tools.overlap import Overlap

MADE_BY = "python -m vita_audio_pl.data"
"""Generator name in cards and previews, by which this program recognises its own files."""
COMMANDS = ("info", "status", "card", "stats", "lint", "overlap", "plan", "preview")


@dataclass
class DataToolsConfig(TrainConfig):
    """Settings of `python -m vita_audio_pl.data`: training's settings, and these."""

    command: str = setting("info", "what to show", choices=COMMANDS, common=True)
    source: str | None = setting(
        None, "one source; null = all in data.shards (plan, preview, card: those of the mixture)", common=True
    )
    planned_rows: int = setting(1000, "rows over which `plan` counts shares", at_least=1)
    against: list[str] = setting(
        [], "overlap, card: prepared sources, such as test sets, that must share no samples with training", common=True
    )
    quarantine: bool = setting(False, "lint, overlap: exclude the samples found from training", common=True)
    output: str | None = setting(
        None,
        "file that preview writes (null = preview.html) or card (null = card.md, with card.json beside it)",
        common=True,
    )


def look(config: DataToolsConfig) -> None:
    """Run the subcommand."""
    console = screen(220)
    shards = shards_place(config.data)
    if config.command == "status":
        show_status(config, console, shards)
        return
    names = [config.source] if config.source else list(prepared_names(shards))
    if not names:
        raise UserError(nothing_prepared(shards))
    if config.command == "info":
        console.print(tables.info_table([Manifest.load(shards / name) for name in names]))
    elif config.command == "card":
        write_card(config, console, names)
    elif config.command == "lint":
        lint(config, console, names)
    elif config.command == "overlap":
        overlap(config, console, names)
    else:
        show_as_trained(config, console, names)


def show_status(config: DataToolsConfig, console: Console, shards: Place) -> None:
    """Per source: parts that are done, running, failed and waiting."""
    names = [config.source] if config.source else _of_mixture(config, names_in(shards))
    with reaching(shards):
        found = [status_of(shards / name) for name in names]
    console.print(status_table(found, load_mixture(config.data.mixture)))
    for sentence in (sentence for one in found for sentence in one.failures):
        console.print(sentence, highlight=False, markup=False)


def _of_mixture(config: DataToolsConfig, there: Sequence[str]) -> list[str]:
    """The mixture's sources, including held-out ones, and all other sources whose preparation has started."""
    wanted = [share.source for share in load_mixture(config.data.mixture).shares]
    held_out = f".{config.data.validation}"
    beside = [name for name in there if not name.startswith(".") and name not in wanted]
    known = [name for source in wanted for name in (source, f"{source}{held_out}") if name in (*wanted, *there)]
    return list(dict.fromkeys([*known, *beside]))


def write_card(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """The data card of the mixture, or of one source, as Markdown and JSON."""
    shards, mixture = shards_place(config.data), load_mixture(config.data.mixture)
    if config.source is None:
        names = [share.source for share in mixture.shares if share.source in names]
    overlaps: dict[str, dict[str, dict[str, int]]] = {}
    for source, other, found in _overlaps(config, names) if config.against else ():
        by_kind = overlaps.setdefault(source, {}).setdefault(other, {})
        by_kind |= Counter(one.kind for one in found)
    manifests = [Manifest.load(shards / name) for name in names]
    cards = [card_of(one, overlaps.get(one.source), judged_in(shards / one.source, one)) for one in manifests]
    card = cards[0] if config.source else MixtureCard.of(mixture, cards)
    page, beside = Path(config.output or "card.md"), Path(config.output or "card.md").with_suffix(".json")
    if page == beside:
        raise UserError(f"output is {page}, where the card for programs goes: give the name of the Markdown file, x.md")
    for path in (beside,) if config.output else (page, beside):
        check_own(path, MADE_BY)
    write_output(page, f"{card.to_markdown()}\n\nMade by `{MADE_BY}`.\n".encode("utf-8", "backslashreplace"))
    write_output(beside, json_bytes({"made_by": MADE_BY, **card.to_json()}))
    console.print(f"the card is in {page}, and for programs in {beside}")


def lint(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Read every byte of the sources; status 1 if anything is damaged."""
    folders = source_folders(config.data, names, with_audio=True)
    findings = [lint_source(folder) for folder in folders]
    console.print(tables.lint_table(findings))
    for found, folder in zip(findings, folders, strict=True):
        sentences = [f"{found.source} sample {sample}: {told}" for sample, told in sorted(found.broken.items())]
        for sentence in [*found.problems, *sentences]:
            console.print(sentence, highlight=False, markup=False)
        if config.quarantine:
            quarantine(folder, found)
            send_quarantine(config.data, folder)
    if not all(found.clean for found in findings):
        raise SystemExit(1)


def overlap(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Duplicate samples: within the sources, and between them and those in `against`."""
    from vita_audio_pl.data.tools.overlap import overlap_table

    found = list(_overlaps(config, names))
    broken: dict[str, dict[int, str]] = {}
    for source, _, overlaps in found if config.quarantine else ():
        broken.setdefault(source, {}).update({one.number: str(one) for one in overlaps})
    for folder in source_folders(config.data, list(broken)):
        PreparedSource(folder).quarantine(broken[folder.name])
        send_quarantine(config.data, folder)
    console.print(overlap_table(found))


def _overlaps(config: DataToolsConfig, names: list[str]) -> Iterator[tuple[str, str, "list[Overlap]"]]:
    """Source, other source and the samples in both: each source with itself and with each of `against`."""
    from vita_audio_pl.data.tools.overlap import find_overlap, prints_of
    from vita_audio_pl.text import TextTokenizer

    tokenizer = TextTokenizer.load(tokenizer_there(config.data))
    tests = [prints_of(source, tokenizer) for source in tables.prepared_in(config.data, config.against)]
    for source in tables.prepared_in(config.data, [name for name in names if name not in config.against]):
        mine = prints_of(source, tokenizer)
        for other in (mine, *tests):
            yield source.name, other.source.name, list(find_overlap(mine, other))


def show_as_trained(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Lengths, plan or a batch of the data, as the stage would train on it."""
    # these need torch, which takes seconds to import
    from vita_audio_pl.codecs.protocol import load_codec
    from vita_audio_pl.data.datamodule import SpeechDataModule
    from vita_audio_pl.data.tools.preview import preview_html
    from vita_audio_pl.text import Renderer, TextTokenizer
    from vita_audio_pl.training.stage.data import prepared_data, render_options

    check_train_config(config)
    if config.stage.name == CHAIN:
        raise UserError("a chain has no rows of its own: give one of its stages, as stage=align")
    heads = config.n_heads if config.stage.n_heads is None else config.stage.n_heads
    if config.command == "stats":
        codec, tokenizer = load_codec(beside(config.data, "codec")), TextTokenizer.load(tokenizer_there(config.data))
        hears = config.variant.has_audio_encoder
        vocabulary = tokenizer.vocabulary(codec.codebook_size, continuous_input=hears)
        rule = Renderer(vocabulary, tokenizer, render_options(config, codec, heads)).length_rule
        sources = tables.prepared_in(config.data, names)
        console.print(tables.stats_table(sources, rule, config.stage.sequence_length, continuous=hears))
        return
    config.callbacks.samples.every_steps = 0  # sample prompts are needed in training only
    data = prepared_data(config, heads)
    module = data.datamodule
    assert isinstance(module, SpeechDataModule)
    if config.command == "plan":
        console.print(tables.plan_table(module, config.planned_rows))
        return
    batch = next(iter(module.train_dataloader()))
    title = f"{config.data.name}, mixture {module.mixture.name}, ratio {config.text_audio_interval_ratio}"
    page = preview_html(batch, TextTokenizer.load(data.tokenizer_folder), data.vocabulary, title)
    target = Path(config.output or "preview.html")
    if config.output is None:
        check_own(target, MADE_BY)
    write_output(target, page.encode())
    console.print(f"a batch of {len(batch.input_ids)} rows is shown in {target}")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].isidentifier():  # `data lint` reads better than `data command=lint`
        sys.argv[1] = f"command={sys.argv[1]}"
    run_entry_point(look, "data_tools", DataToolsConfig, apply_stage_settings)


if __name__ == "__main__":
    main()
