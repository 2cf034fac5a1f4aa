"""The forms that heads can have, by the name that `model.heads` and model folders give them."""

from collections.abc import Iterator
from typing import cast

from torch import nn

from vita_audio_pl.models.families import BackboneConfig
from vita_audio_pl.models.mctp import MCTPBlock
from vita_audio_pl.models.parallel_heads import ParallelHead

Head = MCTPBlock | ParallelHead
FORMS: dict[str, type[MCTPBlock] | type[ParallelHead]] = {"mctp": MCTPBlock, "parallel": ParallelHead}


class HeadStack(nn.ModuleList):
    """The heads in order, all of one form; `stack[k]` is head `k`."""

    def __init__(self, config: BackboneConfig, n_heads: int, form: str = "mctp"):
        super().__init__(FORMS[form](config, k) for k in range(n_heads))

    def __iter__(self) -> Iterator[Head]:
        return cast(Iterator[Head], super().__iter__())
