import math

import pytest
import torch
from deepspeed.runtime import lr_schedules

from vita_audio_pl.training.step.schedule import learning_rate_factor


def test_linear_warm_up_reaches_the_peak_and_the_cosine_ends_at_its_share():
    factor = learning_rate_factor(100, 10, "linear", 0.1)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factor(99) == pytest.approx(0.1)
    assert factor(54) == pytest.approx(0.55)
    assert all(factor(step) >= factor(step + 1) for step in range(10, 99))


def test_log_warm_up_is_deepspeeds():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_schedules.WarmupCosineLR(optimizer, 200, warmup_num_steps=6, cos_min_ratio=0.1, warmup_type="log")
    ours = learning_rate_factor(200, 6, "log", 0.1)
    for step in range(200):
        theirs.step(step)
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


def test_no_warm_up_starts_at_the_cosine():
    assert learning_rate_factor(10, 0)(0) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 10)))
