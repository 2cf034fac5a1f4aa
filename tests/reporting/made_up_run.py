"""Writes a small run folder such as training and evaluation leave behind, with made-up figures."""

import json
import math
import struct
import wave
from pathlib import Path

RATES = {"vanilla": (0.037, 47, 1.0), "boost": (0.052, 11, 0.9), "turbo": (0.078, 5, 0.85)}
STAGES = ("align", "mtp1", "mtp10", "sft")
SENTENCES = ("the big red cow lives in the barn", "anna has three cups", '<b>the</b> dog & the "cat" eat hay')


def write_tone(path: Path, pitch: float = 440.0, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        samples = (int(9000 * math.sin(2 * math.pi * pitch * n / 16000)) for n in range(int(16000 * seconds)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def figure(value: float, lower_is_better: bool = True) -> dict:
    return {"value": value, "low": max(0, value - 0.012), "high": min(1, value + 0.014), "utterances": 320, "units": 2000,
            "lower_is_better": lower_is_better}  # fmt: skip


def write_run(folder: Path) -> Path:
    """A run of four stages, evaluated in Vanilla after each and in all modes at the end."""
    for number, stage in enumerate(STAGES):
        heads = {"align": 0, "mtp1": 1}.get(stage, 10)
        names = ["train/loss_main", "train/accuracy_main"] if stage in ("align", "sft") else []
        names += [f"train/{kind}_head_{k}" for k in range(heads) for kind in ("loss", "accuracy")]
        lines = [",".join(["step", *names, "val/loss_main", "tokens_per_second"])]
        for step in range(10, 310, 10):
            decay = math.exp(-step / 90)
            values = [
                f"{(1 - decay) * 0.85 if 'accuracy' in name else 0.3 + 5 * decay + 0.02 * i:.4f}"
                for i, name in enumerate(names)
            ]
            lines.append(",".join([str(step), *values, "0.61" if step == 300 else "", "5210.5"]))
        (folder / stage).mkdir(parents=True)
        (folder / stage / "metrics.csv").write_text("\n".join(lines) + "\n")
        manifest = {
            "stage": stage, "variant": "vita_audio_boost", "n_heads": 10, "codec": "mel_vq", "steps": 300, "trained": 40,
            "frozen": 0 if stage in ("align", "sft") else 39, "text_audio_interval_ratio": [1, 10, 4, 10],
            "parent_stage": STAGES[number - 1] if number else None, "config": {"seed": 1},
        }  # fmt: skip
        write_json(folder / stage / "model" / "manifest.json", manifest)
    for step in (100, 200, 300):
        write_samples(folder / "sft" / "samples" / f"step-{step:06d}", wer=1 - step / 300)
    place = folder / "eval" / "spoken_world"
    for stage in STAGES:
        for mode in RATES if stage == "sft" else ("vanilla",):
            for task in ("asr", "tts", "sqa", "text"):
                write_result(place, stage, mode, task)
    write_result(place, "sft", "vanilla", "asr", split="unseen_voice")
    write_tone(place / "recordings" / "question.wav", 300)
    write_tone(place / "controls" / "sqa.s0.wav", 500)
    rows = [
        ("assistant's voice", "the recording", 0.012), ("assistant's voice", "after the codec", 0.031),
        ("assistant's voice", "another recording's text as reference", 0.93), ("noise", "noise of the same length", 1.0),
    ]  # fmt: skip
    controls = [
        {"recordings": who, "condition": what, "utterances": 100, "value": v, "low": v * 0.8, "high": min(1, v * 1.2)}
        for who, what, v in rows
    ]
    write_json(place / "controls.json", {"rows": controls, "remark": "A remark.",
                                         "resynthesis": {"sqa.s0": "controls/sqa.s0.wav"}})  # fmt: skip
    difference = {"value": 0.015, "low": 0.004, "high": 0.026, "p_value": 0.0004, "utterances": 318, "first": 0.061,
                  "second": 0.076}  # fmt: skip
    write_json(place / "comparisons.json", {"format": 2, "comparisons": [
        {"stage": "sft", "mode": "boost", "split": "test", "task": "tts", "metrics": {"speech_wer": difference},
         "backbone_passes_share": 0.234, "second": {"key": "sft.test.tts.boost"}},
    ]})  # fmt: skip
    return folder


def write_samples(folder: Path, wer: float) -> None:
    """What a model in training answered: two prompts spoken, one written."""
    rows = []
    for number, task in enumerate(("tts", "tts", "text")):
        row = {"id": f"dev/{task}{number}", "task": task, "asked": "who", "reference": SENTENCES[number], "wer": None,
               "text": SENTENCES[2], "scores": {"text_accuracy": {"hits": int(wer == 0), "of": 1}}}  # fmt: skip
        if task == "tts":
            row |= {"transcript": "the <i>dog</i>", "wer": wer, "seconds": 0.3, "audio": f"audio/{number}.wav"}
            write_tone(folder / row["audio"], 400)
        rows.append(row)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_result(place: Path, stage: str, mode: str, task: str, split: str = "test") -> None:
    folder = place / stage / split / f"{task}.{mode}"
    wer, passes, right = RATES[mode]
    metrics = {
        "asr": {"wer": figure(wer)},
        "tts": {"speech_wer": figure(wer * 1.5), "text_wer": figure(wer)},
        "sqa": {"text_accuracy": figure(0.8 * right, False), "speech_accuracy": figure(0.75 * right, False),
                "speech_wer": figure(wer * 2)},
        "text": {"text_accuracy": figure(0.82 * right, False)},
    }[task]  # fmt: skip
    rows = []
    for number, sentence in enumerate(SENTENCES):
        heard = sentence if number else "the dog"
        row = {"id": f"{task[0]}{number}", "reference": sentence, "text": sentence, "stopped": True, "tokens": 47,
               "backbone_passes": passes, "head_passes": 30,
               "scores": {"speech_wer": {"errors": int(number == 0), "of": 5}}}  # fmt: skip
        if task in ("tts", "sqa"):
            row |= {"heard": heard, "silent": False, "audio": f"audio/{task[0]}{number}.wav"}
            write_tone(folder / row["audio"], 400 + 60 * number)
        if task == "sqa":
            row["source"] = "recordings/question.wav"
        rows.append(row)
    result = {"format": 2, "key": f"{stage}.{split}.{task}.{mode}", "stage": stage, "mode": mode, "verify": "none", "task": task, "split": split, "bench": "spoken_world",
              "utterances": 320 if stage == "sft" else 100, "metrics": metrics, "backbone_passes": passes,
              "profile": "strict", "judge": "pocketsphinx"}  # fmt: skip
    write_json(folder / "result.json", result)
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
