"""Serialisation of one tokenised conversation, as stored in shards."""

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from vita_audio_pl.errors import UserError
from vita_audio_pl.text import ROLES, AudioCodes, Segment, TextIds, Turn

TEXT, CODES = 0, 1

_SIZE = struct.Struct("<I")
_HEAD = struct.Struct("<IHHII")  # bytes in all, segments, bytes of the id, text tokens, codes
_SEGMENT = np.dtype([("role", "u1"), ("kind", "u1"), ("turn", "<u2"), ("length", "<u4")])
ALIGNMENT = 4
MOST_CODES = 2**16  # size of the largest codebook whose codes fit
_LONGEST_NAME = 500  # bytes


@dataclass(frozen=True)
class TokenizedSample:
    """A conversation whose text is token ids and whose audio is codes, turn by turn.

    Attributes:
        id: the sample's name in its source, for messages.
        turns: turns in order, after the text-to-speech rewrite.
    """

    id: str
    turns: tuple[Turn, ...]


def pack_sample(sample: TokenizedSample) -> bytes:
    """Bytes of a sample, a multiple of four: head, segment table, text ids (u32), codes (u16), id (UTF-8).

    Raises:
        UserError: a code does not fit into 16 bits.
    """
    rows: list[tuple[int, int, int, int]] = []
    text: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    for number, turn in enumerate(sample.turns):
        role = ROLES.index(turn.role)
        for segment in turn.segments:
            if isinstance(segment, AudioCodes):
                least, most = int(segment.codes.min(initial=0)), int(segment.codes.max(initial=0))
                if least < 0 or most >= MOST_CODES:
                    raise UserError(
                        f"{sample.id}: the code {least if least < 0 else most} cannot be stored; a shard holds codes of "
                        f"0 to {MOST_CODES - 1}, so choose a codec with a smaller codebook"
                    )
                codes.append(segment.codes.astype("<u2"))
                rows.append((role, CODES, number, segment.codes.size))
            elif isinstance(segment, TextIds):
                text.append(segment.ids.astype("<u4"))
                rows.append((role, TEXT, number, segment.ids.size))
            else:
                raise TypeError("a shard holds codes; features of audio are made from it when it is read")
        if not turn.segments:
            rows.append((role, TEXT, number, 0))
    name = _stored(sample.id)
    n_text, n_codes = sum(map(len, text)), sum(map(len, codes))
    body = b"".join(
        [np.array(rows, dtype=_SEGMENT).tobytes(), *(t.tobytes() for t in text), *(c.tobytes() for c in codes)]
    )
    body += b"\0" * (-len(body) % ALIGNMENT) + name + b"\0" * (-len(name) % ALIGNMENT)
    return _HEAD.pack(_HEAD.size + len(body), len(rows), len(name), n_text, n_codes) + body


def _stored(name: str) -> bytes:
    """A name as UTF-8. Unpaired surrogates are escaped; a long name is cut and ends in a hash of the whole."""
    data = name.encode("utf-8", "backslashreplace")
    if len(data) <= _LONGEST_NAME:
        return data
    mark = f"...{hashlib.sha256(data).hexdigest()[:12]}".encode()
    return data[: _LONGEST_NAME - len(mark)].decode("utf-8", "ignore").encode() + mark


def sample_size(data: memoryview | bytes) -> int:
    """Bytes of the sample at the start of `data`.

    Raises:
        ValueError: it is too short for a header.
    """
    if len(data) < _SIZE.size:
        raise ValueError("the file ends before it")
    return int(_SIZE.unpack_from(data)[0])


def unpack_sample(data: memoryview | bytes) -> TokenizedSample:
    """The sample at the start of `data`.

    Raises:
        ValueError: the bytes are not a sample.
    """
    try:
        size, n_segments, n_name, n_text, n_codes = _HEAD.unpack_from(data)
        table = np.frombuffer(data, _SEGMENT, n_segments, _HEAD.size)
        at = _HEAD.size + table.nbytes
        text = np.frombuffer(data, "<u4", n_text, at)
        at += text.nbytes
        codes = np.frombuffer(data, "<u2", n_codes, at)
        at += codes.nbytes + -codes.nbytes % ALIGNMENT
        name = bytes(data[at : at + n_name]).decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a sample: {error}") from error
    try:
        return TokenizedSample(name, _turns(table.tolist(), text, codes))
    except IndexError as error:
        raise ValueError("not a sample: it has a turn of an unknown role") from error


def _turns(table: list[tuple[int, int, int, int]], text: np.ndarray, codes: np.ndarray) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    segments: list[Segment] = []
    role, number, text_at, codes_at = 0, 0, 0, 0
    for segment_role, kind, turn, length in table:
        if turn != number:
            turns.append(Turn(ROLES[role], tuple(segments)))
            segments, number = [], turn
        role = segment_role
        if kind == CODES:
            segments.append(AudioCodes(codes[codes_at : codes_at + length]))
            codes_at += length
        elif length:
            segments.append(TextIds(text[text_at : text_at + length]))
            text_at += length
    turns.append(Turn(ROLES[role], tuple(segments)))
    return tuple(turns)


def checksum(data: memoryview | bytes) -> int:
    """CRC-32 of a sample's bytes, as stored in the index."""
    return zlib.crc32(data)
