"""On weights that were trained, verified answers are Vanilla's: the drafts hold often, and never change a token."""

import json

import pytest

from tests.end_to_end.conftest import RUN
from tests.margins import assert_same_answers
from vita_audio_pl.inference import Prompter, SpanConstraint, generate, load_speech_model, task_conversation
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.interleave import DecodePattern


def answers(loaded, prompts, mode, verify, constraint=None):
    return generate(
        loaded.runtime,
        prompts,
        DecodePattern.of(mode),
        max_new_tokens=160,
        stop_ids=[loaded.vocabulary.im_end],
        constraint=constraint,
        verify=verify,
        batch_size=6,
    )


@pytest.mark.parametrize("constrained", [False, True])
def test_verified_answers_of_a_trained_model_are_vanillas(smoke_demo, constrained):
    folder = smoke_demo.folder / "runs" / RUN / "mtp10" / "model"
    loaded, reference = load_speech_model(folder), load_speech_model(folder).model
    lines = (smoke_demo.folder / "data/spoken_world_smoke/samples/tts.test.jsonl").read_text().splitlines()[:10]
    texts = [json.loads(line)["messages"][0]["content"].split("\n", 1)[1] for line in lines]
    # as on a machine where drafts pay; what this one measures hangs on its load
    loaded.runtime.costs = PassCosts(backbone=1.0, backbone_row=0.01, head=0.05, head_row=0.01)
    prompter = Prompter(loaded.vocabulary, loaded.tokenizer)
    prompts = [prompter.ids(task_conversation("tts", text=text)) for text in texts]
    constraint = SpanConstraint.of(loaded.vocabulary) if constrained else None
    vanilla = answers(loaded, prompts, "vanilla", "none", constraint)
    assert all(answer.stopped for answer in vanilla) and any(len(answer.ids) > 40 for answer in vanilla)
    for mode in ("boost", "balance", "turbo"):
        verified = answers(loaded, prompts, mode, "greedy", constraint)
        found, expected = ([answer.ids for answer in given] for given in (verified, vanilla))
        assert_same_answers(reference, DecodePattern.of("vanilla"), prompts, found, expected, constraint=constraint)
        assert sum(answer.backbone_passes for answer in verified) < sum(answer.backbone_passes for answer in vanilla)
