"""Writes a small ablation folder such as a sweep leaves behind: four arms with three seeds, align shared by a seed's arms."""

import json
from pathlib import Path

from made_up_run import figure, write_json, write_tone

CHOICES = {
    "every_head": {1: 0.11, 2: 0.12, 3: 0.13},
    "served_slots": {1: 0.141, 2: 0.152, 3: 0.163},  # 3.1 to 3.3 points more
    "audio_only": {1: 0.10, 2: 0.16, 3: 0.12},  # one less, four more, one less
    "distil": {1: 0.10, 2: 0.11, 3: 0.12},  # one less, in every seed
}
"""TTS WER in the own pattern by seed."""
MODES = {"vanilla": (46, 0), "own": (12, 34), "own+verify": (16, 60), "turbo": (5, 42), "turbo+verify": (16, 60)}
"""Backbone and head passes per answer; verified modes are one."""
PATTERNS = {"vanilla": [8192, 0], "own": [1, 10, 4, 10], "turbo": [1, 10]}


def write_experiment(runs: Path, name: str = "objective", seeds=(1, 2, 3)) -> Path:
    folder = runs / name
    for number, (seed, choice) in enumerate((seed, choice) for seed in seeds for choice in CHOICES):
        write_arm(folder, choice, seed, number)
    return folder


def write_arm(folder: Path, choice: str, seed: int, number: int) -> None:
    place = folder / f"{choice}-seed{seed}"
    first = f"objective/every_head-seed{seed}"
    stages = [
        {"stage": "align", "folder": f"runs/shared_stages/align-{seed}", "made_by": first, "reused": choice != "every_head",
         "cpu_seconds": 300.0, "wall_seconds": 310.0},
        {"stage": "mtp10", "folder": f"runs/shared_stages/mtp10-{choice}-{seed}", "made_by": f"objective/{place.name}",
         "reused": False, "cpu_seconds": (200.0 if choice == "distil" else 100.0) + seed, "wall_seconds": 110.0},
    ]  # fmt: skip
    write_json(place / "arm.json", {
        "experiment": folder.name, "question": "Which targets should heads learn?", "run_name": f"{folder.name}/{place.name}",
        "settings": {"objective": choice}, "seed": seed, "stages": stages, "number": number, "finished": True,
        "evaluation": {"of": {}, "cpu_seconds": 60.0, "wall_seconds": 70.0},
    })  # fmt: skip
    for stage, heads in (("align", 0), ("mtp10", 10)):
        names = [f"train/accuracy_head_{k}" for k in range(heads)] or ["train/accuracy_main"]
        held_out = [f"val/served_accuracy_head_{k}" for k in range(heads)]
        lines = [",".join(["step", "train/loss", *names, *held_out])]
        for step in range(10, 160, 10):
            ends = [f"{0.9 - CHOICES[choice][seed] - k / 100:.4f}" if step == 150 else "" for k in range(heads)]
            lines.append(",".join([str(step), f"{3 / step:.4f}", *(f"{0.5 + step / 400:.4f}" for _ in names), *ends]))
        (place / stage).mkdir(parents=True)
        (place / stage / "metrics.csv").write_text("\n".join(lines) + "\n")
        write_json(place / stage / "model" / "manifest.json", {
            "stage": stage, "parent_stage": "align" if heads else None, "steps": 150, "weights": f"{stage}{choice}{seed}",
            "n_heads": heads, "text_audio_interval_ratio": [1, 10, 4, 10],
            "config": {"rendering": {"lead_in_codes": 8}, "trainer": {"accelerator": "cpu", "devices": 1, "threads": 1}},
        })  # fmt: skip
    for mode, (passes, heads) in MODES.items():
        for task in ("tts", "sqa"):
            write_arm_result(place, choice, seed, mode, task, passes, heads)


def write_arm_result(place: Path, choice: str, seed: int, mode: str, task: str, passes: int, heads: int) -> None:
    folder = place / "eval" / "spoken_world" / "mtp10" / "test" / f"{task}.{mode}"
    wer = 0.05 + 0.01 * seed if mode == "vanilla" or "+" in mode else CHOICES[choice][seed]
    wer += 0.05 * (mode == "turbo")
    metrics = {"speech_wer": figure(wer)} | ({"speech_accuracy": figure(0.5, False)} if task == "sqa" else {})
    name, _, verified = mode.partition("+")
    scores = {"speech_wer": {"errors": round(1000 * wer), "of": 1000}} | (
        {"speech_accuracy": {"hits": 1, "of": 2}} if task == "sqa" else {}
    )
    rows = []
    for number in range(3):
        write_tone(folder / "audio" / f"{task}{number}.wav", 400 + 60 * number)
        rows.append({"id": f"{task}{number}", "reference": "anna has three cups", "text": "anna has three cups",
                     "transcript": "anna has two cups", "seconds": 0.32, "silent": False, "audio": f"audio/{task}{number}.wav", "tokens": 47,
                     "backbone_passes": passes, "head_passes": heads, "scores": scores})  # fmt: skip
    answers = [{"id": row["id"], "codes": [7, 7, 8, 9]} for row in rows]
    (folder / "answers.0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    write_json(folder / "result.json", {
        "format": 3, "key": f"{choice}{seed}{mode}{task}",
        "stage": "mtp10", "mode": name, "verify": "greedy" if verified else "none", "task": task, "split": "test",
        "bench": "spoken_world", "pattern": PATTERNS[name], "utterances": 160, "metrics": metrics, "backbone_passes": passes, "head_passes": heads,
        "profile": "strict", "judge": "pocketsphinx",
    })  # fmt: skip
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
