"""Settings of the training objectives, each of which builds its objective; `conf/objective/` names them by `_target_`.

Separate from `objectives.py`, so that a configuration can be read and checked without importing torch.
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
    """Settings of every objective. Derive your own from this; its `build` returns a `models.objectives.Objective`."""

    name: str = setting("", "name in reports")
    weight: float = setting(
        1.0, "weight of the heads' mean loss beside the backbone's; 1 where the backbone is frozen", at_least=0
    )
    kernel: str = setting("torch", "cross-entropy kernel; liger on CUDA only", choices=("torch", "liger"))
    chunk_rows: int = setting(512, "rows whose logits are held at a time", at_least=1)
    detach_heads: bool = setting(False, "stop gradients from the heads into the backbone")

    logit_tables: ClassVar[int] = 1
    """Tables of `chunk_rows` x vocabulary that are in memory at once, for the memory estimate."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        """Build the objective; weight: replaces the configured one, for example by 1 with a frozen backbone."""
        raise NotImplementedError

    def common(self, weight: float | None) -> dict[str, Any]:
        """Keyword arguments that every `Objective` takes."""
        return {
            "weight": self.weight if weight is None else weight,
            "kernel": self.kernel,
            "chunk_rows": self.chunk_rows,
        }


@dataclass
class EveryHead(ObjectiveSettings):
    """Settings of `objectives.EveryHead`: every labelled token trains the backbone and every head."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.EveryHead(**self.common(weight))


@dataclass
class AudioOnly(ObjectiveSettings):
    """Settings of `objectives.AudioOnly`: heads learn the targets of audio spans, over the rows of audio tokens."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        if vocabulary is None:
            raise UserError("objective=audio_only needs the vocabulary, which says what is audio")
        return objectives.AudioOnly(vocabulary, **self.common(weight))


@dataclass
class ServedSlots(ObjectiveSettings):
    """Settings of `objectives.ServedSlots`: a head learns only the tokens it writes under the decoding pattern."""

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.ServedSlots(**self.common(weight))


@dataclass
class Distil(ObjectiveSettings):
    """Settings of `objectives.Distil`: heads match the backbone's own distribution (arXiv 2602.23881)."""

    kl_share: Any = setting(
        0.5,
        "weight of the KL divergence, 0 to 1, the rest is total variation; acceptance: the negative logarithm of "
        "the chance that a draft is accepted, in place of both",
    )

    logit_tables: ClassVar[int] = 8  # both distributions, intermediate results, and the previous chunk's

    def build(self, vocabulary: "Vocabulary | None" = None, *, weight: float | None = None) -> "Objective":
        from vita_audio_pl.models import objectives

        return objectives.Distil(self.kl_share, **self.common(weight))
