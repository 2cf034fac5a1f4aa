"""The model at the start of a stage: random, pretrained, or the parent stage's, with the stage's heads."""

from pathlib import Path

import torch

from vita_audio_pl.data.staging import beside
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.blocks import checkpoint_activations, compile_blocks
from vita_audio_pl.models.families import FAMILIES, BackboneConfig
from vita_audio_pl.models.initialise import add_heads, add_speech_input, end_answers_with, resize_vocabulary
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.lora import add_lora
from vita_audio_pl.models.quantised import refuse_quantised
from vita_audio_pl.models.released import ENCODER_FOLDER, config_from_fields
from vita_audio_pl.models.sensevoice import SenseVoiceEncoder
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.vocabulary import Vocabulary
from vita_audio_pl.training.run_folder.manifest import StageManifest
from vita_audio_pl.training.run_folder.origin import pretrained_folder
from vita_audio_pl.training.settings import ModelConfig, TrainConfig


def starting_model(config: TrainConfig, vocabulary: Vocabulary, parent: Path | None) -> SpeechLM:
    """Build the stage's model before its first step.

    Args:
        vocabulary: the data's; embeddings and vocabulary layer are resized to it.
        parent: model folder of the parent stage; None for the plain backbone of `config.model`.

    Raises:
        UserError: the weights do not match, the parent has more heads than the stage, or an encoder is missing.
    """
    generator = torch.Generator().manual_seed(config.seed)
    dtype = weights_type(config)
    if parent is not None:
        model = load_model(parent, attention=config.model.kernel, dtype=dtype)
        refuse_quantised(model, parent, "trained")
    elif config.model.pretrained is not None:
        model = load_model(pretrained_folder(config.model.pretrained), attention=config.model.kernel, dtype=dtype)
        refuse_quantised(model, config.model.pretrained, "trained")
        resize_vocabulary(model, vocabulary.size, generator)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone = backbone_config(config.model, vocabulary)
            model = SpeechLM(SpeechLMConfig(backbone, n_heads=0, attention=config.model.kernel)).to(dtype)
    if config.variant.has_audio_encoder and model.speech_input is None:
        encoder = SenseVoiceEncoder.load(encoder_folder(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # of the adapter
            add_speech_input(model, encoder, vocabulary.context_of_audio)
    if model.speech_input is not None:  # published weights do not say
        model.config.context_of_audio = vocabulary.context_of_audio
    if config.stage.n_heads is not None:
        add_heads(model, config.stage.n_heads, generator, config.model.heads)
    lora = config.model.lora
    if lora.rank:
        add_lora(model, lora.rank, lora.alpha, lora.dropout, lora.targets, lora.only)
    return finish_start(config, vocabulary, model)


def weights_type(config: TrainConfig) -> torch.dtype:
    """Of the weights that train."""
    return torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32


def finish_start(config: TrainConfig, vocabulary: Vocabulary, model: SpeechLM) -> SpeechLM:
    """Set up the end of an answer, checkpointing and compilation of a complete model, in place."""
    end_answers_with(model, vocabulary.im_end)
    model.config.detach_heads = config.objective.detach_heads
    checkpoint_activations(model, config.model.activation_checkpointing, config.model.checkpoint_every)
    compile_blocks(model, config.model.compile)
    return model.train()


def backbone_config(model: ModelConfig, vocabulary: Vocabulary) -> BackboneConfig:
    """transformers' configuration of a backbone with the dimensions of `model`, whose names are `config.json`'s."""
    tokens = {"vocab_size": vocabulary.size, "pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.im_end}
    size = {"head_dim": model.head_dim or model.hidden_size // model.num_attention_heads}
    return config_from_fields(vars(model) | tokens | size, FAMILIES[model.family], model.num_hidden_layers, "model")


def encoder_folder(config: TrainConfig) -> Path:
    """Folder of the audio encoder that a Plus variant starts from.

    Raises:
        UserError: there is none.
    """
    folder = Path(config.encoder.folder) if config.encoder.folder else beside(config.data, ENCODER_FOLDER)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"variant={config.variant.name} takes audio through an encoder, and {folder} holds none (config.yaml, am.mvn, "
            "model.pt or model.safetensors); download SenseVoiceSmall there, or give encoder.folder=DIR"
        )
    return folder


def check_pretrained_tokenizer(config: TrainConfig, tokenizer: TextTokenizer) -> None:
    """Refuse a pretrained backbone whose tokenizer differs from the data's.

    Args:
        tokenizer: fingerprint of the data's text tokenizer.

    Raises:
        UserError: they differ, or the backbone's folder has no tokenizer to compare.
    """
    if config.model.pretrained is None or config.init_from is not None or config.variant.parents.get(config.stage.name):
        return
    folder = pretrained_folder(config.model.pretrained)
    own = TextTokenizer.load(folder)
    if own.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"model.pretrained={folder} reads the ids of its own tokenizer ({own.n_text} entries), and the shards in "
            f"{config.data.folder} hold those of another ({tokenizer.n_text} entries, {config.data.tokenizer_folder or 'beside them'}): prepare the "
            f"data with tokenizer_folder={folder}, or leave data.shards out, and the small spoken world is made so"
        )


def check_adapters(config: TrainConfig, parent: StageManifest | None, n_heads: int) -> None:
    """Refuse `model.lora.only` if the stage has new weights besides the adapters.

    Raises:
        UserError: the stage starts from a plain backbone, or adds heads.
    """
    if config.model.lora.only and (parent is None or parent.n_heads != n_heads):
        raise UserError(
            "model.lora.only=true hands over adapters of a whole model, and this stage adds "
            f"{'audio tokens to a plain backbone' if parent is None else 'heads'}; leave it out, or start from a model that has "
            "them"
        )
