"""Debian packages are installed where they are missing, also while another program holds apt's locks (stand-in apt-get)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE

SCRIPT = Path(__file__).parents[1] / "scripts" / "system-packages.sh"
LISTS = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 77 (unattended-upgr)"
DPKG = "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"


@pytest.fixture
def install(tmp_path):
    """Runs the script with an apt-get that writes its calls down and fails `refusals` times at a command."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env", "sed", "head"):
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "id").write_text("#!/bin/sh\necho 0\n")
    (tools / "sleep").write_text(f'#!/bin/sh\necho "sleep $1" >> {tmp_path}/calls\n')
    (tools / "apt-get").write_text(f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
read -r left < {tmp_path}/left-of-$1 || left=0
[ "$left" -le 0 ] && exit 0
echo $((left - 1)) > {tmp_path}/left-of-$1
echo "$REFUSAL" >&2
exit 100
""")
    for tool in ("id", "sleep", "apt-get"):
        (tools / tool).chmod(0o755)

    def run(refusal: str = "", **refusals: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        for command in ("update", "install"):
            (tmp_path / f"left-of-{command}").write_text(f"{refusals.get(command, 0)}\n")
        environment = {"PATH": str(tools), "REFUSAL": refusal}
        command = [str(SCRIPT), "speaker", "browser:no_module_of_this_name"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        return done, (tmp_path / "calls").read_text().splitlines()

    return run


INSTALL = "install -y -qq --no-install-recommends speaker browser"


def test_what_is_missing_is_installed(install):
    done, calls = install()
    assert done.returncode == 0 and done.stdout == "Installing speaker browser with apt-get\n"
    assert calls == ["update -qq", INSTALL]


def test_a_lock_that_another_program_holds_is_waited_for(install):
    done, calls = install(LISTS, update=2)
    assert done.returncode == 0 and calls == ["update -qq", "sleep 5"] * 2 + ["update -qq", INSTALL]
    assert done.stdout.splitlines()[1:] == [
        "Another program (process 77 (unattended-upgr)) is installing packages; waiting for it, at most 10 minutes"
    ]


def test_a_lock_of_dpkg_is_waited_for_but_not_for_ever(install):
    done, calls = install(DPKG, install=999)
    assert done.returncode == 1 and calls.count("sleep 5") == 120 and calls.count("update -qq") == 1
    assert done.stdout.count("Another program is installing packages") == 1
    assert DPKG in done.stderr and "Please install: speaker browser (apt-get install failed" in done.stderr


def test_another_failure_is_told_at_once(install):
    done, calls = install("E: Unable to locate package speaker", install=1)
    assert done.returncode == 1 and calls == ["update -qq", INSTALL]
    assert "Unable to locate package speaker" in done.stderr
