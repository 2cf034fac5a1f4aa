"""Every command in the documentation runs, page by page and in the order of the page, on the smallest world."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import RUN, Place
from tests.end_to_end.doc_commands import documented, write_yaml_of
from tests.end_to_end.test_readme import FEW_STEPS
from tests.patience import PATIENCE

# A cluster's sizes, a published corpus, a network, a world beside the small one: composed and printed, not done
ONLY_COMPOSED = re.compile(r"scale=published|stage=dpo|,dpo\]|/corpora/|://|wandb=ENTITY|/world768")
SMALL_BENCHMARK = {
    "training": ["stages=[mtp10]", "repetitions=1", "benchmark_size.length=64", "benchmark_size.vocabulary=500"],
    "decoding": ["decoding.new_tokens=24", "decoding.repetitions=1", "decoding.first_chunks=1"],
    "data": [f"engine.{small}" for small in ("samples=10000", "rows=20", "workers=1", "planned=0", "steady_rows=0", "codec_seconds=0")],
    "trainers": ["trainers.steps=30", "trainers.save_every=15", "trainers.rounds=1", "trainers.overrides=[data=spoken_world_smoke]"],
}  # fmt: skip
SMALL_ARMS = ["experiment.suite=ablation_smoke", "experiment.bench=spoken_world_smoke", "per_stage.mtp10.steps=2"]


def small(command: str) -> list[str]:
    """The command as it is given here: the same program and choices, with the smallest world, model and budget."""
    command = command.replace("demo-full-seed1", RUN).replace("data/spoken_world/", "data/spoken_world_smoke/")
    words = shlex.split(command.removeprefix("python "))
    program, given = words[1].removeprefix("vita_audio_pl."), words[2:]
    # servers run until they are ended (tests/serving), and this model's answers are no pairs (tests/training)
    if ONLY_COMPOSED.search(command) or program in ("serve", "talk", "pairs"):
        return [*words, "--cfg", "job"]
    if program == "train":
        words += FEW_STEPS
        if "-m" in given:
            words += SMALL_ARMS if "seed=1" in given else [*SMALL_ARMS, "seed=1"]
            # no Slurm here: the same plugin's launcher for this machine
            words = [word.replace("submitit_slurm", "submitit_local") for word in words if ".partition=" not in word]
            words = [re.sub(r"(gpus_per_node)=1", r"\1=0", word.replace("n_trials=20", "n_trials=2")) for word in words]
        elif not any(word.startswith("run_name=") for word in given):
            words.append("run_name=" + re.sub(r"\W", "_", "_".join(given)))
    elif program == "data":
        words.append("data=spoken_world_smoke")
    elif program in ("demo", "prepare") and not any(word.startswith(("size=", "source=")) for word in given):
        words.append("size=smoke")
    elif program == "evaluate":
        words = [word.replace("limit=50", "limit=3").replace("suite=demo", "suite=demo_smoke") for word in words]
        words = [word.replace("model=DIR", f"model=runs/{RUN}/sft") for word in words]
        if not any(word.startswith("bench=") for word in words):
            words.append("bench=spoken_world_smoke")
        if not any(word.startswith(("limit=", "suite=")) for word in words):
            words.append("limit=3")
    elif program == "benchmark":
        words += SMALL_BENCHMARK[given[0].removeprefix("what=")]
    return words


def make_birds(folder: Path) -> None:
    """The recordings and files that the page on corpora speaks of, its YAML as it stands there."""
    write_yaml_of("add-a-corpus", folder, "birds.yaml", None, None, "birds_mixture.yaml")
    clips = folder / "birds" / "clips"
    clips.mkdir(parents=True)
    lines = []
    for number in range(1, 7):
        text, name = f"the red bird sings in the tree {number} times", f"{number:02}.wav"
        subprocess.run(["espeak-ng", "-w", str(clips / name), text], check=True)
        lines.append(json.dumps({"file_name": f"clips/{name}", "text": text}))
    (clips / "05.wav").write_bytes(b"")
    (folder / "birds" / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_calls(folder: Path) -> None:
    """Recordings of one's own in the project's format, and pairs of answers."""
    world = folder / "data" / "spoken_world_smoke"
    lines = (world / "samples" / "asr.test.jsonl").read_text("utf-8").splitlines()[:3]
    for line in lines:
        for audio in json.loads(line)["audios"]:
            (folder / "my" / audio).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(world / audio, folder / "my" / audio)
            (folder / "my" / audio).with_suffix(".txt").write_text(json.loads(line)["messages"][1]["content"])
    (folder / "my" / "calls.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = [{"role": "user", "content": "where is the cow"}]
    pairs = [
        json.dumps({"messages": asked, "chosen": "in the barn", "rejected": f"in {number} trees"})
        for number in range(3)
    ]
    (folder / "my" / "pairs.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize(
    "page", sorted({page for page, _ in documented()} - {"another-language"})
)  # test_mandarin_world
def test_commands_of_a_page_run(page, smoke_demo, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    place = Place(tmp_path / "place")
    shutil.copytree(smoke_demo.folder, place.folder, symlinks=True)
    write_yaml_of("ablations", place.folder, "experiments/clip.yaml")
    make_birds(place.folder)
    make_calls(place.folder)
    commands = [command for of, command in documented() if of == page]
    if not any("-m experiment=objective" in command for command in commands) and any(
        "report experiment=objective" in command for command in commands
    ):
        commands.insert(0, "python -m vita_audio_pl.train -m experiment=objective")
    for command in commands:
        place.run(*small(command))
