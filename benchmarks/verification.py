"""Word errors and passes of every way of verifying, on texts of the small spoken world: each text in all ways in turn.

    python benchmarks/verification.py MODEL WORLD [--utterances 100] [--sampled] [--measured | --every-head]

MODEL: a model folder with heads, such as runs/demo-full-seed1/sft/model; WORLD: data/spoken_world. One thread. A pass of a head is
taken to cost 0.11 of the backbone's (as published), so that drafts pay; --measured takes this machine's costs, by which
the demo's heads may not draft at all; with --every-head drafts cost nothing, so that every head drafts in every round and tokens a
pass say what the heads are worth. --sampled draws at temperature 1, three seeds.
"""

import argparse
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
from arguments import count, mistakes_told

from vita_audio_pl.codecs import load_codec
from vita_audio_pl.config.decoding import Sampling
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.judges.choice import judge_maker
from vita_audio_pl.inference import SpanConstraint, generate, load_speech_model
from vita_audio_pl.inference.answering import prompt_ids
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.drafting import PassCosts
from vita_audio_pl.interleave import DecodePattern

HEAD = 0.11
LIMIT = 120
LOOSE = [("groups", 0.1), ("groups", 0.2), ("groups", 0.3), ("groups", 0.4)]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", type=Path)
    asked.add_argument("world", type=Path)
    asked.add_argument("--utterances", type=count, default=100)
    asked.add_argument("--sampled", action="store_true")
    costs = asked.add_mutually_exclusive_group()
    costs.add_argument("--measured", action="store_true")
    costs.add_argument("--every-head", action="store_true")
    options = asked.parse_args()
    torch.set_num_threads(1)
    tasks = {"tts": {"test": "samples/tts.test.jsonl"}}
    items = BenchConfig(name="spoken_world", root=str(options.world), tasks=tasks).items("tts", "test")
    items = items[: options.utterances]
    codec = load_codec(options.world / "codec")
    loaded = load_speech_model(options.model, codec_folder=options.world / "codec")
    runtime, words = loaded.runtime, loaded.vocabulary
    print("measured:", runtime.costs)
    if options.every_head:
        runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)
    elif not options.measured:
        runtime.costs = PassCosts(backbone=1.0, backbone_row=0.02, head=HEAD, head_row=0.01)
    prompts = [prompt_ids(item.prompt, [], loaded, codec) for item in items]
    decoder = Decoder(runtime, slots=1, capacity=max(map(len, prompts)) + LIMIT)
    samplings = [Sampling(temperature=1.0, seed=n) for n in (1, 2, 3)] if options.sampled else [Sampling()]
    exact = "sample" if options.sampled else "greedy"
    ways = [("vanilla", "none", None), ("boost", "none", None), ("turbo", "none", None), ("boost", exact, None)]
    ways += [("boost", verify, slack) for verify, slack in LOOSE]
    every = [(*way, sampling) for way in ways for sampling in samplings]
    answers: list[list] = [[] for _ in every]
    for number, prompt in enumerate(prompts):
        for place in [(number + n) % len(every) for n in range(len(every))]:  # each way stands in each place
            mode, verify, slack, sampling = every[place]
            begun = time.process_time()
            [answer] = generate(
                runtime, [prompt], DecodePattern.of(mode), max_new_tokens=LIMIT, stop_ids=[words.im_end], sampling=sampling,
                constraint=SpanConstraint.of(words), decoder=decoder, **loaded.verification(verify, slack),
            )  # fmt: skip
            answers[place].append((answer, time.process_time() - begun))
    judge = judge_maker(grammar=str(options.world / "grammar.jsgf"))("pocketsphinx")
    transcripts: dict[tuple[int, ...], tuple[str, float]] = {(): ("", 0.0)}
    for way, given in zip(every, answers, strict=True):
        wrong, spoken, seconds = 0, 0.0, sum(used for _, used in given)
        for item, (answer, _) in zip(items, given, strict=True):
            codes = tuple(answer.codes(words).tolist())
            if codes not in transcripts:
                wave = codec.decode(np.asarray(codes))
                text = judge.transcribe([wave], codec.sample_rate)[0]
                transcripts[codes] = text, len(wave) / codec.sample_rate
            text, length = transcripts[codes]
            found = jiwer.process_words(item.references[0], text or "-")
            wrong, spoken = wrong + found.substitutions + found.deletions + found.insertions, spoken + length
        n_words = sum(len(item.references[0].split()) for item in items)
        backbone, heads = (sum(getattr(a, f"{of}_passes") for a, _ in given) for of in ("backbone", "head"))
        tokens = sum(len(answer.ids) for answer, _ in given)
        drafted, kept = (sum(sum(getattr(answer, name)) for answer, _ in given) for name in ("drafted", "accepted"))
        print(
            f"{way[0]:8} {way[1]:8} {'' if way[2] is None else way[2]!s:4} seed {way[3].seed}: WER {wrong / n_words:6.1%}, "
            f"{(backbone + HEAD * heads) / len(items):5.1f} passes, {tokens / backbone:5.2f} tokens a pass of the backbone, "
            f"{1000 * seconds / spoken:5.1f} CPU ms a second of audio, {kept / max(1, drafted):.0%} kept",
            flush=True,
        )


if __name__ == "__main__":
    with mistakes_told():
        main()
