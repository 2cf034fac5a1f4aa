"""vLLM with and without the heads' drafts, on a GPU: tokens a second, acceptance by head, tokens equal to our decoder's.

    python -m vita_audio_pl.export source=RUN/sft target=served format=vllm
    python benchmarks/vllm_drafts.py served                    # every head drafts (K = 10 in the published model)
    python benchmarks/vllm_drafts.py served --heads 1 --eager  # one head, which vLLM's CPU build can do, too

Never run to its end, on a GPU or on a CPU. Each side is a process of its own, and they take turns; what our
decoder would write and accept is computed at the end on the same device. It needs vLLM and this package in one environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SENTENCES = (
    "the teacher has three tickets",
    "the girl sees the big yellow cow",
    "where is the small blue cat",
    "the man has two red books and the woman has one",
)
PER_HEAD = "vllm:spec_decode_num_accepted_tokens_per_pos"
DRAFTS = "vllm:spec_decode_num_drafts"


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Requests to speak a sentence."""
    from vita_audio_pl.inference.loading import read_model_facts
    from vita_audio_pl.inference.prompts import Prompter, task_conversation

    facts = read_model_facts(folder)
    prompter = Prompter(facts.vocabulary, facts.tokenizer)
    asked = [prompter.ids(task_conversation("tts", text=sentence)) for sentence in SENTENCES]
    return [asked[n % len(asked)] for n in range(count)]


def by_vllm(arguments: argparse.Namespace) -> None:
    """One side, in this process: prints a JSON line with seconds, tokens and what was accepted."""
    from vllm import LLM, SamplingParams

    folder = Path(arguments.folder)
    speculative = None
    if arguments.heads:
        speculative = {"method": "mtp", "model": str(folder / "heads"), "num_speculative_tokens": arguments.heads}
    engine = LLM(
        model=str(folder),
        dtype=arguments.dtype,
        max_model_len=arguments.tokens + 256,
        max_num_seqs=arguments.batch,
        enforce_eager=arguments.eager,
        disable_log_stats=False,
        speculative_config=speculative,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=arguments.tokens, detokenize=False)
    asked = [{"prompt_token_ids": ids} for ids in prompts(folder, arguments.prompts)]
    engine.generate(asked[: arguments.batch], greedy, use_tqdm=False)  # kernels are compiled here
    before = {metric.name: metric for metric in engine.get_metrics()}
    begun = time.perf_counter()
    written = engine.generate(asked, greedy, use_tqdm=False)
    seconds = time.perf_counter() - begun
    after = {metric.name: metric for metric in engine.get_metrics()}
    found = {"seconds": seconds, "ids": [list(answer.outputs[0].token_ids) for answer in written]}
    if speculative:
        drafts = after[DRAFTS].value - before[DRAFTS].value
        kept = [new - old for new, old in zip(after[PER_HEAD].values, before[PER_HEAD].values, strict=True)]
        found["acceptance"] = [count / drafts for count in kept]
    Path(arguments.result).write_text(json.dumps(found))


def by_us(arguments: argparse.Namespace) -> tuple[list[list[int]], list[float]]:
    """Tokens of verified decoding in which every head drafts, and each head's accepted drafts per round."""
    import torch

    from vita_audio_pl.inference import generate
    from vita_audio_pl.inference.drafting import PassCosts
    from vita_audio_pl.inference.loading import load_speech_model
    from vita_audio_pl.interleave import DecodePattern

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_speech_model(arguments.folder, device=device, dtype=getattr(torch, arguments.dtype))
    loaded.runtime.costs = PassCosts(backbone=1.0, backbone_row=0.0, head=0.0, head_row=0.0)  # every draft pays
    ends = json.loads((Path(arguments.folder) / "generation_config.json").read_text()).get("eos_token_id", [])
    answers = generate(
        loaded.runtime,
        prompts(Path(arguments.folder), arguments.prompts),
        DecodePattern.of([1, arguments.heads]),
        max_new_tokens=arguments.tokens,
        stop_ids=ends if isinstance(ends, list) else [ends],
        batch_size=arguments.batch,
        verify="greedy",
    )
    rounds = sum(answer.drafted[0] for answer in answers)
    kept = [sum(counts) / rounds for counts in zip(*(answer.accepted for answer in answers), strict=True)]
    return [answer.ids for answer in answers], kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="written by export format=vllm")
    parser.add_argument("--heads", type=int, help="that draft; all unless told")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is faster, and near ties may then part")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1, help="sequences at a time")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most")
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    parser.add_argument(
        "--eager", action="store_true", help="without compiling and CUDA graphs, as the CPU build needs it"
    )
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result:
        by_vllm(arguments)
        return
    held = json.loads((Path(arguments.folder) / "heads/config.json").read_text())["num_nextn_predict_layers"]
    arguments.heads = min(held, arguments.heads or held)
    sides: dict[int, list[dict]] = {0: [], arguments.heads: []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(arguments.turns):
            for heads, results in sides.items():
                result = Path(scratch) / f"{turn}-{heads}.json"
                given = [f"--{name}={getattr(arguments, name)}" for name in ("dtype", "prompts", "batch", "tokens")]
                given += ["--eager"] if arguments.eager else []
                command = [sys.executable, __file__, arguments.folder, *given, f"--heads={heads}", f"--result={result}"]
                subprocess.run(command, check=True, env=os.environ | {"VLLM_NO_USAGE_STATS": "1"}, stdout=sys.stderr)
                results.append(json.loads(result.read_text()))
    ours, kept = by_us(arguments)
    rates = {}
    for heads, results in sides.items():
        rates[heads] = sorted(sum(map(len, found["ids"])) / found["seconds"] for found in results)
        same = sum(one == other for one, other in zip(results[0]["ids"], ours, strict=True))
        print(f"{heads:2d} heads draft: {', '.join(f'{rate:.1f}' for rate in rates[heads])} tokens/s; "
              f"{same} of {len(ours)} answers are our decoder's, token by token")  # fmt: skip
    middle = {heads: values[len(values) // 2] for heads, values in rates.items()}
    print(f"with drafts against without: {middle[arguments.heads] / middle[0]:.2f} x (medians)")
    print("accepted per round, by head, vLLM:", " ".join(f"{x:.3f}" for x in sides[arguments.heads][0]["acceptance"]))
    print("accepted per round, by head, ours:", " ".join(f"{x:.3f}" for x in kept))


if __name__ == "__main__":
    main()
