"""Kaldi's tables as a merge of sorted streams, against dictionaries."""

import pickle
import random
import re
import subprocess
from pathlib import Path

import pytest

from vita_audio_pl.data.readers import RawSample, Unreadable
from vita_audio_pl.data.readers.base import AudioFile
from vita_audio_pl.data.readers.kaldi import KaldiReader
from vita_audio_pl.data.readers.kaldi_tables import Cursor, SortedTable
from vita_audio_pl.errors import UserError


def write(folder: Path, rng: random.Random, shuffled: bool) -> dict[str, dict[str, str]]:
    """A directory with holes in its tables, and what is in them."""
    names = sorted({f"s{rng.randrange(9)}-{rng.choice('éabB_')}{rng.randrange(99)}" for _ in range(60)}, key=str.encode)
    recordings = sorted({f"r{rng.randrange(300)}" for _ in range(40)}) if rng.random() < 0.6 else names
    tables = {
        "wav.scp": {name: f"{name}.wav" for name in recordings if rng.random() < 0.9},
        "text": {name: f"it is {name}" for name in names if rng.random() < 0.9},
        "utt2spk": {name: name[:2] for name in names if rng.random() < 0.9},
    }
    if recordings is not names:  # in no order, as the utterances of a speaker are
        tables["segments"] = {name: f"{rng.choice(recordings)} {n}.5 {n + 1}.5" for n, name in enumerate(names)}
    for table, rows in tables.items():
        lines = [
            f"{key}{rng.choice([' ', '  ', chr(9)])}{rest}{rng.choice(['', chr(13)])}\n" for key, rest in rows.items()
        ]
        if shuffled and rng.random() < 0.5:
            rng.shuffle(lines)
        (folder / table).write_text("\n".join(lines), newline="")
    return tables


def expected(folder: Path, tables: dict[str, dict[str, str]]) -> dict[str, tuple[AudioFile, str, str]]:
    found = {}
    for name in tables.get("segments", tables["wav.scp"]):
        recording, start, seconds = name, 0.0, None
        if "segments" in tables:
            recording, begin, end = tables["segments"][name].split()
            start, seconds = float(begin), float(end) - float(begin)
        if recording in tables["wav.scp"] and name in tables["text"]:
            audio = AudioFile(folder / tables["wav.scp"][recording], start, seconds)
            found[name] = (audio, tables["text"][name], tables["utt2spk"].get(name, ""))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_tables_are_merged_as_dictionaries_would_be(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    tables = write(tmp_path, rng, shuffled=seed % 3 == 2)
    wanted = expected(tmp_path, tables)
    for size in (1, 7, 1000):
        reader = KaldiReader(tmp_path, utterances_per_part=size)
        parts = reader.parts()
        read = {n: list(reader.read(parts[n])) for n in rng.sample(range(len(parts)), len(parts))}  # each by itself
        samples = [sample for n in range(len(parts)) for sample in read[n]]
        used = {s.conversation.id: (s.audios[0], s.transcript, s.speaker) for s in samples if isinstance(s, RawSample)}
        assert used == wanted and list(used) == sorted(used, key=str.encode)
        lost = {sample.where for sample in samples if isinstance(sample, Unreadable)}
        assert lost == (tables.get("segments", tables["wav.scp"]).keys() | tables["text"].keys()) - wanted.keys()
        assert len(samples) == len(used) + len(lost)
        assert max(len(pickle.dumps(part)) for part in parts) <= 1000


def test_a_key_is_found_wherever_it_lies(tmp_path: Path) -> None:
    path, rng = tmp_path / "wav.scp", random.Random(0)
    rows = {f"r{n:05}": "x" * rng.randrange(40) for n in range(0, 12_000, 2)}
    path.write_text("\n" + "".join(f"{key} {rest}\n" for key, rest in rows.items()))
    cursor = Cursor(SortedTable(path))
    for n in [0, 11_998, 1, 11_999, *(rng.randrange(-5, 12_010) for _ in range(300))]:
        key = f"r{n:05}"
        assert cursor.find(key.encode()) == rows.get(key)


def test_a_large_table_that_is_not_sorted_is_named_with_the_command_that_sorts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = write(tmp_path, random.Random(1), shuffled=False)
    lines = (tmp_path / "text").read_text().splitlines(keepends=True)
    moved = lines.pop()
    (tmp_path / "text").write_text("".join([*lines[:20], moved + "\n", *lines[20:]]), newline="")
    monkeypatch.setattr("vita_audio_pl.data.readers.kaldi_tables._SORTED_HERE", 1)
    with pytest.raises(UserError, match=r"text is not sorted: line \d+ has the key '.*' after '.*'") as told:
        KaldiReader(tmp_path).parts()
    command = re.search(r"LC_ALL=C sort -o \S+ \S+$", str(told.value))
    assert command is not None
    subprocess.run(command[0], shell=True, check=True, cwd=tmp_path)
    reader = KaldiReader(tmp_path)
    samples = [sample for part in reader.parts() for sample in reader.read(part)]
    assert sum(isinstance(sample, RawSample) for sample in samples) == len(expected(tmp_path, tables))
