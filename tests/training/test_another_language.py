"""The page on another language or codec: its files run, and what it says begins again is what a stage refuses."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.recipe import load_recipe
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import prepare_split, tokenize_job
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.training.run_folder.manifest import StageManifest, check_parent

PAGE = (Path(__file__).parents[2] / "docs" / "another-language.md").read_text(encoding="utf-8")
FEW = 6  # exchanges of the page's 96


def make(block: str) -> None:
    exec(compile(block, "docs/another-language.md", "exec"), {})


def prepared(folders: Path, shards: Path) -> PreparedSource:
    """The page's recipe with the tokenizer and the codec in `folders`."""
    tokenizer = TextTokenizer.load(folders / "tokenizer")
    job = tokenize_job(
        replace(load_recipe("mandarin.yaml"), held_out=0.0), "train", root=Path("mandarin"), shards=shards,
        tokenizer=tokenizer, codec_folder=folders / "codec", spoken=Path("mandarin/sound"),
    )  # fmt: skip
    manifest = prepare_split(job, console=Console(quiet=True))
    assert manifest is not None and manifest.samples == FEW and not manifest.report["skipped"]
    assert manifest.report["about"]["languages"] == ["zh"]
    source = PreparedSource(job.out)
    first = source.read(0).turns
    assert [kind.__class__.__name__ for turn in first for kind in turn.segments] == [
        "AudioCodes",
        "TextIds",
        "AudioCodes",
    ]
    assert tokenizer.decode(first[1].segments[0].ids) == "大红牛住在牛棚里\n"
    assert manifest.seconds > 2 * FEW  # of espeak-ng's Mandarin
    return source


def test_the_small_world_in_mandarin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        Path(re.findall(r"# (\S+)", block)[0]).write_text(block, encoding="utf-8")
    write_exchanges, fit = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    make(write_exchanges)
    lines = Path("mandarin/qa.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 96
    Path("mandarin/qa.jsonl").write_text("".join(lines[:FEW]), encoding="utf-8")
    english, noise = Path("english"), np.random.default_rng(0).normal(0, 0.1, (4, 16_000)).astype(np.float32)
    TextTokenizer.train(["the big red cow lives in the barn", "user assistant"], 300, english / "tokenizer")
    MelVQ.fit(list(noise), MelVQConfig(codebook_size=16)).save(english / "codec")
    with_english = prepared(english, Path("shards"))
    sound = {path: path.stat().st_mtime_ns for path in Path("mandarin/sound").glob("*/*.flac")}
    assert len(sound) == 2 * FEW
    make(fit)
    with_own = prepared(Path("mandarin"), Path("mandarin/shards"))
    assert {path: path.stat().st_mtime_ns for path in sound} == sound  # nothing was spoken again
    assert {s.name for s in with_own.manifest.shards}.isdisjoint(s.name for s in with_english.manifest.shards)

    begins_again(with_english, with_own)


def begins_again(old: PreparedSource, new: PreparedSource) -> None:
    """The rows of the page's table, as a stage compares its data with a finished model's."""

    def facts(source: PreparedSource, ratio: tuple[int, ...] = (1, 10, 4, 10)) -> dict[str, Any]:
        fingerprint = source.manifest.codec["fingerprint"]
        tokenizer = source.manifest.tokenizer
        return {"tokenizer": tokenizer, "codec_fingerprint": fingerprint, "text_audio_interval_ratio": list(ratio)}

    def goes_on(wanted: dict[str, Any]) -> None:
        parent = SimpleNamespace(stage="sft", n_heads=0, **facts(old))
        check_parent(
            cast(StageManifest, parent), Path("model"), stage="sft", variant="boost", allowed=["sft"], n_heads=None,
            facts=wanted,
        )  # fmt: skip

    goes_on(facts(old))  # another language alone: the finished model goes on
    for changed, said in (
        ("codec_fingerprint", "its audio codec"),
        ("tokenizer", "its text tokenizer"),
    ):
        with pytest.raises(UserError, match=said):
            goes_on(facts(old) | {changed: facts(new)[changed]})
    with pytest.raises(UserError, match="text_audio_interval_ratio"):
        goes_on(facts(old, (1, 4, 3, 8)))
