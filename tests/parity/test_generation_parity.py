"""Agreement with the published system's greedy decoding, token for token, in every mode, alone and in a batch."""

import json
from pathlib import Path

import pytest

from tests.margins import assert_same_answers
from vita_audio_pl.inference import Runtime, generate
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.load import load_model

FOLDER = Path(__file__).parent / "generation" / "k3"
RECORDED = json.loads((FOLDER / "generations.json").read_text())
MODES = sorted({key.split("_", 1)[1] for key in RECORDED})


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def runtime(model):
    return Runtime(model)


@pytest.mark.parametrize("key", sorted(RECORDED))
def test_tokens_and_passes_equal_the_published_decoder(model, runtime, key):
    case = RECORDED[key]
    pattern = DecodePattern(tuple(case["pattern"]))
    [answer] = generate(runtime, [case["prompt"]], pattern, max_new_tokens=200)
    assert_same_answers(model, pattern, [case["prompt"]], [answer.ids], [case["ids"]])
    assert (answer.backbone_passes, answer.head_passes) == (case["backbone_passes"], case["head_passes"])


@pytest.mark.parametrize("verify", ["none", "greedy"])
@pytest.mark.parametrize("mode", MODES)
def test_prompts_of_different_lengths_decode_together_as_they_do_alone(model, runtime, mode, verify):
    cases = [RECORDED[f"{prompt}_{mode}"] for prompt in ("p5", "p32", "p5")]
    recorded = mode if verify == "none" else "vanilla"
    prompts, pattern = [case["prompt"] for case in cases], DecodePattern(tuple(cases[0]["pattern"]))
    answers = generate(
        runtime,
        prompts,
        pattern,
        max_new_tokens=200,
        verify=verify,
        batch_size=2,  # the third joins when one of the others ends
    )
    expected = [RECORDED[f"{prompt}_{recorded}"]["ids"] for prompt in ("p5", "p32", "p5")]
    writes = pattern if verify == "none" else DecodePattern.of("vanilla")
    assert_same_answers(model, writes, prompts, [a.ids for a in answers], expected)
