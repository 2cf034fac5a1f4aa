"""A flipped bit of a model folder is found before anything is trained from it, and named."""

import json
import logging

import pytest
from bit_flips import flip, flipped, some_bits

from vita_audio_pl.checksums import ChecksumsConfig, checksums
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import read_released_config
from vita_audio_pl.models.weight_files import verify_model_files
from vita_audio_pl.storage.checksums import CHECKSUMS, read_checksums
from vita_audio_pl.storage.owned import MARK
from vita_audio_pl.training.run_folder.manifest import StageManifest


def test_no_flipped_bit_of_a_parent_is_trained_from(trained, capsys):
    parent = trained("align").model
    listed = read_checksums(parent)
    assert {path.relative_to(parent).as_posix() for path in parent.rglob("*") if path.is_file()} - set(listed) <= {
        CHECKSUMS,
        ".vita_audio_pl.json",
    }
    for name in [*listed, CHECKSUMS]:
        path = parent / name
        for bit in some_bits(path, 10):
            with flipped(path, bit), pytest.raises(UserError, match=f"{path} is damaged"):
                load_model(parent)
    weights = parent / "model.safetensors"
    with (
        flipped(weights, 8 * weights.stat().st_size - 3),
        pytest.raises(UserError, match=f"{weights} is damaged: bytes 0"),
    ):
        trained("mtp1")
    with flipped(weights, 12345), pytest.raises(SystemExit):
        checksums(ChecksumsConfig(folder=str(parent)))
    assert f"{weights} is damaged: bytes 0 to" in capsys.readouterr().out
    checksums(ChecksumsConfig(folder=str(parent)))
    assert "are what was written" in capsys.readouterr().out


def test_an_edited_number_of_steps_is_refused_until_its_editor_stands_by_it(trained):
    parent = trained("align").model
    manifest = parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"steps": 6', '"steps": 7'))
    with pytest.raises(UserError, match=f"{manifest} is damaged.*vita_audio_pl.checksums folder={parent} write=true"):
        trained("mtp1")
    checksums(ChecksumsConfig(folder=str(parent), write=True))
    assert StageManifest.read(parent).steps == 7 and trained("mtp1").model.exists()


def test_weights_that_were_put_in_the_place_of_others_are_not_taken_for_them(trained):
    parent = trained("align").model
    (parent / "model.safetensors").rename(parent / "other.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(parent)
    (parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    with pytest.raises(UserError, match="index.json was not written with this folder"):
        load_model(parent)


def test_a_folder_of_an_older_version_loads_with_one_line_that_says_how_to_add_checksums(trained, caplog):
    parent = trained("align").model
    (parent / CHECKSUMS).unlink()
    with pytest.raises(UserError, match="checksums.json is missing, with which this folder was written"):
        load_model(parent)
    (parent / MARK).unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_model(parent)
            StageManifest.read(parent)
    [line] = [line for line in caplog.messages if "checksums" in line]
    assert str(parent) in line and "write=true adds them" in line
    checksums(ChecksumsConfig(folder=str(parent), write=True))
    flip(parent / "config.json", 100)
    with pytest.raises(UserError, match="config.json is damaged"):
        load_model(parent)


def test_a_folder_from_elsewhere_is_read_without_checksums(trained, caplog):
    parent = trained("align").model
    for name in (CHECKSUMS, MARK, "manifest.json"):
        (parent / name).unlink()
    with caplog.at_level(logging.WARNING):
        verify_model_files(parent)
    assert not caplog.messages and read_released_config(parent)
