"""The schema of `conf/evaluate.yaml`: every setting of an evaluation, its type and its meaning."""

from dataclasses import dataclass, field

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches import BenchConfig
from vita_audio_pl.evaluation.scoring import METRICS
from vita_audio_pl.interleave import NAMED_PATTERNS

OWN = "own"
MODES = (*NAMED_PATTERNS, OWN)
VERIFY = ("none", "greedy")


@dataclass
class PathsConfig:
    """Folders, relative to the current directory unless absolute."""

    data: str = "data"
    runs: str = "runs"


@dataclass
class SuiteEntry:
    """Some tasks, in some modes, with the model of one stage."""

    stage: str = ""  # empty = the run's last
    modes: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    split: str = ""  # of the bench; empty = the setting `split`
    limit: int | None = None  # utterances per task; null = all
    verify: str = ""  # none or greedy; empty = the setting `verify`


@dataclass
class SuiteConfig:
    """Several evaluations of the stages of one run, done together."""

    name: str = ""
    evaluations: list[SuiteEntry] = field(default_factory=list)
    controls: int = 100  # recordings on which the judge itself is measured


@dataclass
class EvaluateConfig:
    """Everything that `python -m vita_audio_pl.evaluate` can be told."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    suite: SuiteConfig | None = None  # a list of evaluations instead of one
    run_name: str | None = None  # with a suite: the stages are in runs/<run_name>/<stage>/model
    model: str | None = None  # model folder of a single evaluation
    task: str = "asr"  # asr, tts, sqa, text or all (that the bench has)
    mode: str = "vanilla"  # turbo, boost, balance, vanilla, own (the pattern that the model was trained for) or all
    verify: str = "none"  # greedy: the backbone checks what the heads drafted
    constrain_audio: bool = True  # inside an audio span only audio tokens may be written; false as published
    split: str = "test"
    limit: int | None = None  # first utterances only; null = all
    profile: str = "strict"  # strict, reference (the published protocol) or both
    judge: str | None = None  # who listens to answers; null = the bench's own
    judge_model: str | None = None  # folder of a Whisper or Paraformer checkpoint
    speaker_model: str | None = None  # folder of a WavLM x-vector checkpoint: likeness to the voice in the prompt
    mos_model: str | None = None  # UTMOS as a TorchScript file: how natural answers sound
    step: str = "all"  # or generate, score: the second needs no model
    compare: list[str] = field(default_factory=list)  # two result folders to compare; nothing else is done
    controls: int = 100  # recordings on which the judge itself is measured; 0 = none
    heard: str | None = None  # file of what the judge heard, shared by runs: equal codes are listened to once
    missing_audio: str = "refuse"  # or count: an utterance without its recording is a wrong answer
    output: str | None = None  # folder; null = eval/ in the run of the model
    players: int = 6  # utterances per evaluation whose audio is kept: the first ones, and as many of the worst
    batch_size: int = 64  # answers decoded together
    workers: int | None = None  # processes; null = one per core on a CPU (8 at most), one on a GPU
    device: str = "auto"  # cpu, cuda or auto
    graphs: bool | None = None  # replay decoding passes as CUDA graphs; null = on a GPU
    wandb: str = "off"  # or offline, online: log the figures there, too
    wandb_project: str = "vita-audio-pl"

    def check(self) -> None:
        for name, value, choices in (
            ("task", self.task, [*METRICS, "all"]),
            ("mode", self.mode, [*MODES, "all"]),
            ("verify", self.verify, VERIFY),
            ("profile", self.profile, ["strict", "reference", "both"]),
            ("step", self.step, ["all", "generate", "score"]),
            ("wandb", self.wandb, ["off", "offline", "online"]),
            ("missing_audio", self.missing_audio, ["refuse", "count"]),
        ):
            if value not in choices:
                raise UserError(f"{name}={value} is not known; choose one of {', '.join(choices)}")
        if self.compare and len(self.compare) != 2:
            raise UserError("compare takes two result folders: compare=[DIR,DIR]")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit={self.limit} leaves nothing to evaluate; give at least 1, or null for all")
        if self.batch_size < 1 or self.players < 0 or self.controls < 0:
            raise UserError("batch_size must be at least 1, players and controls at least 0")
        if not self.compare:
            self._check_source()

    def _check_source(self) -> None:
        if self.suite is None and self.model is None:
            raise UserError("which model? give model=FOLDER, for example model=runs/demo/sft/model")
        if self.suite is not None and self.run_name is None:
            raise UserError(f"suite={self.suite.name} evaluates the stages of a run: give run_name=...")
        if self.suite is None:
            return
        for entry in self.suite.evaluations:
            for kind, given, known in (("task", entry.tasks, METRICS), ("mode", entry.modes, MODES)):
                for name in given:
                    if name not in known:
                        raise UserError(f"suite {self.suite.name}: '{name}' is no {kind}; choose {', '.join(known)}")
            if entry.verify and entry.verify not in VERIFY:
                raise UserError(
                    f"suite {self.suite.name}: verify={entry.verify} is not known; choose {', '.join(VERIFY)}"
                )
