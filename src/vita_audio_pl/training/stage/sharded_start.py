"""A stage's first weights under an engine that shards them: each rank keeps its own rows, and no rank has a whole model.

The model is made without memory, sharded, and then filled tensor by tensor, with the values that `starting_model` would give:
read from files, drawn in pieces, or copied. Host memory is a rank's share and one whole tensor, and at first a new speech encoder.
"""

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vita_audio_pl.errors import UserError
from vita_audio_pl.models.drawn import Drawing
from vita_audio_pl.models.initialise import add_speech_input, resized
from vita_audio_pl.models.load import open_model
from vita_audio_pl.models.lora import add_lora
from vita_audio_pl.models.quantised import refuse_quantised
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.models.tensor_file import LateTensor
from vita_audio_pl.models.weight_files import WeightFolder
from vita_audio_pl.storage.model_folders import whole_model
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.origin import pretrained_folder
from vita_audio_pl.training.settings import TrainConfig
from vita_audio_pl.training.stage.starting_model import backbone_config, encoder_folder, finish_start, weights_type

_HEAD = re.compile(r"heads\.(\d+)\.(.+)")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_ENCODER = "speech_input.audio_model.model."


@dataclass
class ShardedStart:
    """The weights that a stage starts from, read where they are needed.

    Attributes:
        model: of the stage, on the meta device; it is sharded, then `fill`ed.
        places: parameter of the model in the folder -> its file and key there.
        heads: heads in the folder.
        drawings: how parameters that no folder holds are drawn, one after another.
        encoder: folder of the speech encoder that the model gets.
    """

    model: SpeechLM
    places: dict[str, tuple[WeightFolder, str]]
    heads: int
    generator: torch.Generator
    resized: bool
    drawings: list[Drawing]
    encoder: Path | None
    _drawn: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig, vocabulary: Vocabulary, parent: Path | None) -> "ShardedStart | None":
        """None where the weights are adapters and those of the model that they adapt.

        Args:
            parent: as for `starting_model`.

        Raises:
            UserError: as `starting_model`.
        """
        folder = parent
        if folder is None and config.model.pretrained is not None:
            folder = pretrained_folder(config.model.pretrained)
        drawings: list[Drawing] = []
        encoder: Path | None = None
        places: dict[str, tuple[WeightFolder, str]] = {}
        if folder is None:
            there = SpeechLMConfig(backbone_config(config.model, vocabulary), 0, config.model.kernel)
            drawings.append(_draw(config.seed, there))
        elif whole_model(folder) != folder:
            return None
        else:
            opened, parts = open_model(folder, config.model.kernel)
            refuse_quantised(opened, folder, "trained")
            there = opened.config
            places = {name: (weights, key) for weights, names in parts for key, name in names.items()}
        wanted = there.n_heads if config.stage.n_heads is None else config.stage.n_heads
        if wanted < there.n_heads:
            raise UserError(f"{folder} has {there.n_heads} heads and {wanted} are asked for; heads can only be added")
        grows = parent is None and there.backbone.vocab_size != vocabulary.size
        if grows:
            there.backbone.vocab_size = vocabulary.size
        form = config.model.heads if wanted and not there.n_heads else there.heads
        model = SpeechLM.on_meta(replace(there, n_heads=wanted, heads=form))
        if config.variant.has_audio_encoder and model.speech_input is None:
            encoder = encoder_folder(config)
            sizes = replace(SenseVoiceConfig.read(encoder / "config.yaml"), ctc_tokens=0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                with torch.device("meta"):
                    made = SenseVoiceEncoder(sizes)
                with (drawing := Drawing()):
                    add_speech_input(model, made, vocabulary.context_of_audio)
            assert model.speech_input is not None  # it has just been added
            adapter = model.speech_input.audio_projection
            drawing.named((f"speech_input.audio_projection.{name}", p) for name, p in adapter.named_parameters())
            drawings.append(drawing)
        if model.speech_input is not None:
            model.config.context_of_audio = vocabulary.context_of_audio
        lora = config.model.lora
        if lora.rank:
            with (drawing := Drawing()):
                add_lora(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.only)
            drawing.named((name, p) for name, p in model.named_parameters() if ".lora_" in name)
            drawings.append(drawing)
        generator = torch.Generator().manual_seed(config.seed)
        model = finish_start(config, vocabulary, model.to(weights_type(config)))
        return cls(model, places, there.n_heads, generator, grows, drawings, encoder)

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Read this rank's rows of every parameter onto `device`; the model has been sharded, or is whole."""
        self.model.to_empty(device=device)
        self.model.materialised(device)
        rows: dict[str, tuple[Tensor, int]] = {}  # of this rank, and the first one's number
        for name, parameter in self.model.named_parameters():
            local, first = parameter.detach(), 0
            if isinstance(local, DTensor):
                _, offset = compute_local_shape_and_global_offset(local.shape, local.device_mesh, local.placements)
                local, first = local.to_local(), offset[0] if offset else 0
            rows[_plain(name)] = local, first
        drawn = {name for drawing in self.drawings for name in drawing.names}
        for drawing in self.drawings:
            for name, element, values in drawing.values():
                local, first = rows[_plain(name)]
                own, begin = local.view(-1), element - first * math.prod(local.shape[1:])
                low, high = max(0, begin), min(len(own), begin + len(values))
                if low < high:
                    own[low:high] = values[low - begin : high - begin]
        for name, (local, first) in rows.items():
            source = self._copied_from(name)
            if source in drawn:  # a rank has the same rows of both
                local.copy_(rows[source][0])
            elif name not in drawn:
                local.copy_(self._rows(name, first, first + len(local)))
        self._drawn.clear()

    def late_parameters(self) -> dict[str, LateTensor]:
        """The same values whole, each read when it is needed; those that are drawn cannot be (`is_drawn`)."""
        return {
            name: LateTensor(
                parameter.dtype, tuple(parameter.shape), partial(self._rows, _plain(name), 0, len(parameter))
            )
            for name, parameter in self.model.named_parameters()
        }

    def is_drawn(self, name: str) -> bool:
        """Whether values of a parameter are random: they follow from the seed only if all that are get drawn, in order."""
        name = _plain(name)
        head = _HEAD.fullmatch(name)
        new = head is not None and not self.heads and head[2] == "proj.weight"
        drawn = {name for drawing in self.drawings for name in drawing.names}
        return new or (self.resized and name in VOCABULARY) or name in drawn or self._copied_from(name) in drawn

    def _rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows of a parameter of the stage's model that is not drawn, by its name without adapters."""
        if self.encoder is not None and name.startswith(_ENCODER):
            if name not in self._drawn:
                encoder = SenseVoiceEncoder.load(self.encoder)
                self._drawn |= {f"{_ENCODER}{key}": p.detach() for key, p in encoder.named_parameters()}
            return self._drawn[name][first:last]
        head = _HEAD.fullmatch(name)
        if head is not None and int(head[1]) >= self.heads:
            return self._rows_of_new_head(head[2], first, last)
        weights, key = self.places[name]
        if self.resized and name in VOCABULARY:
            old = weights.shapes()[key][0]
            whole = weights.rows(key, 0, old).to(self.model.lm_head.weight.dtype)
            return resized(whole, self.model.config.backbone.vocab_size, self.generator)[first:last]
        return weights.rows(key, first, last)

    def _copied_from(self, name: str) -> str | None:
        """The parameter that a new head begins as a copy of: the last head's that is there, or the last layer's."""
        head = _HEAD.fullmatch(name)
        if head is None or int(head[1]) < self.heads:
            return None
        if self.heads:
            return f"heads.{self.heads - 1}.{head[2]}"
        layer = f"model.layers.{len(self.model.model.layers) - 1}."
        return layer + head[2].removeprefix("layer.") if head[2].startswith("layer.") else None

    def _rows_of_new_head(self, part: str, first: int, last: int) -> Tensor:
        """As `models.initialise.add_heads` makes it."""
        source = self._copied_from(f"heads.{self.heads}.{part}")
        if source is not None:
            return self._rows(source, first, last)
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


def _plain(name: str) -> str:
    """Name of a parameter in a model without adapters."""
    return name.replace(".base_layer.", ".")


def _draw(seed: int, config: SpeechLMConfig) -> Drawing:
    """How a model's random weights are drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with (drawing := Drawing()):
            model = SpeechLM(config)
    drawing.named(model.named_parameters())
    return drawing
