"""Models that take audio through an encoder (VITA-Audio-Plus): the backbone reads its states, the heads plain embeddings."""

import json

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from tests.margins import assert_most_likely
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol
from vita_audio_pl.benchmarking.decoding_trained import benchmark_trained, read_questions
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference import Runtime, generate, load_speech_model
from vita_audio_pl.inference import decoder as decoder_module
from vita_audio_pl.inference.answering import encode_recordings, open_session, prompt_ids, read_recordings
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.initialise import add_speech_input
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.text import AudioFrames
from vita_audio_pl.text.conversation import Conversation, Message
from vita_audio_pl.text.tokenizer import TextTokenizer

PLACE = 96


@pytest.fixture(scope="module")
def plus(tiny_model):
    model = tiny_model()
    torch.manual_seed(1)
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3, n_mels=4, stack=3)
    add_speech_input(model, SenseVoiceEncoder(sizes), PLACE)
    return model.eval().requires_grad_(False)


@pytest.fixture
def question(prompts):
    """A prompt with two recordings in it, and another without."""
    before, between, after, written = prompts(3, 2, 4, 7, vocabulary=90)
    clips = [torch.randn(5, 12, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return [*before, *[PLACE] * 9, *between, *[PLACE] * 9, *after], clips, written


@pytest.mark.parametrize("chunk", [512, 6])
def test_what_is_heard_is_what_the_training_function_hears(plus, question, monkeypatch, chunk):
    prompt, clips, written = question
    pattern = DecodePattern.of([1, 3, 2, 2])
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", chunk)
    answers = generate(plus, [prompt, written], pattern, max_new_tokens=25, clips=[clips, []])
    assert_most_likely(plus, pattern, prompt, answers[0].ids, clips)
    assert_most_likely(plus, pattern, written, answers[1].ids)
    assert [len(answer.ids) for answer in answers] == [25, 25]
    other = generate(plus, [prompt], pattern, max_new_tokens=25, clips=[clips[::-1]])
    assert other[0].ids != answers[0].ids


def test_recordings_that_do_not_fill_their_places_are_refused(plus, question, runtime):
    prompt, clips, written = question
    vanilla = DecodePattern.of("vanilla")
    with pytest.raises(UserError, match="the prompt has 18 places for states of audio, and its recordings give 9"):
        generate(Runtime(plus), [prompt], vanilla, max_new_tokens=4, clips=[clips[:1]])
    with pytest.raises(UserError, match="18 places for states of audio, and its recordings give 0"):
        generate(Runtime(plus), [prompt], vanilla, max_new_tokens=4)
    with pytest.raises(UserError, match="reads audio as codes and has no audio encoder"):
        generate(runtime, [written], vanilla, max_new_tokens=4, clips=[clips])


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A model folder with an encoder, and half a second of sound beside it, `question.wav`."""
    tokenizer = TextTokenizer.train(["the big red cow lives in the farm " * 30], 280)
    vocabulary = tokenizer.vocabulary(16, continuous_input=True)
    model = tiny_model(vocabulary=vocabulary.size)
    sizes = SenseVoiceConfig(width=16, heads=2, ffn_width=24, layers=2, text_layers=1, memory=3, n_mels=20, stack=3)
    add_speech_input(model, SenseVoiceEncoder(sizes), vocabulary.context_of_audio)
    save_released(model, tmp_path / "model", decode_pattern=[1, 10, 4, 10], first_code=vocabulary.first_code)
    tokenizer.save(tmp_path / "model" / "tokenizer")
    model.speech_input.encoder.save(tmp_path / "model" / "speech_input", SenseVoiceFrontEnd(n_mels=20, stack=3))
    wave = 0.3 * np.sin(np.arange(8000) / 7).astype(np.float32)
    soundfile.write(tmp_path / "question.wav", wave, 16000)
    return tmp_path


def test_a_folder_with_an_encoder_answers_a_recording(folder):
    loaded = load_speech_model(folder)
    values = {"model": str(folder), "task": "asr", "audio": str(folder / "question.wav"), "max_new_tokens": 8}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GenerateConfig), values))
    with open_session(config, loaded, None) as session:
        written = sum(session, [])
        prompt = session._sequence.ids[: session._sequence.n_prompt]
    assert prompt.count(loaded.vocabulary.context_of_audio) == loaded.front_end.frames(8000) + 4
    clips = [loaded.front_end.features(soundfile.read(folder / "question.wav", dtype="float32")[0])]
    assert_most_likely(load_speech_model(folder).model, DecodePattern.of("vanilla"), prompt, written, clips)
    assert len(written) == 8 or written[-1] == loaded.vocabulary.im_end


def test_earlier_answers_are_codes_beside_questions_that_are_heard(folder):
    class Codec:
        sample_rate = 16000

        def encode(self, waves):
            return [np.arange(len(wave) // 1000) for wave in waves]

    loaded, codec = load_speech_model(folder), Codec()
    said = (("user", "<|audio|>"), ("assistant", "the cow<|audio|>"), ("user", "<|audio|>"))
    asked = Conversation("asked", tuple(Message(*turn) for turn in said), (str(folder / "question.wav"),) * 3)
    audios = encode_recordings(asked, read_recordings(asked, loaded, codec), loaded, codec)
    ids = prompt_ids(asked, audios, loaded, codec)
    assert [isinstance(audio, AudioFrames) for audio in audios] == [True, False, True]
    assert loaded.vocabulary.codes_of(ids).tolist() == list(range(8))
    assert ids.count(loaded.vocabulary.context_of_audio) == 2 * (loaded.front_end.frames(8000) + 4)
    with pytest.raises(UserError, match="the model has no audio codec"):
        read_recordings(asked, loaded, None)


def test_the_benchmark_lets_a_model_with_an_encoder_hear(folder):
    asked = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["question.wav"]}
    (folder / "asked.jsonl").write_text(json.dumps(asked) + "\n")
    loaded = load_speech_model(folder)
    questions = read_questions(folder / "asked.jsonl", 1, loaded, None)
    assert questions[0].ids.count(loaded.vocabulary.context_of_audio) == loaded.front_end.frames(8000) + 4
    protocol = DecodingProtocol(
        new_tokens=12, modes=["boost"], verify=["none"], sessions=[1], constrain=[False], repetitions=1
    )
    [measured], kernels = benchmark_trained(loaded, None, questions, protocol)
    assert kernels["auto"]["choice"] == "auto" and 0 < measured.written <= 12 and measured.parts["encode"] > 0
