"""Settings of the training data: the `data` group of the configuration."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError


@dataclass
class DataOptions:
    """Which prepared data a run reads, and how."""

    name: str = "spoken_world"
    shards: str | None = setting(
        None,
        "folder or URL with one folder per prepared source; null = the spoken world, generated here",
        common=True,
        address=True,
    )
    tokenizer_folder: str | None = setting(
        None,
        "folder or URL of the text tokenizer whose ids the shards hold; null = tokenizer beside the shards",
        address=True,
    )
    spoken_world: str | None = setting(
        None,
        "without shards: full or smoke, the spoken world to generate; null = shards are given",
        choices=("", "full", "smoke"),
    )
    world_folder: str = setting(
        "data/spoken_world", "where the spoken world is generated: a new or empty folder, or one generated before"
    )
    mixture: str = setting("small_1", "name in data_recipes/mixtures, or a path to a .yaml")
    temperature: float | None = setting(None, "above 1 evens out the sources' sizes; null = the mixture's", above=0)
    overlong: str = setting(
        "skip",
        "samples longer than a row: `skip`, or `cut` answers of plain text; both are counted",
        choices=("skip", "cut"),
    )
    window: int = setting(65_536, "samples that are packed and shuffled together", at_least=1)
    workers: int = setting(2, "data-loading processes; 0 = in the training process", at_least=0, common=True)
    prefetch: int = setting(4, "batches that each worker prefetches", at_least=1)
    cache: str = setting(
        "~/.cache/vita_audio_pl/shards",
        "folder on this node for copies of shards, tokenizers and codecs that are read from a URL",
    )
    max_broken: float = setting(0.01, "share of unreadable samples at which the run stops", at_least=0, at_most=1)
    skip_missing: bool = setting(False, "train without the mixture's sources that are not prepared, and list them")
    adopt_changes: bool = setting(False, "on resume, use the changed mixture from the next window on")
    validation: str = setting("dev", "suffix of held-out sources, `<source>.<suffix>`; '' = no validation")
    validation_rows: int = setting(16, "packed rows taken from each held-out source", at_least=1)

    @property
    def folder(self) -> str:
        """Folder or URL of the shards to read: the given ones, or the spoken world's."""
        return self.shards or f"{self.world_folder}/shards"

    def check(self) -> None:
        """Refuse a configuration without data, or a tokenizer for shards that are made with their own.

        Raises:
            UserError: neither shards nor a spoken world are given, or a tokenizer without shards.
        """
        if self.tokenizer_folder and not self.shards:
            raise UserError(
                "data.tokenizer_folder is given, and data.shards is not: the spoken world that is made here gets its own "
                "tokenizer, or that of the pretrained model"
            )
        if not self.shards and not self.spoken_world:
            raise UserError(
                "data.spoken_world=null says that shards are given, and data.shards names none: give data.shards=DIR"
            )


@dataclass
class ExecutorOptions:
    """Where preparation tasks run: local processes, a Ray cluster, or a SLURM array."""

    name: str = setting("local", "where parts are prepared", choices=("local", "ray", "slurm"))
    workers: int = setting(2, "processes on this machine, or concurrent Ray tasks", at_least=1, common=True)
    gpus_per_worker: float = setting(0.0, "Ray: GPUs per task", at_least=0)
    share: int = setting(
        0, "SLURM: index of this job; it prepares the parts numbered `share` modulo `shares`", at_least=0
    )
    shares: int = setting(1, "SLURM: jobs in the array", at_least=1)
    tries: int = setting(3, "attempts at a part before it is given up and the others continue", at_least=1)

    def check(self) -> None:
        """Check values against each other.

        Raises:
            UserError: the value and what is allowed.
        """
        if not 0 <= self.share < self.shares:
            raise UserError(
                f"executor.share is {self.share}: it must lie in 0..{self.shares - 1} (executor.shares - 1)"
            )


