"""SenseVoiceSmall's encoder (FunAudioLLM, arXiv 2407.04051): speech features to states for a language model.

Its layers mix attention with a memory (SAN-M, arXiv 2006.01713): a depthwise convolution over the values. Names of
weights as in the public `model.pt`. There is no dropout: the encoder is frozen in the published training.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_tagged_yaml
from vita_audio_pl.foreign.weights import load_strict, read_weights
from vita_audio_pl.models.layout import to_device
from vita_audio_pl.models.sensevoice_frontend import CMVN, SAMPLE_RATE, SenseVoiceFrontEnd, read_cmvn, write_cmvn
from vita_audio_pl.storage.files import save_safetensors

LANGUAGES = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
TEXT_FORMS = {"withitn": 14, "woitn": 15}
_EVENT, _EMOTION = 1, 2
_QUERY_ROWS = 16
N_QUERIES = 4
_MOST_LAYERS = 256


@dataclass(frozen=True)
class SenseVoiceConfig:
    """Sizes of the encoder and its front end.

    Attributes:
        layers: SAN-M layers before the first final norm; text_layers: those after it (`tp_blocks`).
        memory: taps of the memory's convolution.
        ctc_tokens: outputs of the recognition layer, which a language model does not use; 0 for none.
    """

    width: int = 512
    heads: int = 4
    ffn_width: int = 2048
    layers: int = 50
    text_layers: int = 20
    memory: int = 11
    n_mels: int = 80
    stack: int = 7
    stride: int = 6
    ctc_tokens: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.memory % 2 == 0 or self.layers < 1:
            raise UserError(
                f"SenseVoice: width {self.width} must divide by {self.heads} heads, memory {self.memory} be odd, "
                f"and layers ({self.layers}) at least 1"
            )

    @property
    def input_size(self) -> int:
        return self.n_mels * self.stack

    @classmethod
    def read(cls, path: Path) -> "SenseVoiceConfig":
        """Reads the public `config.yaml`; a UserError names what is missing or not supported."""
        fields = Fields(read_tagged_yaml(path), str(path))
        fields.only("encoder", "SenseVoiceEncoderSmall")
        encoder, front = fields.section("encoder_conf"), fields.section("frontend_conf")
        encoder.only("input_layer", "pe")
        encoder.only("normalize_before", True)
        encoder.only("selfattention_layer_type", "sanm")
        encoder.only("sanm_shfit", 0, default=0)
        front.only("fs", SAMPLE_RATE)
        front.only("window", "hamming")
        front.only("frame_length", 25)
        front.only("frame_shift", 10)
        return cls(
            width=encoder.integer("output_size"),
            heads=encoder.integer("attention_heads"),
            ffn_width=encoder.integer("linear_units"),
            layers=encoder.integer("num_blocks", most=_MOST_LAYERS),
            text_layers=encoder.integer("tp_blocks", least=0, most=_MOST_LAYERS),
            memory=encoder.integer("kernel_size", most=1001),
            n_mels=front.integer("n_mels", most=512),
            stack=front.integer("lfr_m", most=64),
            stride=front.integer("lfr_n", most=64),
        )

    def as_yaml(self) -> str:
        """The public `config.yaml`, as far as `read` needs it."""
        encoder = {
            "output_size": self.width,
            "attention_heads": self.heads,
            "linear_units": self.ffn_width,
            "num_blocks": self.layers,
            "tp_blocks": self.text_layers,
            "input_layer": "pe",
            "normalize_before": True,
            "kernel_size": self.memory,
            "sanm_shfit": 0,
            "selfattention_layer_type": "sanm",
        }
        front = {
            "fs": SAMPLE_RATE,
            "window": "hamming",
            "n_mels": self.n_mels,
            "frame_length": 25,
            "frame_shift": 10,
            "lfr_m": self.stack,
            "lfr_n": self.stride,
        }
        text: str = yaml.safe_dump(
            {"encoder": "SenseVoiceEncoderSmall", "encoder_conf": encoder, "frontend_conf": front}, sort_keys=False
        )
        return text


class SenseVoiceEncoder(nn.Module):
    """Features to states, four query states first."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(_QUERY_ROWS, config.input_size)
        self.encoder = _Layers(config)
        if config.ctc_tokens:
            self.ctc = nn.ModuleDict({"ctc_lo": nn.Linear(config.width, config.ctc_tokens)})

    @classmethod
    def load(cls, folder: str | Path, keep_ctc: bool = False) -> "SenseVoiceEncoder":
        """Loads a folder in the public layout: `config.yaml` and `model.pt` (or `model.safetensors`).

        Raises:
            UserError: a file is missing, damaged, or does not fit the other.
        """
        folder = Path(folder)
        config = SenseVoiceConfig.read(folder / "config.yaml")
        path = folder / "model.safetensors"
        return cls.from_state(config, read_weights(path if path.is_file() else folder / "model.pt"), path, keep_ctc)

    @classmethod
    def from_state(
        cls, config: SenseVoiceConfig, state: dict[str, Tensor], source: str | Path, keep_ctc: bool = False
    ) -> "SenseVoiceEncoder":
        """The encoder with the tensors of `state`, which must match; without the recognition layer unless requested."""
        recognition = state["ctc.ctc_lo.weight"].shape if keep_ctc and "ctc.ctc_lo.weight" in state else ()
        ctc_tokens = recognition[0] if recognition else 0
        if not ctc_tokens:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("ctc.")}
        with torch.device("meta"):
            encoder = cls(SenseVoiceConfig(**{**vars(config), "ctc_tokens": ctc_tokens}))
        load_strict(encoder, state, source)
        return encoder

    def save(self, folder: str | Path, front_end: SenseVoiceFrontEnd) -> None:
        """Writes a folder that `load` and `load_front_end` read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(self.config.as_yaml(), encoding="utf-8")
        write_cmvn(folder / CMVN, front_end.shift, front_end.scale)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_safetensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def forward(
        self, features: Tensor, lengths: Tensor, language: str = "auto", text_form: str = "woitn"
    ) -> tuple[Tensor, Tensor]:
        """States `(items, frames + 4, width)`, and the valid length of each item, `lengths + 4`.

        Args:
            features: `(items, frames, input_size)`, padded; lengths: `(items,)` int64.
            language: a key of `LANGUAGES`; text_form: a key of `TEXT_FORMS`.
        """
        asked = np.array([LANGUAGES[language], _EVENT, _EMOTION, TEXT_FORMS[text_form]])
        queries = self.embed(to_device(asked, features.device)).expand(len(features), -1, -1)
        x = torch.cat((queries, features.to(queries.dtype)), dim=1)
        lengths = lengths + N_QUERIES
        # published: scaled by the width of the output, although x still has the width of the features
        x = x * math.sqrt(self.config.width) + _positions(x)
        return self.encoder(x, lengths), lengths

    def tokens(self, states: Tensor) -> Tensor:
        """Logits of the recognition layer, `(items, frames, ctc_tokens)`."""
        out: Tensor = self.ctc["ctc_lo"](states)
        return out


def load_front_end(folder: str | Path, dither: float = 0.0) -> SenseVoiceFrontEnd:
    """The front end of a public folder: `config.yaml` and `am.mvn`."""
    folder = Path(folder)
    config = SenseVoiceConfig.read(folder / "config.yaml")
    shift, scale = read_cmvn(folder / CMVN, config.input_size)
    return SenseVoiceFrontEnd(
        shift, scale, n_mels=config.n_mels, stack=config.stack, stride=config.stride, dither=dither
    )


def _positions(x: Tensor) -> Tensor:
    """Sinusoidal position encoding of positions 1, 2, ...: all sines, then all cosines, `(length, size)`."""
    length, half = x.shape[1], x.shape[2] // 2
    places = torch.arange(1, length + 1, device=x.device, dtype=torch.float32)[:, None]
    steps = torch.arange(half, device=x.device, dtype=torch.float32)
    angles = places * torch.exp(steps * (-math.log(10_000.0) / (half - 1)))
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(x.dtype)


class _Layers(nn.Module):
    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.encoders0 = nn.ModuleList([MemoryLayer(config, config.input_size)])
        self.encoders = nn.ModuleList(MemoryLayer(config, config.width) for _ in range(config.layers - 1))
        self.tp_encoders = nn.ModuleList(MemoryLayer(config, config.width) for _ in range(config.text_layers))
        self.after_norm = nn.LayerNorm(config.width)
        self.tp_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, valid)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, valid)
        out: Tensor = self.tp_norm(x)
        return out


class MemoryLayer(nn.Module):
    """A SAN-M layer; the first one changes the width of its input."""

    def __init__(self, config: SenseVoiceConfig, input_size: int):
        super().__init__()
        self.self_attn = _MemoryAttention(config, input_size)
        self.feed_forward = _FeedForward(config)
        self.norm1 = nn.LayerNorm(input_size)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        mixed = self.self_attn(self.norm1(x), valid)
        x = x + mixed if x.shape[-1] == mixed.shape[-1] else mixed
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class _FeedForward(nn.Module):
    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.w_1 = nn.Linear(config.width, config.ffn_width)
        self.w_2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.relu(self.w_1(x)))
        return out


class _MemoryAttention(nn.Module):
    def __init__(self, config: SenseVoiceConfig, input_size: int):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.linear_q_k_v = nn.Linear(input_size, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, config.memory, padding=config.memory // 2, groups=width, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        kept = value * valid
        memory = (self.fsmn_block(kept.transpose(1, 2)).transpose(1, 2) + kept) * valid
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None, :, 0])
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2)) + memory
        return out
