"""Components: objects that a configuration chooses by the path of their class and builds from their own settings.

A node with `_target_: package.module.Class` becomes a typed object with `build(...)`:

- a dataclass with a `build` method is the component's settings; what `build` returns is the component. All of ours
  derive from `Component`.
- any other class (a torch optimiser, a Lightning callback or logger, a person's own) is called with what the framework
  passes to `build`, followed by the settings as keywords.

Either way the settings are checked against the fields, or the signature, before anything is built.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vita_audio_pl.config.fields import check_settings, no_such_setting, rules_of
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.secrets import without_credentials

TARGET = "_target_"


class Component:
    """Base of the settings dataclasses that `build()` something; a configuration names them by `_target_`."""

    @classmethod
    def target(cls) -> str:
        """The path that a configuration gives as `_target_`."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def build(self, *given: Any, **named: Any) -> Any:
        """The component; what it is given depends on its kind."""
        raise NotImplementedError


@dataclass
class Custom:
    """A class from outside with its checked settings.

    Attributes:
        path: of the class.
        settings: keyword arguments, or the fields of a settings dataclass.
    """

    path: str
    settings: dict[str, Any]

    def build(self, *given: Any, **named: Any) -> Any:
        """The component. `named` is passed on where the class takes it.

        Raises:
            UserError: the class refuses its arguments.
        """
        kind = find_class(self.path, self.path)
        try:
            if dataclasses.is_dataclass(kind) and hasattr(kind, "build"):
                return _typed(kind, self.settings, self.path).build(*given, **_taken(kind.build, named))
            return kind(*given, **_taken(kind, named), **self.settings)
        except TypeError as error:
            raise UserError(f"{self.path} cannot be built from {self.settings or 'no settings'}: {error}") from error


def component(values: Mapping[str, Any], where: str) -> Any:
    """The typed settings of a node that names its class.

    Args:
        values: the node, with `_target_`.
        where: dotted name of the node, for errors.

    Raises:
        UserError: the class cannot be found, or does not take these settings.
    """
    path = str(values[TARGET])
    kind = find_class(path, where)
    settings = {name: value for name, value in values.items() if name != TARGET}
    if isinstance(kind, type) and issubclass(kind, Component) and dataclasses.is_dataclass(kind):
        return _typed(kind, settings, where)
    described = kind if dataclasses.is_dataclass(kind) else _as_dataclass(kind)
    if described is not None:
        checked = _typed(described, settings, where)
        settings = {name: getattr(checked, name) for name in settings}
    return Custom(path, settings)


def with_components(value: Any, where: str = "") -> Any:
    """`value`, a settings object or container, with every node that has a `_target_` made a component; in place."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            name = f"{where}{'.' if where else ''}{field.name}"
            made = with_components(getattr(value, field.name), name)
            if base := rules_of(field).base:
                _require_base(made, base, name)
            setattr(value, field.name, made)
    elif isinstance(value, dict):
        if TARGET in value:
            return component(value, where)
        for name, inner in value.items():
            value[name] = with_components(inner, f"{where}.{name}")
    return value


def _require_base(made: Any, base: str, where: str) -> None:
    if isinstance(made, find_class(base, where)):
        return
    if isinstance(made, Custom):
        raise UserError(f"{where}: {made.path} must derive from {base}; docs/extend.md shows one")
    raise UserError(f"{where} is '{made}': give the path of a class, {where}._target_=package.module.Class")


def plain(value: Any) -> Any:
    """Settings as dictionaries, lists and scalars, components with their `_target_`: what a file can hold.

    Credentials in URLs are left out, since all of this is written somewhere.
    """
    if isinstance(value, Custom):
        return {TARGET: value.path, **plain(value.settings)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TARGET: value.target(), **fields} if isinstance(value, Component) else fields
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return without_credentials(value)


_SECRET = re.compile(
    r"(key|token|secret|passw(or)?d|passphrase|pwd|credentials?|auth|authori[sz]ation)$", re.IGNORECASE
)


def written_settings(custom: Custom, where: str) -> dict[str, Any]:
    """`plain` settings of a class from outside, for manifests, cards and results.

    Raises:
        UserError: one of them, however deep, is named like a secret.
    """
    settings: dict[str, Any] = plain(custom.settings)
    if secret := next(_secrets(settings, where), None):
        raise UserError(
            f"{secret} is named like a secret, and settings of a class of your own are written into manifests, cards and "
            f"results: have {custom.path} read it from the environment"
        )
    return settings


def _secrets(value: Any, where: str) -> Iterator[str]:
    """Dotted names of settings that are named like secrets."""
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        if _SECRET.search(str(name)):
            yield f"{where}.{name}"
        yield from _secrets(inner, f"{where}.{name}")


def find_class(path: str, where: str) -> Any:
    """The class or function at `package.module.Name`.

    Raises:
        UserError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError as error:
        raise UserError(f"{where}: '{path}' cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{where}: there is no class '{path}'; give its path as package.module.Class")
    return found


def _typed(kind: Any, settings: Mapping[str, Any], where: str) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    for name in settings:
        if name not in names:
            raise UserError(no_such_setting(f"{where}.{name}", [f"{where}.{known}" for known in names]))
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), dict(settings)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise UserError(f"{where}{'.' if key else ''}{key}: {str(error).splitlines()[0]}") from error
    check_settings(typed, f"{where}.")
    return typed


def _as_dataclass(kind: Callable[..., Any]) -> Any | None:
    """The keyword arguments of a callable as fields, so that they are checked alike; None where it takes any."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    try:
        called: Any = kind
        hints = get_type_hints(called.__init__ if isinstance(kind, type) else kind)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        hints = {}
    fields = []
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        annotation = hints.get(parameter.name)
        simple = _is_simple(annotation) and (default == MISSING or _is_plain(default))
        # positional arguments that the framework passes have no default; leaving them out of the node is right
        fields.append(
            (parameter.name, annotation if simple else Any, dataclasses.field(default=None if not simple else default))
        )
    return dataclasses.make_dataclass(getattr(kind, "__name__", "Settings"), fields)


def _is_simple(annotation: Any) -> bool:
    if annotation in (int, float, bool, str):
        return True
    return (
        get_origin(annotation) is not None
        and type(None) in get_args(annotation)
        and len(get_args(annotation)) == 2
        and (next(part for part in get_args(annotation) if part is not type(None)) in (int, float, bool, str))
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, bool, str))


def _taken(kind: Callable[..., Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keyword arguments that the framework offers, those that the callable takes by name."""
    parameters = inspect.signature(kind).parameters
    return {name: value for name, value in named.items() if name in parameters}
