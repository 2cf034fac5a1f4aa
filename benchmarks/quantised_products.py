"""Milliseconds and relative error of torchao's quantised products beside torch's own, for the rows that decoding multiplies.

Needs a package that this project does not depend on: pip install --no-deps torchao==0.18.0 (torch 2.13.0), then
python benchmarks/quantised_products.py. One thread, a matrix of 3072 x 1024, the least of 12 repetitions.
"""

import time

import torch
from torch import nn
from torchao.quantization import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerGroup

ROWS = (1, 4, 11, 64)
KINDS = {
    "torch": None,
    "int8, weights": Int8WeightOnlyConfig(),
    "int8, dynamic": Int8DynamicActivationInt8WeightConfig(),
    "int4, any device": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64)),
    "int4, plain": Int4WeightOnlyConfig(group_size=64),
    "int4, tiles": Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d"),
}


def seconds(layer: nn.Module, x: torch.Tensor) -> float:
    layer(x)
    least = float("inf")
    for _ in range(12):
        begun = time.perf_counter()
        layer(x)
        least = min(least, time.perf_counter() - begun)
    return least


def main() -> None:
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        for name, config in KINDS.items():
            torch.manual_seed(0)
            layer = nn.Sequential(nn.Linear(1024, 3072, bias=False, dtype=dtype))
            inputs = {rows: torch.randn(rows, 1024, dtype=dtype) for rows in ROWS}
            with torch.inference_mode():
                exact = {rows: layer(x).float() for rows, x in inputs.items()}
            try:
                if config is not None:
                    quantize_(layer, config)
                with torch.inference_mode():
                    cells = []
                    for rows, x in inputs.items():
                        error = ((layer(x).float() - exact[rows]).norm() / exact[rows].norm()).item()
                        cells.append(f"{rows} rows {1e3 * seconds(layer, x):.2f} ms ({error:.4f})")
            except Exception as error:  # what does not run here is a result, too
                cells = [f"{type(error).__name__}: {str(error)[:100]}"]
            print(f"{str(dtype).removeprefix('torch.')}, {name}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
