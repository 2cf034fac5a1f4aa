"""The how-to's example runs as it is printed."""

import re
from pathlib import Path

import numpy as np
import pytest

from vita_audio_pl.codecs import Codec, load_codec, protocol
from vita_audio_pl.errors import UserError

DOC = Path(__file__).parents[2] / "docs" / "add-a-codec.md"


def test_the_smallest_codec_of_the_how_to_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protocol, "_LOADERS", {})
    example = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[0]
    exec(compile(example, str(DOC), "exec"), {"__name__": "example"})
    codec = load_codec("my_codec")
    assert isinstance(codec, Codec)
    wave = np.sin(np.arange(800) / 20).astype(np.float32)
    codes = codec.encode([wave])[0]
    assert codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < codec.codebook_size
    np.testing.assert_allclose(codec.decode(codes), wave, atol=0.03)
    stream = codec.decode_stream()
    assert np.array_equal(
        np.concatenate((stream.push(codes[:99]), stream.push(codes[99:]), stream.finish())), codec.decode(codes)
    )
    assert np.abs(codec.decode(codec.silence(5))).max() < 1e-3
    with pytest.raises(UserError, match="wave 1 is empty"):
        codec.encode([wave, wave[:0]])
