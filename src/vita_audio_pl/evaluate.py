"""`python -m vita_audio_pl.evaluate`: evaluates models on held-out benches."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import DRAFTED_NOTHING, label_of
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.interleave import DecodePattern


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate or compare, and print the results."""
    # torch is imported only now: the entry point sets environment variables that it reads, and --help should be quick
    from vita_audio_pl.config.screen import screen
    from vita_audio_pl.evaluation.runs.evaluate import run_session
    from vita_audio_pl.evaluation.runs.jobs import bench_folder
    from vita_audio_pl.evaluation.scores.compare import compare_results
    from vita_audio_pl.model_names import named_model
    from vita_audio_pl.reporting.run.result_page import write_result_pages
    from vita_audio_pl.reporting.tables import comparison_sentences, results_table, terminal

    console = screen()
    if config.compare:
        for sentence in comparison_sentences(compare_results(*map(Path, config.compare))):
            console.print(sentence)
        return
    if config.model:
        config.model = str(named_model(config.model, config.paths.runs))
    results = run_session(config)
    if not results:  # with step=generate, or on other ranks, there are no results here
        return
    models = {Path(result["model"]) for result in results}
    folders = {bench_folder(config.output, model, config.bench.name, config.paths.runs) for model in models}
    tell = partial(console.print, soft_wrap=True)
    pages = [page for folder in sorted(folders) for page in write_result_pages(folder, tell)]
    if config.suite is not None:
        for sentence in _idle_heads(results):
            print(sentence)
        print(f"{len(results)} evaluations are in {config.paths.runs}/{config.run_name}/eval/{config.bench.name}")
        print(f"{len(pages)} pages there (result.html) show every utterance, the worst first")
        print(f"python -m vita_audio_pl.report run_name={config.run_name} shows them")
        return
    for profile in dict.fromkeys(result["profile"] for result in results):
        shown = [result for result in results if result["profile"] == profile]
        console.print(terminal(results_table(shown), f"{config.bench.title}, profile {profile}"))
        for sentence in shown[0]["profile_differences"]:
            console.print(f"  {profile}: {sentence}")
    for sentence in _idle_heads(results):
        console.print(sentence, soft_wrap=True)
    keys = {result["key"][:10] for result in results}
    console.print("every utterance, the worst first:")
    for page in pages:
        if page.parent.name.rpartition("-")[2] in keys:
            console.print(f"  {page}", soft_wrap=True)


def _idle_heads(results: list[dict[str, Any]]) -> list[str]:
    """A sentence for each result under verification whose mode has heads that never ran."""
    idle = [
        result
        for result in results
        if result["verify"] != "none" and DecodePattern(result["pattern"]).uses_heads and not result["head_passes"]
    ]
    named = dict.fromkeys(f"{result['stage']} {result['task']} {label_of(result)}" for result in idle)
    return [f"{name}: {DRAFTED_NOTHING}" for name in named]


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool's processes use the cores
    run_entry_point(evaluate, "evaluate", EvaluateConfig, own=("model",))


if __name__ == "__main__":
    main()
