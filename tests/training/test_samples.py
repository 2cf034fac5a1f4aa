"""What a model answers while it trains: written, heard and scored, without a trace in the training itself."""

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import probe
import pytest
import soundfile
import torch
import toy
from hydra import initialize_config_dir
from safetensors.torch import load_file

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.inference import generate
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.load import load_model
from vita_audio_pl.training.callbacks import sample_writer
from vita_audio_pl.training.run_folder.layout import StageFolder
from vita_audio_pl.training.stage.train import train_stage

WITH = ("callbacks.samples.every_steps=2", "callbacks.samples.max_new_tokens=12")


class Parrot:
    """A judge that hears the same in every sound."""

    def transcribe(self, waves, sample_rate):
        return ["a tone and more"] * len(waves)


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(sample_writer, "judge_maker", lambda *settings: lambda name: Parrot())


@pytest.fixture
def speaking(monkeypatch):
    """The toy's answers are noise; what follows each of them here is a span of three codes."""
    words = toy.VOCABULARY
    span = [words.begin_of_audio, *words.code_ids(np.array([3, 9, 1])).tolist(), words.end_of_audio]

    def spoken(*arguments, **options):
        return [replace(answer, ids=[*answer.ids, *span]) for answer in generate(*arguments, **options)]

    monkeypatch.setattr(sample_writer, "generate", spoken)


def rows_of(folder: StageFolder, step: int) -> list[dict]:
    return [
        json.loads(line) for line in (folder.samples / f"step-{step:06d}" / "samples.jsonl").read_text().splitlines()
    ]


def train(tmp_path, stage: str, *overrides: str) -> StageFolder:
    config = toy.toy_config(tmp_path / "runs", f"stage={stage}", "run_name=toy", *overrides)
    data = toy.ToyData(hears=config.variant.has_audio_encoder)
    return StageFolder(train_stage(config, toy.toy_data(tmp_path / "world", data, prompts=True)).parent)


def test_samples_are_heard_and_scored_and_leave_no_trace_in_training(tmp_path, judged, speaking):
    plain = train(tmp_path, "align", "run_name=plain")
    folder = train(tmp_path, "align", *WITH)
    assert not plain.samples.exists()
    assert sorted(path.name for path in folder.samples.iterdir()) == ["step-000002", "step-000004", "step-000006"]
    for found, expected in zip(
        *(load_file(f.model / "model.safetensors").items() for f in (folder, plain)), strict=True
    ):
        assert found[0] == expected[0] and found[1].equal(expected[1])
    assert folder.last_metric("train/loss") == plain.last_metric("train/loss")

    asr, tts, text = rows_of(folder, 6)
    assert [row["task"] for row in (asr, tts, text)] == ["asr", "tts", "text"]
    assert all(row["reference"] == "a tone" and 0 < row["tokens"] <= 17 for row in (asr, tts, text))
    assert asr["wer"] is not None and text["wer"] is None and "transcript" not in asr
    wave, rate = soundfile.read(folder.samples / "step-000006" / tts["audio"])
    assert rate == 8000 and len(wave) / rate == pytest.approx(tts["seconds"], abs=1e-3)
    assert tts["transcript"] == "a tone and more" and tts["wer"] == 1.0  # two words more than the two expected
    assert folder.last_metric("samples/tts/speech_wer") == 1.0
    assert folder.last_metric("samples/asr/wer") == pytest.approx(asr["wer"], abs=1e-4)


def test_a_run_killed_between_checkpoint_and_samples_catches_up(tmp_path, judged, speaking):
    folder = train(tmp_path, "align", *WITH)
    first = {path.name: path.read_bytes() for path in (folder.samples / "step-000006").rglob("*.*")}
    shutil.rmtree(folder.samples / "step-000006")
    shutil.rmtree(folder.model)
    train(tmp_path, "align", *WITH)
    again = {path.name: path.read_bytes() for path in (folder.samples / "step-000006").rglob("*.*")}
    assert first.keys() == again.keys() and first["samples.jsonl"] == again["samples.jsonl"]
    assert not list(folder.samples.glob(".*"))


