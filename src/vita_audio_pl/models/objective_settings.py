"""Settings of the objectives, each of which builds its own; `conf/objective/` names one by `_target_`.

Apart from `objectives.py`, so that a configuration is read and checked without torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vita_audio_pl.config.component import Component
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError

if TYPE_CHECKING:
    from vita_audio_pl.models.objectives import Objective
    from vita_audio_pl.text.vocabulary import Vocabulary


@dataclass
class ObjectiveSettings(Component):
    """What every objective takes. One of your own derives from this and builds a `models.objectives.Objective`."""

    name: str = setting("", "name in reports")
    weight: float = setting(
        1.0, "weight of the heads' mean loss beside the backbone's; 1 where the backbone is frozen", at_least=0
    )
    kernel: str = setting("torch", "cross-entropy kernel; liger on CUDA only", choices=("torch", "liger"))
    chunk_rows: int = setting(512, "rows whose logits are held at a time", at_least=1)
    detach_heads: bool = setting(False, "stop gradients from the heads into the backbone")

    logit_tables: ClassVar[int] = 1
    """Tables of `chunk_rows` x vocabulary that exist at once, for the estimate of memory."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        """The objective; weight: in place of the configured one, as 1 where the backbone is frozen."""
        raise NotImplementedError

    def common(self, weight: float | None) -> dict[str, Any]:
        """Arguments of every `Objective`."""
        return {
            "weight": self.weight if weight is None else weight,
            "kernel": self.kernel,
            "chunk_rows": self.chunk_rows,
        }


@dataclass
class EveryHead(ObjectiveSettings):
    """Of `objectives.EveryHead`: every labelled token trains the backbone and every head."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.EveryHead(**self.common(weight))


@dataclass
class AudioOnly(ObjectiveSettings):
    """Of `objectives.AudioOnly`: heads learn the targets of audio spans, over the rows of audio tokens."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        if vocabulary is None:
            raise UserError("objective=audio_only needs the vocabulary, which says what is audio")
        return objectives.AudioOnly(vocabulary, **self.common(weight))


@dataclass
class ServedSlots(ObjectiveSettings):
    """Of `objectives.ServedSlots`: a head learns only the tokens that it writes under the decoding pattern."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.ServedSlots(**self.common(weight))


@dataclass
class Distil(ObjectiveSettings):
    """Of `objectives.Distil`: heads match the backbone's own distribution (arXiv 2602.23881)."""

    kl_share: float = setting(0.5, "weight of the KL divergence; the rest is total variation", at_least=0, at_most=1)

    logit_tables: ClassVar[int] = 8  # both distributions, what is made of them, and the last chunk's

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.Distil(self.kl_share, **self.common(weight))
