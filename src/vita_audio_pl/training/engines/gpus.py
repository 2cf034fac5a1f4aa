"""Peak speed and memory of GPUs, for `plan` and for MFU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 TFLOP/s and memory in GiB, from the manufacturers' data sheets."""

    tflops: float
    memory: float


GPUS = {
    "h200": Gpu(989.0, 141.0),
    "h100": Gpu(989.0, 80.0),
    "h800": Gpu(989.0, 80.0),
    "h20": Gpu(148.0, 96.0),
    "b200": Gpu(2250.0, 180.0),
    "a100": Gpu(312.0, 80.0),
    "a800": Gpu(312.0, 80.0),
    "l40s": Gpu(362.0, 48.0),
    "a10": Gpu(125.0, 24.0),
    "rtx 4090": Gpu(165.0, 24.0),
}


def gpu_named(device_name: str) -> Gpu | None:
    """The GPU whose name occurs in the driver's name of a device; None if it is not in the table."""
    words = device_name.lower().replace("-", " ")
    found = [name for name in GPUS if all(word in words.split() for word in name.split())]
    return GPUS[found[0]] if found else None
