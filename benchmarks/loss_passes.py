"""Ways to get a chunk's losses, hits and probabilities from its logits, timed by turns on one thread: python benchmarks/loss_passes.py."""

import time

import torch
from torch import Tensor

ROWS, VOCABULARY, REPETITIONS = 512, 20_000, 9


def as_in_training(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    largest, wanted = logits.amax(-1), logits.gather(-1, target)[:, 0]
    probabilities = torch.softmax(logits, -1, out=logits)
    return largest - probabilities.amax(-1).log() - wanted, wanted == largest


def with_the_place(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    (largest, place), wanted = logits.max(-1, keepdim=True), logits.gather(-1, target)
    probabilities = torch.softmax(logits, -1, out=logits)
    return (largest - probabilities.gather(-1, place).log() - wanted)[:, 0], (wanted == largest)[:, 0]


def log_softmax(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    torch.log_softmax(logits, -1, out=logits)
    wanted = logits.gather(-1, target)[:, 0]
    hit = wanted == logits.amax(-1)
    logits.exp_()
    return -wanted, hit


def by_hand(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    largest, wanted = logits.amax(-1, keepdim=True), logits.gather(-1, target)
    total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.div_(total)
    return (largest + total.log() - wanted)[:, 0], (wanted == largest)[:, 0]


def in_blocks(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    parts = [as_in_training(*part) for part in zip(logits.split(16), target.split(16), strict=True)]
    each, hits = zip(*parts, strict=True)
    return torch.cat(each), torch.cat(hits)


def softmax_alone(logits: Tensor, target: Tensor) -> None:
    torch.softmax(logits, -1, out=logits)


def main() -> None:
    torch.set_num_threads(1)
    source, target = 3 * torch.randn(ROWS, VOCABULARY), torch.randint(0, VOCABULARY, (ROWS, 1))
    expected = as_in_training(source.clone(), target)
    least: dict[str, float] = {}
    for _ in range(REPETITIONS):
        for way in (as_in_training, with_the_place, log_softmax, by_hand, in_blocks, softmax_alone):
            logits, begun = source.clone(), time.thread_time()
            found = way(logits, target)
            seconds = time.thread_time() - begun
            least[way.__name__] = min(least.get(way.__name__, seconds), seconds)
            if found is not None:
                torch.testing.assert_close(found, expected)
    for name, seconds in least.items():
        print(f"{name}: {1000 * seconds:.2f} ms")


if __name__ == "__main__":
    main()
