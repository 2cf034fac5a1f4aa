"""Judges by name, with settings that build them, and user-defined judges by the path of their class.

Bench files use names; `judge=` on the command line also takes a class. Packages are imported when a judge is built.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_audio_pl.config.component import Component, Custom, written_settings
from vita_audio_pl.config.fields import did_you_mean, setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import path_digest

if TYPE_CHECKING:
    from vita_audio_pl.evaluation.judges.pocketsphinx import Judge


@dataclass
class JudgeSettings(Component):
    """Settings of our own judges."""

    def build(self, device: str = "cpu") -> "Judge":
        """Build the judge; device: for neural ones."""
        raise NotImplementedError

    def facts(self, device: str) -> dict[str, str]:
        """Everything that its transcripts depend on: contents of its files, its precision."""
        raise NotImplementedError


@dataclass
class Pocketsphinx(JudgeSettings):
    """Of `pocketsphinx.PocketsphinxJudge`."""

    grammar: str | None = setting(None, "JSGF file of the expected sentences; null = it cannot be built", exists=True)

    def build(self, device: str = "cpu") -> "Judge":
        from vita_audio_pl.evaluation.judges.pocketsphinx import PocketsphinxJudge

        if self.grammar is None:
            raise UserError("the judge 'pocketsphinx' needs a grammar: give bench.grammar=FILE.jsgf")
        return PocketsphinxJudge(Path(self.grammar))

    def facts(self, device: str) -> dict[str, str]:
        return {"grammar": path_digest(self.grammar), "version": _pocketsphinx_version()}


@dataclass
class PocketsphinxWords(JudgeSettings):
    """Of `pocketsphinx.PocketsphinxWordsJudge`."""

    def build(self, device: str = "cpu") -> "Judge":
        from vita_audio_pl.evaluation.judges.pocketsphinx import PocketsphinxWordsJudge

        return PocketsphinxWordsJudge()

    def facts(self, device: str) -> dict[str, str]:
        return {"version": _pocketsphinx_version()}


def _pocketsphinx_version() -> str:
    try:
        return metadata.version("pocketsphinx")  # its models come with it
    except metadata.PackageNotFoundError:
        return ""


@dataclass
class Whisper(JudgeSettings):
    """Of `neural.WhisperJudge`."""

    model: str | None = setting(None, "folder of the checkpoint; null = it cannot be built", exists=True)
    language: str | None = setting(None, "language of the audio; null = detected")

    def build(self, device: str = "cpu") -> "Judge":
        from vita_audio_pl.evaluation.judges.neural import WhisperJudge

        return WhisperJudge(_checkpoint("whisper", self.model), device, language=self.language)

    def facts(self, device: str) -> dict[str, str]:
        precision = "float16" if device.startswith("cuda") else "float32"
        told = {"language": self.language} if self.language else {}
        return {"checkpoint": path_digest(self.model), "precision": precision, **told}


@dataclass
class Paraformer(JudgeSettings):
    """Of `neural.ParaformerJudge`."""

    model: str | None = setting(None, "folder of the checkpoint; null = it cannot be built", exists=True)
    trust_file: bool = setting(False, "let FunASR load the checkpoint, which can run any code")

    def build(self, device: str = "cpu") -> "Judge":
        from vita_audio_pl.evaluation.judges.neural import ParaformerJudge
        from vita_audio_pl.foreign.weights import require_trust

        folder = _checkpoint("paraformer", self.model)
        require_trust(folder, "a FunASR checkpoint", self.trust_file)
        return ParaformerJudge(folder, device)

    def facts(self, device: str) -> dict[str, str]:
        return {"checkpoint": path_digest(self.model), "precision": "float32"}


JUDGES: dict[str, type[JudgeSettings]] = {
    "pocketsphinx": Pocketsphinx,
    "pocketsphinx_words": PocketsphinxWords,
    "whisper": Whisper,
    "paraformer": Paraformer,
}


_OR_OWN = ", or give one of your own by its class, judge._target_=package.module.Class"


def judge_name(judge: "str | JudgeSettings | Custom") -> str:
    """A judge's name in results: its name here, or its class."""
    if isinstance(judge, str):
        return judge
    if isinstance(judge, Custom):
        return judge.path.rpartition(".")[2]
    return next((name for name, kind in JUDGES.items() if type(judge) is kind), type(judge).__name__)


def own_judge(judge: "str | JudgeSettings | Custom | None") -> "JudgeSettings | Custom | None":
    """The user-defined judge in a configuration; None if it gives a name, or nothing."""
    return None if isinstance(judge, str) else judge


def judge_settings(
    judge: "str | JudgeSettings | Custom",
    grammar: str | None = None,
    model: str | None = None,
    trust_file: bool = False,
    language: str | None = None,
) -> "JudgeSettings | Custom":
    """The settings of a judge: as given, or those of one of our judges by name.

    Args:
        grammar: JSGF file, for pocketsphinx.
        model: folder of the checkpoint, for whisper and paraformer.
        trust_file: let FunASR load a Paraformer checkpoint, which can run any code.
        language: given to whisper.

    Raises:
        UserError: no judge has this name, or a mapping names no class.
    """
    if isinstance(judge, str):
        if judge not in JUDGES:
            raise UserError(
                f"there is no judge '{judge}'; choose one of {', '.join(JUDGES)}{_OR_OWN}{did_you_mean(judge, JUDGES)}"
            )
        given = {"grammar": grammar, "model": model, "trust_file": trust_file, "language": language}
        kind = JUDGES[judge]
        return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind)})
    if not isinstance(judge, (JudgeSettings, Custom)):
        raise UserError(f"judge is {judge}: choose one of {', '.join(JUDGES)}{_OR_OWN}{did_you_mean(judge, JUDGES)}")
    return judge


def judge_maker(
    grammar: str | None = None,
    model: str | None = None,
    device: str = "cpu",
    trust_file: bool = False,
    own: "JudgeSettings | Custom | None" = None,
    language: str | None = None,
) -> "Callable[[str], Judge]":
    """A function from a judge's name to the judge, see `judge_settings`; `own` is built for its own name."""

    def make(name: str) -> "Judge":
        wanted = name if own is None or name != judge_name(own) else own
        settings = judge_settings(wanted, grammar, model, trust_file, language)
        judge: Judge = settings.build(device=device)
        return judge

    return make


def judge_facts(judge: "str | JudgeSettings | Custom", device: str = "cpu", **files: Any) -> dict[str, Any]:
    """Everything that a judge's transcripts depend on; files and folders by content. files: see `judge_settings`.

    Raises:
        UserError: a setting of a user-defined judge is named like a secret.
    """
    if isinstance(judge, str) and judge not in JUDGES:
        return {"judge": judge}  # refused when it is built, before the first answer
    settings = judge_settings(judge, **files)
    if isinstance(settings, JudgeSettings):
        return {"judge": judge_name(judge), **settings.facts(device)}
    return {"judge": settings.path, "settings": _with_contents(written_settings(settings, "judge"))}


def _with_contents(value: Any) -> Any:
    """Settings with each path replaced by the digest of its contents."""
    if isinstance(value, Mapping):
        return {name: _with_contents(inner) for name, inner in value.items()}
    if isinstance(value, str) and value and Path(value).exists():
        return path_digest(value)
    return value


def _checkpoint(name: str, model: str | None) -> Path:
    if model is None:
        raise UserError(f"judge={name} needs its checkpoint: give judge_model=FOLDER (nothing is downloaded)")
    return Path(model)
