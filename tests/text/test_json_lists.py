import json
import random
from pathlib import Path
from typing import Any

import pytest

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import json_lists
from vita_audio_pl.text.json_lists import element_blocks, read_elements


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(['"', "k", "]", "é"]) * n: value(rng, depth + 1) for n in range(rng.randrange(4))}
    return (None, True, rng.randrange(10**6), -1.5e-7, "".join(rng.choices('a"\\[]{},: \n鸟🐦', k=rng.randrange(9))))[
        kind
    ]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_a_list_is_cut_into_blocks_wherever_its_file_is_cut(chunk: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_lists, "_CHUNK", chunk)
    rng, path = random.Random(chunk), tmp_path / "a.json"
    for number in range(40):
        values = [value(rng) for _ in range(rng.randrange(12))]
        size, style = rng.randrange(1, 5), {"indent": rng.choice([None, 1]), "ensure_ascii": rng.random() < 0.5}
        whole = values if number % 2 else {"audios ": "audios", "x": [[1], {"audios": [2]}], "audios": values, "z": 0}
        path.write_text(rng.choice(["", "\ufeff", "\n "]) + json.dumps(whole, **style) + "\n")
        blocks = list(element_blocks(path, size, "" if number % 2 else "audios"))
        assert [json.loads(text) for block in blocks for text in read_elements(path, block)] == values
        assert [block.first for block in blocks] == list(range(0, len(values), size))


def test_a_block_is_read_without_the_rest_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([f"row {n}" for n in range(9)]))
    before, block, after = element_blocks(path, 3)
    data = path.read_bytes()
    path.write_bytes(b"#" * block.offset + data[block.offset : after.offset] + b"#" * (len(data) - after.offset))
    assert [json.loads(text) for text in read_elements(path, block)] == ["row 3", "row 4", "row 5"]
    assert before.offset == 1


@pytest.mark.parametrize(
    "text, blocks",
    [("[1, 2, 3", 1), ("[1, 2] x", 1), ("[1 2]", 1), ('{"a": 1}', 0), ("", 0), ("[" * 100_000, 0), ('["a', 0)],
)
def test_what_stands_before_the_damage_is_told_first(text: str, blocks: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    found = element_blocks(tmp_path / "a.json", 2)
    assert [next(found).count for _ in range(blocks)] == ([1] if text == "[1 2]" else [2] * blocks)
    with pytest.raises(UserError, match="a.json cannot be read as JSON"):
        list(found)
