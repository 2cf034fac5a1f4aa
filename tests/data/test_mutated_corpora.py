"""Files with damage of every sort go through the readers, and nothing comes out but samples, skips and sentences."""

import json
import resource
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutate
from troublesome import (
    KALDI,
    PYTHONS_WORDS,
    QUESTIONS,
    TABLE,
    TAR,
    chat,
    kaldi,
    lines,
    parquet,
    spoken,
    tar,
    tone,
    utterances,
)

from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.readers import RawSample, Unreadable, make_reader, read_part
from vita_audio_pl.data.recipe import load_recipe
from vita_audio_pl.errors import UserError
from vita_audio_pl.preparation import load_audio

RECIPE = b"""task: asr
description: Six sentences about birds.
languages: [en, 'zh']
licence: CC0-1.0
home: recorded at home
layout: clips/*.wav and a.jsonl
hours: 1.5
samples: 6
max_seconds: 30
reader:
  kind: table
  files: [a.jsonl]
  columns: {id: id, audio: file, text: text}
  lower: true
splits:
  test: {files: ['*.jsonl']}
held_out: 0.25
filters:
  refuse: ['<(MUSIC|NOISE)>', '(a|aa)+$']
  replace: {'\\s*<COMMA>': ','}
  normalise: [nfkc, lower]
  only: {id: ['0', '1', '2', '3']}
  at_least: {id: -0.5}
  characters_per_second: [1, 400]
otherwise:
  - layout: a table
    reader: {kind: table, files: [b.jsonl], columns: {text: text, audio: file}}
    splits: {test: {}}
"""
MIXTURE = b"""description: The spoken world, and birds twice.
temperature: 1.5
sources:
  world_asr: {ratio: 1.0}
  birds: {ratio: 2, num: 100}
  other: 0.5
"""

LINES = {
    "kind": "lines",
    "files": ["list.txt"],
    "line": r"(?P<id>u\d) (?P<file>\S+) (?P<text>.*)",
    "audio": "{file}",
    "skip": "header",
}
SEGMENTS = [
    {"sid": f"u{n}", "begin_time": n / 2, "end_time": n / 2 + 0.5, "text": "the bird", "subsets": ["L"]}
    for n in range(4)
]
RECORDINGS = json.dumps(
    {"n": 1, "audios": [{"path": "a.wav", "aid": "a", "segments": SEGMENTS}] * 3}, indent=1
).encode()
GRID = b"""File type = "ooTextFile"
Object class = "TextGrid"
xmin = 0
xmax = 2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "anna"
        xmin = 0
        xmax = 2
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "a ""bird\"""
        intervals [2]:
            xmin = 1.5
            xmax = 2
            text = "sings"
    item [2]:
        class = "TextTier"
        name = "marks"
        xmin = 0
        xmax = 2
        points: size = 1
        points [1]:
            number = 1
            mark = "x"
"""


@dataclass(frozen=True)
class Seed:
    """A good corpus. `damaged`: the files that are changed, one of them at a time."""

    files: dict[str, bytes]
    damaged: list[str]
    reader: dict[str, Any] = field(default_factory=dict)
    task: str = "asr"


