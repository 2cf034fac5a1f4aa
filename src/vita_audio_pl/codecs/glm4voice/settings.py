"""Sizes of the three GLM-4-Voice networks, read from the configuration files of the public checkpoint folders."""

from dataclasses import dataclass
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import Fields, read_json, read_tagged_yaml

MOST_LAYERS = 256
_LONGEST_KERNEL, _LONGEST_FRAME = 256, 8192


@dataclass(frozen=True)
class TokenizerSettings:
    """`config.json` of the tokenizer: a Whisper encoder with pooling and vector quantisation part of the way up.

    Attributes:
        pooling_position, quantize_position: layers run before the pooling and before the quantisation.
        block: positions (50 a second before pooling) that see one another besides all that came before.
    """

    n_mels: int
    width: int
    heads: int
    ffn_width: int
    positions: int
    pooling_kernel: int
    pooling_type: str
    pooling_position: int
    quantize_position: int
    codebook_size: int
    block: int
    has_ema: bool

    @classmethod
    def read(cls, path: Path) -> "TokenizerSettings":
        fields = Fields(read_json(path), str(path))
        fields.only("activation_function", "gelu", default="gelu")
        fields.only("encoder_causal_convolution", True)
        fields.only("encoder_causal_attention", False, default=False)
        fields.only("quantize_causal_encoder", False, default=False)
        fields.only("quantize_encoder_only", True)
        settings = cls(
            n_mels=fields.integer("num_mel_bins"),
            width=fields.integer("d_model"),
            heads=fields.integer("encoder_attention_heads"),
            ffn_width=fields.integer("encoder_ffn_dim"),
            positions=fields.integer("max_source_positions"),
            pooling_kernel=fields.integer("pooling_kernel_size", most=64),
            pooling_type=fields.only("pooling_type", "avg", "max"),
            pooling_position=fields.integer("pooling_position", most=MOST_LAYERS),
            quantize_position=fields.integer("quantize_position", most=MOST_LAYERS),
            codebook_size=fields.integer("quantize_vocab_size"),
            block=fields.integer("quantize_causal_block_size", most=100_000),
            has_ema=fields.has("quantize_ema_decay"),
        )
        if settings.pooling_position > settings.quantize_position:
            raise UserError(f"{path}: pooling_position lies after quantize_position; it must not")
        if settings.width % settings.heads:
            raise UserError(f"{path}: d_model ({settings.width}) does not divide by {settings.heads} heads")
        return settings


@dataclass(frozen=True)
class ConformerSettings:
    """The block-causal encoder of codes; `block`: codes that see one another besides all that came before."""

    input_size: int
    width: int
    heads: int
    ffn_width: int
    layers: int
    block: int


@dataclass(frozen=True)
class EstimatorSettings:
    """The U-Net that estimates the velocity of the flow."""

    input_size: int
    output_size: int
    channels: tuple[int, ...]
    head_size: int
    heads: int
    layers_per_stage: int
    middle_stages: int


@dataclass(frozen=True)
class FlowSettings:
    """`flow:` of the decoder's `config.yaml`.

    Attributes:
        guidance: classifier-free guidance at inference; drop_rate: share of training items without conditions.
    """

    vocabulary: int
    embedding_size: int
    n_mels: int
    speaker_size: int
    regulator_convolutions: int
    encoder: ConformerSettings
    estimator: EstimatorSettings
    sigma_min: float
    guidance: float
    drop_rate: float


@dataclass(frozen=True)
class VocoderSettings:
    """`hift:` of the decoder's `config.yaml`; rates in Hz, `slope` that of the leaky ReLUs between upsamplings."""

    n_mels: int
    channels: int
    harmonics: int
    sample_rate: int
    sine_amplitude: float
    noise_level: float
    voiced_threshold: float
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    n_fft: int
    hop: int
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float
    limit: float
    pitch_channels: int

    @property
    def samples_per_frame(self) -> int:
        product = self.hop
        for rate in self.upsample_rates:
            product *= rate
        return product


