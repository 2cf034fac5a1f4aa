"""Model and codec folders from elsewhere, damaged in every way: a sentence or a model that works, in bounded time and memory."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged
from safetensors.torch import load_file
from transformers import DacConfig, DacModel, MimiConfig, MimiModel, Qwen2Config

from vita_audio_pl.codecs import mel_vq
from vita_audio_pl.codecs.glm4voice import GLM4VoiceCodec, StreamOptions
from vita_audio_pl.codecs.hf_codec import TransformersCodec
from vita_audio_pl.codecs.mel_vq import MelVQ, MelVQConfig
from vita_audio_pl.codecs.unit_selection import Units
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import generate, load_speech_model
from vita_audio_pl.inference.answering import clips_of, codec_of, encode_recordings, prompt_ids
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.backbone import backbone_notes, save_backbone
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.text.conversation import Conversation, Message
from vita_audio_pl.text.tokenizer import TextTokenizer

GLM4VOICE = Path(__file__).parents[1] / "parity" / "codecs" / "glm4voice"
MOST_MEMORY = 1 << 30  # bytes above the start
MOST_SECONDS = 60  # of the processor, for one folder
SOUND = np.sin(np.arange(1600) / 5).astype(np.float32)


def speech_model(folder: Path, hears: bool = False) -> None:
    """A stage's model folder with its codec, its weights in several files."""
    tokenizer = TextTokenizer.train(["the big red cow lives in the farm " * 5], 262)
    vocabulary = tokenizer.vocabulary(16, continuous_input=hears)
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=vocabulary.size, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0},
    )  # fmt: skip
    model = SpeechLM(SpeechLMConfig(backbone, 1))
    if hears:
        sizes = SenseVoiceConfig(width=8, heads=2, ffn_width=8, layers=1, text_layers=1, memory=3, n_mels=8, stack=3)
        add_speech_input(model, SenseVoiceEncoder(sizes), vocabulary.context_of_audio)
    save_released(model, folder, decode_pattern=[1, 10, 4, 10], first_code=vocabulary.first_code, max_shard_bytes=9000)
    if hears:
        model.speech_input.encoder.save(folder / "speech_input", SenseVoiceFrontEnd(n_mels=8, stack=3))
    tokenizer.save(folder / "tokenizer")
    mel_vq_codec(folder / "codec")
    rendering = {"rendering": {"lead_in_codes": 2}}
    manifest = {"text_audio_interval_ratio": [1, 10, 4, 10], "decode_pattern": [1, 10], "config": rendering}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocabulary": vocabulary.fingerprint}))


def use_speech_model(folder: Path) -> None:
    loaded = load_speech_model(folder)
    codec = codec_of(loaded)
    said = (Message("user", "a<|audio|>"), Message("assistant", "the cow<|audio|>"), Message("user", "b"))
    asked = Conversation("asked", said, ("a.wav", "b.wav"))
    audios = encode_recordings(asked, [SOUND, SOUND], loaded, codec)
    prompt = prompt_ids(asked, audios, loaded, codec)
    [answer] = generate(loaded.runtime, [prompt], loaded.pattern, max_new_tokens=4, clips=[clips_of(audios)])
    loaded.tokenizer.decode(answer.ids)


def mel_vq_codec(folder: Path) -> None:
    sizes = MelVQConfig(hop=64, frames_per_code=4, n_mels=8, pca_size=4, codebook_size=16, griffin_lim_iterations=2,
                        decoder_width=4, decoder_components=3)  # fmt: skip
    random = torch.Generator().manual_seed(0)
    shapes = {name: torch.randn(shape, generator=random) for name, shape in mel_vq._shapes(sizes).items()}
    speech = Units.weights([torch.arange(9), torch.arange(5)], [torch.randn(n, 3, generator=random) for n in (9, 5)])
    MelVQ(sizes, shapes | {f"units.{name}": weight for name, weight in speech.items()}).save(folder)


def use_mel_vq(folder: Path) -> None:
    codec = MelVQ.load(folder)
    codes = codec.encode([SOUND])[0]
    stream = codec.decode_stream()
    assert len(codec.decode(codes)) == len(stream.push(codes)) + len(stream.finish())


def backbone(folder: Path) -> None:
    """An exported Qwen2 folder with heads and an encoder beside it."""
    speech_model(folder / "released", hears=True)
    model = load_speech_model(folder / "released").model
    shutil.rmtree(folder / "released")
    save_backbone(model, folder, decode_pattern=[1, 10], first_code=282)


