"""`python -m vita_audio_pl.evaluate`: measures models on held-out benches."""

import json
from pathlib import Path

from rich.console import Console

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.evaluation.compare import compare_results
from vita_audio_pl.evaluation.session import evaluate
from vita_audio_pl.evaluation.settings import EvaluateConfig
from vita_audio_pl.reporting.tables import comparison_sentences, results_table, terminal


def main(config: EvaluateConfig) -> None:
    console = Console()
    if config.compare:
        first, second = (Path(folder) for folder in config.compare)
        comparison = compare_results(first, second)
        for sentence in comparison_sentences(comparison):
            console.print(sentence)
        console.print_json(json.dumps(comparison))
        return
    results = evaluate(config)
    for profile in dict.fromkeys(result["profile"] for result in results):
        shown = [result for result in results if result["profile"] == profile]
        console.print(terminal(results_table(shown), f"{config.bench.title}, profile {profile}"))
        for sentence in shown[0]["profile_differences"]:
            console.print(f"  {profile}: {sentence}")


if __name__ == "__main__":
    run_entry_point(main, "evaluate", EvaluateConfig)