def seeds() -> dict[str, Seed]:
    rows = [spoken(str(n), f"the bird, {n}") | {"speaker": None} for n in range(4)]
    sound = {"sound.wav": tone(0.1), "a.wav": tone(0.1)}
    conversations = [
        chat("a", "<|audio|>\nwhat?", "ok <|audio|>", audios=["a.wav", "a.wav"]),
        chat("b", [{"type": "text", "text": "hi"}, {"type": "audio", "audio": "a.wav"}], "yes"),
        {"conversations": [{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "no"}], "audio": ["a.wav"]},
        chat("c"),
    ]
    csv = b"id,file,text\r\n" + b"".join(b'%d,sound.wav,"a ""b"", c"\r\n' % n for n in range(4))
    tsv = b"id\tfile\ttext\n" + b"".join(b'%d\tsound.wav\ta "b", c\n' % n for n in range(4))
    named = [
        (f"{n}.{e}", tone(0.1) if e == "wav" else '{"text": "a", "speaker": 7}') for n in "12" for e in ("wav", "json")
    ]
    segments = "u1 rec1 0.0 1.0\nu2 rec1 1.0 -1\nu3 rec1 0.5 0.75 A\n"
    spoken_rows = [{**row, "file": {"bytes": tone(0.1), "path": "a.wav"}} for row in rows]
    table = {**TABLE, "rows_per_part": 3}
    return {
        "jsonl": Seed({"a.jsonl": lines(*conversations), **sound}, ["a.jsonl"], {"kind": "jsonl", "lines_per_part": 2}, "sqa"),
        "table of JSONL": Seed({"a.jsonl": lines(*rows), **sound}, ["a.jsonl"], {**table, "files": ["*.jsonl"]}),
        "table of JSON": Seed({"a.json": b"[" + b",".join(lines(row) for row in rows) + b"]", **sound}, ["a.json"], {**table, "files": ["*.json"]}),
        "table of CSV": Seed({"a.csv": csv, **sound}, ["a.csv"], {**table, "files": ["*.csv"]}),
        "table of TSV": Seed({"a.tsv": tsv, **sound}, ["a.tsv"], {**table, "files": ["*.tsv"]}),
        "table of parquet": Seed({"a.parquet": parquet(spoken_rows)}, ["a.parquet"], {**table, "files": ["*.parquet"]}),
        "chats": Seed({"a.jsonl": lines(*(row for row in conversations if "messages" in row)), **sound}, ["a.jsonl"], {"kind": "table", "files": ["*.jsonl"], "columns": {"messages": "messages", "audio": "audios"}}, "sqa"),
        "questions": Seed({"a.jsonl": lines({"q": "what", "a": "ok"}, {"q": "which", "a": "no"})}, ["a.jsonl"], QUESTIONS, "text"),
        "kaldi": Seed(kaldi(segments, utt2spk=b"u1 anna\nu2 bob\nu3\n") | {"long.wav": tone(2)}, ["wav.scp", "text", "segments", "utt2spk"], KALDI),
        "lists of transcripts": Seed({"list.txt": b"header\nu1 a.wav the bird\nu2 a.wav sings\n", **sound}, ["list.txt"], LINES),
        "transcripts in their own files": Seed({"u.lst": b"a\nb\n", "a.txt": b"a\ta bird\n0.1\n", "b.txt": b"b\tsings", **sound, "b.wav": tone(0.1)}, ["u.lst", "a.txt", "b.txt"], {**LINES, "files": ["u.lst"], "line": r"(?P<id>\S+)", "audio": "{id}.wav", "transcript": "{id}.txt", "transcript_line": r"\S+\t(?P<text>.*)"}),
        "recordings": Seed({"a.json": RECORDINGS, "a.wav": tone(2)}, ["a.json"], {"kind": "recordings", "recordings_per_part": 1}),
        "TextGrid": Seed({"a.TextGrid": GRID, "a.wav": tone(2)}, ["a.TextGrid"], {"kind": "textgrid", "audio": "{list}.wav"}),
        "tar": Seed({"a.tar": tar(*utterances("1", "2", "3"))}, ["a.tar"], {**TAR, "channel": "each"}),
        "tars and a table": Seed({"a.tar": tar(("x/1.wav", tone(0.1)), ("x/2.wav", tone(0.1)), ("3.wav", tone(0.1))), "t.tsv": b"path\ttext\n1.wav\ta bird\n2\tsings\n3\tx\n"}, ["a.tar", "t.tsv"], {"kind": "archives", "files": ["*.tar"], "place": r"(?P<name>\w+)\.tar", "table": "t.tsv", "columns": {"audio": "path", "text": "text"}}),
        "tar of JSON": Seed({"a.tar": tar(*named)}, ["a.tar"], {**TAR, "text": "json", "speaker_prompt": True}, "tts"),
        **{f"tar of {kind}": Seed({"a.tar": tar((f"1.{kind.lower()}", tone(0.3, kind)), ("1.txt", "a"))}, ["a.tar"], TAR) for kind in ("FLAC", "OGG", "MP3")},
        "recipe": Seed({"recipe.yaml": RECIPE, "a.jsonl": lines(*rows), **sound}, ["recipe.yaml"]),
        "mixture": Seed({"mixture.yaml": MIXTURE}, ["mixture.yaml"]),
    }  # fmt: skip


def outcomes(seed: Seed, folder: Path) -> Counter[str]:
    """What comes of a corpus: samples, skips by reason, or a sentence. Anything else is raised."""
    found: Counter[str] = Counter()
    try:
        if "mixture.yaml" in seed.files:
            load_mixture(str(folder / "mixture.yaml"))
            return Counter({"mixture": 1})
        if "recipe.yaml" in seed.files:
            recipe = load_recipe(str(folder / "recipe.yaml"))
            readers = [recipe.open(folder, split) for split in recipe.all_splits]
        else:
            readers = [make_reader(folder, seed.task, seed.reader, "the recipe")]
        parts = [(reader, part) for reader in readers for part in reader.parts()]
    except UserError as error:
        assert len(str(error)) < 5000
        return Counter({"sentence": 1})
    for reader, part in parts:
        for raw in read_part(reader, part):
            if isinstance(raw, Unreadable):
                found[raw.reason] += 1
                assert not raw.trace and not PYTHONS_WORDS.search(raw.problem), raw
                continue
            assert isinstance(raw, RawSample) and len(raw.audios) == len(raw.conversation.audios)
            for audio in raw.audios:
                try:
                    load_audio(audio, 8000, 30.0)
                except UserError as error:
                    found[getattr(error, "reason", "sentence")] += 1
            found["sample"] += 1
    return found


@pytest.mark.parametrize("mutations", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_damage_makes_a_reader_raise_hang_or_swell(mutations: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(mutations)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kinds = seeds()
    found: Counter[str] = Counter()
    for number, (name, seed) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file, data in seed.files.items():
            (folder / file).write_bytes(data)
        whole = outcomes(seed, folder)
        assert set(whole) <= {"sample", "mixture"}, (name, whole)
        for _ in range(mutations // len(kinds)):
            damaged = seed.damaged[rng.integers(len(seed.damaged))]
            data = mutate(seed.files[damaged], rng)
            (folder / damaged).write_bytes(data)
            try:
                found += outcomes(seed, folder)
            except Exception:
                (tmp_path / f"culprit.{damaged}").write_bytes(data)
                raise
            (folder / damaged).write_bytes(seed.files[damaged])
    print(dict(found))
    assert found["sample"] > mutations / 2 and found["sentence"] > mutations / 50 and len(found) > 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB
