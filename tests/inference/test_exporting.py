"""A model folder goes from one layout to the other and back, and loses nothing."""

import json
import re
import shlex
import subprocess

import pytest
import torch
from bit_flips import flipped, some_bits
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.warm_python import warm_python
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.exporting import export_model
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.inference.prompts import Prompter
from vita_audio_pl.models.released import save_released
from vita_audio_pl.storage.checksums import read_checksums
from vita_audio_pl.text.conversation import Conversation
from vita_audio_pl.text.messages import Message
from vita_audio_pl.text.tokenizer import TextTokenizer


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A model folder as a stage leaves it; its codec is an empty stand-in."""
    tokenizer = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)
    vocabulary = tokenizer.vocabulary(32)
    model = tiny_model(vocabulary=vocabulary.size)
    source = tmp_path / "sft" / "model"
    save_released(model, source, decode_pattern=[1, 10, 4, 10], first_code=vocabulary.first_code)
    tokenizer.save(source / "tokenizer")
    (source / "codec").mkdir()
    (source / "codec/codec.json").write_text("{}")
    return source


def test_all_layouts_hold_the_same_model_and_the_way_back_is_exact(folder, tmp_path):
    original = load_speech_model(folder)
    export_model(folder.parent, tmp_path / "published")
    export_model(folder, tmp_path / "plain", "backbone")
    export_model(tmp_path / "plain", tmp_path / "back")
    export_model(folder, tmp_path / "served", "vllm")
    export_model(tmp_path / "served", tmp_path / "back_again")
    for copy in ("published", "back", "served", "back_again"):
        loaded = load_speech_model(tmp_path / copy)
        mine, theirs = original.model.state_dict(), loaded.model.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert loaded.vocabulary == original.vocabulary and loaded.pattern == original.pattern
        assert (loaded.codec_dir / "codec.json").is_file()


@pytest.mark.parametrize("layout", ["released", "backbone"])
def test_no_flipped_bit_of_an_exported_model_is_loaded(folder, tmp_path, layout):
    export_model(folder, tmp_path / "out", layout, max_shard_bytes=40_000)
    load = {"released": load_speech_model, "backbone": lambda path: export_model(path, tmp_path / "back")}[layout]
    listed = read_checksums(tmp_path / "out")
    assert sum(name.startswith("model-") for name in listed) > 1
    for name in listed:
        path = tmp_path / "out" / name
        for bit in some_bits(path, 4):
            with flipped(path, bit), pytest.raises(UserError, match=f"{path} is damaged: bytes 0"):
                load(tmp_path / "out")
    load(tmp_path / "out")


def test_transformers_reads_the_tokens_and_writes_the_answer_of_an_exported_backbone(folder, tmp_path):
    export_model(folder, tmp_path / "plain", "backbone", dtype=torch.float32)
    original = load_speech_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    words = original.vocabulary
    text = "<|begin_of_audio|><|audio_0|><|audio_31|><|end_of_audio|>"
    audio = [words.begin_of_audio, words.first_code, words.first_code + 31, words.end_of_audio]
    assert tokenizer("the cow" + text)["input_ids"] == [*original.tokenizer.encode("the cow"), *audio]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert plain.config.num_hidden_layers == original.model.config.backbone.num_hidden_layers
    assert plain.generate(torch.tensor([audio]), max_new_tokens=4, do_sample=False).shape[1] > 4


@pytest.mark.parametrize("layout", ["released", "backbone", "vllm"])
@pytest.mark.parametrize("own_end", [None, 5, [5, 7]])
def test_transformers_ends_an_answer_where_our_decoder_does(layout, own_end, folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text()) | {"eos_token_id": own_end}
    (folder / "config.json").write_text(json.dumps(settings))
    export_model(folder, tmp_path / "out", layout, dtype=torch.float32)
    model, end = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load_speech_model(folder).vocabulary.im_end
    for token in (end, *([own_end] if isinstance(own_end, int) else own_end or [])):
        answer = model.generate(
            torch.tensor([[1, 2]]), max_new_tokens=4, do_sample=False, sequence_bias={(token,): 1e4}
        )
        assert answer.tolist() == [[1, 2, token]]


def test_the_chat_template_of_an_exported_folder_writes_what_training_wrote(folder, tmp_path):
    export_model(folder, tmp_path / "out")
    loaded, theirs = load_speech_model(folder), AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [("system", "the cat"), ("user", "\n the big\ncow?"), ("assistant", "red"), ("user", "blue <|audio_3|> ")]
    for turns in (said, said[1:], said[3:]):
        messages = [{"role": role, "content": content} for role, content in turns]
        mine = Conversation("c", tuple(Message(role, content) for role, content in turns))
        text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        written = Prompter(loaded.vocabulary, loaded.tokenizer).ids(mine)
        assert text == loaded.tokenizer.written_out(written, loaded.vocabulary)
    plain = [{"role": "user", "content": "the big\ncow"}]
    ids = theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert ids == Prompter(loaded.vocabulary, loaded.tokenizer).ids(
        Conversation("c", (Message("user", "the big\ncow"),))
    )


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_commands_on_a_model_card_are_taken(quantize, folder, tmp_path):
    if quantize is not None:
        pytest.importorskip("torchao")
    export = [warm_python(), "-m", "vita_audio_pl.export", f"source={folder}", f"target={tmp_path / 'out'}"]
    subprocess.run([*export, f"quantize={quantize or 'null'}"], capture_output=True, check=True)
    commands = re.findall(r"`python (-m vita_audio_pl\.[^`]*)`", (tmp_path / "out/README.md").read_text())
    assert commands
    for command in commands:
        subprocess.run([warm_python(), *shlex.split(command), "--cfg", "job"], check=True, capture_output=True)


def test_what_is_there_is_not_overwritten_and_other_mistakes_are_one_sentence(folder, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export_model(folder, tmp_path / "taken")
    with pytest.raises(UserError, match="must be one of released, backbone, vllm"):
        export_model(folder, tmp_path / "new", "gguf")
    with pytest.raises(UserError, match="there is no model folder"):
        export_model(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_exports_and_answers_mistakes_with_one_sentence(folder, tmp_path):
    command = [warm_python(), "-m", "vita_audio_pl.export", f"source={folder}", f"target={tmp_path / 'out'}"]
    done = subprocess.run([*command, "format=vllm"], capture_output=True, text=True, check=True)
    assert "in the vllm layout" in done.stdout and (tmp_path / "out/beside_backbone.safetensors").is_file()
    for text in (done.stdout, (tmp_path / "out/README.md").read_text()):
        assert "vllm serve" in text and '"num_speculative_tokens": 3' in text
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1


def test_parallel_heads_are_exported_beside_the_backbone_and_nowhere_else(folder, tiny_model, tmp_path):
    words = load_speech_model(folder).vocabulary
    model = tiny_model(vocabulary=words.size, form="parallel")
    (folder / "model.safetensors").unlink()
    save_released(model, folder, decode_pattern=[1, 10, 4, 10], first_code=words.first_code)
    for layout in ("released", "vllm"):
        with pytest.raises(UserError, match="has parallel heads, which neither the published layout nor vLLM knows"):
            export_model(folder, tmp_path / layout, layout)
    export_model(folder, tmp_path / "plain", "backbone")
    loaded = load_speech_model(tmp_path / "plain")
    assert loaded.model.config.heads == "parallel" and loaded.runtime.n_heads == model.n_heads
