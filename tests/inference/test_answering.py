"""From a model folder and an input to text on the screen and sound on disk."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vita_audio_pl.codecs.protocol import register_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.generate import generate as answer
from vita_audio_pl.generate import main
from vita_audio_pl.inference import Prompter, load_speech_model, task_conversation
from vita_audio_pl.inference.answering import prompt_ids
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.inference.options import GenerateConfig
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.interleave import DecodePattern, IntervalRatio
from vita_audio_pl.models.released import save_released
from vita_audio_pl.text import RenderOptions
from vita_audio_pl.text.conversation import Conversation, Message
from vita_audio_pl.text.rendering import NO_LABEL, Renderer
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.text.turns import conversation_to_turns
from vita_audio_pl.text.vocabulary import AUDIO_PLACEHOLDER

RATE, PER_CODE = 1000, 80


class ToyCodec:
    """A code is how loud 80 samples are, in sixteenths."""

    name, sample_rate, codes_per_second, codebook_size, fingerprint = "toy", RATE, RATE / PER_CODE, 16, "toy"

    def encode(self, waves):
        pieces = [np.abs(w[: len(w) // PER_CODE * PER_CODE]).reshape(-1, PER_CODE).max(1) for w in waves]
        return [np.minimum(piece * 16, 15).astype(np.int32) for piece in pieces]

    def decode(self, codes):
        return np.repeat(np.asarray(codes, np.float32) / 16, PER_CODE)

    def silence(self, n):
        return np.full(n, 9, np.int32)

    def decode_stream(self):
        codec = self

        class Stream:
            def push(self, codes):
                return codec.decode(codes)

            def finish(self):
                return np.zeros(0, np.float32)

        return Stream()


def load_toy(folder):
    return ToyCodec()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """A stage's folder as training leaves it."""
    register_codec("toy", load_toy)
    stage = tmp_path_factory.mktemp("runs") / "sft"
    model = stage / "model"
    (model / "codec").mkdir(parents=True)
    tokenizer = TextTokenizer.train(["the big red cow lives in the farm " * 30], 280)
    vocabulary = tokenizer.vocabulary(16)
    save_released(
        tiny_model(vocabulary=vocabulary.size, tied=True),
        model,
        decode_pattern=[1, 10, 4, 10],
        first_code=vocabulary.first_code,
    )
    tokenizer.save(model / "tokenizer")
    (model / "codec" / "codec.json").write_text('{"name": "toy"}')
    (model / "manifest.json").write_text(json.dumps({"stage": "sft", "vocabulary": vocabulary.fingerprint}))
    return stage


@pytest.fixture(scope="module")
def from_folder(folder):
    return load_speech_model(folder)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.5 * np.sin(np.arange(1600) / 9).astype(np.float32), 2000)
    return path


def test_a_stage_folder_loads_with_everything_that_belongs_to_it(folder):
    loaded = load_speech_model(folder)
    assert loaded.pattern == DecodePattern.of("boost") and loaded.model.n_heads == 3
    assert loaded.vocabulary.n_codes == 16 and loaded.vocabulary.size == loaded.runtime.vocab_size
    assert loaded.codec_dir == folder / "model" / "codec" and loaded.manifest["stage"] == "sft"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_folder_without_a_manifest_is_read_by_its_numbers(folder, tmp_path):
    copy = shutil.copytree(folder / "model", tmp_path / "imported")
    (copy / "manifest.json").unlink()
    assert load_speech_model(copy).vocabulary == load_speech_model(folder).vocabulary


