import random

from vita_audio_pl.storage.metrics import read_metrics

LINES = ["step,train/loss,val/loss\r\n", *(f"{step},{step / 7:.8g},\r\n" for step in range(1, 60))]
WHOLE = "".join(LINES).encode()


def test_no_file_is_an_empty_one(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == ({}, 0)


def test_whole_lines_are_read_and_damaged_ones_counted(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(WHOLE)
    rows, damaged = read_metrics(path)
    assert not damaged and list(rows) == list(range(1, 60)) and rows[7] == {"train/loss": "1"}
    for name, (data, lost) in {
        "a NUL tail": (WHOLE[:-300] + bytes(300), None),
        "a cut number": (WHOLE[:-4], 1),
        "a word": (WHOLE + b"60,broken,\r\n", 1),
        "a field too many": (WHOLE + b"60,1,2,3\r\n", 1),
        "no header": (b"".join(line.encode() for line in LINES[1:]), 59),
        "NUL alone": (bytes(4096), 1),
        "nothing": (b"", 0),
    }.items():  # fmt: skip
        path.write_bytes(data)
        found, damaged = read_metrics(path)
        assert damaged == lost or (lost is None and damaged > 0), name
        assert found.items() <= rows.items(), name


def test_damaged_bytes_never_end_in_an_exception(tmp_path):
    path, rng = tmp_path / "metrics.csv", random.Random(0)
    for _ in range(2000):
        data = bytearray(WHOLE)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.choice(b'\0\n\r",.-e9\xff')
        path.write_bytes(data[: rng.randrange(len(data))])
        rows, _ = read_metrics(path)
        assert all(isinstance(float(value), float) for row in rows.values() for value in row.values())
