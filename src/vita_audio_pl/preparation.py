"""Preparation of a corpus, or of the whole spoken world, with a codec: from audio and text to shards."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from vita_audio_pl.codecs import AudioTooLong, Codec, MelVQ, MelVQConfig, load_codec, read_audio
from vita_audio_pl.config.component import Custom
from vita_audio_pl.config.screen import messages
from vita_audio_pl.data.executors import Executor, worker_number
from vita_audio_pl.data.left_out import NothingUsable, summary
from vita_audio_pl.data.prepare_source import finished_manifest, prepare_source, withdraw
from vita_audio_pl.data.prepared import SKIPPED, Manifest
from vita_audio_pl.data.progress import PrepareProgress
from vita_audio_pl.data.read_ahead import BROKEN_AUDIO
from vita_audio_pl.data.readers import AudioBytes, AudioRef, LeftOut, ToSpeak, Transcriber
from vita_audio_pl.data.readers.speech import SPEECH
from vita_audio_pl.data.recipe import SourceRecipe, load_recipe
from vita_audio_pl.data.speaking import KeptSpeech, SpeakingReader, VoiceSettings, voice_facts
from vita_audio_pl.data.speaking.kept import FOLDER
from vita_audio_pl.data.speaking.reader import Speak
from vita_audio_pl.data.tokenize import SHARD_BYTES, TOO_LONG, AudioRules, TokenizeJob
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.released import ENCODER_FOLDER
from vita_audio_pl.models.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from vita_audio_pl.models.sensevoice_frontend import SAMPLE_RATE, SenseVoiceFrontEnd
from vita_audio_pl.spoken_world import WORLD, World, build_world, find_world
from vita_audio_pl.spoken_world.training_material import training_texts, training_waves
from vita_audio_pl.storage.copies import CACHE, local_copy
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.storage.lease import hold
from vita_audio_pl.storage.owned import Owned, atomic_folder, below
from vita_audio_pl.storage.places import Place
from vita_audio_pl.text import TextTokenizer
from vita_audio_pl.text.turns import EXTRA_FRAMES

WORLD_SOURCES = ("world_asr", "world_tts", "world_sqa", "world_text")
_WORLD_PREPARED = "prepared.json"
_TEXT_ENTRIES = 2048  # more than the spoken world's words need: every word becomes one token
_FIT_SPOKEN, _FIT_HEARD = (
    3600.0,
    1800.0,
)  # seconds of the assistant's voice and of the others that the codec is fitted to
_STATISTICS_SECONDS = 300.0  # audio for mean and variance of the encoder's features
_WORLD_SHARDS = ("shards", "shards_with_audio")  # without and with the audio that encoders need
_TINY_ENCODER = SenseVoiceConfig(width=128, heads=4, ffn_width=256, layers=3, text_layers=1)


def load_audio(audio: AudioRef, sample_rate: int, max_seconds: float) -> np.ndarray:
    """Audio of a corpus as `(samples,) float32` at `sample_rate` Hz.

    Raises:
        LeftOut: it is longer than `max_seconds`, or unreadable.
        OSError: the machine failed, not the audio.
    """
    if isinstance(audio, ToSpeak):
        raise LeftOut(BROKEN_AUDIO, f"{audio}: nobody has spoken it")
    try:
        if isinstance(audio, AudioBytes):
            memory = io.BytesIO(audio.data)
            return read_audio(memory, sample_rate, max_seconds, channel=audio.channel, name=audio.name)
        return read_audio(
            audio.path, sample_rate, max_seconds, start=audio.start, seconds=audio.seconds, channel=audio.channel
        )
    except AudioTooLong as error:
        raise LeftOut(TOO_LONG, str(error)) from error
    except UserError as error:
        raise LeftOut(BROKEN_AUDIO, str(error)) from error


def codec_facts(codec: Codec, dtype: str = "float32", device: str = "cpu") -> dict[str, str | float | int]:
    """A manifest's description of a codec: everything that its codes depend on.

    Args:
        dtype, device: of its networks; ignored for a codec without the method `to`.
    """
    moves = hasattr(codec, "to")
    kind = device.partition(":")[0]  # sums are rounded differently on the two kinds of device, so some codes differ
    return {
        "name": codec.name,
        "fingerprint": codec.fingerprint,
        "codes_per_second": codec.codes_per_second,
        "codebook_size": codec.codebook_size,
        "build": getattr(codec, "build", "1"),
        "dtype": dtype if moves else "float32",
        **({"device": kind} if moves and kind != "cpu" else {}),  # shards that a CPU made keep their names
    }


def worker_codec(folder: Place, device: str, dtype: str, cache: str = CACHE) -> Codec:
    """The codec of a worker process: with `cuda`, workers are distributed over this machine's GPUs in turn."""
    if device == "cuda" and torch.cuda.device_count() > 1:
        device = f"cuda:{worker_number() % torch.cuda.device_count()}"
    return load_codec(local_copy(folder, cache), device, dtype)