def test_what_goes_wrong_with_samples_is_said_once_and_stops_nothing(tmp_path, speaking, monkeypatch, caplog):
    codec = toy.ToneCodec.decode
    monkeypatch.setattr(toy.ToneCodec, "decode", lambda self, codes: 1 / 0)
    assert train(tmp_path, "align", "run_name=deaf", *WITH).finished
    assert [r.getMessage() for r in caplog.records if "samples" in r.getMessage()] == [
        "samples have no sound: division by zero; training continues"
    ]
    monkeypatch.setattr(toy.ToneCodec, "decode", codec)

    caplog.clear()
    folder = train(tmp_path, "align", "run_name=unheard", *WITH, "callbacks.samples.judge=whisper")
    (told,) = [r.getMessage() for r in caplog.records if "samples" in r.getMessage()]
    assert "spoken samples have no WER: judge=whisper needs its checkpoint" in told
    _, tts, _ = rows_of(folder, 6)
    assert (
        tts["wer"] is None and tts["transcript"] is None and (folder.samples / "step-000006" / tts["audio"]).is_file()
    )
    assert folder.last_metric("samples/tts/speech_wer") is None
    assert folder.last_metric("samples/tts/text_wer") is not None

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    caplog.clear()
    monkeypatch.setattr(sample_writer.SampleWriter, "answer", full)
    assert train(tmp_path, "align", "run_name=full", *WITH).finished
    (told,) = [r.getMessage() for r in caplog.records if "samples" in r.getMessage()]
    assert told.startswith("there are no samples: [Errno 28] No space left")


def test_wandb_gets_a_table_with_the_sounds(tmp_path, judged, speaking):
    settings = toy.toy_config(tmp_path / "runs", "stage=align", "run_name=toy", "callbacks.samples.every_steps=6",
                              WITH[1], "logger.wandb=offline")  # fmt: skip
    # wandb is told what differs from the usual settings, which Hydra composes where the train command has started it
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        made = train_stage(settings, toy.toy_data(tmp_path / "world", toy.ToyData(), prompts=True))
    folder = StageFolder(made.parent)
    (table,) = folder.root.glob("wandb/offline-run-*/files/media/table/samples/answers_*.table.json")
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["task"], row["step"], row["text"]) for row in rows] == [
        (row["task"], 6, row["text"]) for row in rows_of(folder, 6)
    ]
    (spoken,) = (row for row in rows if row["task"] == "tts")
    assert spoken["wer"] == 1.0 and spoken["transcript"] == "a tone and more"
    assert spoken["audio"] == "Audio"  # the sound itself goes with the table's artifact


def test_heads_write_samples_and_models_that_hear_get_their_clips(tmp_path, judged, monkeypatch):
    patterns = []

    def noted(runtime, prompts, pattern, **options):
        patterns.append((pattern.runs, runtime.n_heads, [len(clips) for clips in options["clips"]]))
        return generate(runtime, prompts, pattern, **options)

    monkeypatch.setattr(sample_writer, "generate", noted)
    encoder = toy.toy_encoder(tmp_path / "encoder")
    plus = ("variant=vita_audio_plus_boost", f"encoder.folder={encoder}", "callbacks.samples.every_steps=6", WITH[1])
    vanilla, boost = DecodePattern.of("vanilla").runs, DecodePattern.of("boost").runs
    for stage, heads, spoken in (("align", 0, vanilla), ("mtp1", 1, boost)):
        patterns.clear()
        folder = train(tmp_path, stage, *plus)
        assert patterns == [(vanilla, heads, [1]), (spoken, heads, [0]), (vanilla, heads, [0])]  # asr, tts, text
        assert len(rows_of(folder, 6)) == 3


def test_samples_of_a_model_with_adapters_are_those_of_the_merged_weights(tmp_path, judged, monkeypatch):
    train(tmp_path, "align")
    probe.keep_answering_weights(monkeypatch.setattr)
    settings = ("variant.parents.sft=[align]", "model.lora.rank=2", "stage.learning_rate=0.05", *WITH)
    folder = train(tmp_path, "sft", *settings)
    answering, released = load_file(folder.root / "answering-000006.safetensors"), load_model(folder.model)
    assert answering.keys() == {name for name, _ in released.named_parameters()}
    for name, parameter in released.named_parameters():
        torch.testing.assert_close(answering[name], parameter.detach(), rtol=1e-6, atol=1e-7)
    assert len(rows_of(folder, 6)) == 3