@dataclass(frozen=True)
class DecoderSettings:
    """`config.yaml` of the decoder; `code_rate`: codes per second."""

    flow: FlowSettings
    vocoder: VocoderSettings
    code_rate: float

    @classmethod
    def read(cls, path: Path) -> "DecoderSettings":
        fields = Fields(read_tagged_yaml(path), str(path))
        flow, vocoder = _flow(fields.section("flow"), path), _vocoder(fields.section("hift"), path)
        if flow.n_mels != vocoder.n_mels:
            raise UserError(f"{path}: the flow makes {flow.n_mels} mel bands, the vocoder reads {vocoder.n_mels}")
        return cls(flow, vocoder, code_rate=fields.section("flow").number("input_frame_rate", least=1.0, most=1000.0))

    def frames(self, codes: int) -> int:
        """Mel frames that `codes` codes last."""
        return int(codes * self.vocoder.sample_rate // (self.code_rate * self.vocoder.samples_per_frame))


def _flow(fields: Fields, path: Path) -> FlowSettings:
    fields.only("output_type", "mel", default="mel")
    encoder = fields.section("encoder")
    encoder.only("normalize_before", True, default=True)
    encoder.only("input_layer", "linear")
    encoder.only("pos_enc_layer_type", "rel_pos_espnet")
    encoder.only("selfattention_layer_type", "block_rel_selfattn")
    encoder.only("use_cnn_module", False)
    encoder.only("macaron_style", False)
    decoder = fields.section("decoder")
    equation = decoder.section("cfm_params")
    if equation.has("content"):  # how the public file writes an omegaconf mapping
        equation = equation.section("content")
    equation.only("t_scheduler", "cosine")
    equation.only("solver", "euler", default="euler")
    estimator = decoder.section("estimator")
    estimator.only("act_fn", "gelu")
    regulator = fields.section("length_regulator")
    ratios = regulator.integers("sampling_ratios")
    if set(ratios) != {1}:
        raise UserError(f"{path}: flow: length_regulator: sampling_ratios are {ratios}; only ones are supported")
    settings = FlowSettings(
        vocabulary=fields.integer("vocab_size"),
        embedding_size=fields.integer("input_size"),
        n_mels=fields.integer("output_size"),
        speaker_size=fields.integer("spk_embed_dim"),
        regulator_convolutions=len(ratios),
        encoder=ConformerSettings(
            input_size=encoder.integer("input_size"),
            width=encoder.integer("output_size"),
            heads=encoder.integer("attention_heads"),
            ffn_width=encoder.integer("linear_units"),
            layers=encoder.integer("num_blocks", most=MOST_LAYERS),
            block=encoder.integer("block_size", most=100_000),
        ),
        estimator=EstimatorSettings(
            input_size=estimator.integer("in_channels"),
            output_size=estimator.integer("out_channels"),
            channels=estimator.integers("channels"),
            head_size=estimator.integer("attention_head_dim"),
            heads=estimator.integer("num_heads"),
            layers_per_stage=estimator.integer("n_blocks", most=MOST_LAYERS),
            middle_stages=estimator.integer("num_mid_blocks", most=MOST_LAYERS),
        ),
        sigma_min=equation.number("sigma_min"),
        guidance=equation.number("inference_cfg_rate"),
        drop_rate=equation.number("training_cfg_rate"),
    )
    n_mels = settings.n_mels
    if regulator.integer("channels") != n_mels or settings.estimator.output_size != n_mels:
        raise UserError(f"{path}: flow: length_regulator and estimator must both give {n_mels} mel bands (output_size)")
    if settings.estimator.input_size != 4 * n_mels:
        raise UserError(f"{path}: flow: the estimator reads noise, mean, speaker and prompt: {4 * n_mels} channels")
    if any(width % 8 for width in settings.estimator.channels):
        raise UserError(f"{path}: flow: the estimator's channels must divide by 8 (its group norm)")
    if settings.encoder.width % settings.encoder.heads:
        raise UserError(f"{path}: flow: the encoder's width does not divide by its {settings.encoder.heads} heads")
    return settings


def _vocoder(fields: Fields, path: Path) -> VocoderSettings:
    stft, pitch = fields.section("istft_params"), fields.section("f0_predictor")
    pitch.only("num_class", 1, default=1)
    settings = VocoderSettings(
        n_mels=fields.integer("in_channels"),
        channels=fields.integer("base_channels"),
        harmonics=fields.integer("nb_harmonics", most=256) + 1,
        sample_rate=fields.integer("sampling_rate", least=2_000, most=192_000),
        sine_amplitude=fields.number("nsf_alpha"),
        noise_level=fields.number("nsf_sigma"),
        voiced_threshold=fields.number("nsf_voiced_threshold"),
        upsample_rates=fields.integers("upsample_rates", most=64),
        upsample_kernels=fields.integers("upsample_kernel_sizes", most=_LONGEST_KERNEL),
        n_fft=stft.integer("n_fft", most=8192),
        hop=stft.integer("hop_len", most=4096),
        block_kernels=fields.integers("resblock_kernel_sizes", most=_LONGEST_KERNEL),
        block_dilations=fields.tables("resblock_dilation_sizes", most=_LONGEST_KERNEL),
        source_kernels=fields.integers("source_resblock_kernel_sizes", most=_LONGEST_KERNEL),
        source_dilations=fields.tables("source_resblock_dilation_sizes", most=_LONGEST_KERNEL),
        slope=fields.number("lrelu_slope"),
        limit=fields.number("audio_limit"),
        pitch_channels=pitch.integer("cond_channels"),
    )
    stages = len(settings.upsample_rates)
    if len(settings.upsample_kernels) != stages or len(settings.source_kernels) != stages:
        raise UserError(f"{path}: hift: expected as many upsample and source kernels as upsample rates ({stages})")
    if len(settings.block_kernels) != len(settings.block_dilations) or len(settings.source_dilations) != stages:
        raise UserError(f"{path}: hift: expected one list of dilations per kernel")
    if settings.samples_per_frame > _LONGEST_FRAME:
        raise UserError(
            f"{path}: hift: upsample_rates and hop_len make {settings.samples_per_frame} samples of a mel frame; "
            f"at most {_LONGEST_FRAME} are supported"
        )
    if settings.channels % 2**stages:
        raise UserError(f"{path}: hift: base_channels must halve {stages} times")
    return settings
