"""An exported folder in transformers, with nothing of ours in the way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import vita_audio_pl
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.session import Session
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=request.param, max_position_embeddings=128, eos_token_id=None,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = SpeechLM(SpeechLMConfig(backbone, n_heads=3))
    where = tmp_path_factory.mktemp("exported")
    save_released(model, where / "released", decode_pattern=[1, 3], first_code=64)
    save_backbone(model, where / "backbone", decode_pattern=[1, 3], first_code=64)
    return where


PROMPT = torch.tensor([[5, 17, 3, 60, 2]])


def decoded(model, runs):
    decoder = Decoder(Runtime(model), slots=1, capacity=64)
    with Session(decoder, PROMPT[0].tolist(), DecodePattern.of(runs), max_new_tokens=12) as session:
        return [token for tokens in session for token in tokens]


def test_an_exported_folder_generates_what_its_backbone_does(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "released").eval()
    plain = Qwen2ForCausalLM.from_pretrained(folder / "backbone").eval()
    assert torch.equal(model(PROMPT).logits, plain(PROMPT).logits)
    tokens = model.generate(PROMPT, max_new_tokens=20, do_sample=False)
    assert torch.equal(tokens, plain.generate(PROMPT, max_new_tokens=20, do_sample=False))


def test_the_heads_are_in_the_same_object(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "released").eval()
    ours, alone = model.speech_lm(), load_model(folder / "released").eval()
    mine, wanted = dict(ours.named_parameters()), dict(alone.named_parameters())
    assert mine.keys() == wanted.keys() and all(torch.equal(mine[name], value) for name, value in wanted.items())
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in ours.parameters()} == shared
    for pattern in ("1,0", "1,3"):
        runs = [int(n) for n in pattern.split(",")]
        answers = [decoded(one, runs) for one in (ours, alone)]
        assert answers[0] == answers[1] and len(answers[0]) == 12


def test_saving_it_gives_the_published_layout_again(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder / "released").save_pretrained(tmp_path)
    one, other = (dict(load_model(place).named_parameters()) for place in (tmp_path, folder / "released"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


IN_FORKS = """
import os, sys, numpy, safetensors, scipy.optimize, torch._dynamo, torch.distributed.checkpoint, torch.distributed.fsdp
for first in sys.argv[2:]:
    if (child := os.fork()) == 0:
        for name in (first, "vita_audio_pl" if first == "transformers" else "transformers"):
            __import__(name)
        from transformers import AutoModelForCausalLM
        assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__ == "MTPForCausalLM"
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(first)
"""


@pytest.mark.parametrize("folder", [True], ids=["tied"], indirect=True)
def test_the_order_of_imports_does_not_matter(folder):
    source = Path(vita_audio_pl.__file__).parent
    ours = {
        f"vita_audio_pl.{'.'.join(path.relative_to(source).with_suffix('').parts)}": found[1]
        for path in source.rglob("*.py")
        if (found := re.search(r"^(?:from|import) (transformers\S*)", path.read_text(), re.MULTILINE))
    }
    # of those that begin with the same part of transformers, one stands for all; each in a fork without any
    firsts = ["transformers", *dict(zip(ours.values(), ours.keys(), strict=True)).values()]
    assert len(firsts) >= 5
    done = subprocess.run(
        [sys.executable, "-c", IN_FORKS, str(folder / "released"), *firsts], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_does_not_import_transformers():
    use = "import vita_audio_pl, sys; print('transformers' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", use], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]
