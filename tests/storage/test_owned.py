"""What a command empties or removes is its own, by mark and by name; nothing else is ever touched."""

import os
import resource
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vita_audio_pl.errors import UserError
from vita_audio_pl.storage import owned
from vita_audio_pl.storage.files import partial_name
from vita_audio_pl.storage.owned import MARK, Kind, Owned, atomic_folder, below

FILES = ("metrics.csv", "checkpoints/step-*.ckpt/part-*.bin", "wandb/**", "weights/part-*.safetensors")
KIND = Kind("run", FILES, sign=("identity.json",))
OURS = ("metrics.csv", "checkpoints/step-1.ckpt/part-0.bin", "checkpoints/step-2.ckpt/part-0.bin", "wandb/a/b.txt")
FOLDERS = (
    "",
    "checkpoints/",
    "checkpoints/step-1.ckpt/",
    "checkpoints/step-1.ckpt/sub/",
    "model/",
    "model/codec/",
    "notes/",
)


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fill(root: Path) -> Owned:
    """A folder of ours with files over time, and a model that was written whole."""
    mine = Owned.claim(root, KIND)
    for name in OURS:
        write(root / name)
    with atomic_folder(root / "model", "model") as aside:
        write(aside / "weights.bin")
        write(aside / "codec/codec.json")
    return mine


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


NAMES = st.sampled_from(
    ["precious.txt", "metrics.csv.bak", "step-1.ckpt.old", "weights.bin.mine", ".x.partial", "notes"]
)


@settings(max_examples=40)
@given(
    planted=st.lists(st.tuples(st.sampled_from(FOLDERS), NAMES, st.booleans()), min_size=1, max_size=4),
    names=st.lists(st.sampled_from(["checkpoints", "checkpoints/step-1.ckpt", "model", "metrics.csv"]), max_size=3),
)
def test_what_others_put_there_is_never_gone(planted, names, tmp_path_factory):
    """Files and folders of others, anywhere in a folder of ours: either all is left, or only ours was removed."""
    root = tmp_path_factory.mktemp("owned") / "run"
    mine = fill(root)
    foreign = []
    for folder, name, is_folder in planted:
        path = root / folder / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.mkdir(parents=True) if is_folder else write(path, "precious")
            foreign.append(path)
    before = tree(root)
    for act in (lambda: mine.remove(*names), mine.remove_abandoned, mine.clear):
        try:
            act()
        except UserError as error:
            assert "did not write" in str(error) and str(root) in str(error)
        assert all(path.exists() for path in foreign)
    assert {name: text for name, text in before.items() if text == "precious"}.items() <= tree(root).items()


def test_all_that_is_ours_goes_and_the_mark_stays(tmp_path):
    mine = fill(tmp_path / "run")
    assert mine.foreign() == []
    mine.remove("checkpoints/step-1.ckpt", "never there")
    assert (
        not (tmp_path / "run/checkpoints/step-1.ckpt").exists() and (tmp_path / "run/checkpoints/step-2.ckpt").exists()
    )
    mine.clear(keep=["metrics.csv"])
    assert set(tree(tmp_path)) == {f"run/{MARK}", "run/metrics.csv"}
    assert Owned.open(tmp_path / "run", KIND) == mine == Owned.claim(tmp_path / "run", KIND)


@pytest.mark.parametrize(
    "what", ["file", "file on the way", "foreign folder", "other kind", "damaged mark", "newer mark"]
)
def test_a_folder_that_is_not_ours_is_refused_and_left(what, tmp_path):
    root = tmp_path / "audio"
    match what:
        case "file":
            write(root)
        case "file on the way":
            write(root)
            root = root / "sound"
        case "foreign folder":
            write(root / "song.wav")
        case "other kind":
            Owned.claim(root, Kind("report"))
        case "damaged mark":
            write(root / MARK, "{")
        case "newer mark":
            write(root / MARK, '{"kind": "run", "id": "a", "format": 99}')
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"{root}.*(give|update)"):
        Owned.claim(root, KIND)
    with pytest.raises(UserError, match=str(root)):
        Owned.open(root, KIND)
    assert tree(tmp_path) == before


def test_a_folder_of_an_older_version_is_taken_over(tmp_path):
    write(tmp_path / "run/identity.json")
    assert Owned.claim(tmp_path / "run", KIND).foreign() == [Path("identity.json")]


def test_a_folder_is_claimed_by_many_at_once_and_has_one_id(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        ids = {mine.id for mine in pool.map(lambda _: Owned.claim(tmp_path / "run", KIND), range(64))}
    assert len(ids) == 1


def test_links_are_removed_and_what_they_lead_to_stays(tmp_path):
    mine = fill(tmp_path / "run")
    precious = write(tmp_path / "elsewhere/part-0.bin")
    (tmp_path / "run/wandb/latest").symlink_to(precious.parent)
    (tmp_path / "run/checkpoints/step-3.ckpt").symlink_to(precious.parent)
    with pytest.raises(UserError, match="holds checkpoints/step-3.ckpt, which this program did not write"):
        mine.clear()
    (tmp_path / "run/checkpoints/step-3.ckpt").unlink()
    mine.clear()
    assert precious.exists() and set(tree(tmp_path / "run")) == {MARK}


def test_a_whole_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model", "model") as aside:
        write(aside / "weights.bin")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "model", "model", replace=True) as aside:
            write(aside / "weights.bin", text)
    assert (tmp_path / "model/weights.bin").read_text() == "two" and len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "model/notes.txt", "precious")
    with (
        pytest.raises(UserError, match="is in the way"),
        atomic_folder(tmp_path / "model", "model", replace=True) as aside,
    ):
        write(aside / "weights.bin", "three")
    assert (tmp_path / "model/notes.txt").exists() and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
    mine = fill(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(owned.shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mine.clear()
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "run/model", "model") as aside:
            write(aside / "weights.bin")
            raise KeyboardInterrupt
    dead = f".{socket.gethostname().split('.')[0]}.4194305."  # no process has this number
    for path in list((tmp_path / "run").rglob("*.partial")):
        name = partial_name(Path("x")).name.removeprefix(".x").removesuffix("partial")
        os.rename(path, path.with_name(path.name.replace(name, dead)))
    write(tmp_path / f"run/.precious{dead}partial", "not a name of ours")
    write(tmp_path / "run/.old.partial", "not a form of ours")
    left = len(list((tmp_path / "run").glob(".*.partial")))
    assert left >= 3
    mine.remove_abandoned()
    assert sorted(path.name for path in (tmp_path / "run").glob(".*.partial")) == [
        ".old.partial",
        f".precious{dead}partial",
    ]
    shutil.rmtree(tmp_path)


def test_weights_that_were_killed_half_way_are_ours(tmp_path):
    mine = fill(tmp_path)
    part = tmp_path / "weights/part-0.safetensors"
    part.parent.mkdir()
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills who writes more
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save_file({"x": np.zeros(1 << 16, np.float32)}, part)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ
    (left,) = part.parent.iterdir()
    elsewhere = write(tmp_path / "checkpoints" / left.name)
    assert mine.foreign() == [elsewhere.relative_to(tmp_path)]
    mine.remove("weights")
    assert not part.parent.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/tmp/x", "a\0b"])
def test_a_name_leads_nowhere_else(name, tmp_path):
    with pytest.raises(UserError, match="run_name is .* names a folder inside"):
        below(tmp_path, name, "run_name")
    assert below(tmp_path, "experiment/arm", "run_name") == tmp_path / "experiment/arm"
