"""Milliseconds of products with weights in 8 and 4 bits: torch's exact ones, torchao's own tensors, and what decoding calls.

Needs the extra `quantize`: python benchmarks/quantised_products.py. One thread, CPU time, the least of 15 repetitions by turns; the
error is relative to exact weights.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio_pl.config.decoding import QUANTIZE
from vita_audio_pl.inference.quantised_products import Numbers, _by_torchao, quantised_product
from vita_audio_pl.models.quantised import QuantisedLinear

ROWS = (1, 4, 11, 64)
SHAPES = ((3072, 1024), (9728, 896), (896, 4864), (512, 256))


def milliseconds(products: dict[str, Callable[[], object]]) -> dict[str, float]:
    least = dict.fromkeys(products, float("inf"))
    for _ in range(15):
        for name, product in products.items():
            begun = time.thread_time()
            product()
            least[name] = min(least[name], 1e3 * (time.thread_time() - begun))
    return least


def main() -> None:
    torch.set_num_threads(1)
    print("| type, matrix | rows | exact | " + " | ".join(f"{s}: torchao, here (error)" for s in QUANTIZE) + " |")
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in SHAPES:
            torch.manual_seed(0)
            weight = torch.randn(outputs, inputs, dtype=dtype)
            linear = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
            linear.weight.data = weight
            held = {scheme: QuantisedLinear.of(linear, scheme) for scheme in QUANTIZE}
            numbers = {s: Numbers(s, made.numbers, made.scales, made.zeros) for s, made in held.items()}
            ours = {s: quantised_product(each, None, dtype) for s, each in numbers.items()}
            theirs = {s: _by_torchao(numbers[s], dtype)[0] for s in ("int8", "int8_dynamic")}
            for rows in ROWS:
                x = torch.randn(rows, inputs, dtype=dtype)
                exact: Tensor = F.linear(x, weight).float()
                calls = {"exact": lambda x=x, w=weight: F.linear(x, w)}
                calls |= {f"{s} here": lambda x=x, p=p: p(x) for s, p in ours.items()}
                calls |= {f"{s} torchao": lambda x=x, p=p: p(x) for s, p in theirs.items()}
                with torch.inference_mode():
                    took = milliseconds(calls)
                    errors = {s: float((p(x).float() - exact).norm() / exact.norm()) for s, p in ours.items()}
                cells = [
                    f"{took.get(f'{s} torchao', float('nan')):.2f}, {took[f'{s} here']:.2f} ({errors[s]:.3f})"
                    for s in QUANTIZE
                ]
                name = f"{str(dtype).removeprefix('torch.')}, {outputs} x {inputs}"
                print(f"| {name} | {rows} | {took['exact']:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
