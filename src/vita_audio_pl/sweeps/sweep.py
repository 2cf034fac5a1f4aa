"""The Hydra sweep that a process belongs to."""

from dataclasses import dataclass
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Sweep:
    """The sweep that this process's job belongs to.

    Attributes:
        axes: the overrides that it varies.
        number: number of the job.
        optimises: whether a sweeper chooses arms by the results of earlier ones.
    """

    axes: tuple[str, ...] = ()
    number: int = 0
    optimises: bool = False

    @classmethod
    def current(cls) -> "Sweep":
        hydra_config = cast(DictConfig, HydraConfig.get())  # declared as the dataclass that it is made from
        sweeper = hydra_config.sweeper
        number = int(OmegaConf.select(hydra_config, "job.num") or 0)
        return cls(tuple(sweeper.get("params") or ()), number, optimises="direction" in sweeper)
