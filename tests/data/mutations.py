"""Seeded damage to bytes: what disks, transfers, editors and people do to files."""

import numpy as np

_TOKENS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b"\t", b'"', b"'", b"\\", b"\\ud83d", b"\xe2\x80\xa8", b"\xc4\xe3",
    b"{", b"}", b"[", b"]", b"[" * 3000, b'{"a":' * 3000, b",", b":", b"null", b"NaN", b"Infinity", b"true", b"-1", b"1e999",
    b"9" * 5000, b"0", b"0.5", b'"text"', b'"messages"', b"<|audio|>", b"<audio>", b"|", b"../", b"/", b"a" * 300,
    b"data:audio/wav;base64,UklGRg==", b"https://x.org/a", b"inf", b"nan", b"&a", b"*a", b"<<: *a", b"!!python/name:os.system",
    b"- ", b"? ", b": ", b"2024-99-99", b"0o99", b"1:1:1:1", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x1f\x8b\x08",
    b"ustar", b"PAR1", b"RIFF", b"data", b"OggS", b"fLaC", b"77777777777",
]  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to four changes."""
    changed = bytearray(data)
    for _ in range(min(int(rng.geometric(0.6)), 4)):
        at, end = sorted(rng.integers(0, len(changed) + 1, 2).tolist())
        end = min(end, at + int(2 ** rng.integers(0, 12)))
        match rng.integers(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << int(rng.integers(8))
            case 1 if at < len(changed):
                changed[at] = int(rng.integers(256))
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end]
            case 4:
                token = _TOKENS[rng.integers(len(_TOKENS))]
                changed[at : at + len(token) * int(rng.integers(2))] = token
            case 5:
                del changed[at:]
            case 6:
                other = int(rng.integers(len(changed) + 1))
                changed[at:end] = changed[other : other + end - at]
            case _:
                changed[at:end] = bytes(end - at)
    return bytes(changed)
