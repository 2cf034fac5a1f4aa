"""Intelligibility of synthesised speech in a corpus: a judge transcribes a sample of it for the data card."""

from collections.abc import Iterator
from typing import Any

from vita_audio_pl.config.component import Custom
from vita_audio_pl.data.card import card_of, judged_in
from vita_audio_pl.data.options import PrepareConfig
from vita_audio_pl.data.prepared import CARDS, JUDGED, Manifest
from vita_audio_pl.data.readers import ToSpeak, Transcriber, Unreadable, read_part
from vita_audio_pl.data.speaking import KeptSpeech, SpeakingReader
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.evaluation.judges.choice import JudgeSettings, judge_facts, judge_settings
from vita_audio_pl.evaluation.judges.pocketsphinx import RATE
from vita_audio_pl.evaluation.scores.measures import count_errors
from vita_audio_pl.evaluation.scores.normalisers import characters, mixed, plain
from vita_audio_pl.storage.checksums import write_sealed
from vita_audio_pl.storage.files import atomic_write, write_json

_UNSPACED = {"zh": ("characters", mixed), "yue": ("characters", mixed), "ja": ("characters", mixed)}
_UNSPACED |= {"th": ("characters", characters)}
_PARTS = 20  # parts of a corpus to sample from, evenly spaced
_AT_A_TIME = 16  # waves


def chosen_judge(config: PrepareConfig, languages: tuple[str, ...]) -> "JudgeSettings | Custom | None":
    """The configured judge; None if there is none.

    Raises:
        UserError: there is no such judge.
    """
    if config.judge is None:
        return None
    language = languages[0] if len(languages) == 1 else None
    return judge_settings(config.judge, config.judge_grammar, config.judge_model, config.trust_file, language)


def transcriber_of(judge: "JudgeSettings | Custom | None", device: str) -> Transcriber | None:
    """The judge as transcriber of recordings without transcripts."""
    return None if judge is None else Transcriber(judge, judge_facts(judge, device), device)


def judge_speech(
    job: TokenizeJob,
    manifest: Manifest,
    judge: "JudgeSettings | Custom",
    most: int,
    most_parts: int | None = None,
    device: str = "cpu",
) -> dict[str, Any] | None:
    """Transcribe synthesised speech of a prepared source and write the error rate into its card.

    Args:
        job: the job that prepared it.
        most: most messages to transcribe.
        most_parts: number of parts that were prepared; None = all.

    Returns:
        The judge, its word error rate (character error rate, for languages without spaces) and the number of messages;
        None if no message was synthesised.

    Raises:
        UserError: the judge cannot be built.
    """
    if not isinstance(job.load_audio, KeptSpeech) or not isinstance(job.reader, SpeakingReader):
        return None
    facts = {**judge_facts(judge, device), "asked": most}
    judged = dict(judged_in(job.out, manifest) or {})
    if judged.get("judge") != facts:
        judged = _judged(job, manifest, judge, facts, most_parts, device)
        write_sealed(job.out / JUDGED, judged)
    # also from cached results: an earlier command may have been killed before this
    card = card_of(manifest, judged=judged)
    write_json(job.out / CARDS[1], card.to_json())
    atomic_write(job.out / CARDS[0], card.to_markdown().encode("utf-8", "backslashreplace"))
    return judged


def _judged(
    job: TokenizeJob,
    manifest: Manifest,
    judge: "JudgeSettings | Custom",
    facts: dict[str, Any],
    most_parts: int | None,
    device: str,
) -> dict[str, Any]:
    """The judge's results on as many messages as `facts` say."""
    assert isinstance(job.load_audio, KeptSpeech)
    languages = job.about.get("languages", [])
    unit, normalise = _UNSPACED.get(languages[0] if languages else "", ("words", plain))
    texts = list(_spoken(job, job.load_audio, facts["asked"], most_parts))
    listener, errors, units = judge.build(device=device), 0, 0
    for first in range(0, len(texts), _AT_A_TIME):
        group = texts[first : first + _AT_A_TIME]
        for (text, _), heard in zip(group, listener.transcribe([wave for _, wave in group], RATE), strict=True):
            if reference := normalise(text):
                counted = count_errors(reference, normalise(heard))
                errors, units = errors + counted.errors, units + counted.reference_units
    return {
        "format": 1,
        "index_crc": manifest.index_crc,
        "judge": facts,
        "unit": unit,
        "messages": len(texts),
        "wer": round(errors / max(units, 1), 4),
    }


def judged_told(job: TokenizeJob, judged: dict[str, Any] | None) -> str:
    """One sentence with the judge's result."""
    if judged is None:
        return f"nothing of '{job.source}' was spoken here, so the judge has nothing to transcribe"
    name = judged["judge"]["judge"]
    return f"of {judged['messages']:,} spoken messages of '{job.source}', {name} gets {judged['wer']:.1%} of the {judged['unit']} wrong"


def _spoken(job: TokenizeJob, kept: KeptSpeech, most: int, most_parts: int | None) -> Iterator[tuple[str, Any]]:
    """Texts and their audio, `(samples,) float32` at 16 kHz: the first ones of parts spread over the corpus."""
    parts = job.reader.parts()[:most_parts]
    number = min(_PARTS, len(parts), most)
    chosen = [parts[(2 * n + 1) * len(parts) // (2 * number)] for n in range(number)]
    left = most
    for nth, part in enumerate(chosen):
        here = -(-left // (number - nth))
        for text in _texts(job, part):
            wave = kept.kept(text, RATE) if here else None
            if wave is not None:  # some could not be synthesised
                yield text, wave
                here, left = here - 1, left - 1
            if not here:
                break


def _texts(job: TokenizeJob, part: Any) -> Iterator[str]:
    for sample in read_part(job.reader, part):
        if not isinstance(sample, Unreadable):
            yield from (audio.text for audio in sample.audios if isinstance(audio, ToSpeak))
