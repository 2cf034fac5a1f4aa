"""Builds the spoken world into a folder: audio, samples, grammar, and `world.json` last, which says that it is whole."""

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from vita_audio_pl.errors import UserError
from vita_audio_pl.spoken_world import plan, synthesis
from vita_audio_pl.spoken_world.grammar import grammar
from vita_audio_pl.spoken_world.sentences import LEXICONS, Lexicon, vocabulary
from vita_audio_pl.storage.files import explain_full_disk
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.owned import Kind, Owned, work_folder

MARKER = "world.json"
LAYOUT = 3  # raised when the same size and seed give other sentences, voices or files
_UTTERANCES_A_RUN = 64
WORLD = Kind("spoken world", (MARKER,), sign=(MARKER,))
_PARTS = ("audio", "samples", "grammar.jsgf", "words.txt")


@dataclass(frozen=True)
class World:
    """A finished world on disk; audio paths in its samples are relative to `folder`."""

    folder: Path
    info: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> "World":
        """Opens a finished world.

        Raises:
            UserError: there is none, or it is not whole.
        """
        folder = Path(folder)
        info = _read_marker(folder)
        if info is None or not _is_whole(folder, info):
            raise UserError(f"{folder} holds no finished spoken world; prepare it first")
        return cls(folder, info)

    def samples(self, task: str, split: str) -> Path:
        """The JSONL file of a task (asr, tts, sqa, text) and a split (train, dev, test, unseen_voice)."""
        return self.folder / "samples" / f"{task}.{split}.jsonl"

    @property
    def grammar(self) -> Path:
        return self.folder / "grammar.jsgf"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.info["words"])