def test_a_folder_whose_parts_do_not_belong_together_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder / "model", tmp_path / "mixed")
    TextTokenizer.train(["something else entirely"], 262).save(copy / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer belongs to another model"):
        load_speech_model(copy)
    with pytest.raises(UserError, match="there is no model folder"):
        load_speech_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it has no config.json"):
        load_speech_model(tmp_path)


def test_prompts_follow_the_chat_template(folder):
    loaded = load_speech_model(folder)
    prompter = Prompter(loaded.vocabulary, loaded.tokenizer)

    def shown(task, codes=(), **inputs):
        return loaded.tokenizer.written_out(prompter.ids(task_conversation(task, **inputs), codes), loaded.vocabulary)

    sound = "<|begin_of_audio|><|audio_3|><|audio_1|><|end_of_audio|>"
    ask, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    codes = [np.array([3, 1])]
    assert shown("sts", codes, audio="q.wav") == ask + sound + end
    assert shown("asr", codes, audio="q.wav") == ask + "Convert the speech to text.\n" + sound + end
    assert shown("tts", text="the cow") == ask + "Convert the text to speech.\nthe cow" + end
    assert shown("text", text="the cow") == ask + "the cow" + end
    system = "<|im_start|>system\nYour Voice: " + sound + "\n<|im_end|>\n"
    assert shown("tts", codes, text="a", voice="v.wav") == system + ask + "Convert the text to speech.\na" + end


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_prompt_of_several_turns_is_written_as_training_writes_it(from_folder, data):
    """Whatever was said before, spoken or written, interleaved by the run's own ratio with its own lead-in."""
    ratio, lead_in = (
        data.draw(st.sampled_from([(1, 10, 4, 10), (1, 4, 3, 8, 4, 10), (2, 5)])),
        data.draw(st.integers(0, 3)),
    )
    loaded = replace(from_folder, ratio=IntervalRatio(ratio), lead_in_codes=lead_in)
    words = st.text("the big red cow", min_size=1, max_size=30).filter(str.strip)
    messages, codes = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        speech = "Convert the text to speech.\n"
        asked = data.draw(st.sampled_from([AUDIO_PLACEHOLDER, speech + data.draw(words), data.draw(words)]))
        answer = data.draw(st.sampled_from([AUDIO_PLACEHOLDER, data.draw(words) + AUDIO_PLACEHOLDER, data.draw(words)]))
        messages += [("user", asked), ("assistant", answer)]
    for _, content in messages:
        codes += [np.asarray(data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=40)))] * (
            AUDIO_PLACEHOLDER in content
        )
    whole = Conversation("whole", tuple(Message(*message) for message in messages), ("a.wav",) * len(codes))
    asked = Conversation("asked", whole.messages[:-1], ("a.wav",) * sum(m.n_audios for m in whole.messages[:-1]))
    silence = tuple(ToyCodec().silence(lead_in).tolist())
    trained_on = Renderer(loaded.vocabulary, loaded.tokenizer, RenderOptions(IntervalRatio(ratio), lead_in=silence))
    row = trained_on.render(conversation_to_turns(whole, loaded.tokenizer, codes))
    prompt = prompt_ids(asked, codes[: len(asked.audios)], loaded, ToyCodec())
    assert prompt == row.ids[: len(prompt)].tolist()
    assert row.labels[len(prompt) - 1] == NO_LABEL != row.labels[len(prompt)]  # up to where the last answer begins


def test_the_ratio_and_lead_in_of_a_run_are_read_from_its_manifest(folder, tmp_path):
    copy = shutil.copytree(folder / "model", tmp_path / "model")
    manifest = json.loads((copy / "manifest.json").read_text())
    assert load_speech_model(copy).ratio == IntervalRatio.of(
        "boost"
    )  # the decoding pattern's, where nothing else is said
    manifest |= {"text_audio_interval_ratio": [2, 7], "config": {"rendering": {"lead_in_codes": 3}}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    loaded = load_speech_model(copy)
    assert loaded.rendering(ToyCodec()) == RenderOptions(IntervalRatio((2, 7)), lead_in=(9, 9, 9))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"task": "sing"}, "task='sing' is unknown"),
        ({"task": "asr"}, "task=asr needs audio="),
        ({"task": "tts", "audio": "a.wav", "text": "a"}, "task=tts takes text=..., not audio="),
        ({"task": "sts", "text": "hello"}, "task=sts needs audio="),
    ],
)
def test_inputs_that_a_task_does_not_take_are_refused(inputs, says):
    with pytest.raises(UserError, match=says):
        task_conversation(**inputs)


