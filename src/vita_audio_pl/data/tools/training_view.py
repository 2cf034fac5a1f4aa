"""Prepared data as a run would see it: lengths under a ratio, the plan, a batch."""

from pathlib import Path

from rich.console import Console

from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.tools import tables
from vita_audio_pl.data.tools.preview import preview_html
from vita_audio_pl.data.tools.settings import DataToolsConfig
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.storage.files import write_output
from vita_audio_pl.text import Renderer, RenderOptions, TextTokenizer, Vocabulary


def show_stats(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Lengths and labels of sources."""
    tokenizer, vocabulary = _tokenizer(config, names[0])
    rule = Renderer(vocabulary, tokenizer, _render_options(config)).length_rule
    sources = tables.prepared_in(Path(config.data.folder), names)
    console.print(tables.stats_table(sources, rule, config.row_length, continuous=False))


def show_plan(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """Shares, rows and steps of an epoch of the mixture."""
    console.print(tables.plan_table(_module(config), config.planned_rows))


def show_preview(config: DataToolsConfig, console: Console, names: list[str]) -> None:
    """The first batch of the mixture as a page."""
    module = _module(config)
    batch = next(iter(module.train_dataloader()))
    title = f"{config.data.name}, mixture {module.mixture.name}, ratio {config.text_audio_interval_ratio}"
    page = preview_html(batch, *_tokenizer(config, module.sources[0].name), title)
    write_output(config.output, page.encode())
    console.print(f"a batch of {config.rows} rows is shown in {config.output}")


def _module(config: DataToolsConfig) -> SpeechDataModule:
    tokenizer, vocabulary = _tokenizer(config, load_mixture(config.data.mixture).shares[0].source)
    return SpeechDataModule(
        config.data,
        vocabulary,
        tokenizer,
        _render_options(config),
        rows_per_batch=config.rows,
        row_length=config.row_length,
        accumulate=1,
        seed=config.seed,
    )


def _tokenizer(config: DataToolsConfig, source: str) -> tuple[TextTokenizer, Vocabulary]:
    """The tokenizer, and the vocabulary with as many codes as a source's codec has."""
    tokenizer = TextTokenizer.load(config.tokenizer_folder)
    codec = PreparedSource(Path(config.data.folder) / source).manifest.codec
    return tokenizer, tokenizer.vocabulary(int(codec.get("codebook_size", 1)))


def _render_options(config: DataToolsConfig) -> RenderOptions:
    return RenderOptions(
        IntervalRatio.of(config.text_audio_interval_ratio),
        DecodePattern.of(config.decode_pattern),
        config.n_heads,
        tuple(config.lead_in),
        text_weight=config.text_weight,
        audio_weight=config.audio_weight,
    )
