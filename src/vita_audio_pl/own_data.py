"""Preparing your own recordings and texts for a model: `python -m vita_audio_pl.prepare samples=... model=...`."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vita_audio_pl.codecs import load_codec
from vita_audio_pl.data.executors import executor_of
from vita_audio_pl.data.options import PrepareConfig
from vita_audio_pl.data.prepare_source import withdraw
from vita_audio_pl.data.readers.base import is_apple_double
from vita_audio_pl.data.readers.jsonl import PREFERENCE, share_of
from vita_audio_pl.data.recipe import SourceRecipe
from vita_audio_pl.data.speaking.reader import Speak
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.loading import read_model_facts
from vita_audio_pl.judged_speech import chosen_judge, judge_speech, judged_told
from vita_audio_pl.model_names import named_model
from vita_audio_pl.preparation import describe_manifest, prepare_split, tokenize_job
from vita_audio_pl.spoken_world.plan import ASR_PROMPT, TTS_PROMPT
from vita_audio_pl.storage.copies import local_copy
from vita_audio_pl.storage.files import atomic_write
from vita_audio_pl.storage.model_folders import part_of
from vita_audio_pl.storage.owned import Kind, Owned, atomic_folder
from vita_audio_pl.storage.places import Place, place
from vita_audio_pl.storage.remote import RemotePath
from vita_audio_pl.text import AUDIO_PLACEHOLDER, TextTokenizer
from vita_audio_pl.text.conversation import PAIR
from vita_audio_pl.text.lines import open_text, read_lines
from vita_audio_pl.text.messages import is_blank

SOURCE, DEV = "own", "dev"
SHARDS, MIXTURE = "shards", "mixture.yaml"
PAIRS = "pairs.jsonl"
"""The samples that a folder of recordings and texts stands for."""
ANSWERS = "answers"
"""What the command `pairs` records, of which it makes the pairs."""
ANSWERED_BY = "answered_by.json"
"""The model whose pairs of answers are in a folder; written when they are complete."""
OWN_DATA = Kind("data of your own", (MIXTURE, PAIRS, ANSWERED_BY, f"{ANSWERS}/**"))
_MOST_HELD_OUT = 200
_LONGEST_SECONDS = 60.0
_MOST_NAMED = 10
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
_RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def prepare_own_data(config: PrepareConfig, console: Console) -> Path:
    """Prepare `config.samples` for `config.model`; returns the folder with `shards`, tokenizer and codec.

    Raises:
        UserError: there are no samples, or the model has no codec and none is given.
    """
    samples, model = place(str(config.samples), "samples"), named_model(str(config.model), config.paths.runs)
    if isinstance(samples, RemotePath) and not (config.out and samples.suffix):
        raise UserError(f"{samples} is remote: give the address of a JSONL file, and out=DIR for what is made of it")
    if not samples.exists():
        raise UserError(
            f"there is no file or folder {samples}; give samples=FILE.jsonl, or a folder of name.wav and name.txt"
        )
    facts = read_model_facts(model)
    given = place(config.codec_folder, "codec_folder") if config.codec_folder else None
    codec = local_copy(given, config.cache) if given else part_of(model, "codec")
    if codec is None:
        raise UserError(
            f"{model} has no audio codec: give codec_folder=DIR, the one that the model was trained with (for the published "
            "models, the folder of GLM-4-Voice's tokenizer and decoder)"
        )
    out = Path(config.out or f"{samples.parent}/{samples.stem}_prepared")
    Owned.claim(out, OWN_DATA)
    listed = samples
    if isinstance(samples, Path) and samples.is_dir():
        listed, problems = out / PAIRS, list[str]()
        pairs = "".join(f"{line}\n" for line in _pairs(samples, config.pairs, problems)).encode()
        if not listed.is_file() or listed.read_bytes() != pairs:  # another job that reads them would call them changed
            atomic_write(listed, pairs)
        if problems:
            print(f"{len(problems)} recordings are left out: {'; '.join(problems[:_MOST_NAMED])}")
    _keep(out / "tokenizer", "tokenizer", facts.tokenizer)
    if (out / "codec").is_dir():
        if load_codec(out / "codec").fingerprint != load_codec(codec).fingerprint:
            raise UserError(f"{out} was prepared for a model with another codec; give another out=DIR")
    else:
        with atomic_folder(out / "codec", "codec") as aside:
            shutil.copytree(codec, aside, dirs_exist_ok=True)
    recipe = _recipe(listed, config.held_out)
    if config.speak:
        recipe = replace(recipe, speak=Speak(tuple(config.speak)))
    judge = chosen_judge(config, recipe.languages)
    for split in recipe.all_splits:
        job = tokenize_job(
            recipe,
            split,
            root=listed.parent,
            shards=out / SHARDS,
            tokenizer=facts.tokenizer,
            codec_folder=out / "codec",
            batch_seconds=config.batch_seconds,
            decoders=config.decoders,
            shard_bytes=round(config.shard_mb * 1e6),
            codes=place(config.codes, "codes") if config.codes else None,
            cache=config.cache,
            keep_audio=facts.vocabulary.continuous_input,
            device=config.device,
            dtype=config.dtype,
            max_skipped=config.max_skipped,
            voice=config.tts,
            spoken=place(config.spoken, "spoken") if config.spoken else None,
        )
        whole = config.parts is None
        manifest = prepare_split(job, executor_of(config.executor), console, config.parts, whole, drawn=split == DEV)
        if manifest is not None:
            print(describe_manifest(manifest, out / SHARDS))
            if judge is not None:
                print(judged_told(job, judge_speech(job, manifest, judge, config.judged, config.parts, config.device)))
    if DEV not in recipe.all_splits:
        withdraw(out / SHARDS / recipe.folder(DEV))
    atomic_write(out / MIXTURE, f"description: Your own data.\nsources:\n  {SOURCE}: {{ratio: 1.0}}\n".encode())
    return out


def _keep(folder: Path, what: str, tokenizer: TextTokenizer) -> None:
    """Write the model's tokenizer, or refuse a folder that was prepared for a model with another one."""
    if not folder.is_dir():
        with atomic_folder(folder, what) as aside:
            tokenizer.save(aside)
    elif TextTokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder.parent} was prepared for a model with another tokenizer; give another out=DIR")


