"""Every setting of every command has a meaning and a range or a list, and refuses what lies outside in one sentence."""

import copy
import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.benchmarking.settings import BenchmarkConfig
from vita_audio_pl.checksums import ChecksumsConfig
from vita_audio_pl.config.entry import register_schema, run_entry_point, to_dataclass
from vita_audio_pl.config.fields import Described, check_paths, described
from vita_audio_pl.config.help import print_help
from vita_audio_pl.config.renamed import RENAMED, rename_settings
from vita_audio_pl.data.__main__ import DataToolsConfig
from vita_audio_pl.data.options import PrepareConfig
from vita_audio_pl.demo import DemoConfig
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.export import ExportConfig
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.merge import MergeConfig
from vita_audio_pl.pairs import PairsConfig
from vita_audio_pl.planning.settings import PlanConfig
from vita_audio_pl.reporting.dashboard import DashboardConfig
from vita_audio_pl.reporting.settings import ReportConfig
from vita_audio_pl.serving.settings import ServeConfig, TalkConfig
from vita_audio_pl.training.checks import apply_stage_settings
from vita_audio_pl.training.settings import TrainConfig

COMMANDS = {
    "train": TrainConfig,
    "plan": PlanConfig,
    "prepare": PrepareConfig,
    "data_tools": DataToolsConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
    "report": ReportConfig,
    "dashboard": DashboardConfig,
    "export": ExportConfig,
    "merge": MergeConfig,
    "pairs": PairsConfig,
    "checksums": ChecksumsConfig,
    "demo": DemoConfig,
    "serve": ServeConfig,
    "talk": TalkConfig,
}
# what a command cannot do without
NEEDED = {
    "generate": {"model": "m"},
    "evaluate": {"model": "m"},
    "export": {"source": "m", "target": "n"},
    "merge": {"models": ["m"], "target": "n"},
    "pairs": {"model": "m"},
    "checksums": {"folder": "m"},
    "serve": {"model": "m"},
}
STAGED = ("train", "plan", "data_tools")
NUMBER = re.compile(r"\b(int|float)\b")


def composed(command: str):
    register_schema(command, COMMANDS[command])
    with initialize_config_dir(version_base="1.3", config_dir=str(asset_dir("conf"))):
        config = compose(command)
    for name, value in NEEDED.get(command, {}).items():
        config[name] = value
    return config


def wrong_values(setting: Described) -> list:
    """Values that the setting must not take."""
    rules, kind = setting.rules, setting.type
    items = []
    if NUMBER.search(kind):
        items += ["x", float("nan"), float("inf")]
        items += [rules.at_least - 1] if rules.at_least is not None else []
        items += [rules.above] if rules.above is not None else []
        items += [rules.at_most + 1] if rules.at_most is not None else []
        items += [rules.below] if rules.below is not None else []
    elif "bool" in kind:
        items += ["maybe"]
    elif rules.choices:
        items += [f"{rules.choices[-1]}x"]
    elif "str" in kind and not rules.address:
        items += ["s3://bucket/place"]
    if kind.startswith("list"):
        items = [[item] for item in items] + ([[1] * (rules.length + 1)] if rules.length else [])
        items += [[]] if rules.filled else []
    if "None" not in kind and kind != "Any":
        items += [None]
    return items


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_of_every_setting_are_refused_in_a_sentence(command):
    config = composed(command)
    amend = apply_stage_settings if command in STAGED else None
    assert to_dataclass(copy.deepcopy(config), amend)
    accepted = []
    for setting in described(COMMANDS[command]):
        parent = OmegaConf.select(config, setting.name.rpartition(".")[0]) if "." in setting.name else config
        if parent is None:  # an optional group that is not chosen
            continue
        for value in wrong_values(setting):
            changed = copy.deepcopy(config)
            try:
                with open_dict(changed):
                    OmegaConf.update(changed, setting.name, value)
                to_dataclass(changed, amend)
            except UserError as error:
                assert "\n" not in str(error) and setting.name.rpartition(".")[2] in str(error)
                continue
            except Exception as error:
                # what OmegaConf refuses at once is what the command line's own handling turns into a sentence
                assert type(error).__module__.startswith("omegaconf"), f"{setting.name}={value}: {error!r}"
                continue
            accepted.append(f"{setting.name}={value}")
    assert not accepted