def encoder_placeholders(samples: int) -> int:
    """Placeholder tokens of a clip of `samples` samples at 16 kHz: one for each state of a SenseVoice encoder."""
    return SenseVoiceFrontEnd().frames(samples) + EXTRA_FRAMES


def tokenize_job(
    recipe: SourceRecipe,
    split: str,
    *,
    root: Place,
    shards: Place,
    tokenizer: TextTokenizer,
    codec_folder: Place | None,
    batch_seconds: float = 120.0,
    decoders: int = 2,
    shard_bytes: int = SHARD_BYTES,
    codes: Place | None = None,
    cache: str = CACHE,
    keep_audio: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    max_skipped: float | None = None,
    voice: VoiceSettings | Custom | None = None,
    spoken: Place | None = None,
    transcriber: Transcriber | None = None,
) -> TokenizeJob:
    """The job that prepares one split of a source.

    Args:
        recipe: the source.
        split: `train` or one of the recipe's splits.
        root: folder of the corpus.
        shards: folder of all sources' shards; this one's go to `shards/<recipe.folder(split)>`.
        tokenizer: text tokenizer.
        codec_folder: codec to encode with; None for text.
        batch_seconds: seconds of audio per call of the codec.
        decoders: threads that decode audio while the codec encodes.
        shard_bytes: minimum size of a shard.
        codes: cache of the codes of recordings, shared between sources.
        cache: local folder for a copy of a remote codec.
        keep_audio: keep prompt audio beside the codes, for models with an audio encoder.
        device, dtype: of the codec's networks.
        max_skipped: share of the samples that may be left out; None uses the recipe's.
        voice: voice for messages to synthesise; None uses the recipe's.
        spoken: folder of the synthesised audio; None = beside the shards.
        transcriber: transcribes recordings that have no transcript.

    Raises:
        UserError: see `SourceRecipe.open`; or texts must be synthesised and there is no voice, or it cannot be used.
    """
    job = TokenizeJob(
        source=recipe.folder(split),
        task=recipe.task,
        reader=recipe.open(root, split, transcriber),
        tokenizer=tokenizer,
        make_codec=partial(worker_codec, codec_folder, device, dtype, cache) if codec_folder else None,
        codec=codec_facts(load_codec(local_copy(codec_folder, cache)), dtype, device) if codec_folder else {},
        load_audio=load_audio,
        out=below(shards, recipe.folder(split), "the name of the source"),
        rules=AudioRules(max_seconds=recipe.max_seconds, batch_seconds=batch_seconds),
        filters=recipe.filters,
        max_skipped=recipe.max_skipped if max_skipped is None else max_skipped,
        decoders=decoders,
        shard_bytes=shard_bytes,
        codes=codes,
        placeholders=encoder_placeholders if keep_audio else None,
        about={
            "description": recipe.description,
            "languages": list(recipe.languages),
            "licence": recipe.licence,
            "home": recipe.home,
            **({"absent": absent} if (absent := recipe.absent(root, split)) else {}),
            **({"transcripts": dict(transcriber.facts)} if transcriber and recipe.reader["kind"] == SPEECH else {}),
        },
    )
    if recipe.speak is None:
        if voice is not None:
            raise UserError(
                f"nothing of '{recipe.name}' is spoken, so tts has no effect: leave it out, or say in a copy of the recipe whose "
                "messages are, as in 'speak: [assistant]'"
            )
        return job
    return _with_speech(job, recipe.name, recipe.speak, voice or recipe.speak.voice, spoken or shards / FOLDER)


