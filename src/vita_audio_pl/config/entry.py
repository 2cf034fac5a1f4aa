"""How every command starts and ends: Hydra composes, the schema checks, mistakes become one sentence and an exit status."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.child_processes import end_with, end_with_launcher
from vita_audio_pl.config.component import with_components
from vita_audio_pl.config.ending import one_sentence, require_streams
from vita_audio_pl.config.experiments import ExperimentsSearchPath, ExperimentsSource
from vita_audio_pl.config.fields import Rules, check_paths, check_settings, described, did_you_mean, no_such_setting
from vita_audio_pl.config.help import print_help, wants_help
from vita_audio_pl.config.home import FREE_TEXT, arguments_with_homes, home_written_out, write_out_homes
from vita_audio_pl.config.plugins import load_plugins
from vita_audio_pl.config.renamed import RENAMED
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.secrets import keep_credentials_out_of_logs, without_credentials

Amend = Callable[[DictConfig, Sequence[str]], None]
"""Fills in settings that follow from others, in place; gets the overrides of the command line, too."""


def run_entry_point(
    task: Callable[[Any], Any],
    config_name: str,
    schema: type,
    amend: Amend | None = None,
    own: Sequence[str] = (),
    expand: Callable[[list[str]], list[str]] | None = None,
    elsewhere: bool = False,
) -> None:
    """Compose `conf/<config_name>.yaml` with the command line and call `task` with the typed configuration.

    The primary config lists `<config_name>_schema` first in its defaults; that is `schema`, a dataclass, so that
    an unknown key or a wrong type is refused. A `UserError` from `task`, and every mistake that Hydra or OmegaConf
    finds, is printed as one sentence on stderr and ends the process with status 2. `HYDRA_FULL_ERROR=1` shows the
    whole traceback instead.

    Args:
        task: receives an instance of `schema`.
        config_name: name of the primary config in `conf/`.
        schema: dataclass of the whole configuration.
        amend: fills in settings that follow from others, before anything is resolved.
        own: settings of `schema` that are named like a group of `conf/` that other commands choose from. Hydra would
            take `name=value` for the choice of an option, so they are taken off the command line before it reads it.
        expand: what one word of the command line stands for; gets the arguments and returns those that are meant.
        elsewhere: the settings are those of another machine, so the files that they name need not be here.
    """
    # Idle OpenMP threads that spin steal the cores of other processes. Read when torch starts, so before its import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_credentials_out_of_logs()
    register_schema(config_name, schema)
    rules = {setting.name: setting.rules for setting in described(schema)}
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving with status 1

    started = os.getpid()

    def restore() -> None:
        if not wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)

    def typed_task(config: DictConfig) -> Any:
        restore()  # for processes that the task starts, and for how Hydra shows the task's own exceptions
        _clean_multirun()
        # here already, because Hydra wraps every exception of a job but SystemExit in a banner of its own
        if os.getpid() != started:  # a launcher of Hydra's runs jobs in processes of its own
            end_with(started)
        with one_sentence(str(OmegaConf.select(config, "paths.runs", default="runs"))):
            for name, value in given.items():
                config[name] = value
            load_plugins(config.plugins)
            settings = to_dataclass(config, amend, HydraConfig.get().overrides.task, rules)
            if not elsewhere:
                check_paths(settings)
            return task(settings)

    end_with_launcher()
    with one_sentence(), _hydras_mistakes(rules, restore):
        require_streams()
        sys.argv[1:] = arguments_with_homes(typed_in_utf8(sys.argv[1:]))
        _refuse_renamed(sys.argv[1:], RENAMED.get(config_name, {}))
        _refuse_addresses(sys.argv[1:], rules)
        given = _take(own)
        if wants_help(sys.argv[1:]):
            print_help(config_name, schema, sys.argv[1:])
            raise SystemExit(0)
        if expand is not None:
            sys.argv[1:] = expand(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(asset_dir("conf")), config_name=config_name)(typed_task)()


@contextmanager
def _hydras_mistakes(names: Iterable[str], restore: Callable[[], None]) -> Iterator[None]:
    """Makes what Hydra and OmegaConf refuse a `UserError`; `restore` undoes what they needed."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, argparse.ArgumentError, ValueError) as error:
        restore()
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (isinstance(error, ValueError) and not _from_hydra(error)):
            raise
        raise UserError(sentence_of(error, names)) from error
    finally:
        restore()


def _clean_multirun() -> None:
    """Takes credentials out of the `multirun.yaml` that Hydra's sweeper has just written."""
    hydra_config = HydraConfig.get()
    path = Path(hydra_config.sweep.dir) / "multirun.yaml"
    if hydra_config.mode == RunMode.MULTIRUN and path.is_file():
        written = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if (clean := without_credentials(written)) != written:
            atomic_write(path, OmegaConf.to_yaml(OmegaConf.create(clean)).encode())


def typed_in_utf8(arguments: Sequence[str]) -> list[str]:
    """Free text as the UTF-8 that a terminal sends, also where the locale says another encoding, or none.

    Names of files stay as they are: the file system is asked for the very bytes that were typed.

    Raises:
        UserError: the bytes of a text are no UTF-8.
    """
    return [_in_utf8(argument) if argument.partition("=")[0] in FREE_TEXT else argument for argument in arguments]


def _in_utf8(argument: str) -> str:
    with suppress(UnicodeError):
        return os.fsencode(argument).decode()
    if any("\ud800" <= letter <= "\udfff" for letter in argument):
        name = argument.partition("=")[0]
        raise UserError(f"what is given as {name} is not UTF-8: set the terminal to UTF-8, or type it again")
    return argument


def _take(names: Sequence[str]) -> dict[str, str]:
    """The settings `name=value` of these names, the last of each, off the command line."""
    taken = {}
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition("=")
        if equals and name in names:
            taken[name] = value
            sys.argv.remove(argument)
    return taken


def _refuse_renamed(arguments: Sequence[str], renamed: Mapping[str, str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("+~")
        for old, new in renamed.items():
            if name == old or name.startswith(f"{old}."):
                raise UserError(f"the setting '{name}' is now '{new}{name.removeprefix(old)}'")


def _refuse_addresses(arguments: Sequence[str], rules: Mapping[str, Rules]) -> None:
    """An address where a folder belongs is refused before Hydra makes a folder of that name."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if "://" in value and (name := name.lstrip("+")) in rules:
            rules[name].refuse(name, value)


def register_schema(config_name: str, schema: type) -> None:
    """Make `<config_name>_schema`, the group `experiment` and the resolvers known to Hydra."""
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    OmegaConf.register_new_resolver("home", home_written_out, replace=True)  # for folders that Hydra itself makes
    plugins = Plugins.instance()
    if ExperimentsSearchPath not in plugins.discover(ExperimentsSearchPath):
        plugins.register(ExperimentsSource)
        plugins.register(ExperimentsSearchPath)


def to_dataclass(
    config: DictConfig, amend: Amend | None = None, given: Sequence[str] = (), names: Iterable[str] = ()
) -> Any:
    """Instance of the schema from a composed config; interpolations resolved, components typed.

    Args:
        given: the overrides that the config was composed with.
        names: of all settings, to suggest the nearest one.

    Raises:
        UserError: a value is missing or has the wrong type, or the schema's own checks refuse it.
    """
    try:
        if amend is not None:
            amend(config, given)
        settings = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(sentence_of(error, names)) from error
    write_out_homes(settings)
    check_settings(settings)
    return with_components(settings)


def sentence_of(error: BaseException, names: Iterable[str] = ()) -> str:
    """One line that says what Hydra or OmegaConf refused and where; names: of all settings, to suggest the nearest."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first_lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = first_lines[0].removeprefix("Error merging override ") if first_lines else type(error).__name__
    key = getattr(cause, "full_key", None)
    details = str(cause).splitlines()[0].strip() if str(cause).strip() else ""
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if text.startswith("Ambiguous value for argument"):  # a comma outside quotes, which a sweep would take apart
        return _unreadable(text.split("'", 1)[1].rpartition("'")[0])
    if "is not a ListConfig, list or tuple" in f"{text} {details}" and "=" in text:
        name = text.partition("=")[0]
        return f"{name} takes a list: {name}=[A,B]"
    unknown = re.search(r"Key '([^']*)' (?:is )?not in '?(\w+)'?", details)
    if unknown:
        return no_such_setting(key or unknown.group(1), names)
    if "missing mandatory value" in details.lower():
        key = key or details.rpartition(" ")[2]
        return f"the setting '{key}' has no value: give {key}=... on the command line"
    if foreign := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return no_such_setting(foreign.group(1), names)  # a group of other commands
    missing_option = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing_option:
        group, option = missing_option.groups()
        listed = str(error).partition("Available options")[2].partition("Config search path")[0].splitlines()[1:]
        options = [line.strip() for line in listed if line.strip()]
        near = did_you_mean(option, options)
        return f"there is no option '{option}' in group '{group}'" + (
            f"; choose one of: {', '.join(options)}{near}" if options else ""
        )
    if cause is not error and details and details not in text:
        text = f"{text.rstrip('.')}: {details}"
    elif key and f"'{key}'" not in text and key not in text:
        text = f"{key}: {text}"
    return text


def _unreadable(override: str) -> str:
    name, _, value = override.partition("=")
    inner = value.replace("'", "").replace('"', "")
    return (
        f"'{override}' cannot be read as a setting: write key=value; a value with commas, colons, equals signs or brackets "
        f"takes quotes inside those of the shell: '{name}=\"{inner}\"'"
    )


def _from_hydra(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(("hydra.", "omegaconf."))
