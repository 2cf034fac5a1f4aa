"""vLLM serves an exported folder: our tokens, our heads' drafts. Run where vLLM is installed (docs/serve-with-vllm.md)."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from openai import APIConnectionError, OpenAI
from safetensors.torch import load_file
from transformers import Qwen2Config

from tests.inference.conftest import drafting_always
from tests.margins import NEAR_TIE, assert_same_answers, scores_of
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.inference.exporting import export_model
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig
from vita_audio_pl.text.tokenizer import TextTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")]

N_HEADS, N_TOKENS, VANILLA = 3, 48, DecodePattern.of("vanilla")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Exported folders of a model whose head 0 often, but not always, drafts what the backbone writes."""
    where = tmp_path_factory.mktemp("vllm")
    tokenizer = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)
    vocabulary = tokenizer.vocabulary(32)
    torch.manual_seed(0)
    backbone = Qwen2Config(
        vocab_size=vocabulary.size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.15, tie_word_embeddings=False,
        eos_token_id=tokenizer.im_end, pad_token_id=tokenizer.pad,
    )  # fmt: skip
    model = SpeechLM(SpeechLMConfig(backbone, N_HEADS)).requires_grad_(False)
    embeddings = torch.randn(vocabulary.size, 64)
    model.model.embed_tokens.weight.copy_(embeddings)
    model.lm_head.weight.zero_()
    model.lm_head.weight[torch.randperm(vocabulary.size)] = embeddings
    for head in model.heads:
        head.proj.weight[:, :64] += torch.eye(64)
    save_released(model, where / "model", decode_pattern=[1, N_HEADS], first_code=vocabulary.first_code)
    tokenizer.save(where / "model/tokenizer")
    for layout in ("backbone", "vllm"):
        export_model(where / "model", where / layout, layout)
    return where


@pytest.fixture(scope="module")
def model(folder):
    return load_speech_model(folder / "vllm").model


@pytest.fixture(scope="module")
def asked(folder, model):
    """50 prompts with Vanilla's answers; those are left out in which a head's draft hangs on the processor's rounding.

    None is of one token: where such a prompt joins others, vLLM 0.32.0 drafts once more than alone.
    """
    random = torch.Generator().manual_seed(1)
    size = load_speech_model(folder / "vllm").vocabulary.used
    drawn = [torch.randint(0, size, (2 + n % 30,), generator=random).tolist() for n in range(60)]
    answers = generate(Runtime(model), drawn, VANILLA, max_new_tokens=N_TOKENS, batch_size=8)
    pairs = [(prompt, answer.ids) for prompt, answer in zip(drawn, answers, strict=True)]
    clear = [pair for pair in pairs if least_margin(model, *pair) > 10 * NEAR_TIE]
    assert len(clear) >= 50
    return clear[:50]


def least_margin(model, prompt, answer):
    """Of head 0's best logit over its second, at every place of an answer."""
    alternating = DecodePattern.of([1, 1])
    scores = [scores_of(model, alternating, [*prompt, *answer[:n]], answer[n:])[1::2] for n in (0, 1)]
    best = torch.cat(scores).topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


@pytest.fixture(scope="module")
def prompts(asked):
    return [prompt for prompt, _ in asked]


@pytest.fixture(scope="module")
def vanilla(asked):
    return [answer for _, answer in asked]


@pytest.fixture(scope="module")
def by_vllm(folder, prompts):
    """Answers to all prompts, by kind of draft."""
    draft = {"model": str(folder / "vllm/heads")}
    kinds = {
        "mtp": {**draft, "method": "mtp", "num_speculative_tokens": 1},
        "eagle": {**draft, "method": "eagle", "num_speculative_tokens": 1},
        "every head": {**draft, "method": "mtp", "num_speculative_tokens": N_HEADS},
    }
    task = {"prompts": prompts, "n_tokens": N_TOKENS}
    jobs = {kind: {**task, "folder": str(folder / "vllm"), "speculative": said} for kind, said in kinds.items()}
    jobs["every head"]["weights"] = str(folder / "weights.safetensors")
    jobs["backbone"] = {**task, "folder": str(folder / "backbone")}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("vllm_answers.py")
    command = [sys.executable, str(script), str(folder / "jobs.json"), str(folder / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("kind", ["backbone", "mtp", "eagle", "every head"])
def test_vllm_writes_our_tokens(by_vllm, model, prompts, vanilla, kind):
    assert all(len(answer) == N_TOKENS for answer in by_vllm[kind]["ids"])
    assert_same_answers(model, VANILLA, prompts, by_vllm[kind]["ids"], vanilla)


@pytest.mark.parametrize("kind", ["mtp", "eagle"])
def test_head_0_drafts_and_is_accepted_as_in_our_decoder(by_vllm, model, prompts, kind):
    runtime = drafting_always(Runtime(model))
    pattern, limits = DecodePattern.of([1, 1]), {"max_new_tokens": N_TOKENS, "batch_size": 8}
    ours = generate(runtime, prompts, pattern, verify="greedy", **limits)
    drafted, accepted = (sum(getattr(answer, name)[0] for answer in ours) for name in ("drafted", "accepted"))
    assert 0.1 < accepted / drafted < 0.9
    assert (by_vllm[kind]["drafted"], by_vllm[kind]["accepted"]) == (drafted, accepted)


def test_vllm_holds_the_weights_of_every_head(folder, by_vllm, model):
    held, ours = load_file(folder / "weights.safetensors"), dict(model.named_parameters())
    merged = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    seen = set()
    for name, found in held.items():
        own = name.removeprefix("model.") if name.startswith("model.heads.") else name
        kind = own.split(".")[-2]
        pieces = [own.replace(kind, piece) for piece in merged.get(kind, (kind,))]
        assert torch.equal(torch.cat([ours[piece] for piece in pieces]), found), name
        seen |= set(pieces)
    assert seen == {name for name in ours if name.startswith("heads.")} | {"model.norm.weight"}


def test_the_server_answers_a_client(folder, model, prompts, vanilla):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    draft = {"method": "mtp", "model": str(folder / "vllm/heads"), "num_speculative_tokens": 1}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "vllm")]
    command += ["--speculative-config", json.dumps(draft), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4"]
    command += ["--served-model-name", "ours"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | settings | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                assert [model.id for model in client.models.list()] == ["ours"]
                break
            except APIConnectionError:
                time.sleep(1)
        fields = {"return_token_ids": True, "ignore_eos": True}
        answers = [
            client.completions.create(
                model="ours", prompt=prompt, max_tokens=N_TOKENS, temperature=0, extra_body=fields
            ).choices[0]
            for prompt in prompts[:3]
        ]
        assert_same_answers(model, VANILLA, prompts[:3], [answer.token_ids for answer in answers], vanilla[:3])
        text = client.completions.create(model="ours", prompt="the cow", max_tokens=4, temperature=0).choices[0].text
        assert isinstance(text, str) and text
    finally:
        server.terminate()
        server.wait()
