"""Settings of the training data: the `data` group of the configuration."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from vita_audio_pl.errors import UserError


@dataclass
class DataOptions:
    """Which prepared data a run reads, and how."""

    name: str = "spoken_world"
    shards: str = "data/spoken_world/shards"  # folder or URL with one folder per prepared source
    spoken_world: str = ""  # full or smoke: the spoken world that is made here where its shards are missing
    mixture: str = "small_1"  # file of data_recipes/mixtures without .yaml, or a path to a .yaml
    temperature: float | None = None  # null = the mixture's; above 1 levels the sources' sizes
    overlong: str = "skip"  # samples longer than a row: `skip`, or `cut` answers of plain text; both are counted
    window: int = 65_536  # samples packed and shuffled together
    workers: int = 2  # processes that read and render; 0 = in the training process
    prefetch: int = 4  # batches each worker works ahead
    cache: str = "~/.cache/vita_audio_pl/shards"  # folder on this node for copies of shards that are read from a URL
    max_broken: float = 0.01  # share of samples that may turn out unreadable before the run stops
    adopt_changes: bool = False  # resume with another mixture than the checkpoint's, from the next window on
    validation: str = "dev"  # held-out sources are called `<source>.<this>`; "" = no validation
    validation_rows: int = 16  # packed rows of each held-out source

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        worlds = ("", "full", "smoke")
        checks = (
            (
                self.spoken_world in worlds,
                f"data.spoken_world is '{self.spoken_world}': choose full or smoke, or leave it empty",
            ),
            (self.overlong in ("skip", "cut"), f"data.overlong is '{self.overlong}': choose skip or cut"),
            (self.window >= 1, f"data.window is {self.window}: it must be at least 1"),
            (self.workers >= 0, f"data.workers is {self.workers}: it cannot be negative"),
            (self.prefetch >= 1, f"data.prefetch is {self.prefetch}: it must be at least 1"),
            (self.validation_rows >= 1, f"data.validation_rows is {self.validation_rows}: it must be at least 1"),
            (0 <= self.max_broken <= 1, f"data.max_broken is {self.max_broken}: it must lie in [0, 1]"),
            (
                self.temperature is None or self.temperature > 0,
                f"data.temperature is {self.temperature}: it must be positive",
            ),
        )
        for holds, sentence in checks:
            if not holds:
                raise UserError(sentence)


@dataclass
class ExecutorOptions:
    """Where tasks run: processes of this machine, a Ray cluster, or a SLURM array."""

    name: str = "local"
    workers: int = 2  # processes of this machine, or Ray tasks at a time
    gpus_per_worker: float = 0.0  # Ray: GPUs of a task
    share: int = 0  # SLURM: this job takes the parts whose number is `share` modulo `shares`
    shares: int = 1

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        if self.name not in ("local", "ray", "slurm"):
            raise UserError(f"executor.name is '{self.name}': choose local, ray or slurm")
        if self.workers < 1 or self.shares < 1 or self.gpus_per_worker < 0:
            raise UserError("executor.workers and executor.shares must be at least 1, gpus_per_worker 0 or more")
        if not 0 <= self.share < self.shares:
            raise UserError(
                f"executor.share is {self.share}: it must lie in 0..{self.shares - 1} (executor.shares - 1)"
            )


@dataclass
class PreparePaths:
    """Folders, relative to the current directory unless absolute."""

    data: str = "data"
    runs: str = "runs"


@dataclass
class PrepareConfig:
    """Everything that `python -m vita_audio_pl.prepare` can be told."""

    paths: PreparePaths = field(default_factory=PreparePaths)
    source: str = "spoken_world"  # a recipe of data_recipes/sources, a path to a .yaml, or `spoken_world`
    root: str | None = None  # folder of the corpus
    split: str | None = None  # one of the recipe's splits; null = all of them
    shards: str = MISSING  # folder that the sources' shards go to
    tokenizer_folder: str | None = None  # folder or tokenizer.json of the text tokenizer
    codec_folder: str | None = None  # of the codec; null for text
    device: str = "cpu"  # where the codec's networks run, or cuda
    dtype: str = "float32"  # that they compute in; bfloat16 and float16 are faster on a GPU
    size: str = "full"  # of the spoken world: full or smoke
    seed: int = 0  # of the spoken world
    batch_seconds: float = 120.0  # audio that the codec encodes at a time
    decoders: int = 2  # threads of each worker that read audio beside the codec
    parts: int | None = None  # only so many of the first parts, to try a recipe; never replaces a source that has more
    prune: bool = False  # remove shards that no part of the recipe claims any more; without it they are listed
    keep_audio: bool = False  # keep the audio outside answers, for models that hear through an encoder
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        if self.parts is not None and self.parts < 1:
            raise UserError(f"parts is {self.parts}: it must be at least 1, or null for all of them")
        if self.prune and self.parts is not None:
            raise UserError("prune=true removes what the whole recipe does not claim, so it does not go with parts=N")
