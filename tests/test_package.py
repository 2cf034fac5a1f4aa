"""The package's front door."""

import os
import subprocess
import sys

import vita_audio_pl


def test_every_public_name_is_where_the_package_says():
    for name in vita_audio_pl.__all__:
        assert getattr(vita_audio_pl, name).__name__ == name


HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""What Python does at its start, but where a shell in the background has the signal ignored."""


def test_ctrl_c_while_a_command_imports_is_a_sentence_and_a_program_that_imports_the_package_keeps_its_own(tmp_path):
    (tmp_path / "hydra.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    for started, says in (
        (["-m", "vita_audio_pl.export"], "Ctrl-C: stopped while starting; rerun the same command"),
        (["-c", f"{HEARS_CTRL_C}; import vita_audio_pl, hydra"], "KeyboardInterrupt"),
    ):
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        ended = subprocess.run(
            [sys.executable, *started], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
        )
        assert says in ended.stderr and ("Traceback" in ended.stderr) is (says == "KeyboardInterrupt")
        assert ended.returncode in (130, -2)
