"""Components are named by their class's path, and their settings are checked before anything is built."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from test_conf import composed

from vita_audio_pl.config.component import Component, Custom, component, plain
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.step.optimiser import AdamW

WEIGHT = torch.nn.Parameter(torch.zeros(2, 2))


@dataclass
class Lion:
    """A person's own settings dataclass, outside the package's classes."""

    beta: float = setting(0.9, "decay", at_least=0, below=1)
    names: list[str] = setting([], "")

    def build(self, groups: list[dict[str, Any]], *, fused: bool | None = None) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.beta)


def test_ours_is_typed_and_built_from_its_settings():
    optimizer = composed("optim.optimizer.eps=1e-6").optim.optimizer
    assert optimizer == AdamW(betas=[0.9, 0.95], eps=1e-6)
    built = optimizer.build([{"params": [WEIGHT], "lr": 1e-3}])
    assert built.defaults["betas"] == (0.9, 0.95) and built.param_groups[0]["eps"] == 1e-6


def test_a_class_of_torch_takes_the_place_of_ours():
    config = composed(
        "optim.optimizer=null", "+optim.optimizer._target_=torch.optim.SGD", "+optim.optimizer.momentum=0.5"
    )
    built = config.optim.optimizer.build([{"params": [WEIGHT], "lr": 1e-3}], fused=None)
    assert isinstance(built, torch.optim.SGD) and built.defaults["momentum"] == 0.5
    assert plain(config)["optim"]["optimizer"] == {"_target_": "torch.optim.SGD", "momentum": 0.5}


def test_a_settings_dataclass_from_outside_builds():
    path = f"{__name__}.Lion"
    built = component({"_target_": path, "beta": 0.7}, "optim.optimizer").build(
        [{"params": [WEIGHT], "lr": 1.0}], fused=True
    )
    assert built.defaults["momentum"] == 0.7


def test_callbacks_and_loggers_of_lightning_are_named_by_their_path(tmp_path):
    config = composed(
        "+callbacks.extra.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:2}",
        "+logger.extra.csv={_target_:lightning.pytorch.loggers.CSVLogger,name:figures}",
    )
    stop = config.callbacks.extra["stop"].build()
    assert isinstance(stop, EarlyStopping) and (stop.monitor, stop.patience) == ("val/loss", 2)
    csv = config.logger.extra["csv"].build(save_dir=tmp_path)
    assert isinstance(csv, CSVLogger) and csv.save_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"_target_": "nowhere.Lion"}, "'nowhere.Lion' cannot be imported"),
        ({"_target_": "torch.optim.Lionn"}, "no class 'torch.optim.Lionn'"),
        ({"_target_": "Lion"}, "package.module.Class"),
        ({"_target_": AdamW.target(), "bta": [0.9, 0.9]}, "no setting 'here.bta'; did you mean 'here.betas'?"),
        ({"_target_": AdamW.target(), "betas": [1.5, 0.9]}, "here.betas is 1.5: it must be below 1"),
        ({"_target_": AdamW.target(), "betas": [0.9]}, "here.betas takes 2 values, not 1"),
        ({"_target_": AdamW.target(), "eps": "small"}, "here.eps: Value 'small'"),
        ({"_target_": "torch.optim.SGD", "momentun": 0.9}, "did you mean 'here.momentum'?"),
        ({"_target_": "torch.optim.SGD", "momentum": "much"}, "here.momentum: Value 'much'"),
        ({"_target_": f"{__name__}.Lion", "beta": 2.0}, "here.beta is 2.0: it must be below 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_built(node, says):
    with pytest.raises(UserError) as error:
        component(node, "here")
    assert says in str(error.value)


def test_settings_of_a_component_are_those_of_its_file():
    """A key that is missing in the file could not be set on the command line."""
    optim = plain(composed())["optim"]
    for node in (optim["optimizer"], optim["schedule"]):
        built = component(dict(node), "here")
        assert isinstance(built, Component) and plain(built) == node
    assert Custom("torch.optim.SGD", {"lr": 1.0}).settings["lr"] == 1.0