NAMES_A_FILE = re.compile(r"\b(folder|files?|recordings?|certificate|checkpoint|voices?)\b", re.IGNORECASE)
WRITTEN = "paths.data paths.runs data.world_folder data.cache callbacks.local_checkpoints output out shards codes cache spoken " \
    "transcripts engine.folder target"  # fmt: skip
READ_AT_ONCE = (
    "init_from model.pretrained data.shards data.tokenizer_folder samples root model bench.root bench.grammar source"
)
"""By what says more where it is not there, since it may be a run's name, or be made here."""
NO_FILES = "callbacks.keep_best_by name text"
BELONG = {
    "tls_certificate": {"tls_key": __file__},
    "tls_key": {"tls_certificate": __file__},
    "decoding.samples": {"decoding.model_folder": "m"},
}
"""What a setting is given with."""
OTHERWISE = f"{WRITTEN} {READ_AT_ONCE} {NO_FILES}".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_file_that_is_only_read_must_be_there(command):
    config = composed(command)
    for setting in described(COMMANDS[command]):
        if not setting.rules.exists:
            reads = "str" in setting.type and NAMES_A_FILE.search(setting.rules.meaning) and not setting.rules.choices
            assert not reads or setting.name in OTHERWISE, f"{setting.name}: exists=True?"
            continue
        value = ["no/where"] if setting.type.startswith("list") else "no/where"
        changed = copy.deepcopy(config)
        given = {setting.name: {"x": value} if setting.type.startswith("dict") else value}
        with open_dict(changed):
            for name, said in (BELONG.get(setting.name, {}) | given).items():
                OmegaConf.update(changed, name, said)
        with pytest.raises(UserError, match=f"^{re.escape(setting.name)}.* is 'no/where', and there is no such file"):
            check_paths(to_dataclass(changed, apply_stage_settings if command in STAGED else None))


@pytest.mark.parametrize("command", RENAMED)
def test_a_renamed_setting_is_refused_with_its_new_name(command, monkeypatch, capsys):
    names = [setting.name for setting in described(COMMANDS[command])]
    for old, new in RENAMED[command].items():
        assert old not in names and any(new == name or new.startswith(f"{name}.") for name in names), (old, new)
        monkeypatch.setattr("sys.argv", [command, f"+{old}=1"])
        with pytest.raises(SystemExit) as stop:
            run_entry_point(lambda config: None, command, COMMANDS[command])
        assert stop.value.code == 2 and f"the setting '{old}' is now '{new}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_says_what_it_is(command):
    lacking = []
    for setting in described(COMMANDS[command]):
        name, rules = setting.name, setting.rules
        if name.rpartition(".")[2] in ("name", "title", "question", "homepage") or "dict" in setting.type:
            continue
        bounds = (rules.at_least, rules.above, rules.at_most, rules.below)
        if NUMBER.search(setting.type) and all(bound is None for bound in bounds):
            lacking.append(f"{name}: a range")
        if "None" in setting.type and setting.default is None and "null" not in rules.meaning:
            lacking.append(f"{name}: what null means")
        if "str" in setting.type and not rules.choices and not rules.meaning:
            lacking.append(f"{name}: choices or a meaning")
    assert not lacking


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_two_screens(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    register_schema(command, COMMANDS[command])
    print_help(command, COMMANDS[command], ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 8 < len(lines) <= 60 and max(map(len, lines)) <= 80


def test_settings_that_an_earlier_version_wrote_are_read_under_todays_names():
    held = {"callbacks": {"go_on_from": 3}, "optim": {"eps": 1e-8, "optimizer": {}}, "objective": {"name": "distil"}}
    assert rename_settings(held, "train") == {
        "callbacks": {"resume_from_step": 3}, "optim": {"optimizer": {"eps": 1e-8}}, "objective": {"name": "distil"}
    }  # fmt: skip
