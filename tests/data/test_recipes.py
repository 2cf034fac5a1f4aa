"""Recipes and mixtures: corpora described in YAML, the layouts that they look for, and their splits."""

import json
from pathlib import Path

import pytest

from tests.data.reading import bad, contents, good
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.readers.sides import planned_once
from vita_audio_pl.data.readers.tables import TableReader
from vita_audio_pl.data.recipe import TASKS, load_recipe, parse_recipe
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.places import Place


def test_every_recipe_names_a_reader_that_opens(tmp_path: Path) -> None:
    names = [path.stem for path in (asset_dir("data_recipes") / "sources").glob("*.yaml")]
    for name in names:
        recipe = load_recipe(name)
        assert recipe.task in TASKS and recipe.licence and recipe.home and recipe.layout
        for split in recipe.all_splits:
            recipe.open(tmp_path, split)
    for path in (asset_dir("data_recipes") / "mixtures").glob("*.yaml"):
        assert {share.source for share in load_mixture(path.stem).shares} <= set(names)


def test_the_published_mixtures_have_the_published_shares() -> None:
    first = {share.source: share for share in load_mixture("mixture_1").shares}
    last = {share.source: share for share in load_mixture("mixture_2").shares}
    assert first["emilia"].ratio == first["emilia_speaker_prompt"].ratio == 0.5
    assert last["emilia"].ratio == last["emilia_speaker_prompt"].ratio == 0.025
    assert set(last) - set(first) == {"voiceassistant_400k", "audioqa_1m"}
    assert (first["atlas_math_sets"].num, first["goat"].num) == (100_000, 30_000)
    assert all(first[name].ratio == 20 * last[name].ratio for name in first)
    assert last["audioqa_1m"].ratio == last["voiceassistant_400k"].ratio == 2.0


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "aliases"),
        ("[" * 5000, "nested too deeply"),
        ("task: asr\ntask: tts\n", "the key 'task' comes twice"),
        ("task: 2024-99-99\n", "cannot be read as YAML"),
        ("task: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
        ("x" * 70_000, "larger than 64 KiB"),
        ("sources: {a: 1e999}\n", "a"),
        ("? [a]\n: b\n", "YAML|unknown key"),
        ("\xc4", "not UTF-8"),
    ],
)
def test_a_strangers_recipe_or_mixture_cannot_swell_or_surprise(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("latin-1"))
    for load in (load_recipe, load_mixture):
        with pytest.raises(UserError, match=sentence) as error:
            load(str(path))
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"tsk": "asr"}, "unknown key 'tsk'"),
        ({"task": "singing"}, "'singing' is not one of"),
        ({"hours": "many"}, "'hours' is 'many'"),
        ({"reader": {"files": []}}, "needs a 'kind'"),
        ({"languages": "en"}, "'languages' is 'en'"),
        ({"splits": {"dev": 3}}, "each of 'splits'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_in_one_sentence(change: dict, sentence: str) -> None:
    fine = {"task": "asr", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f"}
    with pytest.raises(UserError, match=sentence):
        parse_recipe("mine", {**fine, "reader": {"kind": "jsonl"}, **change}, "mine.yaml")


def test_a_recipe_reads_the_layout_that_is_there(tmp_path: Path) -> None:
    value = {"task": "text", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f"}
    reader = {"kind": "table", "columns": {"user": "q", "assistant": "a"}}
    value |= {
        "reader": reader | {"files": ["new/*.jsonl"]}, "splits": {"dev": {"files": ["new/dev/*.jsonl"]}},
        "otherwise": [{"layout": "old", "reader": reader | {"files": ["old/*.csv"]}, "splits": {"dev": {"files": ["old/dev/*.csv"]}}}],
    }  # fmt: skip
    recipe = parse_recipe("mine", value, "mine.yaml")
    assert recipe.open(tmp_path).files == ("new/*.jsonl",)  # so that what is missing is the first layout's
    (tmp_path / "old/dev").mkdir(parents=True)
    for path in ("old/train.csv", "old/dev/dev.csv"):
        (tmp_path / path).write_text("q,a\nwho,me\n")
    assert recipe.open(tmp_path).files == ("old/*.csv",) and recipe.open(tmp_path, "dev").files == ("old/dev/*.csv",)
    for wrong in ({"layout": "old"}, {"layout": "old", "reader": reader}, {"layout": "o", "reader": {}, "splits": {}}):
        with pytest.raises(UserError, match="otherwise|same splits|needs a 'kind'"):
            parse_recipe("mine", value | {"otherwise": [wrong]}, "mine.yaml")


def test_a_kaldi_folder_is_a_path_and_no_glob(tmp_path: Path) -> None:
    value = {"task": "asr", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f"}
    for folder, there in ((str(tmp_path), True), ("../corpus", True), ("of [2020]", True), ("o*", False)):
        for path in (tmp_path / "corpus/of [2020]", tmp_path):
            path.mkdir(parents=True, exist_ok=True)
            (path / "wav.scp").touch()
        (tmp_path / "corpus/wav.scp").touch()
        recipe = parse_recipe("mine", value | {"reader": {"kind": "kaldi", "folder": folder}}, "mine.yaml")
        absent = recipe.absent(tmp_path / "corpus")
        assert absent == ([] if there else ["o*/wav.scp"]) and recipe.is_there(tmp_path / "corpus") == there


@pytest.mark.parametrize(("rows_per_part", "share"), [(10, 0.1), (1000, 0.2)])
def test_every_sample_of_a_corpus_is_trained_on_or_held_out(tmp_path: Path, rows_per_part: int, share: float) -> None:
    def sides(root: Path) -> list[set[str]]:
        recipe = parse_recipe("mine", value, "mine.yaml")
        assert recipe.all_splits == ("train", "dev")
        return [{contents(s)[0][1] for s in good(recipe.open(root, split))} for split in recipe.all_splits]

    value = {"task": "text", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f"}
    columns = {"user": "q", "assistant": "a"}
    reader = {"kind": "table", "files": ["*.jsonl"], "columns": columns, "rows_per_part": rows_per_part}
    value |= {"reader": reader, "held_out": share}
    rows = [json.dumps({"q": f"question {n}", "a": "because"}) for n in range(200)]
    (tmp_path / "here").mkdir()
    (tmp_path / "here/x.jsonl").write_text("\n".join([*rows, "broken"]))
    train, dev = found = sides(tmp_path / "here")
    assert not train & dev and len(train | dev) == 200 and 0.5 < len(dev) / 200 / share < 1.5
    (tmp_path / "here").rename(tmp_path / "there")
    assert sides(tmp_path / "there") == found
    recipe = parse_recipe("mine", value, "mine.yaml")
    assert sum(len(bad(recipe.open(tmp_path / "there", split))) for split in recipe.all_splits) == 1
    planned: list[Place] = []
    plan = TableReader.parts
    with pytest.MonkeyPatch.context() as patch, planned_once():  # as a command does it, which prepares both
        patch.setattr(TableReader, "parts", lambda reader: planned.append(reader.root) or plan(reader))
        assert sides(tmp_path / "there") == found and planned == [tmp_path / "there"]
    with pytest.raises(UserError, match="'held_out' makes the split 'dev'"):
        parse_recipe("mine", value | {"splits": {"dev": {}}}, "mine.yaml")


RECIPE = {"task": "text", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f"}


@pytest.mark.parametrize("kind", ["table", "lines", "kaldi", "jsonl", "webdataset", "textgrid"])
@pytest.mark.parametrize(
    "files", [5, None, "*.jsonl", [5], [None, "*.jsonl"], {"a": "b"}, [["*.jsonl"]], ["["], ["a\0b"], [""]]
)
def test_patterns_of_any_kind_are_looked_for_or_refused(tmp_path: Path, kind: str, files: object) -> None:
    reader = {"kind": kind, "files": files, "folder": files} if kind == "kaldi" else {"kind": kind, "files": files}
    value = RECIPE | {"reader": reader, "otherwise": [{"layout": "old", "reader": reader}]}
    (tmp_path / "a.jsonl").write_text("{}\n")
    for ask in ("absent", "is_there", "open"):
        try:
            getattr(parse_recipe("mine", value, "mine.yaml"), ask)(tmp_path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
