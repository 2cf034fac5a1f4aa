"""Which sources a stage is trained on, and how much of each: `data_recipes/mixtures/*.yaml`."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vita_audio_pl.assets import asset_dir
from vita_audio_pl.data.yaml_file import named_yaml, read_yaml
from vita_audio_pl.errors import UserError, shown

log = logging.getLogger(__name__)

_KEYS = {"description", "temperature", "level", "sources"}
_SHARE_KEYS = {"ratio", "hours", "num"}
TOKENS, HOURS = "tokens", "hours"
_MOST_PASSES = 1000  # largest number of passes over a source per epoch


@dataclass(frozen=True)
class Share:
    """The share of one source in an epoch.

    Attributes:
        source: name of the source.
        ratio: passes over the source per epoch; 0.05 is a different 5 % each epoch.
        num: use only this many samples of the source (a seeded choice), None for all.
        hours: hours of its audio per epoch, instead of the ratio.
    """

    source: str
    ratio: float = 1.0
    num: int | None = None
    hours: float | None = None

    def used(self, samples: int) -> float:
        """Samples that are used, out of `samples`: all of them, or `num`."""
        return 1.0 if self.num is None or not samples else min(self.num, samples) / samples

    def passes(self, hours: float) -> float:
        """Passes over the source per epoch; one pass has `hours` of audio.

        Raises:
            UserError: the share is given in hours, but the source has no audio or too little of it.
        """
        if self.hours is None:
            return self.ratio
        if self.hours > hours * _MOST_PASSES:
            raise UserError(
                f"{self.hours:g} hours of '{self.source}' are wanted in an epoch, and it has {hours:.3g} h of audio: give it a ratio "
                "in the mixture, or fewer hours"
            )
        return self.hours / hours


@dataclass(frozen=True)
class Mixture:
    """Sources and their shares.

    Attributes:
        name: name in messages and manifests.
        shares: one per source; sources with ratio 0 are dropped.
        temperature: 1 keeps the shares; above 1 evens out the sources (share of tokens or hours to the power 1/T).
        level: what the temperature applies to, `tokens` or `hours`; by hours, sources without audio keep their ratios.
    """

    name: str
    shares: tuple[Share, ...]
    temperature: float = 1.0
    level: str = TOKENS

    def ratios(self, tokens: np.ndarray, hours: np.ndarray) -> np.ndarray:
        """Ratio of each share after temperature, `(shares,) float64`; the epoch's tokens (or hours) stay the same.

        Args:
            tokens: tokens per source in one pass over its used samples.
            hours: hours of audio per source in one pass.

        Raises:
            UserError: see `Share.passes`.
        """
        plain = np.array([share.passes(h) for share, h in zip(self.shares, hours.tolist(), strict=True)], np.float64)
        size = np.asarray(tokens if self.level == TOKENS else hours, np.float64)
        weight = plain * size
        if self.temperature == 1 or not weight.sum() > 0:
            return plain
        levelled = np.where(weight > 0, weight, 1.0) ** (1 / self.temperature) * (weight > 0)
        ratios = levelled * weight.sum() / levelled.sum() / np.where(size > 0, size, 1.0)
        return np.where(size > 0, ratios, plain if self.level == HOURS else 0.0)


def without_missing(mixture: Mixture, is_prepared: Callable[[str], bool]) -> Mixture:
    """The mixture without the sources that are not prepared; these are reported.

    Raises:
        UserError: no source is prepared.
    """
    missing = [share.source for share in mixture.shares if not is_prepared(share.source)]
    if not missing:
        return mixture
    if len(missing) == len(mixture.shares):
        raise UserError(f"none of the sources of the mixture '{mixture.name}' is prepared: {', '.join(missing)}")
    log.warning(
        "TRAINING WITHOUT %d of the %d sources of the mixture '%s', which are not prepared (data.skip_missing=true): %s",
        len(missing), len(mixture.shares), mixture.name, ", ".join(missing),
    )  # fmt: skip
    return replace(mixture, shares=tuple(share for share in mixture.shares if share.source not in missing))


def load_mixture(name: str, folder: Path | None = None) -> Mixture:
    """Load a mixture: a file name without `.yaml` in the mixtures' folder, or a path that ends in `.yaml`.

    Raises:
        UserError: there is no such mixture, or the file has something that a mixture does not.
    """
    path = named_yaml("mixture", name, folder or asset_dir("data_recipes") / "mixtures")
    return parse_mixture(path.stem, _mapping(path), str(path))


def _mapping(path: Path) -> dict[str, Any]:
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold 'sources: {{name: {{ratio: 1.0}}}}'")
    return value


def parse_mixture(name: str, value: Mapping[str, Any], where: str) -> Mixture:
    """Validate a mixture's contents.

    Raises:
        UserError: an unknown key, no sources, a negative ratio, a `num` below 1, or a temperature that is not positive.
    """
    unknown = set(map(str, value)) - _KEYS
    if unknown:
        raise UserError(f"{where}: unknown key {_list(unknown)}; a mixture has {_list(_KEYS)}")
    sources = value.get("sources")
    if not isinstance(sources, Mapping) or not sources:
        raise UserError(f"{where}: 'sources' must name at least one source, as in 'librispeech: {{ratio: 1.0}}'")
    shares = []
    for source, settings in sources.items():
        source = str(source) if isinstance(source, int) else source
        if not isinstance(source, str) or not re.fullmatch(r"[^./\\\0\n][^/\\\0\n]*", source):
            raise UserError(f"{where}: {shown(source)} is not a name of a source, which is a folder of the shards")
        settings = {"ratio": settings} if isinstance(settings, int | float) else {} if settings is None else settings
        if not isinstance(settings, Mapping) or set(settings) - _SHARE_KEYS:
            raise UserError(f"{where}: source '{source}' takes only {_list(_SHARE_KEYS)}")
        ratio, num, hours = settings.get("ratio", 1.0), settings.get("num"), settings.get("hours")
        if hours is not None and len(settings) > 1:
            raise UserError(
                f"{where}: source '{source}' has hours, which take the place of ratio and num: leave those out"
            )
        if hours is not None and (
            isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours <= 1e9
        ):
            raise UserError(f"{where}: the hours of source '{source}' must be a positive number, not {shown(hours)}")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= _MOST_PASSES:
            raise UserError(
                f"{where}: the ratio of source '{source}' must be a number from 0 to {_MOST_PASSES}, not {shown(ratio)}"
            )
        if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
            raise UserError(
                f"{where}: 'num' of source '{source}' must be a whole number of 1 or more, not {shown(num)}"
            )
        if ratio > 0:
            shares.append(Share(source, float(ratio), num, None if hours is None else float(hours)))
    if not shares:
        raise UserError(f"{where}: every source has ratio 0, so there is nothing to train on")
    temperature = value.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature <= 1e6:
        raise UserError(f"{where}: the temperature must be a positive number up to 1e6, not {shown(temperature)}")
    level = value.get("level", TOKENS)
    if level not in (TOKENS, HOURS):
        raise UserError(f"{where}: the temperature levels {TOKENS} or {HOURS}, not {shown(level)}")
    return Mixture(name, tuple(shares), float(temperature), level)


def _list(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
