"""The optimiser and its parameter groups: a separate rate for heads, no decay of norms and biases, nothing frozen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vita_audio_pl.config.component import Component
from vita_audio_pl.config.fields import setting

if TYPE_CHECKING:
    import torch
    from torch import nn

HEADS = "heads."
PEAK = "peak_lr"
"""Key of a group's peak rate, before the schedule's factor."""


@dataclass
class AdamW(Component):
    """`torch.optim.AdamW`; rates and weight decay come with the parameter groups."""

    betas: list[float] = setting(
        [0.9, 0.95], "decay rates of the first and second moment", at_least=0, below=1, length=2
    )
    eps: float = setting(1e-8, "added to the root of the second moment", above=0)

    def build(self, groups: list[dict[str, Any]], *, fused: bool | None = None) -> "torch.optim.Optimizer":
        """The optimiser of `parameter_groups`; fused: one kernel for the whole update, None = torch's choice."""
        import torch

        return torch.optim.AdamW(groups, betas=(self.betas[0], self.betas[1]), eps=self.eps, fused=fused)


def parameter_groups(
    model: "nn.Module", learning_rate: float, head_rate_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups `backbone`, `backbone_no_decay`, `heads`, `heads_no_decay`, except empty ones.

    Norm scales and biases (one-dimensional parameters) are not decayed. Frozen parameters are in no group, so they
    have no optimiser state. A tied parameter counts once, by its first name.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "heads" if name.startswith(HEADS) else "backbone"
            groups.setdefault(part if _dimensions(parameter) > 1 else f"{part}_no_decay", []).append(parameter)
    described = []
    for name, parameters in sorted(groups.items()):
        peak = learning_rate * (head_rate_factor if name.startswith("heads") else 1.0)
        decay = 0.0 if name.endswith("no_decay") else weight_decay
        described.append({"name": name, "params": parameters, "lr": peak, PEAK: peak, "weight_decay": decay})
    return described


def _dimensions(parameter: "nn.Parameter") -> int:
    """Number of dimensions of the whole parameter; ZeRO-3 leaves an empty tensor and stores the shape separately."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
