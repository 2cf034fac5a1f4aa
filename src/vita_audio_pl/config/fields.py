"""Settings that describe themselves: a field's meaning, range and choices stand where its type and default stand.

`check_settings` enforces them on a composed configuration, and `--help` prints them.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING

from vita_audio_pl.errors import UserError

_KEY = "setting"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


@dataclass(frozen=True)
class Rules:
    """What is known of a setting besides its type and default.

    Attributes:
        meaning: one line, units included; a setting that may be null says what null means.
        at_least, above, at_most, below: bounds of a number, or of each number of a list.
        choices: the words that are allowed; of a list, for each of its items.
        length: items of a list.
        filled: a list that holds at least one item, since it is what is gone through.
        common: among the settings that people change first; `--help` shows these.
        base: of a component, the path of the class that it must derive from; empty where any class will do.
        address: may be a URL; anything else that is named is on this machine.
        exists: names a file or folder that is read, and so must be there when a command starts, also where it reads it late.
        words: with `exists`, what it may say instead of a file.
    """

    meaning: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    common: bool = False
    base: str = ""
    address: bool = False
    exists: bool = False
    words: tuple[str, ...] = ()
    filled: bool = False

    def refuse(self, name: str, value: Any) -> None:
        """Raise `UserError` where `value` of the setting `name` is out of range, not among the choices, or an address."""
        if isinstance(value, list):
            if self.length is not None and len(value) != self.length:
                raise UserError(f"{name} takes {self.length} values, not {len(value)}: {value}")
            if self.filled and not value:
                raise UserError(f"{name} is empty, so nothing would be done: give at least one, such as {name}=[A]")
            for item in value:
                self.refuse(name, item)
        elif isinstance(value, str) and self.choices and value not in self.choices:
            listed = ", ".join(choice or "''" for choice in self.choices)
            raise UserError(f"{name} is '{value}': choose one of {listed}{did_you_mean(value, self.choices)}")
        elif isinstance(value, str) and not self.address and _ADDRESS.fullmatch(value):
            raise UserError(
                f"{name} is the address {value}: it takes what is on this machine, so mount the storage and give the folder, or "
                "copy it here"
            )
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}: it must be a finite number")
            for bound, holds, words in (
                (self.at_least, self.at_least is None or value >= self.at_least, "at least"),
                (self.above, self.above is None or value > self.above, "above"),
                (self.at_most, self.at_most is None or value <= self.at_most, "at most"),
                (self.below, self.below is None or value < self.below, "below"),
            ):
                if not holds:
                    raise UserError(f"{name} is {value}: it must be {words} {bound:g}")


def setting(
    default: Any = MISSING,
    meaning: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    length: int | None = None,
    common: bool = False,
    base: str = "",
    address: bool = False,
    exists: bool = False,
    words: Sequence[str] = (),
    filled: bool = False,
) -> Any:
    """A dataclass field with `Rules`; a default that is a list or a dictionary is copied for each instance."""
    bounds = (at_least, above, at_most, below)
    rules = Rules(meaning, *bounds, tuple(choices), length, common, base, address, exists, tuple(words), filled)
    metadata = {_KEY: rules}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def rules_of(field: "dataclasses.Field[Any]") -> Rules:
    """The rules of a field; a field without any has no bounds."""
    rules = field.metadata.get(_KEY, Rules())
    assert isinstance(rules, Rules)
    return rules


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word that is nearest to a misspelt one; empty where none is near."""
    near = difflib.get_close_matches(word, [choice for choice in known if choice], n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_settings(settings: Any, path: str = "") -> None:
    """Check every field of a settings dataclass against its rules, then call every `check()`, inner ones first.

    Args:
        settings: instance of a dataclass; other values are left alone.
        path: dotted name of the setting that holds it, with a dot at its end.

    Raises:
        UserError: a value that is not allowed, or a key that the dataclass does not have (`+key=value` adds it).
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for added in vars(settings).keys() - fields.keys():
        raise UserError(no_such_setting(f"{path}{added}", [f"{path}{name}" for name in fields]))
    for name, field in fields.items():
        value = getattr(settings, name)
        rules_of(field).refuse(f"{path}{name}", value)
        for key, inner in _inner(value):
            check_settings(inner, f"{path}{name}{key}.")
    if hasattr(settings, "check"):
        settings.check()


def check_paths(settings: Any, path: str = "") -> None:
    """Check that every file and folder is there which a command may read, early or late or, with these settings, not at all.

    Args:
        settings: as `check_settings`.
        path: likewise.

    Raises:
        UserError: one is not there, and which setting names it.
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return
    for field in dataclasses.fields(settings):
        name, value = f"{path}{field.name}", getattr(settings, field.name)
        if (rules := rules_of(field)).exists:
            for key, named in _inner(value):
                if isinstance(named, str) and named not in ("", *rules.words) and not _is_there(named):
                    words = f"; choose one of {', '.join(rules.words)}, or a file" if rules.words else ""
                    near = did_you_mean(named, rules.words)
                    raise UserError(f"{name}{key} is '{named}', and there is no such file or folder{words}{near}")
        for key, inner in _inner(value):
            check_paths(inner, f"{name}{key}.")


def _is_there(named: str) -> bool:
    if _ADDRESS.fullmatch(named):  # asked when it is read
        return True
    try:
        return Path(named).exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        return False


def _inner(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f".{key}", inner) for key, inner in value.items())
    elif isinstance(value, list):
        yield from ((f"[{number}]", inner) for number, inner in enumerate(value))
    else:
        yield "", value


FAMILIAR = {
    "lr": "stage.learning_rate",
    "batch_size": "stage.rows_per_step",
    "global_batch_size": "stage.rows_per_step",
    "micro_batch_size": "trainer.rows_per_device",
    "gradient_accumulation_steps": "trainer.rows_per_device",
    "accumulate_grad_batches": "trainer.rows_per_device",
    "max_steps": "stage.steps",
    "num_epochs": "stage.epochs",
    "max_epochs": "stage.epochs",
    "num_train_epochs": "stage.epochs",
    "seq_len": "stage.sequence_length",
    "max_length": "stage.sequence_length",
    "gpus": "trainer.devices",
    "nodes": "trainer.num_nodes",
    "bf16": "trainer.precision",
    "warmup": "optim.schedule.warmup_share",
    "warmup_steps": "optim.schedule.warmup_share",
    "max_grad_norm": "optim.clip_norm",
    "grad_clip": "optim.clip_norm",
    "num_workers": "data.workers",
    "log_every_n_steps": "callbacks.log_every",
    "output_dir": "paths.runs",
    "resume": "callbacks.resume_from_step",
    "resume_from_checkpoint": "callbacks.resume_from_step",
    "wandb_project": "logger.wandb_project",
}
"""What Lightning, the Hugging Face trainer and torchtitan call a setting, and its name here."""

_FEW_SETTINGS = 20  # as many as a sentence can list


def no_such_setting(key: str, known: Iterable[str]) -> str:
    """The sentence for a setting that does not exist, with the nearest one of `known` (dotted names)."""
    known = list(known)
    last = key.rpartition(".")[2]
    elsewhere = FAMILIAR.get(last, "")
    same = [name for name in known if name.rpartition(".")[2] == last or f"{elsewhere}.".startswith(f"{name}.")]
    if same:  # the right name in the wrong place, or the name that other frameworks have for it
        near = f"; did you mean '{elsewhere or same[0]}'?"
    else:
        groups = [] if "." in key else dict.fromkeys(name.partition(".")[0] for name in known)
        near = did_you_mean(key, [*known, *groups])
    own = [name for name in known if not name.startswith(("paths.", "plugins"))]
    listed = (
        f"; the settings are {', '.join(own)}" if 0 < len(own) <= _FEW_SETTINGS else ": --help-all lists all settings"
    )
    return f"there is no setting '{key}'{near or listed}"


@dataclass(frozen=True)
class Described:
    """One setting of a schema: its dotted name, type as written, default and rules."""

    name: str
    type: str
    default: Any
    rules: Rules


def described(schema: type, path: str = "") -> Iterator[Described]:
    """Every setting of a schema in its order, those of nested dataclasses included."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        nested = next((part for part in (kind, *get_args(kind)) if dataclasses.is_dataclass(part)), None)
        if isinstance(nested, type) and not _is_container(kind):
            yield from described(nested, f"{path}{field.name}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = MISSING
        yield Described(f"{path}{field.name}", _written(kind), default, rules_of(field))


def _is_container(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) in (list, dict)


def _written(kind: Any) -> str:
    """A type as a person writes it: `int | None`, `list[str]`."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
