import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_corpus import toy_tokenizer, write_corpus

from tests.cluster.local_slurm import local_slurm, why_not
from tests.patience import PATIENCE, wait_until
from vita_audio_pl.assets import asset_dir
from vita_audio_pl.codecs import MelVQ, MelVQConfig
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.readers import AudioFile
from vita_audio_pl.preparation import load_audio, prepare_spoken_world

RECIPE = """
task: asr
description: tones
languages: [en]
licence: none
home: made up
layout: asr.jsonl and audio/*.wav
reader: {kind: jsonl, files: [asr.jsonl], lines_per_part: 10}
"""

SBATCH = """#!{python}
# As much of SLURM as an array needs: runs the script once for every task.
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
open(os.environ["SLURM_SCRIPT"], "w").write(text)
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", text).groups())
for task in range(first, last + 1):
    own = dict(SLURM_JOB_ID=f"{{1000 + task}}", SLURM_ARRAY_JOB_ID="999", SLURM_ARRAY_TASK_ID=str(task), SLURM_NTASKS="1",
               SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_JOB_NUM_NODES="1", SLURM_JOB_NODELIST="localhost")
    subprocess.Popen(["bash", sys.argv[-1]], env=dict(os.environ, **own), stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job 999")
"""

SRUN = """#!{python}
import os, sys
command = next(i for i, word in enumerate(sys.argv[1:], 1) if "python" in os.path.basename(word))
os.execv(sys.argv[command], sys.argv[command:])
"""


@pytest.fixture
def corpus_arguments(tmp_path: Path) -> list[str]:
    """A corpus of 30 tones with recipe, tokenizer and codec, as arguments of the command."""
    write_corpus(tmp_path / "raw", "asr", 30)
    (tmp_path / "tones.yaml").write_text(RECIPE)
    toy_tokenizer().save(tmp_path / "tokenizer")
    waves = [load_audio(AudioFile(path), 16_000, 30) for path in sorted((tmp_path / "raw/audio").iterdir())]
    MelVQ.fit(waves, MelVQConfig(codebook_size=16)).save(tmp_path / "codec")
    return ["source=tones.yaml", "root=raw", "tokenizer_folder=tokenizer", "codec_folder=codec"]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vita_audio_pl.prepare", *arguments]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, env=own)


@pytest.mark.slow
@pytest.mark.ci
def test_one_command_tries_a_recipe_and_then_prepares_it_all(tmp_path: Path, corpus_arguments: list[str]) -> None:
    tried = run(tmp_path, *corpus_arguments, "parts=1", "executor.workers=1")
    assert tried.returncode == 0 and "'tones' is ready: 10 samples" in tried.stdout, tried.stderr
    whole = run(tmp_path, *corpus_arguments, "executor.workers=2")
    assert "'tones' is ready: 30 samples" in whole.stdout, whole.stderr
    assert len(PreparedSource(tmp_path / "data/open_corpus/shards/tones")) == 30


@pytest.mark.slow
@pytest.mark.ci
def test_a_slurm_array_through_hydras_launcher_prepares_a_source(tmp_path: Path, corpus_arguments: list[str]) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text.replace("{python}", sys.executable).replace("{{", "{").replace("}}", "}"))
        (tools / name).chmod(0o755)
    done = run(
        tmp_path,
        *corpus_arguments,
        "executor=slurm",
        "executor.shares=2",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        PATH=f"{tools}:{os.environ['PATH']}",
        SLURM_SCRIPT=str(tmp_path / "script"),
    )
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "script").read_text()
    for line in ("--array=0-1", "--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=8", "--time=1440"):
        assert re.search(rf"^#SBATCH {line}", script, re.MULTILINE), line
    assert len(PreparedSource(tmp_path / "data/open_corpus/shards/tones")) == 30


@pytest.mark.slow
def test_a_real_slurm_prepares_a_source_though_it_preempts_the_jobs(
    tmp_path: Path, corpus_arguments: list[str]
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    small = ("hydra.launcher.cpus_per_task=1", "executor.workers=1", "executor.shares=2")
    command = [sys.executable, "-m", "vita_audio_pl.prepare", *corpus_arguments, "executor=slurm", *small]
    with local_slurm(tmp_path / "slurm") as slurm, (tmp_path / "told").open("wb") as told:
        own = slurm.environment | {"OMP_NUM_THREADS": "1"}
        sent = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=told, stderr=told)

        def jobs(state: str) -> list[str]:
            time.sleep(0.3)
            return slurm.run("squeue", "--noheader", "--array", "--format=%A", f"--states={state}").split()

        wait_until(lambda: len(jobs("RUNNING")) == 2, "both jobs", 600)
        running = jobs("RUNNING")
        slurm.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: sorted(jobs("PENDING")) == sorted(running), "both back in the queue", 600)
        for job in running:
            slurm.start_now(job)
        assert sent.wait(PATIENCE) == 0, (tmp_path / "told").read_text()
        assert [slurm.job(job)["Restarts"] for job in running] == ["1", "1"]
    assert len(PreparedSource(tmp_path / "data/open_corpus/shards/tones")) == 30


@pytest.mark.slow
@pytest.mark.ci
def test_the_spoken_world_is_prepared_once_and_from_training_data_alone(tmp_path: Path) -> None:
    shards = prepare_spoken_world(tmp_path, "smoke")
    sources = {path.parent.name for path in shards.glob("*/manifest.json")}
    names = {"world_asr", "world_tts", "world_sqa", "world_text"}
    assert sources == names | {f"{name}.dev" for name in names}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".tar", ".json", ".bin")}
    assert prepare_spoken_world(tmp_path, "smoke") == shards
    assert {path: path.stat().st_mtime_ns for path in times} == times
    test_lines = {
        line for path in (tmp_path / "samples").glob("*.test.jsonl") for line in path.read_text().splitlines()
    }
    ids = {re.search(r'"id": "([^"]*)"', line).group(1) for line in test_lines}  # type: ignore[union-attr]
    for source in map(PreparedSource, (path.parent for path in shards.glob("*/manifest.json"))):
        assert not ids & {source.read(number).id for number in range(len(source))}


def test_every_executor_is_an_option() -> None:
    assert {path.stem for path in (asset_dir("conf") / "executor").glob("*.yaml")} == {"local", "ray", "slurm"}
