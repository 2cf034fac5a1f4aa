"""`what=decoding` from settings to table and files."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from vita_audio_pl.benchmarking.decoding import Measurement, benchmark_decoding, transformers_loop
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize
from vita_audio_pl.benchmarking.decoding_show import all_figures, decoding_table, write_decoding
from vita_audio_pl.benchmarking.decoding_trained import benchmark_trained, read_questions
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.answering import codec_of
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.models.devices import require_device
from vita_audio_pl.storage.owned import Kind, Owned


def run_decoding_benchmark(
    protocol: DecodingProtocol,
    size: DecodingSize,
    *,
    device: str,
    dtype: torch.dtype,
    folder: Path,
    console: Console,
) -> None:
    """Measures what the protocol says, shows a table and writes the figures into `folder`.

    Raises:
        UserError: a model, a codec or samples that cannot be read, a device that is not there, or a folder that holds
            something else.
    """
    Owned.claim(folder, Kind("decoding benchmark", sign=("decoding.json",)))
    require_device(device)
    where = torch.device(device)
    with console.status("decoding") as status:
        if protocol.model_folder is not None:
            name, measured = _trained(protocol, where, dtype, status.update)
        else:
            name, measured = _random(protocol, size, where, dtype, status.update)
    rows = all_figures(measured)
    machine = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    about = {
        "model": name,
        "size": None if protocol.model_folder else asdict(size),
        "protocol": asdict(protocol),
        "device": f"{device} ({machine})",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": "elapsed" if where.type == "cuda" else "CPU time of the process",
        "torch": torch.__version__,
    }
    write_decoding(rows, about, folder)
    console.print(decoding_table(rows, f"decoding: {name}, {about['dtype']} on {about['device']}"))
    console.print(f"figures in {folder}")


def _trained(
    protocol: DecodingProtocol, where: torch.device, dtype: torch.dtype, progress: Callable[[str], None]
) -> tuple[str, list[Measurement]]:
    if protocol.samples is None:
        raise UserError("a trained model is measured on prompts: give decoding.samples=FILE.jsonl")
    loaded = load_speech_model(str(protocol.model_folder), device=where, dtype=dtype)
    codec = load_codec(protocol.codec) if protocol.codec else codec_of(loaded)
    questions = read_questions(Path(protocol.samples), protocol.limit, loaded, codec)
    measured = benchmark_trained(loaded, codec, questions, protocol, progress=progress)
    return f"{protocol.model_folder}, {len(questions)} questions", measured


def _random(
    protocol: DecodingProtocol,
    size: DecodingSize,
    where: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
) -> tuple[str, list[Measurement]]:
    codec = load_codec(protocol.codec) if protocol.codec else None
    positions = protocol.prompt_tokens + protocol.new_tokens
    model = random_model(size, positions, where, dtype).eval().requires_grad_(False)
    runtime = Runtime(model, compile=protocol.compile)
    measured = benchmark_decoding(runtime, protocol, size, codec=codec, progress=progress)
    if protocol.transformers:
        progress("transformers' own loop")
        measured.append(transformers_loop(size, protocol, where, dtype))
    return f"hidden {size.hidden_size}, {size.layers} layers, vocabulary {size.vocabulary}, random weights", measured
