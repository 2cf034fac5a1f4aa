"""Cache of a recording's codes, so that no wave is encoded twice: neither within a part of a corpus, nor when the same
recordings are prepared in another way, such as Emilia with and without a voice prompt.

A file holds the codes of one part's recordings: `HEAD`, u64 number of waves, XXH3-128 of each wave's float32 samples,
u32 number of codes of each, the codes (u16), and the XXH3-64 of everything before. It can always be recomputed, so a
damaged file is rewritten.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from vita_audio_pl.data.readers import Part
from vita_audio_pl.errors import is_machine_fault
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.places import Place

HEAD = b"VAPLcod1"
_DIGEST = 16  # bytes
_SEAL = 8


class KeptCodes:
    """The cached codes of a part's waves; grows while the part is tokenised.

    Args:
        folder: folder of the cache files; None caches in memory, for this part only.
        part: the part, whose `content` names the file.
        codec: everything that the codes follow from.
    """

    def __init__(self, folder: Place | None, part: Part, codec: Mapping[str, Any]):
        facts = json.dumps([part.content or part.identity, codec], sort_keys=True).encode()
        self._path = folder / f"{hashlib.sha256(facts).hexdigest()[:20]}.codes" if folder else None
        self._known = _read(self._path) if self._path else {}
        self._grown = False

    @staticmethod
    def key(wave: np.ndarray) -> bytes:
        """Of `(samples,) float32`."""
        return xxhash.xxh3_128_digest(np.ascontiguousarray(wave, np.float32).data)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> np.ndarray:
        return self._known[key]

    def add(self, key: bytes, codes: np.ndarray) -> None:
        """Add the codes of a wave, each below 65,536."""
        self._known[key] = codes.astype(np.uint16)
        self._grown = True

    def save(self) -> None:
        """Write the file, merged with what another job has written to it meanwhile.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        if self._path is None or not self._grown:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, _packed({**_read(self._path), **self._known}))


def _packed(known: Mapping[bytes, np.ndarray]) -> bytes:
    codes: Sequence[np.ndarray] = list(known.values())
    lengths = np.array([len(of_wave) for of_wave in codes], "<u4")
    body = b"".join([HEAD, struct.pack("<Q", len(known)), *known, lengths.tobytes()])
    body += np.concatenate([np.empty(0, "<u2"), *codes]).astype("<u2").tobytes()
    return body + xxhash.xxh3_64_digest(body)


def _read(path: Place) -> dict[bytes, np.ndarray]:
    """Contents of a file; empty if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        if is_machine_fault(error):
            raise
        return {}
    start = len(HEAD) + 8
    if len(data) < start + _SEAL or data[: len(HEAD)] != HEAD or xxhash.xxh3_64_digest(data[:-_SEAL]) != data[-_SEAL:]:
        return {}
    (count,) = struct.unpack_from("<Q", data, len(HEAD))
    keys = [data[at : at + _DIGEST] for at in range(start, start + count * _DIGEST, _DIGEST)]
    lengths = np.frombuffer(data, "<u4", count, start + count * _DIGEST)
    codes = np.frombuffer(data[start + count * (_DIGEST + 4) : -_SEAL], "<u2")
    return dict(zip(keys, np.split(codes, np.cumsum(lengths)[:-1]), strict=True)) if count else {}
