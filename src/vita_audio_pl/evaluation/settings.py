"""The schema of `conf/evaluate.yaml`: every setting of an evaluation, its type and its meaning."""

from dataclasses import dataclass, field
from typing import Any

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.decoding import VERIFY_MODES, DecodingConfig, WeightsConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.benches.bench import BenchConfig
from vita_audio_pl.evaluation.judges.choice import JUDGES
from vita_audio_pl.evaluation.scores.scoring import METRICS
from vita_audio_pl.interleave import NAMED_PATTERNS

OWN = "own"
MODES = (*NAMED_PATTERNS, OWN)


@dataclass
class SuiteEntry:
    """Some tasks, in some modes, with the model of one stage."""

    stage: str = setting("", "stage to evaluate; empty = the run's last")
    modes: list[str] = setting([], "decoding modes", choices=MODES, filled=True)
    tasks: list[str] = setting([], "tasks of the bench", choices=tuple(METRICS), filled=True)
    split: str = setting("", "split of the bench; empty = the setting `split`")
    limit: int | None = setting(None, "utterances per task; null = all", at_least=1)
    verify: str = setting(
        "", "none, greedy, sample or groups; empty = the setting `verify`", choices=("", *VERIFY_MODES)
    )


@dataclass
class SuiteConfig:
    """Several evaluations of the stages of one run."""

    name: str = ""
    evaluations: list[SuiteEntry] = field(default_factory=list)
    controls: int = setting(100, "recordings on which the judge itself is measured", at_least=0)
    heard_twice: int = setting(
        0, "recordings and spoken answers of the last stage that the second judge hears", at_least=0
    )
    second_judge: str = setting("", "judge beside the bench's own that hears them", choices=("", *JUDGES))


@dataclass
class EvaluateConfig(WeightsConfig, DecodingConfig, CommandConfig):
    """Settings of `python -m vita_audio_pl.evaluate`."""

    bench: BenchConfig = field(default_factory=BenchConfig)
    suite: SuiteConfig | None = setting(None, "list of evaluations to run instead of one")
    run_name: str | None = setting(
        None, "with a suite: the run, whose stages are in runs/<run_name>/<stage>/model; null without one", common=True
    )
    model: str | None = setting(
        None, "a run, a stage, a model folder, adapters, or published weights; null with a suite", common=True
    )
    codec_folder: str | None = setting(
        None, "folder of the audio codec; null = the one in the model folder", exists=True
    )
    encoder_folder: str | None = setting(
        None,
        "folder of a Plus model's audio encoder, as SenseVoiceSmall has it; null = the one in the model folder",
        exists=True,
    )
    task: str = setting("asr", "asr, tts, sqa, text, or all that the bench has", choices=(*METRICS, "all"), common=True)
    mode: str = setting(
        "vanilla",
        "turbo, boost, balance, vanilla, own (the pattern the model was trained for) or all",
        choices=(*MODES, "all"),
        common=True,
    )
    split: str = setting("test", "split of the bench", common=True)
    limit: int | None = setting(None, "first utterances only; null = all", at_least=1, common=True)
    profile: str = setting(
        "strict",
        "strict, reference (the published protocol) or both",
        choices=("strict", "reference", "both"),
        common=True,
    )
    judge: Any = setting(
        None,
        "judge that transcribes spoken answers, or a component of your own; null = the bench's",
        choices=tuple(JUDGES),
        common=True,
    )
    judge_model: str | None = setting(
        None,
        "folder of a Whisper or Paraformer checkpoint; null = the one that the bench names, or none",
        common=True,
        exists=True,
    )
    speaker_model: str | None = setting(
        None,
        "folder of a WavLM x-vector checkpoint, to measure similarity to the voice prompt; null = not measured",
        exists=True,
    )
    mos_model: str | None = setting(
        None,
        "UTMOS as a TorchScript file, to measure naturalness; needs trust_file=true; null = not measured",
        exists=True,
    )
    trust_file: bool = setting(
        False, "load mos_model, or the checkpoint of the judge paraformer, although such files can run any code"
    )
    step: str = setting("all", "all, generate or score; score needs no model", choices=("all", "generate", "score"))
    compare: list[str] = setting([], "two result folders to compare, and nothing else", common=True)
    controls: int = setting(100, "recordings on which the judge itself is measured; 0 = none", at_least=0)
    transcripts: str | None = setting(
        None, "file of transcripts that runs share, so that identical outputs are transcribed once; null = none"
    )
    missing_audio: str = setting(
        "refuse", "refuse, or count: an utterance without its recording counts as wrong", choices=("refuse", "count")
    )
    output: str | None = setting(
        None, "folder for results; null = eval/ in the model's run, or in runs/<name of its folder>", common=True
    )
    players: int = setting(
        6, "utterances per evaluation whose audio is kept: this many first ones and this many of the worst", at_least=0
    )
    batch_size: int = setting(64, "answers decoded together", at_least=1, common=True)
    workers: int | None = setting(
        None, "processes; null = one per core on a CPU (8 at most), one on a GPU", at_least=1, common=True
    )
    device: str = setting("auto", "cpu, cuda or auto", choices=("auto", "cpu", "cuda"), common=True)
    wandb: str = setting(
        "off", "off, offline or online: also log results to wandb", choices=("off", "offline", "online")
    )
    wandb_project: str = setting("vita-audio-pl", "wandb project")

    def check(self) -> None:
        if self.compare and len(self.compare) != 2:
            raise UserError("compare takes two result folders: compare=[DIR,DIR]")
        if not self.compare:
            self._check_source()

    def _check_source(self) -> None:
        if self.suite is None and self.model is None:
            raise UserError("which model? give model=FOLDER, for example model=runs/demo/sft/model")
        if self.suite is None and self.slack is not None and self.verify != "groups":
            raise UserError("slack means something only with verify=groups")
        if self.suite is not None and (self.task, self.mode) != ("asr", "vanilla"):
            raise UserError(
                f"suite={self.suite.name} says itself which tasks and modes it evaluates; leave task and mode out, or give model=... "
                "and no suite"
            )
        if self.suite is not None and self.run_name is None:
            raise UserError(f"suite={self.suite.name} evaluates the stages of a run: give run_name=...")
