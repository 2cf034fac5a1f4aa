"""A made-up run, and a browser to open its page in."""

import shutil
import subprocess

import pytest
from made_up_run import write_run

from tests.patience import PATIENCE
from vita_audio_pl.reporting.run.page import run_pictures
from vita_audio_pl.reporting.run_files import RunFiles

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required --mute-audio"
).split()


@pytest.fixture
def run(tmp_path) -> RunFiles:
    return RunFiles.read(write_run(tmp_path / "demo"), "spoken_world")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The figures of the made-up run, drawn once."""
    return run_pictures(RunFiles.read(write_run(tmp_path_factory.mktemp("drawn") / "demo"), "spoken_world"), "test")


@pytest.fixture
def dump_dom(tmp_path):
    """Opens a page in headless chromium, lets its scripts run, returns the DOM as text."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.fail("the pages are opened in chromium, which `make test` installs")

    def dump(path, budget_ms: int = 4000) -> str:
        options = [f"--user-data-dir={tmp_path / 'browser'}", f"--virtual-time-budget={budget_ms}", "--dump-dom"]
        command = [browser, *QUIET, *options, path.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout

    return dump
