"""The data benchmark measures what it says, from one command."""

import json
import subprocess

import pytest

from tests.warm_python import warm_python
from vita_audio_pl.benchmarking.data_settings import DataBenchmark
from vita_audio_pl.config.fields import check_settings
from vita_audio_pl.errors import UserError


def test_the_command_measures_planning_and_reading_beside_plain_webdataset(tmp_path):
    small = ["samples=10000", "rows=20", "workers=1", "planned=0", "steady_rows=0", "codec_seconds=0"]
    settings = [f"engine.{setting}" for setting in (*small, f"folder={tmp_path / 'made_up'}")]
    command = [warm_python(), "-m", "vita_audio_pl.benchmark", "what=data", f"output={tmp_path / 'out.json'}"]
    shown = subprocess.run([*command, *settings], capture_output=True, text=True, check=True).stdout
    figures = {f["name"]: f for f in json.loads((tmp_path / "out.json").read_text())["figures"]}
    assert all(name in shown for name in ("plan 1 million samples, all rows", "plain WebDataset rows, 1 workers"))
    assert figures["index"]["value"] <= 32 and figures["rows are full to"]["value"] >= 99.5
    assert figures["plain WebDataset rows are full to"]["value"] < figures["rows are full to"]["value"]
    assert figures["planned rows of 8192, 1 workers, 4 a batch"]["value"] > 0
    assert figures["plan 1 million samples, all rows"]["goal"] == "<= 1"


@pytest.mark.parametrize("setting", [{"samples": 9}, {"rows": 0}, {"planned": 10}, {"workers": -1}])
def test_settings_that_measure_nothing_are_refused(setting):
    with pytest.raises(UserError, match="engine"):
        check_settings(DataBenchmark(**setting), "engine.")