def settings_of(folder, tmp_path, **changes):
    values = {"model": str(folder), "max_new_tokens": 60, "output": str(tmp_path / "answer.wav")} | changes
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GenerateConfig), values))
    config.check()
    return config


@pytest.mark.parametrize("verify", ["none", "greedy", "sample"])
def test_streamed_and_whole_answers_are_the_same(folder, tmp_path, recording, capsys, verify):
    common = {"task": "sts", "audio": str(recording), "verify": verify, "mode": [1, 10]}
    common["sampling"] = {"temperature": 2.0 if verify == "sample" else 0.0, "seed": 5}
    answer(settings_of(folder, tmp_path, **common))
    whole, _ = soundfile.read(tmp_path / "answer.wav") if (tmp_path / "answer.wav").exists() else (None, None)
    said = capsys.readouterr()
    answer(settings_of(folder, tmp_path, stream=True, output=str(tmp_path / "streamed.wav"), **common))
    streamed = soundfile.read(tmp_path / "streamed.wav")[0] if (tmp_path / "streamed.wav").exists() else None
    again = capsys.readouterr()
    assert again.out.strip() == said.out.strip()
    assert (whole is None and streamed is None) or np.array_equal(whole, streamed)
    assert "backbone and" in said.err and "cut at max_new_tokens=60" in said.err
    assert ("s of speech in" if whole is not None else "the answer has no speech, so") in said.err


def test_a_mode_asked_for_by_name_needs_heads_and_one_that_was_not_is_vanilla_without(folder, tiny_model):
    with_heads = load_speech_model(folder)
    bare = replace(with_heads, model=tiny_model(0))
    assert with_heads.decode_pattern(None, spoken=True) == DecodePattern.of("boost")
    assert with_heads.decode_pattern("turbo", spoken=True, verify="greedy") == DecodePattern.of("turbo")
    for loaded, spoken in ((bare, True), (bare, False), (with_heads, False)):
        assert loaded.decode_pattern(None, spoken, "none") == DecodePattern.of("vanilla")
    assert not bare.decode_pattern([5, 0], spoken=True).uses_heads
    for mode, verify, named in (
        ("boost", "none", "mode=boost"),
        ([1, 2], None, r"mode=\[1, 2\]"),
        (None, "groups", "verify=groups"),
    ):
        with pytest.raises(UserError, match=f"{named}: heads draft there, and this model has none"):
            bare.decode_pattern(mode, True, verify)


@pytest.mark.parametrize(("mode", "head"), [("turbo", 0.0), ("turbo", 1e6), ("vanilla", 1e6)])
def test_an_answer_says_where_heads_drafted_nothing(folder, tmp_path, monkeypatch, capsys, mode, head):
    monkeypatch.setattr(Runtime, "costs", PassCosts(1.0, 0.0, head, 0.0))
    answer(settings_of(folder, tmp_path, task="text", text="the cow", mode=mode, verify="greedy", max_new_tokens=8))
    assert ("heads drafted nothing" in capsys.readouterr().err) == (mode == "turbo" and head > 0)


def test_the_command_says_what_is_wrong_and_leaves_with_status_2(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, says in [
        (["task=asr", "audio=missing.wav"], "audio is 'missing.wav', and there is no such file"),
        (["task=text", "text=a", "mode=[1,0,3]"], "has 3 numbers"),
        (["task=text", "text=a", "verify=maybe"], "verify is 'maybe': choose one of"),
        (["task=text", "text=a", "beam=4"], "no setting 'beam'"),
        (["task=text", "text=a", "first_chunk=draft"], "first_chunk=draft means something only with verify"),
        (["task=text", "text=a", "slack=0.3"], "slack means something only with verify=groups"),
        (["task=text", "text=a", "device=cuda"], "there is no GPU here"),
    ]:
        monkeypatch.setattr(sys, "argv", ["generate", f"model={folder}", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