def _recipe(path: Place, held_out: float) -> SourceRecipe:
    """The recipe for one file of samples, which users of a corpus write themselves."""
    shares, task = [], ""
    if path.suffix.lower() in _TABLES:
        raise UserError(
            f"{path} is a table: describe its columns in a recipe (docs/add-a-corpus.md), or write JSONL of it"
        )
    with open_text(path) as file:
        if file.read(4096).lstrip().startswith(b"["):  # without its end, which may be gigabytes away
            raise UserError(
                f"{path} is one list, where each sample has to stand on a line of its own: jq -c '.[]' {path} > "
                f"{path.with_name(path.stem)}-lines.jsonl writes it so"
            )
    for line in read_lines(path):
        if line.text.strip():
            shares.append(share_of(line.text))
            task = task or (PREFERENCE if f'"{PAIR[0]}"' in line.text else _task(line.text))
    if not shares:
        raise UserError(f"{path} holds no samples; docs/your-data.md shows one of each task")
    least = 1 if held_out and len(shares) > 1 else 0
    number = max(least, min(_MOST_HELD_OUT, round(held_out * len(shares))))
    threshold = sorted(shares)[number]
    reader = {"kind": "jsonl", "files": [path.name], "held_out": threshold, "watch_audio": True}
    return SourceRecipe(
        name=SOURCE,
        task=task,
        description="A person's own samples.",
        languages=(),
        licence="its owner's",
        home=str(path),
        layout=path.name,
        reader=reader,
        splits={DEV: {"dev": True}} if threshold > min(shares) else {},
        max_seconds=_LONGEST_SECONDS,
    )


def _task(line: str) -> str:
    """The task of the first sample; shown with the source, and selects prompts for samples during training."""
    if AUDIO_PLACEHOLDER not in line:
        return "text"
    for task, prompt in (("asr", ASR_PROMPT), ("tts", TTS_PROMPT)):
        if prompt.splitlines()[0] in line:
            return task
    return "sqa"


def _pairs(folder: Path, task: str, problems: list[str]) -> Iterator[str]:
    """A JSON line for each recording with a text of the same name; `problems` gets a few words on each without one.

    Raises:
        UserError: there is no such pair.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_apple_double(path.name)]
    recordings = [path for path in files if path.suffix.lower() in _RECORDINGS]
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    pairs = [(path, texts[path.with_suffix("")]) for path in recordings if path.with_suffix("") in texts]
    problems += [
        f"{path.relative_to(folder)} has no text beside it" for path in recordings if path.with_suffix("") not in texts
    ]
    if not pairs:
        raise UserError(
            f"{folder} holds no recording (name.wav, name.flac, ...) beside a text of the same name (name.txt), of "
            f"{len(recordings)} recordings; or give samples=FILE.jsonl"
        )
    for audio, text in pairs:
        try:
            said = " ".join(text.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            problems.append(f"{text.relative_to(folder)} is not UTF-8")
            continue
        if is_blank(said):
            problems.append(f"{text.relative_to(folder)} is empty")
            continue
        ask = (TTS_PROMPT + said, AUDIO_PLACEHOLDER) if task == "tts" else (ASR_PROMPT, said)
        messages = [
            {"role": role, "content": content} for role, content in zip(("user", "assistant"), ask, strict=True)
        ]
        yield json.dumps({"id": str(audio.relative_to(folder)), "messages": messages, "audios": [str(audio.resolve())]})
