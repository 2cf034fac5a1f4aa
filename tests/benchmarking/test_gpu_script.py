"""The script for GPUs runs from end to end in its smoke form, on a CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_script_for_gpus_runs_in_its_smoke_form(tmp_path):
    for folder in ("benchmarks", "src", "conf", "data_recipes", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environment = os.environ | {"SMOKE": "1", "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    result = subprocess.run([tmp_path / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {"training_7b.json", "attention_sdpa.json", "decoding"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_an_unknown_part_is_refused(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path)}
    result = subprocess.run([ROOT / "benchmarks/gpu.sh", "trainin"], env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "'trainin' is no part" in result.stderr
