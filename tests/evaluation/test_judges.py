"""The judge hears what is said, whatever it heard before; what it cannot use is a sentence."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.judges.choice import judge_maker
from vita_audio_pl.evaluation.judges.pocketsphinx import PocketsphinxJudge, grammar_words

GRAMMAR = """#JSGF V1.0;
grammar toy; // a comment with words
public <sentence> = the <colour> cow [lives] in the (barn | forest) | /2.5/ anna has <count> cups {tag};
<colour> = red | green;
<count> = two | three;
"""


@pytest.fixture(scope="module")
def grammar(tmp_path_factory):
    path = tmp_path_factory.mktemp("grammar") / "toy.jsgf"
    path.write_text(GRAMMAR)
    return path


def test_words_of_a_grammar_are_found(grammar):
    assert grammar_words(grammar) == sorted("the red green cow lives in barn forest anna has two three cups".split())


def test_judge_hears_speech_not_noise_and_keeps_no_memory(grammar, tmp_path):
    sentences = ["the red cow lives in the forest", "anna has three cups"]
    waves = []
    for number, text in enumerate(sentences):
        path = tmp_path / f"{number}.wav"
        subprocess.run(["espeak-ng", "-v", "en-us+f2", "-w", str(path), text], check=True)
        wave, rate = soundfile.read(path, dtype="float32")
        waves.append(wave)
    judge = judge_maker(str(grammar))("pocketsphinx")
    assert judge.transcribe(waves, rate) == sentences  # 22.05 kHz, as espeak-ng speaks
    noise = np.random.default_rng(0).normal(0, 0.05, 30000).astype(np.float32)
    assert judge.transcribe([noise, np.zeros(8000, np.float32)], 16000) == ["", ""]
    assert judge.transcribe(waves[::-1], rate) == sentences[::-1]


def test_a_judge_with_a_dictionary_writes_words_of_no_grammar(tmp_path):
    path = tmp_path / "said.wav"
    subprocess.run(["flite", "-voice", "rms", "-t", "please open the window this morning", "-o", str(path)], check=True)
    wave, rate = soundfile.read(path, dtype="float32")
    judge = judge_maker()("pocketsphinx_words")
    assert len(set(judge.transcribe([wave], rate)[0].split()) & {"open", "the", "window", "this", "morning"}) >= 3


def test_judge_that_cannot_be_used_says_why(tmp_path, grammar):
    with pytest.raises(UserError, match="there is no judge 'nobody'; choose one of"):
        judge_maker()("nobody")
    with pytest.raises(UserError, match="needs a grammar"):
        judge_maker()("pocketsphinx")
    with pytest.raises(UserError, match="needs its checkpoint"):
        judge_maker()("whisper")
    with pytest.raises(UserError, match="is not a Whisper checkpoint"):
        judge_maker(model=str(tmp_path))("whisper")
    with pytest.raises(UserError, match="cannot be read"):
        PocketsphinxJudge(tmp_path / "none.jsgf")
    strange = tmp_path / "strange.jsgf"
    strange.write_text(GRAMMAR.replace("cups", "qwrtzp"))
    with pytest.raises(UserError, match="no pronunciation of qwrtzp"):
        PocketsphinxJudge(strange)
    strange.write_text("hello")
    with pytest.raises(UserError, match="is not a JSGF grammar"):
        PocketsphinxJudge(strange)


def test_missing_package_is_a_sentence_not_an_import_error(monkeypatch, grammar):
    import sys

    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(UserError, match="not installed"):
        PocketsphinxJudge(grammar)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A tiny random Whisper: the loading, windowing and batching are real, the words are not."""
    folder = tmp_path_factory.mktemp("whisper")
    from tokenizers import Tokenizer, models
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocab = {token: i for i, token in enumerate([*specials, *"abcdefgh"])}
    Tokenizer(models.BPE(vocab, [])).save(str(folder / "tokenizer.json"))
    tokenizer = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"))
    config = WhisperConfig(
        vocab_size=len(vocab), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=16, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.generation_config.forced_decoder_ids = None
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def test_whisper_judge_loads_a_checkpoint_and_takes_long_and_short_recordings(whisper):
    judge = judge_maker(model=str(whisper))("whisper")
    short, long = np.zeros(4000, np.float32), np.random.default_rng(0).normal(0, 0.1, 35 * 8000).astype(np.float32)
    texts = judge.transcribe([short, long], 8000)
    assert len(texts) == 2 and texts[0] == judge.transcribe([short], 8000)[0]


def spoil(folder, name):
    if name == "a tensor":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.encoder.layer_norm.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif name == "config.json":  # of another size than the weights
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"decoder_ffn_dim": 24}))
    elif name == "no tokenizer.json":
        (folder / name.removeprefix("no ")).unlink()
    else:
        (folder / name).write_bytes(b"junk")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("model.safetensors", "model.safetensors is damaged"),
        ("processor_config.json", "processor_config.json is not valid JSON"),
        ("tokenizer.json", "tokenizer.json is not valid JSON"),
        ("no tokenizer.json", r"is not a Whisper checkpoint \(it has no tokenizer.json\); give judge_model=FOLDER"),
        ("a tensor", "lacks 1 tensors .* such as 'model.encoder.layer_norm.weight'"),
        ("config.json", "cannot be loaded as a Whisper checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_a_sentence_that_names_folder_and_file(whisper, tmp_path, damage, says):
    folder = tmp_path / "copy"
    shutil.copytree(whisper, folder)
    spoil(folder, damage)
    with pytest.raises(UserError, match=says) as refused:
        judge_maker(model=str(folder))("whisper")
    assert str(folder) in str(refused.value) and "http" not in str(refused.value)
