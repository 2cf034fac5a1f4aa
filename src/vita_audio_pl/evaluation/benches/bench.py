"""Benches: the files of each task and split, scoring rules, and published results."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches.readers import READERS
from vita_audio_pl.evaluation.items import Item, check_items
from vita_audio_pl.evaluation.scores.normalisers import get_normaliser
from vita_audio_pl.evaluation.scores.profiles import REFERENCE, get_profile
from vita_audio_pl.evaluation.scores.scoring import AVERAGES, METRICS, Scoring


@dataclass
class PublishedFigure:
    """A published result, in the paper's unit (percent)."""

    system: str = MISSING
    task: str = MISSING
    metric: str = MISSING
    value: float = MISSING
    split: str = "test"


@dataclass
class BenchConfig:
    """One `conf/bench/*.yaml`."""

    name: str = ""
    title: str = ""
    homepage: str = setting("", "where to get it; nothing is downloaded", address=True)
    format: str = setting("samples", "file layout, see evaluation/benches/readers.py", choices=tuple(READERS))
    root: str = setting(".", "the folder that was unpacked", common=True)
    tasks: dict[str, dict[str, str]] = setting({}, "task -> split -> path below root")
    unit: str = setting("word", "what error rates count: word, or character for Chinese", choices=("word", "character"))
    normaliser: str = setting("plain", "normaliser of transcripts, see evaluation/scores/normalisers.py")
    spelling_file: str | None = setting(
        None,
        "normalizer.json of a Whisper checkpoint, for whisper_english; null = without its spellings",
        exists=True,
    )
    published_normaliser: str | None = setting(
        None, "in place of normaliser under profile=reference; null = the same under every profile"
    )
    published_average: str = setting(
        "pooled", "of error rates under profile=reference: errors over units, or of utterances' rates", choices=AVERAGES
    )
    language: str | None = setting(None, "en or zh, for whisper; null = whisper detects it")
    answers: str = setting(
        "exact", "exact, or contains: an answer only has to contain an accepted one", choices=("exact", "contains")
    )
    judge: str = setting(
        "", "judge that transcribes spoken answers: pocketsphinx, pocketsphinx_words, whisper or paraformer"
    )
    grammar: str | None = setting(None, "JSGF file, for pocketsphinx; null where the judge needs none")
    max_new_tokens: dict[str, int] = setting({}, "most tokens of an answer, by task; 512 where not given")
    published: list[PublishedFigure] = setting([], "published figures to compare with")
    incomparable: list[str] = setting([], "reasons why results may differ from the published ones")

    def check(self) -> None:
        for task in self.tasks:
            if task not in METRICS:
                raise UserError(f"bench.tasks: '{task}' is not a task; choose from {', '.join(METRICS)}")
        # where the whole bench is not there, how to get it is said when it is read
        if self.grammar and Path(self.root).exists() and not Path(self.grammar).exists():
            raise UserError(f"bench.grammar is '{self.grammar}', and there is no such file")

    def items(self, task: str, split: str) -> tuple[Item, ...]:
        """The items of one split of one task; recordings may be missing, see `check_audio`.

        Raises:
            UserError: the bench has no such task or split, or its files cannot be used.
        """
        if task not in self.tasks:
            raise UserError(f"bench '{self.name}' has no task '{task}'; it has {', '.join(self.tasks)}")
        splits = self.tasks[task]
        if split not in splits:
            raise UserError(f"bench '{self.name}' has no split '{split}' for {task}; it has {', '.join(splits)}")
        place = Path(self.root) / splits[split]
        normalise = get_normaliser(self.normaliser, self.spelling_file)
        return check_items(READERS[self.format](place, task, Path(self.root)), str(place), normalise)

    def token_limit(self, task: str) -> int:
        return self.max_new_tokens.get(task, 512)

    def scoring(self, profile: str) -> Scoring:
        """The bench's scoring rules under a profile."""
        rules = get_profile(profile)
        published = rules == REFERENCE
        name = (published and self.published_normaliser) or self.normaliser
        average = self.published_average if published else "pooled"
        return Scoring(get_normaliser(name, self.spelling_file), self.answers, rules, average)

    def published_for(self, task: str, split: str) -> list[PublishedFigure]:
        return [figure for figure in self.published if (figure.task, figure.split) == (task, split)]