def build_world(
    folder: str | Path,
    size: str = "full",
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> World:
    """Speaks and writes the world, or returns at once if the folder holds it already. Can be killed and run again.

    Args:
        folder: not there, empty, or made by this before; becomes `audio/VOICE/*.flac`, `samples/TASK.SPLIT.jsonl`,
            `grammar.jsgf`, `words.txt`, `world.json`. Other files in it are left alone.
        size: `full` or `smoke`.
        seed: draws the splits and the voices.
        workers: runs of espeak-ng and flite at a time; the result does not depend on it.
        progress: called with (utterances spoken, utterances in all).

    Raises:
        UserError: espeak-ng or flite is missing, the size is unknown, or the folder holds another world or something else.
    """
    folder = Path(folder)
    if size not in LEXICONS:
        raise UserError(f"the spoken world has no size '{size}'; choose one of {', '.join(LEXICONS)}")
    if (world := find_world(folder, size, seed)) is not None:
        return world
    mine = Owned.claim(folder, WORLD)
    work = "the spoken world"
    with hold(folder, "world", f"speaking {work}", wait=True), explain_full_disk(folder, work):
        if (world := find_world(folder, size, seed)) is not None:  # built while this process waited
            return world
        versions = {program: synthesis.version_of(program) for program in ("espeak-ng", "flite")}
        lexicon = LEXICONS[size]
        corpus = plan.plan_corpus(lexicon, seed)
        with work_folder(folder / "building", WORLD.name) as aside:
            audio = _speak_all(aside, corpus, workers, progress)
            _write_texts(aside, corpus, lexicon)
            info = {
                "format": 1,
                "name": "spoken_world",
                "size": size,
                "seed": seed,
                "layout": LAYOUT,
                "programs": versions,
                "sample_rate": synthesis.SAMPLE_RATE,
                "voices": {
                    "input": list(plan.INPUT_VOICES),
                    "assistant": plan.ASSISTANT.name,
                    "unseen": plan.UNSEEN_VOICE,
                },
                "words": list(vocabulary(lexicon)),
                "samples": {name: len(rows) for name, rows in corpus.samples.items()},
                "audio": audio,
                "content": _content_hash(aside, corpus),
            }
            mine.remove(MARKER)
            for part in _PARTS:
                _put(aside / part, folder / part)
            marker = aside / MARKER
            marker.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            os.replace(marker, folder / MARKER)
    return World(folder, info)


def find_world(folder: Path, size: str, seed: int) -> World | None:
    """The finished world of this size and seed in `folder`, of which nothing is written; None where none is finished.

    Raises:
        UserError: the folder holds another world.
    """
    info = _read_marker(folder)
    if info is None:
        return None
    found = {key: info.get(key) for key in ("size", "seed", "layout")}
    wanted = {"size": size, "seed": seed, "layout": LAYOUT}
    if found != wanted:
        raise UserError(f"{folder} holds the world {found}, not {wanted}; delete it or choose another folder")
    return World(folder, info) if _is_whole(folder, info) else None


def _speak_all(
    folder: Path, corpus: plan.Corpus, workers: int, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Writes every utterance as 16-bit FLAC; returns how much there is."""
    by_voice: dict[synthesis.Voice, list[str]] = defaultdict(list)
    for voice, text in corpus.utterances:
        by_voice[voice].append(text)
        (folder / "audio" / voice.name).mkdir(parents=True, exist_ok=True)
    runs = [
        (voice, texts[start : start + _UTTERANCES_A_RUN])
        for voice, texts in sorted(by_voice.items())
        for start in range(0, len(texts), _UTTERANCES_A_RUN)
    ]

    def speak(run: tuple[synthesis.Voice, list[str]]) -> tuple[int, int]:
        voice, texts = run
        samples = 0
        for text, wave in zip(texts, synthesis.speak(texts, voice), strict=True):
            file = io.BytesIO()  # libsndfile does not say why a disk refuses; Python does
            soundfile.write(file, wave, synthesis.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            (folder / corpus.utterances[voice, text]).write_bytes(file.getbuffer())
            samples += len(wave)
        return len(texts), samples

    spoken = samples = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for count, length in pool.map(speak, runs):
                spoken, samples = spoken + count, samples + length
                if progress is not None:
                    progress(spoken, len(corpus.utterances))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {"files": spoken, "hours": round(samples / synthesis.SAMPLE_RATE / 3600, 3)}


def _write_texts(folder: Path, corpus: plan.Corpus, lexicon: Lexicon) -> None:
    (folder / "samples").mkdir()
    for name, rows in corpus.samples.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "grammar.jsgf").write_text(grammar(lexicon), encoding="utf-8")
    (folder / "words.txt").write_text("\n".join(vocabulary(lexicon)) + "\n", encoding="utf-8")


def _content_hash(folder: Path, corpus: plan.Corpus) -> str:
    """One hash over the samples and all audio: two worlds with the same hash are the same."""
    digest = hashlib.sha256(json.dumps(corpus.samples, sort_keys=True).encode())
    for path in sorted(corpus.utterances.values()):
        digest.update((folder / path).read_bytes())
    return digest.hexdigest()


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        info = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{folder / MARKER} is damaged; delete it, and the world is built again") from None
    if not isinstance(info, dict) or info.get("name") != "spoken_world":
        raise UserError(f"{folder / MARKER} does not describe a spoken world; choose another folder")
    return info


def _is_whole(folder: Path, info: dict[str, Any]) -> bool:
    """Whether all samples and the audio that they ask for are there."""
    wanted: set[str] = set()
    try:
        for name in info["samples"]:
            lines = (folder / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
            wanted.update(audio for line in lines if line for audio in json.loads(line)["audios"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    there = {str(path.relative_to(folder)) for path in (folder / "audio").glob("*/*.flac")}
    return wanted <= there and all((folder / part).exists() for part in _PARTS)


def _put(source: Path, target: Path) -> None:
    """Moves a file or a folder's files to where they belong; nothing else that is there is touched."""
    if source.is_dir() and target.exists():
        for path in source.iterdir():
            _put(path, target / path.name)
    else:
        os.replace(source, target)
