"""Controls of the judge: its error rate on recordings whose text is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vita_audio_pl.evaluation.identity import FORMAT, Identity, digest, file_digests
from vita_audio_pl.evaluation.items import Item
from vita_audio_pl.evaluation.runs.runner import Run
from vita_audio_pl.evaluation.scores.measures import count_errors
from vita_audio_pl.evaluation.scores.normalisers import Normaliser
from vita_audio_pl.evaluation.scores.significance import bootstrap_ratio
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.names import safe_name

_UNIT = 25  # recordings per call
REMARK = (
    "The WER that the judge gives to correct speech is the floor of every speech figure above. Against another "
    "recording's text it must be far higher (not quite 100 %, sentences share words), and in noise near 100 %, or the "
    "judge would write what it expects and not what it hears. A judge with a closed grammar forgives much: its figures "
    "compare runs and are no absolute quality."
)


@dataclass(frozen=True)
class Recordings:
    """Recordings with known text, and how they are processed before the judge, see `ModelToolbox.recognise`."""

    name: str
    audios: tuple[Path, ...]
    texts: tuple[str, ...]
    treatments: tuple[str, ...]

    @classmethod
    def of_answers(cls, name: str, items: Sequence[Item], most: int) -> "Recordings":
        """The expected answers, in the voice that the model learns."""
        spoken = [(item.spoken_reference, item.references[0]) for item in items if _there(item.spoken_reference)]
        return cls(name, *_columns(spoken[:most]), treatments=("source", "codec", "noise"))

    @classmethod
    def of_questions(cls, name: str, items: Sequence[Item], most: int) -> "Recordings":
        """The recordings that the model transcribes."""
        recorded = [(item.source, item.references[0]) for item in items if _there(item.source)]
        return cls(name, *_columns(recorded[:most]), treatments=("source", "codec"))


def _there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _columns(pairs: Sequence[tuple[Path | None, str]]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    return tuple(audio for audio, _ in pairs if audio is not None), tuple(text for _, text in pairs)


def measure_controls(
    folder: Path,
    codec: Path,
    judge: str,
    identity: Identity,
    sets: Sequence[Recordings],
    resynthesise: Sequence[tuple[str, Path]],
    normalise: Normaliser,
    run: Run,
) -> dict[str, Any]:
    """The judge's WER on each set: as recorded, after the codec, against wrong references, and in noise.

    Args:
        folder: gets `controls/<key>/` with `controls.json` and audio; a measurement is never repeated.
        codec: folder of the model's codec.
        identity: identity of an evaluation with this judge, codec and normaliser.
        resynthesise: `(name, recording)` of recordings to write after the codec.
        run: pool of processes.
    """
    audios = file_digests([path for one in sets for path in one.audios] + [path for _, path in resynthesise])
    heard_sets = [[one.name, one.texts, one.treatments, [audios[path] for path in one.audios]] for one in sets]
    sounds = [[name, audios[path]] for name, path in resynthesise]
    judged = {"codec": identity.codec, "listening": dict(identity.listening), "scoring": dict(identity.scoring)}
    key = digest([FORMAT, judged, heard_sets, sounds])
    place = folder / "controls" / key[:10]
    path = place / "controls.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found.get("key") == key:
            return found
    calls, tasks = [], []
    for recordings in sets:
        for treatment in recordings.treatments:
            parts = [recordings.audios[start : start + _UNIT] for start in range(0, len(recordings.audios), _UNIT)]
            calls += [(codec, judge, part, treatment) for part in parts]
            tasks.append((recordings, treatment, len(parts)))
    transcript_parts, rows = run("recognise", calls), []
    for recordings, treatment, n_parts in tasks:
        transcripts = [text for _ in range(n_parts) for text in next(transcript_parts)]
        rows.append(_row(recordings.name, treatment, recordings.texts, transcripts, normalise))
        if treatment == "source":
            rows.append(_row(recordings.name, "wrong reference", _others(recordings.texts), transcripts, normalise))
    files = {name: f"controls/{key[:10]}/{safe_name(name)}.wav" for name, _ in resynthesise}
    for _ in run("resynthesise", [(codec, [(audio, folder / files[name]) for name, audio in resynthesise])]):
        pass
    created = datetime.now(UTC).isoformat(timespec="seconds")
    controls = {"format": FORMAT, "key": key, "created": created, "judge": judge, **judged, "remark": REMARK}
    controls |= {"rows": rows, "resynthesis": files}
    place.mkdir(parents=True, exist_ok=True)
    write_json(path, controls)
    return controls


_CONDITIONS = {
    "source": "the recording",
    "codec": "the recording after the codec",
    "wrong reference": "the recording, scored against another one's text",
    "noise": "noise of the same length and level",
}


def _row(
    name: str, condition: str, texts: Sequence[str], transcripts: Sequence[str], normalise: Normaliser
) -> dict[str, Any]:
    return {
        "recordings": name,
        "condition": _CONDITIONS[condition],
        "utterances": len(texts),
        **error_rate(texts, transcripts, normalise),
    }


def error_rate(texts: Sequence[str], transcripts: Sequence[str], normalise: Normaliser) -> dict[str, float]:
    """WER of transcripts with its 95 % interval: `value`, `low`, `high`."""
    counts = [count_errors(normalise(text), normalise(said)) for text, said in zip(texts, transcripts, strict=True)]
    rate = bootstrap_ratio([c.errors for c in counts], [c.reference_units for c in counts])
    return {name: round(getattr(rate, name), 5) for name in ("value", "low", "high")}


def _others(texts: Sequence[str]) -> list[str]:
    """Each text replaced by the next different one, from half the list on."""
    found = []
    for n, text in enumerate(texts):
        candidates = (texts[(n + len(texts) // 2 + step) % len(texts)] for step in range(len(texts)))
        found.append(next((other for other in candidates if other != text), text))
    return found
