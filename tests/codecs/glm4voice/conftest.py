from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from vita_audio_pl.codecs.glm4voice import SpeechDecoder, SpeechTokenizer

CASES = Path(__file__).parents[2] / "parity" / "codecs" / "glm4voice"
REAL = CASES.parent / "real_layout"


@pytest.fixture(scope="session")
def cases() -> Path:
    """Folder of the public-layout checkpoints and of what the published implementation made with them."""
    return CASES


@pytest.fixture(scope="session")
def real_layout() -> Path:
    return REAL


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer.load(CASES / "tokenizer")


@pytest.fixture(scope="session")
def decoder() -> SpeechDecoder:
    return SpeechDecoder.load(CASES / "decoder")


@pytest.fixture(scope="session")
def waves() -> dict[str, np.ndarray]:
    """Clips of 1 and 7.3 s at 16 kHz."""
    folder = CASES / "tokenizer_cases"
    return {name: soundfile.read(folder / f"{name}.flac", dtype="float32")[0] for name in ("w1s", "w7p3s")}