def use_backbone(folder: Path) -> None:
    backbone_notes(folder)
    generate(load_model(folder).eval(), [[1, 2, 3]], DecodePattern.of("boost"), max_new_tokens=2)


def sensevoice(folder: Path) -> None:
    """The encoder's public layout, its weights pickled."""
    sizes = SenseVoiceConfig(width=8, heads=2, ffn_width=8, layers=1, text_layers=1, memory=3, n_mels=8, stack=3)
    SenseVoiceEncoder(sizes).save(folder, SenseVoiceFrontEnd(n_mels=8, stack=3))
    torch.save(load_file(folder / "model.safetensors"), folder / "model.pt")
    (folder / "model.safetensors").unlink()


def use_sensevoice(folder: Path) -> None:
    encoder = SenseVoiceEncoder.load(folder)
    encoder(torch.zeros(1, 3, encoder.config.input_size), torch.tensor([3]))


def glm4voice(folder: Path) -> None:
    shutil.copytree(GLM4VOICE / "tokenizer", folder / "tokenizer")
    shutil.copytree(GLM4VOICE / "decoder", folder / "decoder")
    options = StreamOptions(chunk_codes=(6,), flow_steps=(1,))
    codec = GLM4VoiceCodec(folder / "tokenizer", folder / "decoder", stream_options=options, flow_steps=1)
    codec.save(folder)
    header = json.loads((folder / "codec.json").read_text())
    (folder / "codec.json").write_text(json.dumps(header | {"tokenizer": "tokenizer", "decoder": "decoder"}))


def use_glm4voice(folder: Path) -> None:
    codec = GLM4VoiceCodec.load(folder)
    stream = codec.decode_stream()
    stream.push(np.arange(6))
    stream.finish()
    # the fingerprint would refuse all others, and whoever makes a folder can make it fit
    GLM4VoiceCodec(codec.tokenizer_folder, codec.decoder_folder).encode([SOUND])


def mimi(folder: Path) -> None:
    torch.manual_seed(0)
    MimiModel(
        MimiConfig(
            hidden_size=32, intermediate_size=32, num_filters=4, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, codebook_size=32, codebook_dim=16,
            vector_quantization_hidden_dimension=16, num_quantizers=4, upsample_groups=32,
        )
    ).save_pretrained(folder)  # fmt: skip


def dac(folder: Path) -> None:
    torch.manual_seed(0)
    DacModel(DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=3, codebook_size=32)).save_pretrained(
        folder
    )


def use_transformers_codec(folder: Path) -> None:
    codec = TransformersCodec(folder, levels=2)
    codec.decode(codec.encode([SOUND])[0][:4])


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], float]] = {
    "speech_model": (speech_model, use_speech_model, 1.0),
    "hearing_model": (lambda folder: speech_model(folder, hears=True), use_speech_model, 0.6),
    "backbone": (backbone, use_backbone, 0.5),
    "mel_vq": (mel_vq_codec, use_mel_vq, 1.0),
    "sensevoice": (sensevoice, use_sensevoice, 1.0),
    "glm4voice": (glm4voice, use_glm4voice, 0.3),
    "mimi": (mimi, use_transformers_codec, 0.2),
    "dac": (dac, use_transformers_codec, 0.2),
}
"""How to make a folder, how to use it, and its share of the cases (some take longer)."""


@pytest.fixture(autouse=True)
def any_fingerprint(monkeypatch):
    monkeypatch.setattr(mel_vq, "_fingerprint", lambda config, weights: "any")


@pytest.fixture
def room():
    """What asks for far more than it may have meets an error of its own, and not the machine's other processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 3 * MOST_MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("count", [40, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_refused_in_a_sentence_or_works(tmp_path, room, kind, count):
    make, use, share = KINDS[kind]
    make(tmp_path / kind)
    use(tmp_path / kind)
    start, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    cases = max(1, round(count * share))
    for number in range(cases):
        with damaged(tmp_path / kind, f"{kind} {number}") as told:
            begun = time.process_time()
            try:
                use(tmp_path / kind)
            except UserError as error:
                refused += 1
                assert len(str(error)) < 1500 and "\n" not in str(error), (number, told, str(error))
            except BaseException as error:
                raise AssertionError(f"case {number} ({told}) ended in {type(error).__name__}: {error}") from error
            assert time.process_time() - begun < MOST_SECONDS, (number, told)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) << 10
            assert grown < MOST_MEMORY, (number, told, grown)
    assert refused > cases / 4
