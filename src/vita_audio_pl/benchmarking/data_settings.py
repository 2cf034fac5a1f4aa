"""What the data benchmark measures: numbers only, so that a command shows its settings at once."""

from dataclasses import dataclass

from vita_audio_pl.errors import UserError


@dataclass
class DataBenchmark:
    """What is measured of the data engine.

    Attributes:
        folder: where the made-up shards go; they are used again if they are there.
        samples: samples with shards.
        rows: rows of 8192 tokens read in each throughput run.
        workers: reading processes.
        planned: samples of the large plan, of which only the indexes are made; 0 leaves it out.
        steady_rows: rows over which memory must stay flat; 0 leaves it out.
        codec_seconds: audio that `mel_vq` encodes; 0 leaves it out.
    """

    folder: str = "data/benchmark"
    samples: int = 200_000
    rows: int = 3000
    workers: int = 2
    planned: int = 72_000_000
    steady_rows: int = 10_000
    codec_seconds: int = 600

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: says which, and what is allowed.
        """
        if self.samples < 10_000:
            raise UserError(f"engine.samples is {self.samples}: at least 10000 are needed to measure anything")
        if self.rows < 1 or min(self.workers, self.planned, self.steady_rows, self.codec_seconds) < 0:
            raise UserError("engine.rows must be at least 1; workers, planned, steady_rows, codec_seconds at least 0")
        if 0 < self.planned < 1000 or 0 < self.steady_rows < 1000:
            raise UserError("engine.planned and engine.steady_rows must be 0 (left out) or at least 1000")
