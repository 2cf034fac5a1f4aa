"""AdamW's parameter groups: heads at a rate of their own, no decay on norms and biases, nothing that is frozen."""

from typing import Any

from torch import nn

HEADS = "heads."
PEAK = "peak_lr"
"""A group's rate before the schedule's factor."""


def parameter_groups(
    model: nn.Module, learning_rate: float, head_rate_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups `backbone`, `backbone_no_decay`, `heads`, `heads_no_decay`, without the empty ones.

    Norm scales and biases (parameters of one dimension) are not decayed. Frozen parameters are in no group, so they
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


def _dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter; ZeRO-3 leaves an empty one behind and keeps the shape aside."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