def _with_speech(
    job: TokenizeJob, source: str, speak: Speak, voice: VoiceSettings | Custom | None, folder: Place
) -> TokenizeJob:
    """The job with messages synthesised."""
    if voice is None:
        raise UserError(
            f"{' and '.join(speak.roles)} of '{source}' have no sound, which a voice has to make: give tts=espeak, tts=endpoint "
            "tts.url=http://HOST:PORT/v1, or tts=command (docs/add-a-corpus.md)"
        )
    facts = voice_facts(voice)
    return replace(
        job,
        reader=SpeakingReader(job.reader, speak, facts),
        load_audio=KeptSpeech(job.load_audio, voice, facts, folder),
        about={**job.about, "spoken": {"roles": list(speak.roles), "voice": facts}},
    )


def prepare_split(
    job: TokenizeJob,
    executor: Executor | None = None,
    console: Console | None = None,
    most_parts: int | None = None,
    prune: bool = False,
    drawn: bool = False,
) -> Manifest | None:
    """`prepare_source` with a progress bar. A `drawn` share of a few samples may turn out empty, which is no error."""
    console = console or messages()
    tell = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    try:
        return prepare_source(job, executor, partial(PrepareProgress, console=console), most_parts, prune, tell)
    except NothingUsable as nothing:
        if not drawn:
            raise
        withdraw(job.out)
        tell(f"'{job.source}' is not there for validation: {nothing}")
        return None


def describe_manifest(manifest: Manifest, shards: Place) -> str:
    """The final message of a prepared split."""
    return (
        f"'{manifest.source}' is ready: {manifest.samples} samples, {manifest.seconds / 3600:.2f} h of audio, "
        f"{summary(manifest.report)}; in {shards / manifest.source}"
        + (f", where {SKIPPED} names what is left out" if manifest.report["skipped"] else "")
    )


def prepare_spoken_world(
    folder: str | Path,
    size: str = "full",
    seed: int = 0,
    codebook_size: int = 512,
    workers: int = 2,
    console: Console | None = None,
    keep_audio: bool = False,
    text: Path | None = None,
) -> Path:
    """Make everything that training on the spoken world needs; returns at once if it exists.

    The tokenizer and the codec are fitted to training text and audio only. Test sets stay samples and audio.

    Args:
        folder: missing, empty, or made by this function; gets the world (`audio`, `samples`), `tokenizer`, `codec` and
            `shards/<source>[.dev]`.
        size: `full` or `smoke`.
        seed: of the world and of the codec's fit.
        codebook_size: codes of the codec.
        workers: concurrent runs of the synthesiser.
        console: shows progress.
        keep_audio: for the Plus variants: shards with prompt audio, in a folder of their own beside the
            others, and `speech_input`, a tiny encoder with random weights.
        text: folder of another text tokenizer, a pretrained model's; shards with its ids, and a copy of it
            (`world_tokenizer`), go to folders of their own beside the world's.

    Returns:
        The folder of the shards.

    Raises:
        UserError: espeak-ng is missing, the folder holds another world or something else, or the disk is full.
    """
    folder, console = Path(folder), console or messages()
    tokenizer = None if text is None else TextTokenizer.load(text)
    if not _is_prepared(folder, size, seed, codebook_size, keep_audio, tokenizer):
        Owned.claim(folder, WORLD)
        with hold(folder, "build", "preparing the spoken world", wait=True):
            _prepare_world(folder, size, seed, codebook_size, workers, console, keep_audio, tokenizer)
    return _world_shards(folder, keep_audio, tokenizer)


def world_tokenizer(folder: Path, text: Path | None = None) -> Path:
    """Folder of a spoken world's tokenizer: its own, or its copy of the pretrained model's in `text`."""
    return _world_tokenizer(folder, None if text is None else TextTokenizer.load(text))


def _world_tokenizer(folder: Path, tokenizer: TextTokenizer | None) -> Path:
    return folder / ("tokenizer" if tokenizer is None else f"tokenizer-{tokenizer.fingerprint}")


def _world_shards(folder: Path, keep_audio: bool, tokenizer: TextTokenizer | None) -> Path:
    name = _WORLD_SHARDS[keep_audio]
    return folder / (name if tokenizer is None else f"{name}-{tokenizer.fingerprint}")


