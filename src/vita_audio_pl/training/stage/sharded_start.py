"""A stage's first weights under an engine that shards them: each rank reads its own rows, and no rank has a whole model.

The model is made without memory, sharded, and then filled tensor by tensor, with the values that `starting_model` would give.
Host memory is a rank's share and one whole tensor.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.initialise import resized
from vita_audio_pl.models.load import open_model
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.tensor_file import LateTensor
from vita_audio_pl.models.weight_files import WeightFolder
from vita_audio_pl.storage.model_folders import whole_model
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.origin import pretrained_folder
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.starting_model import finish_start, weights_type

_HEAD = re.compile(r"heads\.(\d+)\.(.+)")
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass
class ShardedStart:
    """The weights that a stage starts from, read where they are needed.

    Attributes:
        model: of the stage, on the meta device; it is sharded, then `fill`ed.
        places: parameter of the model in the folder -> its file and key there.
        heads: heads in the folder.
    """

    model: SpeechLM
    places: dict[str, tuple[WeightFolder, str]]
    heads: int
    generator: torch.Generator
    resized: bool
    _drawn: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig, vocabulary: Vocabulary, parent: Path | None) -> "ShardedStart | None":
        """None where the weights are not read from the files of one whole model as they are.

        Args:
            parent: as for `starting_model`.

        Raises:
            UserError: as `starting_model`.
        """
        folder = parent
        if folder is None and config.model.pretrained is not None:
            folder = pretrained_folder(config.model.pretrained)
        if (
            folder is None
            or whole_model(folder) != folder
            or config.model.lora.rank
            or config.variant.has_audio_encoder
        ):
            return None
        there, parts = open_model(folder, config.model.kernel)
        if there.speech_input is not None:
            return None
        wanted = there.n_heads if config.stage.n_heads is None else config.stage.n_heads
        if wanted < there.n_heads:
            raise UserError(f"{folder} has {there.n_heads} heads and {wanted} are asked for; heads can only be added")
        backbone = there.config.backbone
        grows = parent is None and backbone.vocab_size != vocabulary.size
        if grows:
            backbone.vocab_size = vocabulary.size
        form = there.config.heads if there.n_heads else config.model.heads
        settings = SpeechLMConfig(backbone, wanted, config.model.kernel, heads=form)
        model = SpeechLM.on_meta(settings).to(weights_type(config))
        places = {name: (weights, key) for weights, names in parts for key, name in names.items()}
        generator = torch.Generator().manual_seed(config.seed)
        return cls(finish_start(config, model), places, there.n_heads, generator, grows)

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Read this rank's rows of every parameter onto `device`; the model has been sharded, or is whole."""
        self.model.to_empty(device=device)
        self.model.materialised(device)
        for name, parameter in self.model.named_parameters():
            local, first = parameter.detach(), 0
            if isinstance(local, DTensor):
                _, offset = compute_local_shape_and_global_offset(local.shape, local.device_mesh, local.placements)
                local, first = local.to_local(), offset[0] if offset else 0
            local.copy_(self._rows(name, first, first + len(local)))
        self._drawn.clear()

    def late_parameters(self) -> dict[str, LateTensor]:
        """The same values whole, each read when it is needed; those that are drawn cannot be (`is_drawn`)."""
        return {
            name: LateTensor(parameter.dtype, tuple(parameter.shape), partial(self._rows, name, 0, len(parameter)))
            for name, parameter in self.model.named_parameters()
        }

    def is_drawn(self, name: str) -> bool:
        """Whether values of a parameter are random: they follow from the seed only if all that are get drawn, in order."""
        head = _HEAD.fullmatch(name)
        new = head is not None and not self.heads and head[2] == "proj.weight"
        return new or (self.resized and name in _VOCABULARY)

    def _rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows of a parameter of the stage's model."""
        head = _HEAD.fullmatch(name)
        if head is not None and int(head[1]) >= self.heads:
            return self._rows_of_new_head(head[2], first, last)
        weights, key = self.places[name]
        if self.resized and name in _VOCABULARY:
            old = weights.shapes()[key][0]
            whole = weights.rows(key, 0, old).to(self.model.lm_head.weight.dtype)
            return resized(whole, self.model.config.backbone.vocab_size, self.generator)[first:last]
        return weights.rows(key, first, last)

    def _rows_of_new_head(self, part: str, first: int, last: int) -> Tensor:
        """As `models.initialise.add_heads` makes it: the last head that is there, or the backbone's last layer."""
        if self.heads:
            return self._rows(f"heads.{self.heads - 1}.{part}", first, last)
        if part.startswith("layer."):
            return self._rows(
                f"model.layers.{len(self.model.model.layers) - 1}.{part.removeprefix('layer.')}", first, last
            )
        backbone = self.model.config.backbone
        if part == "residual.weight":
            return torch.zeros(last - first, backbone.hidden_size)
        if part == "proj.weight":
            if part not in self._drawn:  # all new heads begin with the same one, and a rank has the same rows of each
                whole = torch.empty(backbone.hidden_size, 2 * backbone.hidden_size)
                self._drawn[part] = whole.normal_(std=backbone.initializer_range, generator=self.generator)[
                    first:last
                ].clone()
            return self._drawn[part]
        return torch.ones(last - first)
