"""Settings of the data benchmark, separate from it so that `--help` is quick."""

from dataclasses import dataclass

from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError


@dataclass
class DataBenchmark:
    """What is measured of the data engine."""

    folder: str = setting("data/benchmark", "folder of the synthetic shards; reused if it exists")
    samples: int = setting(200_000, "samples in the synthetic shards", at_least=10_000)
    rows: int = setting(3000, "rows of 8192 tokens read in each throughput run", at_least=1)
    workers: int = setting(2, "data-loading processes", at_least=0)
    planned: int = setting(
        72_000_000, "samples of the large plan, of which only the index is written; 0 skips it", at_least=0
    )
    steady_rows: int = setting(10_000, "rows over which memory must stay flat; 0 skips it", at_least=0)
    codec_seconds: int = setting(600, "seconds of audio that mel_vq encodes; 0 skips it", at_least=0)

    def check(self) -> None:
        """Check values against each other.

        Raises:
            UserError: the value and what is allowed.
        """
        if 0 < self.planned < 1000 or 0 < self.steady_rows < 1000:
            raise UserError("engine.planned and engine.steady_rows must be 0 (left out) or at least 1000")