def _is_prepared(
    folder: Path, size: str, seed: int, codebook_size: int, keep_audio: bool, tokenizer: TextTokenizer | None
) -> bool:
    """Whether everything exists; nothing is written, so that a world on read-only storage can be used."""
    world = find_world(folder, size, seed)
    made = (_world_tokenizer(folder, tokenizer).name, "codec", *([ENCODER_FOLDER] if keep_audio else []))
    return (
        world is not None
        and _has_facts(folder, world, codebook_size)
        and all((folder / name).is_dir() for name in made)
        and all(finished_manifest(job) is not None for job in _world_jobs(folder, keep_audio, tokenizer))
    )


def _has_facts(folder: Path, world: World, codebook_size: int) -> bool:
    """Whether the existing parts of the world have these settings."""
    marker = folder / _WORLD_PREPARED
    return marker.is_file() and _noted(marker) == _facts(world, codebook_size)


def _noted(marker: Path) -> dict[str, Any]:
    """The facts in a marker file; earlier versions did not store its format."""
    return {"format": 1, **json.loads(marker.read_text(encoding="utf-8"))}


def _facts(world: World, codebook_size: int) -> dict[str, Any]:
    return {"format": 1, "world": world.info["content"], "codebook_size": codebook_size, "text_entries": _TEXT_ENTRIES}


def _world_jobs(folder: Path, keep_audio: bool, tokenizer: TextTokenizer | None) -> Iterator[TokenizeJob]:
    """The jobs for every split of the world's sources."""
    own = TextTokenizer.load(_world_tokenizer(folder, tokenizer))
    for name in WORLD_SOURCES:
        recipe = load_recipe(name)
        for split in recipe.all_splits:
            yield tokenize_job(
                recipe,
                split,
                root=folder,
                shards=_world_shards(folder, keep_audio, tokenizer),
                tokenizer=own,
                codec_folder=folder / "codec",
                keep_audio=keep_audio,
            )


def _prepare_world(
    folder: Path,
    size: str,
    seed: int,
    codebook_size: int,
    workers: int,
    console: Console,
    keep_audio: bool,
    tokenizer: TextTokenizer | None,
) -> None:
    """Make what is missing; one process at a time."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        speaking = bars.add_task("spoken world", total=None)
        world = build_world(
            folder, size, seed, workers, lambda done, total: bars.update(speaking, completed=done, total=total)
        )
    facts = _facts(world, codebook_size)
    marker = folder / _WORLD_PREPARED
    if not marker.is_file():
        write_json(marker, facts)
    elif (there := _noted(marker)) != facts:
        told = "; ".join(
            f"{key} is {there.get(key)} there and {facts[key]} here" for key in facts if there.get(key) != facts[key]
        )
        raise UserError(
            f"tokenizer, codec and shards in {folder} were made from another world or with other settings ({told}), and runs may "
            "need them: delete the folder, or choose another one (data.world_folder=DIR; root=DIR of prepare)"
        )
    if not _world_tokenizer(folder, tokenizer).is_dir():
        with atomic_folder(_world_tokenizer(folder, tokenizer), "tokenizer") as aside:
            if tokenizer is None:
                TextTokenizer.train(training_texts(world, WORLD_SOURCES), _TEXT_ENTRIES, aside)
            else:
                tokenizer.save(aside)
    if not (folder / "codec").is_dir():
        console.print(f"fitting the codec mel_vq ({codebook_size} codes) to the training audio")
        config = MelVQConfig(codebook_size=codebook_size)
        with atomic_folder(folder / "codec", "codec") as aside:
            spoken, heard = (
                training_waves(world, WORLD_SOURCES, config.sample_rate, seed, seconds, assistant)
                for seconds, assistant in ((_FIT_SPOKEN, True), (_FIT_HEARD, False))
            )
            MelVQ.fit(heard, config, seed, spoken).save(aside)
    if keep_audio and not (folder / ENCODER_FOLDER).is_dir():
        waves = training_waves(world, WORLD_SOURCES, SAMPLE_RATE, seed, _STATISTICS_SECONDS)
        with atomic_folder(folder / ENCODER_FOLDER, "audio encoder") as aside:
            new_encoder(seed).save(aside, SenseVoiceFrontEnd().fitted(waves))
    for job in _world_jobs(folder, keep_audio, tokenizer):
        prepare_split(job, console=console)


def new_encoder(seed: int) -> SenseVoiceEncoder:
    """The tiny SenseVoice-shaped encoder of the small spoken world, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SenseVoiceEncoder(_TINY_ENCODER)
