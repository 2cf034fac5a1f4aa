"""`what=decoding`, from settings to table and files."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vita_audio_pl.benchmarking.cost import process_memory
from vita_audio_pl.benchmarking.decoding import Measurement, benchmark_decoding
from vita_audio_pl.benchmarking.decoding_settings import DecodingProtocol, DecodingSize, Setting
from vita_audio_pl.benchmarking.decoding_show import all_figures, decoding_table, write_decoding
from vita_audio_pl.benchmarking.decoding_trained import benchmark_trained, read_questions
from vita_audio_pl.benchmarking.random_model import random_model
from vita_audio_pl.benchmarking.transformers_loop import TransformersLoop
from vita_audio_pl.codecs.protocol import load_codec
from vita_audio_pl.config.decoding import Greedy
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.answering import codec_of
from vita_audio_pl.inference.kernels import Kernels, Serving, check_kernels
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.devices import processor, require_device
from vita_audio_pl.models.quantised import quantise
from vita_audio_pl.models.speech_lm import SpeechLM
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
        UserError: a model, a codec or samples that cannot be read, a size beside a trained model, a device that is not there,
            or a folder that holds something else.
    """
    if protocol.model_folder is not None and size != DecodingSize():
        raise UserError(
            "decoding_size is the size of a model with random weights, and the one in decoding.model_folder has its own; leave "
            "one of them out"
        )
    Owned.claim(folder, Kind("decoding benchmark", sign=("decoding.json",)))
    require_device(device)
    for kernels, verify in product(protocol.kernels, protocol.verify):
        check_kernels(kernels, verify, Greedy, device)
    where = torch.device(device)
    with console.status("decoding") as status:
        if protocol.model_folder is not None:
            name, measured, more = _trained(protocol, where, dtype, status.update)
        else:
            name, measured, more = _random(protocol, size, where, dtype, status.update)
    rows = all_figures(measured)
    machine = torch.cuda.get_device_name(where) if where.type == "cuda" else processor()
    about = {
        "model": name,
        "size": None if protocol.model_folder else asdict(size),
        "protocol": asdict(protocol),
        "device": f"{device} ({machine})",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": "elapsed" if where.type == "cuda" else "CPU time of the process",
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "command": " ".join(["python -m vita_audio_pl.benchmark", *sys.argv[1:]]),
    } | more
    write_decoding(rows, about, folder)
    modes = {each.setting.mode for each in measured}
    if left_out := [mode for mode in protocol.modes if mode not in modes and DecodePattern.of(mode).uses_heads]:
        console.print(
            f"not measured in {', '.join(left_out)}: the model has no heads, so it would answer as in Vanilla"
        )
    console.print(decoding_table(rows, f"decoding: {name}, {about['dtype']} on {about['device']}"))
    if "memory" in more:
        for name, kept in {"": more["memory"], **more["memory_quantised"]}.items():
            console.print(
                f"memory: {kept['held_mib']:.0f} MiB for {kept['weights_mib']:.0f} MiB of weights, {kept['times']:.2f} times"
                + (f", in {name}" if name else "")
            )
    console.print(f"figures in {folder}")


def _trained(
    protocol: DecodingProtocol, where: torch.device, dtype: torch.dtype, progress: Callable[[str], None]
) -> tuple[str, list[Measurement], dict[str, Any]]:
    if protocol.samples is None:
        raise UserError("a trained model is measured on prompts: give decoding.samples=FILE.jsonl")
    load = partial(load_speech_model, str(protocol.model_folder), device=where, dtype=dtype)
    loaded, quantised = load(), {quantize: load(quantize=quantize) for quantize in protocol.quantize}
    codec = load_codec(protocol.codec) if protocol.codec else codec_of(loaded)
    questions = read_questions(Path(protocol.samples), protocol.limit, loaded, codec)
    measured, kernels = benchmark_trained(loaded, codec, questions, protocol, quantised=quantised, progress=progress)
    return f"{protocol.model_folder}, {len(questions)} questions", measured, {"kernels": kernels}


def _random(
    protocol: DecodingProtocol,
    size: DecodingSize,
    where: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
) -> tuple[str, list[Measurement], dict[str, Any]]:
    codec = load_codec(protocol.codec) if protocol.codec else None
    positions = protocol.prompt_tokens + protocol.new_tokens

    def make() -> SpeechLM:
        return random_model(size, positions, where, dtype, group="decoding_size").eval().requires_grad_(False)

    progress("memory")
    about: dict[str, Any] = {}
    if where.type == "cpu":
        about["memory"] = _memory_of_runtime(make)
        about["memory_quantised"] = {quantize: _memory_of_runtime(make, quantize) for quantize in protocol.quantize}
    runtimes = Runtimes(make, protocol)
    beside = TransformersLoop(size, protocol, where, dtype) if protocol.transformers else None
    measured = benchmark_decoding(runtimes, protocol, size, codec=codec, beside=beside, progress=progress)
    name = f"hidden {size.hidden_size}, {size.layers} layers, vocabulary {size.vocabulary}, random weights"
    return name, measured, about | {"kernels": runtimes.records()}


class Runtimes:
    """A runtime for each mode, with the kernels that are quickest for it; modes for which they are the same share one."""

    def __init__(self, make: Callable[[], SpeechLM], protocol: DecodingProtocol):
        self._models: dict[str | None, SpeechLM] = {None: make()}
        for quantize in protocol.quantize:
            quantise(model := make(), quantize)
            self._models[quantize] = model
        self._protocol = protocol
        self._made: dict[tuple[str | None, str, str, bool, int], Runtime] = {}

    def __call__(self, setting: Setting) -> Runtime:
        key = (setting.quantize, setting.kernels, setting.mode, setting.verify != "none", setting.sessions)
        if key not in self._made:
            serving = Serving(DecodePattern.of(setting.mode), setting.verify != "none", setting.sessions)
            model, kernels = self._models[setting.quantize], Kernels(setting.kernels, [serving])
            made = Runtime(model, kernels=kernels, compile=self._protocol.compile)
            same = [
                other
                for other in self._made.values()
                if (other.quantize, other.kernels.choice, other.kernels.plans)
                == (made.quantize, kernels.choice, kernels.plans)
            ]
            self._made[key] = same[0] if same else made
        return self._made[key]

    def records(self) -> dict[str, Any]:
        """What was chosen for each."""
        return {
            f"{mode}{' verified' if verified else ''} x{sessions}, {quantize or kernels}": runtime.kernels.record()
            for (quantize, kernels, mode, verified, sessions), runtime in self._made.items()
        }


def _memory_of_runtime(make: Callable[[], SpeechLM], quantize: str | None = None) -> dict[str, float]:
    """What a process holds more for a model that is ready to decode, beside the size of its exact weights; MiB."""
    model = make()
    Runtime(model)  # what choosing kernels needs is not what decoding holds
    del model
    before = process_memory("VmRSS")
    model = make()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if quantize is not None:
        quantise(model, quantize)
    runtime = Runtime(model, release=True)
    held = process_memory("VmRSS") - before
    del runtime, model
    return {"weights_mib": weights / 2**20, "held_mib": held / 2**20, "times": held / weights}
