"""A tiny random model, a bench of tones, and the settings that evaluate one on the other."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from tones import RATE, SENTENCES, CountingJudge
from transformers import Qwen2Config

from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.runs import evaluate as session
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.text.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny random model of two heads in `runs/r/sft/model`, and a bench of six tones."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    tones = [0.3 * np.sin(np.arange(4000) * f).astype(np.float32) for f in rng.uniform(0.05, 0.6, len(SENTENCES))]
    samples = {task: [] for task in ("asr", "tts", "sqa", "text")}
    for n, (text, tone) in enumerate(zip(SENTENCES, tones, strict=True)):
        soundfile.write(folder / f"{n}.wav", tone, RATE)
        user = {"asr": "Convert the speech to text.\n<|audio|>", "tts": f"Convert the text to speech.\n{text}",
                "sqa": "<|audio|>", "text": text}  # fmt: skip
        answer = {"asr": text, "tts": "<|audio|>", "sqa": f"{text}\n<|audio|>", "text": text}
        audios = {"asr": 1, "tts": 1, "sqa": 2, "text": 0}
        for task in samples:
            turns = [{"role": "user", "content": user[task]}, {"role": "assistant", "content": answer[task]}]
            samples[task].append({"id": f"{task}{n}", "messages": turns, "audios": [f"{n}.wav"] * audios[task]})
    for task, rows in samples.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    model = folder / "runs" / "r" / "sft" / "model"
    config = MelVQConfig(codebook_size=8, n_mels=20, pca_size=8, griffin_lim_iterations=1)
    MelVQ.fit(tones, config, 0).save(model / "codec")
    tokenizer = TextTokenizer.train([" ".join(SENTENCES) + " " + "Convert the text to speech. " * 9], 300)
    vocabulary = tokenizer.vocabulary(8)
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=vocabulary.size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    speech_lm = SpeechLM(SpeechLMConfig(backbone, 2)).eval()
    save_released(speech_lm, model, decode_pattern=[1, 2], first_code=vocabulary.first_code)
    tokenizer.save(model / "tokenizer")
    (model / "manifest.json").write_text(
        json.dumps({"stage": "sft", "vocabulary": vocabulary.fingerprint, "weights": "w"})
    )
    return folder


@pytest.fixture
def config(world, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "judge_maker", lambda *settings: lambda name: CountingJudge())
    shutil.copytree(world, tmp_path / "w")
    tasks = {task: {"test": f"{task}.jsonl"} for task in ("asr", "tts", "sqa", "text")}
    limits = {task: 24 for task in tasks}
    bench = BenchConfig(
        "tones", "Tones", root=str(tmp_path / "w"), tasks=tasks, judge="counting", max_new_tokens=limits
    )
    model = tmp_path / "w" / "runs" / "r" / "sft" / "model"
    return EvaluateConfig(
        bench=bench, model=str(model), task="all", mode="vanilla", batch_size=4, workers=1, players=2, device="cpu"
    )
