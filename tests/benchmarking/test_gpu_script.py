"""The script for GPUs runs from end to end in its smoke form, on a CPU; that of robustness names what there is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_script_for_gpus_runs_in_its_smoke_form(tmp_path):
    for folder in ("benchmarks", "src", "conf", "data_recipes", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environment = os.environ | {"SMOKE": "1", "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    result = subprocess.run([tmp_path / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {"training_7b.json", "attention_sdpa.json", "decoding"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("script", ["gpu.sh", "robustness.sh"])
def test_an_unknown_part_is_refused(tmp_path, script):
    environment = os.environ | {"OUT": str(tmp_path)}
    result = subprocess.run([ROOT / "benchmarks" / script, "trainin"], env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "'trainin' is no part" in result.stderr


def test_what_the_script_of_robustness_runs_is_there():
    ran = re.findall(r"tests ((?:tests/\S+ ?)+)(?:-k (\w+))?", (ROOT / "benchmarks/robustness.sh").read_text())
    assert len(ran) == 10
    for files, chosen in ran:
        written = "".join((ROOT / file).read_text() for file in files.split()).replace("_", "")
        assert chosen.replace("_", "") in written


def test_what_is_missing_is_said_and_only_what_needs_it_is_left_out(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -c ]; then case $2 in *liger*|*deepspeed*) exit 1;; esac; fi\nexit 0\n')
    python.chmod(0o755)
    (tmp_path / "data/spoken_world_smoke/shards").mkdir(parents=True)
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": str(python), "DATA": str(tmp_path / "data")}
    result = subprocess.run([ROOT / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.endswith(
        f"left out: liger engines' ZeRO; numbers of the others are in {tmp_path}/out\n"
    )
    assert f"gpu.sh: liger is left out, because {python} has no liger_kernel" in result.stderr
    runs = [line for line in result.stdout.splitlines() if line.startswith("== ")]
    names = [line.split(":")[0].removeprefix("== ") for line in runs]
    assert "training_0.5b" in names and "decoding_7b_sessions" in names and not any("liger" in line for line in runs)
    [engine] = [line for line in runs if line.startswith("== engine_")]
    assert "trainer=fsdp2" in engine and "logger=csv" in engine and f"paths.data={tmp_path}/data" in engine
