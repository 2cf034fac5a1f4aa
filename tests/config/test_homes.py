"""`~` at the beginning of a folder is the person's home, in every command; where there is none, this is said."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.config.entry import register_schema, to_dataclass
from vita_audio_pl.config.home import arguments_with_homes
from vita_audio_pl.data.staging import beside
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.training.checks import apply_stage_settings, check_train_config
from vita_audio_pl.training.settings import TrainConfig


def composed(name: str, schema: type, *overrides: str):
    register_schema(name, schema)
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        raw = compose(name, overrides=[*overrides], return_hydra_config=True)
    sweep = raw.hydra.sweep.dir
    with open_dict(raw):
        raw.pop("hydra")
    return to_dataclass(raw, apply_stage_settings if schema is TrainConfig else None), sweep


def test_a_home_is_written_out_wherever_a_folder_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    config, sweep = composed("train", TrainConfig, "paths.runs='~/r'", "data.shards='~/shards'", "init_from='~root/x'")
    assert (config.paths.runs, config.data.shards, sweep) == ("/home/anna/r", "/home/anna/shards", "/home/anna/r")
    assert config.init_from is not None and config.init_from.startswith("/") and config.data.world_folder[0] != "~"
    config, _ = composed("train", TrainConfig, "paths.data='~'")
    assert config.data.world_folder == "/home/anna/spoken_world"
    config, _ = composed("generate", GenerateConfig, "audio='~/m'", "text='~/ is a home'", "output='~x.wav'")
    assert (config.audio, config.text, config.output) == ("/home/anna/m", "~/ is a home", "~x.wav")


def test_a_home_that_is_not_there_is_said():
    with pytest.raises(UserError, match="voice is '~nobody-at-all/r', and there is no such home directory: write"):
        composed("generate", GenerateConfig, "voice='~nobody-at-all/r'")
    with pytest.raises(UserError, match="paths.runs is '~nobody-at-all/r', and there is no such home"):
        arguments_with_homes(["paths.runs=~nobody-at-all/r"])


def test_a_home_on_the_command_line_needs_no_quotes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    given = ["paths.runs=~/r", "+data.shards=~", "~data", "text=~/x", "a=b~/c", "'x=\"~/y\"'", "-m"]
    assert arguments_with_homes(given) == ["paths.runs=/home/anna/r", "+data.shards=/home/anna", *given[2:]]


@pytest.mark.parametrize("setting", ["run_name=../../x", "run_name=/tmp/x", "run_name=''", "stage.name=a/../.."])
def test_a_run_stays_in_the_folder_of_runs(setting):
    config, _ = composed("train", TrainConfig, setting)
    with pytest.raises(UserError, match="(run_name|stage.name) is '.*it names a folder inside runs"):
        check_train_config(config)


def test_shards_of_ones_own_are_what_a_world_is_not_needed_for():
    own, _ = composed("train", TrainConfig, "data.spoken_world=null", "data.shards=mine/shards")
    assert own.data.folder == "mine/shards" and str(beside(own.data, "codec")) == "mine/codec"
    given, _ = composed("train", TrainConfig, "data.shards=mine/shards")
    assert given.data.folder == "mine/shards"
    made, _ = composed("train", TrainConfig, "paths.data=d")
    assert made.data.shards is None and made.data.folder == "d/spoken_world/shards"
    with pytest.raises(UserError, match="data.spoken_world=null says that shards are given.*give data.shards=DIR"):
        composed("train", TrainConfig, "data.spoken_world=null")
