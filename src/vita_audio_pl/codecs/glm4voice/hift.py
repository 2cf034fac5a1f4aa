"""Mel spectrogram to wave: a HiFT vocoder (arXiv 2309.09493), which ends in an inverse short-time Fourier transform."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio_pl.codecs.glm4voice.harmonic_source import HarmonicSource
from vita_audio_pl.codecs.glm4voice.settings import VocoderSettings
from vita_audio_pl.codecs.glm4voice.weight_norm import normed_conv, weight_normed
from vita_audio_pl.foreign.weights import load_strict, read_weights

_LOUDEST_BIN = 100.0


class Vocoder(nn.Module):
    """Waves `(items, frames * 256)` of `mel: (items, n_mels, frames)`; always in float32."""

    def __init__(self, settings: VocoderSettings):
        super().__init__()
        self.settings = settings
        self.m_source = HarmonicSource(settings)
        self.f0_predictor = _PitchPredictor(settings)
        self.conv_pre = normed_conv(settings.n_mels, settings.channels, 7)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        stages = len(settings.upsample_rates)
        for stage, (rate, kernel) in enumerate(zip(settings.upsample_rates, settings.upsample_kernels, strict=True)):
            width = settings.channels // 2 ** (stage + 1)
            up = nn.ConvTranspose1d(2 * width, width, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_normed(up))
            stride = 1  # from the source's resolution down to this stage's
            for later in settings.upsample_rates[stage + 1 :]:
                stride *= later
            down = nn.Conv1d(settings.n_fft + 2, width, 1 if stride == 1 else 2 * stride, stride, padding=stride // 2)
            self.source_downs.append(down)
            self.source_resblocks.append(
                _ResidualBlock(width, settings.source_kernels[stage], settings.source_dilations[stage])
            )
            for kernel_size, dilations in zip(settings.block_kernels, settings.block_dilations, strict=True):
                self.resblocks.append(_ResidualBlock(width, kernel_size, dilations))
        self.conv_post = normed_conv(settings.channels // 2**stages, settings.n_fft + 2, 7)

    @classmethod
    def load(cls, settings: VocoderSettings, path: Path) -> "Vocoder":
        """Loads the public `hift.pt`; a UserError says what is wrong with it."""
        with torch.device("meta"):
            vocoder = cls(settings)
        state = {name.removeprefix("generator."): tensor for name, tensor in read_weights(path).items()}
        load_strict(vocoder, state, path)
        return vocoder.eval().requires_grad_(False)

    def pitch(self, mel: Tensor) -> Tensor:
        """Pitch in Hz, `(items, frames)`."""
        out: Tensor = self.f0_predictor(mel)
        return out

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """Wave of the mel, driven by `source: (items, 1, frames * 256)`."""
        settings = self.settings
        window = torch.hann_window(settings.n_fft, device=mel.device)
        spectrum = torch.stft(source[:, 0], settings.n_fft, settings.hop, window=window, return_complex=True)
        drive = torch.cat((spectrum.real, spectrum.imag), dim=1)
        per_stage = len(settings.block_kernels)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, settings.slope))
            if stage == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # the transform has one frame more than the mel asks for
            x = x + self.source_resblocks[stage](self.source_downs[stage](drive))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        x = self.conv_post(F.leaky_relu(x))  # torch's default slope here, as published
        magnitude, angle = x.split(settings.n_fft // 2 + 1, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_LOUDEST_BIN), torch.sin(angle))
        wave = torch.istft(spectrum, settings.n_fft, settings.hop, window=window)
        return wave.clamp(-settings.limit, settings.limit)


class _PitchPredictor(nn.Module):
    def __init__(self, settings: VocoderSettings):
        super().__init__()
        width = settings.pitch_channels
        layers: list[nn.Module] = []
        for number in range(5):
            layers += [normed_conv(settings.n_mels if number == 0 else width, width, 3), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()
        return out


class _Snake(nn.Module):
    """x + sin^2(a x) / a (arXiv 2006.08195), one `a` per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(normed_conv(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(normed_conv(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(_Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(_Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second, before, between in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + second(between(first(before(x))))
        return x
