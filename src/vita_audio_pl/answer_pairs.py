"""Pairs of answers that a model gives itself: several are sampled of a prompt, a judge transcribes them, best and worst are paired."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.data.options import ExecutorOptions, PrepareConfig
from vita_audio_pl.data.readers.jsonl import CODES
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.records import Answer
from vita_audio_pl.evaluation.runs.evaluate import record_answers
from vita_audio_pl.evaluation.runs.jobs import codec_folder
from vita_audio_pl.evaluation.runs.results import score_record
from vita_audio_pl.evaluation.runs.runner import Records
from vita_audio_pl.inference.loading import ModelFacts, read_model_facts
from vita_audio_pl.own_data import ANSWERED_BY, ANSWERS, OWN_DATA, PAIRS, prepare_own_data
from vita_audio_pl.pairs import PairsConfig
from vita_audio_pl.storage.checksums import read_sealed, write_sealed
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.lease import hold, this_job
from vita_audio_pl.storage.model_folders import home_of
from vita_audio_pl.storage.owned import Owned
from vita_audio_pl.text import AUDIO_PLACEHOLDER, ROLES, AudioCodes, Renderer, RenderOptions, TextIds, Turn
from vita_audio_pl.training.run_folder.manifest import StageManifest

SILENT, UNFINISHED, OTHER_TEXT, OTHER_FORM = "silent", "cut at the token limit", "another text", "another form"


@dataclass(frozen=True)
class _Judged:
    """An answer that can be written into training data: content of its message, codes without lead-in, error rate, transcript."""

    content: str
    codes: tuple[int, ...]
    rate: float
    transcript: str


def make_pairs(config: PairsConfig, model: Path, console: Console) -> Path:
    """Make, or complete, the pairs that the settings ask for, and shards of them; returns their folder.

    Answers and transcripts are records of evaluations in `answers/`, so what was sampled stays whatever ends the command;
    `pairs.jsonl` and the shards are made anew of them.

    Args:
        model: folder of the model that answers.

    Raises:
        UserError: another process works in the folder, it is not ours, the model has no codec, or no prompt gives a pair.
    """
    out = Path(config.out) if config.out else home_of(model, config.paths.runs) / "pairs"
    Owned.claim(out, OWN_DATA)
    with hold(out, "pairs", "making pairs of answers", launch=this_job(), advice="give another out=DIR"):
        draws = [
            replace(config, model=str(model), output=str(out / ANSWERS), sampling=replace(config.sampling, seed=seed))
            for seed in range(config.sampling.seed, config.sampling.seed + config.answers)
        ]
        records = record_answers(draws, console)
        lines, told = _paired(config, model, records)
        print(told, flush=True)
        if not lines:
            raise UserError(
                f"no prompt gave two answers that are margin={config.margin:g} apart: give a smaller margin, more answers or "
                "prompts, or a higher sampling.temperature"
            )
        atomic_write(out / PAIRS, "".join(f"{line}\n" for line in lines).encode())
        prepare_own_data(
            PrepareConfig(
                paths=config.paths,
                samples=str(out / PAIRS),
                model=str(model),
                codec_folder=config.codec_folder,
                out=str(out),
                shards="",
                held_out=config.held_out,
                executor=ExecutorOptions(workers=1),
            ),
            console,
        )
        write_sealed(out / ANSWERED_BY, {"format": 1, "weights": StageManifest.of(model).weights})
    return out


def are_made(folder: Path, weights: str) -> bool:
    """Whether the folder holds the complete pairs of a model, of these weights (`StageManifest.weights`)."""
    try:
        return bool(read_sealed(folder / ANSWERED_BY)["weights"] == weights)
    except (FileNotFoundError, UserError):
        return False


def _paired(config: PairsConfig, model: Path, records: Sequence[Records]) -> tuple[list[str], str]:
    """Lines of `pairs.jsonl`, and what came out in a sentence."""
    facts = read_model_facts(model)
    codec = load_codec(codec_folder(model, config.codec_folder))
    silence = codec.silence(facts.lead_in_codes) if facts.lead_in_codes else ()
    lead_in = tuple(int(code) for code in silence)
    renderer = Renderer(facts.vocabulary, facts.tokenizer, RenderOptions(facts.ratio, lead_in=lead_in))
    left_out: Counter[str] = Counter()
    rates, rules = [], config.bench.scoring("strict")
    scores: dict[str, list[tuple[Answer, dict[str, Any], str]]] = {}
    for record in records:
        for row in score_record(record, rules):
            id = row["id"]
            scores.setdefault(id, []).append(
                (record.answer_of(id), row["scores"]["speech_wer"], record.transcript_of(id).text)
            )
    lines = []
    for item in records[0].evaluation.items:
        judged = []
        for answer, score, transcript in scores[item.id]:
            content = _content(answer, item, config.task, renderer, facts, lead_in, left_out)
            if content is not None:
                rate = score["errors"] / max(1, score["of"])
                judged.append(_Judged(content, answer.codes[len(lead_in) :], rate, transcript))
                rates.append(rate)
        if (pair := _best_and_worst(judged, config.margin)) is not None:
            lines.append(_line(item, *pair))
    mean = sum(rates) / max(1, len(rates))
    without = "".join(f"; {count} left out: {reason}" for reason, count in sorted(left_out.items()))
    return lines, (
        f"{len(lines)} pairs of {len(records[0].evaluation.items)} prompts with {len(records)} answers each: mean error rate "
        f"{mean:.1%}{without}"
    )


def _content(
    answer: Answer,
    item: Item,
    task: str,
    renderer: Renderer,
    facts: ModelFacts,
    lead_in: tuple[int, ...],
    left_out: Counter[str],
) -> str | None:
    """The message that training writes as just the tokens that the model wrote; None where there is none."""
    asked = item.references[0] if task == "tts" else None
    content = AUDIO_PLACEHOLDER if asked is not None else answer.text + AUDIO_PLACEHOLDER
    said = TextIds(np.asarray(facts.tokenizer.encode(answer.text)))
    turn = Turn("assistant", (said, AudioCodes(np.asarray(answer.codes[len(lead_in) :]))))
    written = renderer.length([turn]) - renderer.length_rule.around[ROLES.index(turn.role)] + 1  # and <|im_end|>
    reason = next(
        (
            reason
            for reason, holds in (
                (SILENT, not answer.codes),
                (UNFINISHED, not answer.stopped),
                (OTHER_TEXT, asked is not None and answer.text.strip() != asked.strip()),
                (OTHER_FORM, answer.codes[: len(lead_in)] != lead_in or written != answer.tokens),
            )
            if holds
        ),
        None,
    )
    if reason is not None:
        left_out[reason] += 1
    return None if reason is not None else content


def _best_and_worst(judged: Sequence[_Judged], margin: float) -> tuple[_Judged, _Judged] | None:
    """The best answer and the worst; of several that are as good, those that are most alike in length."""
    if not judged:
        return None
    best, worst = (pick(answer.rate for answer in judged) for pick in (min, max))
    if worst - best < margin:
        return None
    chosen, rejected = ([answer for answer in judged if answer.rate == rate] for rate in (best, worst))
    return min(product(chosen, rejected), key=lambda pair: abs(len(pair[0].codes) - len(pair[1].codes)))


def _line(item: Item, chosen: _Judged, rejected: _Judged) -> str:
    """A line of `pairs.jsonl`; what the judge made of both answers is for people."""
    both = (chosen, rejected)
    sound = [CODES + ",".join(map(str, answer.codes)) for answer in both]
    return json.dumps(
        {
            "id": item.id,
            "messages": [{"role": message.role, "content": message.content} for message in item.prompt.messages],
            "chosen": chosen.content,
            "rejected": rejected.content,
            "audios": [*(str(Path(path).absolute()) for path in item.prompt.audios), *sound],
            "error_rates": [round(answer.rate, 4) for answer in both],
            "transcripts": [answer.transcript for answer in both],
        },
        ensure_ascii=False,
    )
