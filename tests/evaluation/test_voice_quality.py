"""Likeness and naturalness: checkpoints are loaded as they are published, scores reach the results."""

import numpy as np
import pytest
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.choice import judge_maker
from vita_audio_pl.evaluation.judges.voice_quality import Naturalness, SpeakerSimilarity
from vita_audio_pl.evaluation.runs.results import write_results
from vita_audio_pl.evaluation.runs.toolbox import ModelToolbox
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.evaluation.scores.scoring import Scoring


def tone(frequency: float, seconds: float = 0.5) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(seconds * 16000)) * frequency).astype(np.float32)


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A tiny random WavLM x-vector model in transformers' layout."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8, 8, 8, 16), xvector_output_dim=8,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


class Loudness(torch.nn.Module):
    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return wave.abs().amax(1)


@pytest.fixture(scope="module")
def utmos(tmp_path_factory):
    path = tmp_path_factory.mktemp("utmos") / "utmos.jit"
    torch.jit.script(Loudness()).save(path)
    return path


def test_a_voice_is_most_like_itself(wavlm):
    same, other = SpeakerSimilarity(wavlm).compare([tone(0.1), tone(0.1)], [tone(0.1), tone(0.9, 0.7)], 16000)
    assert same == pytest.approx(1, abs=1e-5) and other < same


def test_naturalness_is_what_the_exported_model_says(utmos):
    scores = Naturalness(utmos, trust_file=True).score([tone(0.1), 0.5 * tone(0.1)], 16000)
    assert scores == pytest.approx([0.3, 0.15], abs=1e-3)


def test_missing_models_are_sentences(tmp_path):
    with pytest.raises(UserError, match="is not a WavLM checkpoint"):
        SpeakerSimilarity(tmp_path)
    with pytest.raises(UserError, match="does not exist; give the TorchScript file"):
        Naturalness(tmp_path / "none.jit")
    (tmp_path / "text.jit").write_text("hello")
    with pytest.raises(UserError, match="is not a TorchScript model"):
        Naturalness(tmp_path / "text.jit", trust_file=True)


def test_files_that_can_run_code_are_loaded_only_where_they_are_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: pytest.fail("it was loaded"))
    file = tmp_path / "utmos.jit"
    file.write_bytes(b"anything")
    for make in (
        lambda: Naturalness(file),
        lambda: ModelToolbox(lambda name: None, mos_model=file),
        lambda: judge_maker(model=str(tmp_path))("paraformer"),
    ):
        with pytest.raises(UserError, match="can run any code .* add trust_file=true"):
            make()


def test_scores_reach_the_results_and_equal_codes_in_two_voices_are_heard_twice(tmp_path):
    from test_runner import SpellingToolbox, evaluation, run_all

    from vita_audio_pl.evaluation.items import tts_item
    from vita_audio_pl.evaluation.records import Transcript

    class Rating(SpellingToolbox):
        def transcribe(self, model, judge, answers, voices):
            heard = super().transcribe(model, judge, answers, voices)
            return [Transcript(h.id, h.text, h.seconds, float(voices[h.id].stem) / 10, 3.5) for h in heard]

    items = tuple(tts_item(str(n), "the red cow", voice_prompt=tmp_path / f"{n}.wav") for n in (2, 6))
    (record,) = run_all([evaluation(tmp_path, items=items)], Rating(tmp_path / "log"))
    result = write_results(record, Scoring(plain), {})
    assert result["voice"] == {
        "similarity": {"mean": 0.4, "utterances": 2}, "naturalness": {"mean": 3.5, "utterances": 2},
    }  # fmt: skip
    assert "likeness to the prompted voice" in (record.evaluation.folder / "result.md").read_text()
