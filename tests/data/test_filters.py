"""Rules and filters of a recipe: what they take, what they change, and under which name they leave out."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_codec import N_CODES, RATE, LoudnessCodec
from toy_corpus import toy_tokenizer

from vita_audio_pl.data.left_out import summary
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import make_reader
from vita_audio_pl.data.readers.filters import Filters
from vita_audio_pl.data.recipe import SourceRecipe, parse_recipe
from vita_audio_pl.data.tokenize import MOST_FILTERED, TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio

ROWS = [
    {"id": "good", "text": "RED <COMMA> COW", "language": "en", "dnsmos": 3.4, "tags": ["{XL}", "{L}"]},
    {"id": "music", "text": "<MUSIC>", "language": "en", "dnsmos": 3.4, "tags": ["{XL}"]},
    {"id": "french", "text": "VACHE", "language": "fr", "dnsmos": 3.4, "tags": ["{XL}"]},
    {"id": "noisy", "text": "BLUE COW", "language": "en", "dnsmos": 2.9, "tags": ["{XL}"]},
    {"id": "unmeasured", "text": "BLUE COW", "language": "en", "dnsmos": None, "tags": ["{XL}"]},
    {"id": "dev", "text": "BLUE COW", "language": "en", "dnsmos": "3.5", "tags": ["{DEV}"]},
    {"id": "digits", "text": "BLUE COW 7", "language": "en", "dnsmos": "3.5", "tags": ["{XL}"]},
    {"id": "hm", "text": "<UM>", "language": "en", "dnsmos": "3.5", "tags": ["{XL}"]},
    {"id": "short", "text": "COW", "language": "en", "dnsmos": 3.5, "tags": ["{XL}"], "seconds": 0.2},
    {"id": "rushed", "text": "COW " * 30, "language": "en", "dnsmos": 3.5, "tags": ["{XL}"]},
    {"id": "dragged", "text": "A", "language": "en", "dnsmos": 3.5, "tags": ["{XL}"]},
    {"id": "blank", "text": " ", "language": "en", "dnsmos": 3.5, "tags": ["{XL}"]},
]
FILTERS = {
    "replace": {"\\s*<COMMA>": ","},
    "strip": ["<UM>"],
    "normalise": ["nfkc", "lower"],
    "refuse": ["<(MUSIC|NOISE)>"],
    "require": ["^\\D*$"],
    "only": {"language": ["en"], "tags": ["{XL}"]},
    "at_least": {"dnsmos": 3.0},
    "min_seconds": 0.5,
    "characters_per_second": [2, 50],
}


def corpus(root: Path) -> Path:
    root.mkdir()
    for row in ROWS:
        wave = np.sin(np.arange(int(RATE * row.get("seconds", 1.0))) / 5).astype(np.float32)
        soundfile.write(root / f"{row['id']}.wav", wave / 2, RATE)
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return root


def recipe(filters: dict, **more: object) -> SourceRecipe:
    value = {
        "task": "asr", "description": "d", "languages": ["en"], "licence": "l", "home": "h", "layout": "f",
        "reader": {"kind": "table", "files": ["*.jsonl"], "columns": {"id": "id", "audio": "{id}.wav", "text": "text"}},
        "filters": filters, **more,
    }  # fmt: skip
    return parse_recipe("birds", value, "birds.yaml")


def job(recipe: SourceRecipe, root: Path, out: Path) -> TokenizeJob:
    codec = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}
    return TokenizeJob(
        source="birds",
        task=recipe.task,
        reader=recipe.open(root),
        tokenizer=toy_tokenizer(),
        make_codec=LoudnessCodec,
        codec=codec,
        load_audio=load_audio,
        out=out,
        filters=recipe.filters,
        max_skipped=0.05,
    )


def test_what_a_recipe_does_not_want_is_left_out_by_name_and_counts_as_no_fault(tmp_path: Path) -> None:
    made = job(recipe(FILTERS), corpus(tmp_path / "birds"), tmp_path / "shards/birds")
    manifest = prepare_source(made)
    assert manifest is not None and manifest.report["skipped"] == {"no transcript": 1}
    assert manifest.report["filtered"] == {
        "refused text": 1, "other language": 1, "low dnsmos": 1, "no dnsmos": 1, "other tags": 1,
        "text not as required": 1, "no text left": 1, "audio too short": 1, "speech too fast": 1, "speech too slow": 1,
    }  # fmt: skip
    assert "1 left out (no transcript 1), 10 not wanted by the filters (" in summary(manifest.report)
    sample = PreparedSource(made.out).read(0)
    assert made.tokenizer.decode(sample.turns[-1].segments[0].ids) == "red, cow"
    named = {line["where"]: line["problem"] for line in map(json.loads, (made.out / "skipped.jsonl").open())}
    assert named["noisy"] == "noisy: 'dnsmos' is 2.9, below 3" and set(named) == {row["id"] for row in ROWS[1:]}


def test_what_is_not_wanted_is_counted_whole_and_named_by_example(tmp_path: Path) -> None:
    root = corpus(tmp_path / "birds")
    many = [ROWS[1] | {"id": f"music {n}"} for n in range(3 * MOST_FILTERED)] + [ROWS[2] | {"id": "french 2"}]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, *many])))
    made = job(recipe(FILTERS), root, tmp_path / "shards/birds")
    manifest = prepare_source(made)
    assert manifest is not None and manifest.report["filtered"]["refused text"] == 3 * MOST_FILTERED + 1
    reasons = Counter(json.loads(line)["reason"] for line in (made.out / "skipped.jsonl").open())
    assert reasons["refused text"] == MOST_FILTERED and reasons["other language"] == 2 and reasons["no transcript"] == 1


def test_other_filters_make_other_shards_and_none_make_the_same(tmp_path: Path) -> None:
    root = corpus(tmp_path / "birds")
    plain = {"kind": "table", "files": ["*.jsonl"], "columns": {"id": "id", "audio": "{id}.wav", "text": "text"}}
    names = [
        make_reader(root, "asr", plain, "test").parts()[0].identity,
        *(recipe(f).open(root).parts()[0].identity for f in ({}, {"min_seconds": 0.5}, {"min_seconds": 0.6})),
    ]
    assert names[0] == names[1] and len(set(names)) == 3


def test_chats_are_filtered_around_their_audio(tmp_path: Path) -> None:
    rows = [
        {"lang": "en", "messages": [{"role": "user", "content": "<|audio|>\nWho <UM> sings?"}, {"role": "assistant", "content": "A bird."}], "audios": ["a.wav"]},
        {"lang": "zh", "messages": [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "A bird."}]},
        {"lang": "en", "messages": [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "As an AI"}]},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    filters = Filters.of({"strip": [" <UM>"], "refuse": ["As an AI"], "only": {"lang": ["en"]}}, "test")
    reader = make_reader(tmp_path, "sqa", {"kind": "jsonl"}, "test", filters)
    taken, other, refused = reader.read(reader.parts()[0])
    assert taken.conversation.messages[0].content == "<|audio|>\nWho  sings?"
    assert (other.reason, refused.reason) == ("other lang", "refused text") and other.filtered and refused.filtered


@pytest.mark.parametrize(
    "filters, sentence",
    [
        ({"refuze": ["x"]}, "no filter 'refuze'; there are replace, strip"),
        ({"refuse": "x"}, "'refuse'='x'; it must be a list of texts"),
        ({"refuse": ["("]}, "is not a regular expression"),
        ({"normalise": ["shout"]}, "no normaliser 'shout'; there are nfc"),
        ({"at_least": {"dnsmos": "high"}}, "'at_least'=.*names with a number each"),
        ({"at_least": {"dnsmos": float("nan")}}, "'at_least'"),
        ({"only": {"language": "en"}}, "'only'=.*names with a list of texts"),
        ({"min_seconds": -1}, "min_seconds is -1"),
        ({"characters_per_second": [30, 4]}, "give the least and the most"),
    ],
)
def test_filters_with_a_mistake_are_refused_in_one_sentence(filters: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recipe(filters)


def test_a_misspelt_column_and_a_pattern_without_end_are_faults(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a" * 60 + "!", "audio": "a.wav"}))
    for filters, reason in (
        ({"only": {"lang": ["en"]}}, "no such column"),
        ({"refuse": ["(a|aa)+$"]}, "pattern too slow"),
    ):
        columns = {"kind": "table", "files": ["*.jsonl"], "columns": {"text": "text", "audio": "audio"}}
        reader = make_reader(tmp_path, "asr", columns, "test", Filters.of(filters, "test"))
        (problem,) = reader.read(reader.parts()[0])
        assert problem.reason == reason and not problem.filtered


def test_a_speaker_is_what_a_pattern_finds_of_the_name(tmp_path: Path) -> None:
    rows = [("84_1", "one"), ("84_2", "two"), ("85_1", "three"), ("", "four"), ("nobody", "five")]
    (tmp_path / "a.wav").write_bytes(b"")
    table = [{"speaker": speaker, "text": text, "audio": "a.wav"} for speaker, text in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, table)))
    options = {"kind": "table", "files": ["rows.jsonl"], "columns": {name: name for name in table[0]}}
    for speaker, only in (("^[^_]+(?=_)", {}), ("^([^_]+)_", {"speaker": ["84"]})):
        filters = Filters.of({"speaker": speaker, "only": only}, "test")
        reader = make_reader(tmp_path, "asr", options, "test", filters)
        found = [getattr(sample, "speaker", None) for sample in reader.read(reader.parts()[0])]
        assert found == (["84", "84", None, None, None] if only else ["84", "84", "85", "", ""])
    before = Filters.of({"min_seconds": 1.0, "strip": ["<UM>"]}, "test")
    assert before.identity == "9e1c3b36a7f04cce"  # as before there was this filter: shards keep their names
