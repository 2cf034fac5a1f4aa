"""Loading of recipes and mixtures: small YAML files, possibly untrusted."""

from pathlib import Path
from typing import Any

import yaml

from vita_audio_pl.config.fields import did_you_mean
from vita_audio_pl.errors import UserError, is_machine_fault

_LARGEST = 64 << 10  # bytes; a recipe has ten lines
_DEEPEST = 20


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader without aliases, with which a few lines could expand to billions of values, and without duplicate keys."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here; write the values out")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"the key '{key.value:.100}' comes twice (line {key.start_mark.line + 1})")
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def named_yaml(kind: str, name: str, folder: Path) -> Path:
    """Path of a recipe or mixture: a file of `folder` without its `.yaml`, or any path that ends in `.yaml`.

    Raises:
        UserError: there is none; names the ones in `folder`, and the nearest.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        near = did_you_mean(name, known)
        raise UserError(
            f"there is no {kind} '{name}'{near} ({path}); there are: {', '.join(known)}; a path to a .yaml works too"
        )
    return path


def read_yaml(path: Path) -> Any:
    """Contents of a small YAML file.

    Raises:
        UserError: it is unreadable, not YAML, too large or nested too deeply, or has aliases or duplicate keys.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise UserError(f"{path} is larger than {_LARGEST >> 10} KiB; a recipe or a mixture is a few lines")
        # a SafeLoader: lists, mappings, text and numbers only
        return yaml.load(data.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8") from None
    except OSError as error:
        if is_machine_fault(error):
            raise
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    # besides YAMLError, PyYAML lets through what its dates, numbers and tables stumble over
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
