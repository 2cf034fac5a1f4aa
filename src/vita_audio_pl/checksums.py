"""`python -m vita_audio_pl.checksums`: check a folder's files against the checksums that were written with it."""

import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from vita_audio_pl.config.command import CommandConfig
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.config.fields import setting
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.checksums import CHECKSUMS, find_damage, read_checksums, sum_of_folder, write_checksums


@dataclass
class ChecksumsConfig(CommandConfig):
    """Settings of `python -m vita_audio_pl.checksums`."""

    folder: str = setting(MISSING, "a model folder, or the folder of a prepared source", common=True, exists=True)
    write: bool = setting(False, "accept the files as they are now and write their checksums", common=True)


def checksums(config: ChecksumsConfig) -> None:
    """Check, or write new checksums, and print the result; status 1 if anything is damaged."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a model folder, or that of a prepared source")
    started, worked = time.perf_counter(), time.process_time()
    if config.write:
        sums = sum_of_folder(folder)
        if not sums:
            raise UserError(f"{folder} holds no files; give a model folder, or that of a prepared source")
        write_checksums(folder, sums)
        damages = []
    else:
        sums = read_checksums(folder) or {}
        if not sums:
            raise UserError(
                f"{folder} has no {CHECKSUMS}, so its files cannot be checked; write=true accepts them as they are"
            )
        damages = list(find_damage(folder, sums))
    for damage in damages:
        print(damage)
    took, worked = time.perf_counter() - started, time.process_time() - worked
    size = sum(found.bytes for found in sums.values()) / 1e9
    told = "have their checksums now" if config.write else "are what was written" if not damages else "were compared"
    print(f"{folder}: {len(sums)} files of {size:.2f} GB {told}; {took:.1f} s, {worked:.1f} s of the processor")
    if damages:
        raise SystemExit(1)


def main() -> None:
    run_entry_point(checksums, "checksums", ChecksumsConfig)


if __name__ == "__main__":
    main()