@dataclass
class PrepareConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.prepare`."""

    source: str = setting(
        "spoken_world", "a recipe of data_recipes/sources, a path to a .yaml, or `spoken_world`", common=True
    )
    samples: str | None = setting(
        None,
        "your own data instead of a source: a JSONL file, or a folder of name.wav with name.txt (docs/your-data.md); null = the source",
        common=True,
        address=True,
    )
    model: str | None = setting(
        None, "with samples: the model to fine-tune, whose tokenizer and codec are used; null = none", common=True
    )
    out: str | None = setting(
        None, "with samples: folder for shards, tokenizer and codec; null = beside the samples", common=True
    )
    pairs: str = setting(
        "tts",
        "task of a folder of name.wav and name.txt: tts (speak) or asr (transcribe)",
        choices=("tts", "asr"),
    )
    held_out: float = setting(
        0.05, "with samples: share held out for validation, at most 200 samples", at_least=0, below=1
    )
    root: str | None = setting(
        None,
        "folder or URL of the corpus; null for the spoken world only",
        common=True,
        address=True,
    )
    split: str | None = setting(None, "one of the recipe's splits; null = all")
    shards: str = setting(MISSING, "folder or URL (s3://, gs://) for the sources' shards", common=True, address=True)
    tokenizer_folder: str | None = setting(
        None,
        "folder, tokenizer.json or URL of the text tokenizer; null for the spoken world, which makes its own",
        common=True,
        address=True,
        exists=True,
    )
    codec_folder: str | None = setting(
        None, "folder or URL of the codec; null for text", common=True, address=True, exists=True
    )
    codes: str | None = setting(
        None,
        "folder or URL that caches codes, so that no recording is encoded twice; null = none",
        address=True,
    )
    cache: str = setting(
        "~/.cache/vita_audio_pl/shards",
        "folder on this node for copies of tokenizers and codecs that are read from a URL",
    )
    device: str = setting("cpu", "device of the codec: cpu or cuda", choices=("cpu", "cuda"), common=True)
    dtype: str = setting(
        "float32",
        "type the codec computes in; bfloat16 and float16 are faster on a GPU",
        choices=("float32", "bfloat16", "float16"),
    )
    size: str = setting("full", "size of the spoken world: full or smoke", choices=("full", "smoke"))
    seed: int = setting(0, "seed of the spoken world", at_least=0)
    batch_seconds: float = setting(120.0, "seconds of audio per codec batch", above=0)
    decoders: int = setting(2, "threads per worker that decode audio files", at_least=1)
    shard_mb: float = setting(
        100.0,
        "megabytes that a shard has at least (codes, text and kept audio), once a source is finished; 0 = a shard for each part",
        at_least=0,
        at_most=4000,
    )
    parts: int | None = setting(
        None,
        "prepare only the first parts, to try a recipe; never replaces a source that has more; null = all",
        at_least=1,
        common=True,
    )
    max_skipped: float | None = setting(
        None,
        "share of a source's samples that may be left out (above 20 samples); null = the recipe's, or 0.05",
        at_least=0,
        at_most=1,
        common=True,
    )
    prune: bool = setting(
        False, "remove shards that no part of the recipe produces any more; otherwise they are listed"
    )
    keep_audio: bool = setting(False, "keep the audio outside answers, for models with an audio encoder")
    tts: Any = setting(
        None,
        "voice for messages without sound: espeak, endpoint, command, or a class of your own; null = the recipe's, if any",
        common=True,
    )
    speak: list[str] = setting(
        [], "with samples: roles whose messages without sound the voice speaks", choices=("user", "assistant")
    )
    spoken: str | None = setting(
        None, "folder or URL that keeps the speech of each text; null = .spoken in shards", address=True
    )
    judge: Any = setting(
        None,
        "recogniser that checks generated speech or transcribes recordings without text: pocketsphinx, whisper, paraformer, "
        "or a class of your own; null = none",
    )
    judge_model: str | None = setting(None, "folder of the judge's checkpoint; null = it needs none", exists=True)
    judge_grammar: str | None = setting(None, "JSGF file for pocketsphinx; null = the judge needs none", exists=True)
    judged: int = setting(200, "messages of a source that the judge listens to", at_least=1)
    trust_file: bool = setting(
        False, "load the checkpoint of the judge paraformer, although such files can run any code"
    )
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)

    def check(self) -> None:
        """Check values against each other.

        Raises:
            UserError: the value and what is allowed.
        """
        if self.samples is None and self.source == "spoken_world" and self.tts is not None:
            raise UserError(
                "the spoken world speaks for itself: tts=... is for recipes that say whose messages are spoken"
            )
        if self.speak and (self.samples is None or self.tts is None):
            raise UserError(
                "speak goes with samples=FILE.jsonl and tts=...; of a source, its recipe says what is spoken"
            )
        if self.samples is not None and self.tts is not None and not self.speak:
            raise UserError("whose messages are to be spoken? give speak=[assistant], or [user,assistant]")
        if self.prune and self.parts is not None:
            raise UserError("prune=true removes what the whole recipe does not claim, so it does not go with parts=N")
        if (self.samples is None) != (self.model is None):
            raise UserError(
                "data of your own takes both samples=FILE.jsonl and model=DIR, the model that is to be fine-tuned on them"
            )
