import pytest
from toy_corpus import Corpus, build_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three prepared sources; read-only."""
    mixture = "sources: {asr: {ratio: 1.0}, tts: {ratio: 2.0}, text: {ratio: 0.5}}"
    return build_corpus(tmp_path_factory.mktemp("corpus"), {"asr": 120, "tts": 80, "text": 100}, mixture)
