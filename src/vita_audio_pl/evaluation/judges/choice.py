"""Judges by name, so that a bench file can ask for one."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from vita_audio_pl.errors import UserError
from vita_audio_pl.evaluation.identity import path_digest
from vita_audio_pl.evaluation.judges.pocketsphinx import Judge, PocketsphinxJudge
from vita_audio_pl.foreign.weights import require_trust

JUDGES = ("pocketsphinx", "whisper", "paraformer")


def judge_maker(
    grammar: str | None = None, model: str | None = None, device: str = "cpu", trust_file: bool = False
) -> Callable[[str], Judge]:
    """A function from a judge's name to the judge; packages are imported when it is called.

    Args:
        grammar: JSGF file, for pocketsphinx.
        model: folder of the checkpoint, for whisper and paraformer.
        device: where neural judges run.
        trust_file: let FunASR load a Paraformer checkpoint, which can run any code.
    """

    def make(name: str) -> Judge:
        if name not in JUDGES:
            raise UserError(f"there is no judge '{name}'; choose one of {', '.join(JUDGES)}")
        if name == "pocketsphinx":
            if grammar is None:
                raise UserError("the judge 'pocketsphinx' needs a grammar: give bench.grammar=FILE.jsgf")
            return PocketsphinxJudge(Path(grammar))
        if model is None:
            raise UserError(f"judge={name} needs its checkpoint: give judge_model=FOLDER (nothing is downloaded)")
        from vita_audio_pl.evaluation.judges.neural import ParaformerJudge, WhisperJudge

        if name == "whisper":
            return WhisperJudge(Path(model), device)
        require_trust(Path(model), "a FunASR checkpoint", trust_file)
        return ParaformerJudge(Path(model), device)

    return make


def judge_facts(name: str, grammar: str | None = None, model: str | None = None, device: str = "cpu") -> dict[str, str]:
    """What decides a judge's transcripts: its name, the contents of the files that it reads, its precision."""
    if name == "pocketsphinx":
        try:
            version = metadata.version("pocketsphinx")  # its acoustic model comes with it
        except metadata.PackageNotFoundError:
            version = ""
        return {"judge": name, "grammar": path_digest(grammar), "version": version}
    precision = "float16" if name == "whisper" and device.startswith("cuda") else "float32"
    return {"judge": name, "checkpoint": path_digest(model), "precision": precision}
