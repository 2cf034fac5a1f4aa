"""Two judges side by side: what a second one, which knows nothing of the bench, makes of the same sounds as the first."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vita_audio_pl.evaluation.identity import FORMAT, digest, file_digests
from vita_audio_pl.evaluation.runs.controls import Recordings, error_rate
from vita_audio_pl.evaluation.runs.runner import Records, Run
from vita_audio_pl.evaluation.scores.normalisers import Normaliser
from vita_audio_pl.storage.files import write_json

_UNIT = 10  # sounds judged by one call: a judge with a large vocabulary is slow


@dataclass(frozen=True)
class Heard:
    """One thing that both judges listened to: its name, the texts that were said, and each judge's transcripts."""

    name: str
    texts: Sequence[str]
    first: Sequence[str]
    second: Sequence[str]


def listen_twice(
    folder: Path,
    codec: Path,
    judges: tuple[str, str],
    facts: dict[str, Any],
    recordings: Recordings,
    records: Sequence[Records],
    normalise: Normaliser,
    run: Run,
) -> dict[str, Any]:
    """WER by both judges of recordings, of the same after the codec, and of answers to the same texts.

    Args:
        folder: gets `second_judge/<key>/judges.json`; the same measurement is not made again.
        judges: names of the first, whose transcripts of answers are there already, and of the second.
        facts: what decides the second judge's transcripts.
        recordings: the assistant's voice, of the texts that the model was asked to say.
        records: evaluations whose answers to the recordings' texts are listened to; all of one split.
        run: the processes that do it.
    """
    count, taken = len(recordings.audios), set(recordings.audios)
    # items without a recording are passed over, as `Recordings.of_answers` does
    items = [[item for item in r.evaluation.items if item.spoken_reference in taken][:count] for r in records]
    records, items = [r for r, some in zip(records, items, strict=True) if some], [some for some in items if some]
    answers = [[r.answer_of(item.id) for item in some] for r, some in zip(records, items, strict=True)]
    texts = [[item.references[0] for item in some] for some in items]
    sounds = [[record.sound_of(answer) for answer in some] for record, some in zip(records, answers, strict=True)]
    audios = file_digests(recordings.audios)
    identities = [[r.evaluation.name, dict(r.evaluation.identity.scoring)] for r in records]
    said_texts = [recordings.texts, texts]
    key = digest([FORMAT, judges, facts, [audios[path] for path in recordings.audios], identities, sounds, said_texts])
    path = folder / "second_judge" / key[:10] / "judges.json"
    if path.is_file() and (found := json.loads(path.read_bytes())).get("key") == key:
        return dict(found)
    parts = [recordings.audios[start : start + _UNIT] for start in range(0, count, _UNIT)]
    treatments = {"source": "the recording", "codec": "the recording after the codec"}
    calls = [(codec, judge, part, treatment) for judge in judges for treatment in treatments for part in parts]
    said = [text for texts in run("recognise", calls) for text in texts]
    heard = [
        Heard(name, recordings.texts, said[n * count : (n + 1) * count], said[(n + 2) * count : (n + 3) * count])
        for n, name in enumerate(treatments.values())
    ]
    for record, some, wanted in zip(records, answers, texts, strict=True):
        spoken = [answer for answer in some if answer.codes]
        batches = [spoken[start : start + _UNIT] for start in range(0, len(spoken), _UNIT)]
        to_hear: list[tuple[Any, ...]] = [(record.evaluation.model, judges[1], batch, {}) for batch in batches]
        second = {one.id: one.text for transcripts in run("transcribe", to_hear) for one in transcripts}
        first = [record.transcript_of(answer.id).text for answer in some]
        by_second = [second.get(answer.id, "") for answer in some]
        heard.append(Heard(f"spoken by the model: {record.evaluation.name}", wanted, first, by_second))
    rows = [
        {
            "heard": one.name,
            "utterances": len(one.texts),
            "first": error_rate(one.texts, one.first, normalise),
            "second": error_rate(one.texts, one.second, normalise),
        }
        for one in heard
    ]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    told = {"format": FORMAT, "key": key, "created": created, "judges": list(judges), "facts": facts, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    return told
