"""From settings to a list of evaluations."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_audio_pl.config.decoding import KERNELS, QUANTIZE, SLACK, decoding_label
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import (
    Content,
    Identity,
    content_of,
    digest,
    file_digests,
    model_facts,
    path_digest,
)
from vita_audio_pl.evaluation.items import Item, check_audio
from vita_audio_pl.evaluation.judges.choice import judge_facts, judge_name
from vita_audio_pl.evaluation.records import KEY_FILE
from vita_audio_pl.evaluation.runs.jobs import (
    GPU_PRECISION,
    SPEAKING_TASKS,
    Decoding,
    Evaluation,
    bench_folder,
    codec_folder,
    split_folder,
    stage_of,
)
from vita_audio_pl.evaluation.settings import OWN, EvaluateConfig, SuiteEntry
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.inference.checks import refuse_without_heads
from vita_audio_pl.inference.kernels import check_kernels
from vita_audio_pl.inference.loading import heads_in
from vita_audio_pl.interleave import NAMED_PATTERNS, DecodePattern
from vita_audio_pl.storage.model_folders import find_model, last_stage
from vita_audio_pl.storage.owned import refuse_inside


def plan_evaluations(
    config: EvaluateConfig, device: str = "cpu", tell: Callable[[str], None] = lambda sentence: None
) -> list[Evaluation]:
    """The configured evaluations, model by model.

    Reads models, bench and the judge's files once, since their contents are part of an evaluation's identity.

    Args:
        device: device of models and judge, which determines their precision.
        tell: gets a sentence about what is left out.

    Raises:
        UserError: a model folder is missing, the bench cannot be used, or a mode was asked for that the model has no heads for.
    """
    if config.output is not None:
        refuse_inside(Path(config.output), "output")
    evaluations = []
    benches: dict[tuple[str, str], tuple[Item, ...]] = {}
    for model, entry in _entries(config):
        facts = _Facts.of(config, model, device)
        stage, split = entry.stage or stage_of(model), entry.split or config.split
        verify = entry.verify or config.verify
        check_kernels(config.kernels, verify, config.sampling, device)
        patterns = _patterns(config, model, entry.modes, verify)
        left_out = [mode for mode in entry.modes if mode not in patterns and not (mode == OWN and patterns)]
        if left_out:
            named = ", ".join(decoding_label(mode, verify) for mode in left_out)
            tell(f"{stage} is not evaluated in {named}: it has no heads, so it would answer as in Vanilla")
        for task in entry.tasks:
            if (task, split) not in benches:
                benches[task, split] = config.bench.items(task, split)
            items = benches[task, split][: _smaller(entry.limit, config.limit)]
            if config.missing_audio == "refuse":
                check_audio(items)
            contents = content_of(items, file_digests(Path(path) for item in items for path in item.prompt.audios))
            # the costs by which heads draft may be recorded in a file; passes and seconds depend on them even where tokens do not
            by_costs = config.kernels not in KERNELS and verify != "none"
            kernels = path_digest(config.kernels) if by_costs else ""
            for mode, pattern in patterns.items():
                decoding = Decoding(
                    mode,
                    pattern,
                    verify,
                    config.constrain,
                    config.max_new_tokens or config.bench.token_limit(task),
                    config.sampling,
                    None if verify != "groups" else SLACK if config.slack is None else config.slack,
                    kernels,
                    config.quantize or facts.quantize,
                )
                place = split_folder(
                    bench_folder(config.output, model, config.bench.name, config.paths.runs), stage, split
                )
                evaluations.append(
                    Evaluation(
                        model=model,
                        stage=stage,
                        bench=config.bench.name,
                        split=split,
                        task=task,
                        items=items,
                        decoding=decoding,
                        judge=judge_name(config.judge or config.bench.judge),
                        identity=facts.identity(task, decoding, contents, place),
                        place=place,
                        batch_size=config.batch_size,
                        limited=len(items) < len(benches[task, split]),
                    )
                )
    if not evaluations:
        raise UserError("nothing is left to evaluate: what was asked for needs heads, and no model here has any")
    return evaluations


def _patterns(config: EvaluateConfig, model: Path, modes: Sequence[str], verify: str) -> dict[str, tuple[int, ...]]:
    """The pattern of each mode; of a model without heads, Vanilla alone, which is its own mode, too.

    Raises:
        UserError: another mode, or verification, was asked for by name.
    """
    if heads_in(model):
        return {mode: own_pattern(model) if mode == OWN else NAMED_PATTERNS[mode] for mode in modes}
    by_name = config.suite is None and config.mode not in ("all", OWN)
    if config.suite is None:
        refuse_without_heads(0, config.mode if by_name else None, verify)
    named = dict.fromkeys("vanilla" if mode == OWN else mode for mode in modes)
    plain = {mode: NAMED_PATTERNS[mode] for mode in named if not DecodePattern(NAMED_PATTERNS[mode]).uses_heads}
    return plain if verify == "none" else {}


def _smaller(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _entries(config: EvaluateConfig) -> list[tuple[Path, SuiteEntry]]:
    if config.suite is None:
        tasks = list(config.bench.tasks) if config.task == "all" else [config.task]
        modes = list(NAMED_PATTERNS) if config.mode == "all" else [config.mode]
        model = find_model(config.model or "", config.paths.runs)
        return [(model, SuiteEntry(stage_of(model), modes, tasks, config.split, config.limit))]
    run = Path(config.paths.runs) / str(config.run_name)
    return [(find_model(run / (entry.stage or last_stage(run))), entry) for entry in config.suite.evaluations]


@dataclass(frozen=True)
class _Facts:
    """What decides the results of a model under some settings, but for the utterances and the decoding.

    Attributes:
        precisions: that answers may have: the device's, and others that answers were generated in elsewhere.
        quantize: how the folder holds the weights; None for exact ones.
    """

    model: str
    weights: str
    codec: str
    precisions: Sequence[str]
    quantize: str | None
    unreadable: str
    listening: dict[str, Any]
    scoring: dict[str, Any]

    @classmethod
    def of(cls, config: EvaluateConfig, model: Path, device: str) -> "_Facts":
        bench = config.bench
        contents, weights = model_facts(model)
        given = {
            name: path_digest(folder)
            for name in ("codec_folder", "encoder_folder")
            if (folder := getattr(config, name))
        }
        precision = GPU_PRECISION if device.startswith("cuda") else stored_precision(model)
        # answers generated on a GPU may be scored elsewhere
        others = [GPU_PRECISION, stored_precision(model)] if config.step == "score" else []
        judge = config.judge or bench.judge
        files = {"grammar": bench.grammar, "model": config.judge_model, "language": bench.language}
        listening = judge_facts(judge, device, **files) if judge else {}
        voices = {name: path_digest(getattr(config, name)) for name in ("speaker_model", "mos_model")}
        scoring: dict[str, Any] = {
            "normaliser": bench.normaliser,
            "spelling": path_digest(bench.spelling_file),
            "unit": bench.unit,
            "answers": bench.answers,
        }
        if bench.published_normaliser or bench.published_average != "pooled":
            scoring |= {"published": [bench.published_normaliser, bench.published_average]}
        return cls(
            digest([contents, given]) if given else contents,
            weights,
            path_digest(codec_folder(model, config.codec_folder)),
            list(dict.fromkeys([precision, *others])),
            held if (held := read_json(model / "config.json").get("quantize")) in QUANTIZE else None,
            config.missing_audio,
            listening | voices if judge else {},
            scoring,
        )

    def identity(self, task: str, decoding: Decoding, contents: Mapping[str, Content], place: Path) -> Identity:
        listening = self.listening if task in SPEAKING_TASKS else {}
        found = [
            Identity(
                task,
                self.model,
                self.weights,
                self.codec,
                {
                    "pattern": list(decoding.pattern),
                    "verify": decoding.verify,
                    "constrained": decoding.constrained,
                    "max_new_tokens": decoding.max_new_tokens,
                    "precision": precision,
                    **decoding.drawn,
                },
                self.unreadable,
                listening,
                self.scoring,
                contents,
            )
            for precision in self.precisions
        ]
        answered = set(_answered(place)) if len(found) > 1 else set()
        return next((identity for identity in found if identity.answers in answered), found[0])


def _answered(place: Path) -> Iterator[str]:
    """`Identity.answers` of the evaluations that stand in a folder."""
    for path in place.glob(f"*/{KEY_FILE}"):
        try:
            yield json.loads(path.read_bytes())["answers"]
        except (OSError, ValueError, TypeError, KeyError):
            continue


def stored_precision(model: Path) -> str:
    """The precision of a model's files, from its `config.json`."""
    config = read_json(model / "config.json")
    return str(config.get("torch_dtype") or config.get("dtype") or "float32")


def own_pattern(model: Path) -> tuple[int, ...]:
    """The decoding pattern of a model folder.

    Raises:
        UserError: it has none.
    """
    path = model / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not settings.get("mtp_inference_mode"):
        raise UserError(f"mode=own takes the pattern that the model names, and {path} names none; choose another mode")
    return DecodePattern.of(settings["mtp_inference_mode"]).runs
