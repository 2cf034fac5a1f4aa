"""The screen in 8 bits finds the row with the largest product, whatever the weights and states are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.margins import assert_same_answers, assert_same_choices
from vita_audio_pl.inference import Runtime, generate, screening
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.kernels import Kernels
from vita_audio_pl.inference.products import PlannedProduct
from vita_audio_pl.inference.screening import NOT_FINITE, Largest, Screen
from vita_audio_pl.interleave import DecodePattern

HAS_INTEGER_PRODUCTS = screening.has_integer_products.__wrapped__


class Always(Kernels):
    def pays(self, name, one, other):
        self.does[name] = True
        return True


ALWAYS = Always("rows")


class SlowIntegerProduct:
    """What `IntegerProduct` is defined to be, for processors without it."""

    def __init__(self, integers, scales):
        self._integers, self._scales = integers.double(), scales.double()

    def __call__(self, x):
        return (x.double() @ self._integers.t() * self._scales).float()


@pytest.fixture(scope="module", autouse=True)
def integer_products():
    """The screen is tested on any processor; where it has the instructions, with them."""
    with pytest.MonkeyPatch.context() as patch:
        if not screening.has_integer_products():
            patch.setattr(screening, "IntegerProduct", SlowIntegerProduct)
            patch.setattr(screening, "has_integer_products", lambda: True)
        yield


def screened(weight):
    """The largest products with `weight`, screened whether it pays or not."""
    return Largest(PlannedProduct(weight), ALWAYS)


@pytest.fixture
def eager(monkeypatch):
    """Screens matrices of any size, and however many rows are left."""
    monkeypatch.setattr(screening, "SMALLEST", 0)
    monkeypatch.setattr(screening, "MOST", 1)


def first_largest(weight, x):
    """Numbers of the first of the rows with the largest float32 scores, rounded from exact ones."""
    return np.argmax((x.double() @ weight.double().t()).float().numpy(), axis=1).tolist()


@st.composite
def adversarial(draw):
    """Weights and states on a grid of powers of two, so that float64 sums are exact: rows that are equal, nearly equal,
    zero, huge or tiny, opposite, or aimed at a state."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_rows, width, states = draw(st.integers(1, 150)), draw(st.integers(32, 80)), draw(st.integers(1, 4))
    steps = draw(st.sampled_from([1, 7, 1000]))
    x = random.integers(-steps, steps + 1, (states, width)).astype(np.float64)
    weight = random.integers(-steps, steps + 1, (n_rows, width)).astype(np.float64)
    kinds = draw(st.lists(st.sampled_from(["equal", "near", "zero", "huge", "tiny", "opposite", "aimed"]), max_size=12))
    for kind in kinds:
        to, other = random.integers(n_rows, size=2)
        weight[to] = {
            "equal": weight[other],
            "near": weight[other] + np.eye(width)[random.integers(width)] * 2.0**-10,
            "zero": weight[other] * 0,
            "huge": np.round(weight[other]) * 2.0**12,
            "tiny": np.round(weight[other]) * 2.0**-12,
            "opposite": -weight[other],
            "aimed": x[random.integers(states)],
        }[kind]
    if draw(st.booleans()):
        x[:, random.integers(width)] *= 2.0**9  # one number that leaves the others few of the 8 bits
    scale = 2.0 ** draw(st.integers(-30, 30))
    return torch.tensor(weight * scale, dtype=torch.float32), torch.tensor(x, dtype=torch.float32)


@settings(max_examples=250, deadline=None)
@given(adversarial())
def test_the_screen_finds_the_first_of_the_largest(case):
    weight, x = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "MOST", 1)
        found = Screen(weight)(x)
    assert found == first_largest(weight, x)


@torch.inference_mode()
def test_most_rows_of_a_vocabulary_are_screened_out(monkeypatch):
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(8192, 256, generator=random), torch.randn(20, 256, generator=random)
    found = Screen(weight.clone())(x)
    assert_same_choices(found, (x @ weight.t()).argmax(1), x @ weight.t())
    monkeypatch.setattr(screening, "MOST", 8192 // 2)  # two rows a state are too few to be sure
    assert Screen(weight.clone())(x) is None


def test_what_cannot_be_screened_is_multiplied(eager):
    random = torch.Generator().manual_seed(0)
    weight, x = torch.randn(300, 64, generator=random), torch.randn(3, 64, generator=random)
    largest = screened(weight)
    assert largest(torch.zeros(2, 64)) == [0, 0]
    x[1, 5] = float("nan")
    assert largest(x) == [first_largest(weight, x[:1])[0], NOT_FINITE, first_largest(weight, x[2:])[0]]
    x[1, 5] = 1e38  # finite, though its products are not all
    assert largest(x)[::2] == first_largest(weight, x)[::2]
    for odd, expected in ((float("nan"), NOT_FINITE), (float("inf"), 7), (3e38, 7)):
        broken = weight.clone()
        broken[7, 0] = odd
        assert screened(broken)(torch.ones(1, 64)) == [expected]


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(8192, 256, dtype=torch.bfloat16),
        torch.zeros(8192, 256, device="meta"),
        torch.zeros(64, 256),
        torch.zeros(1 << 17, 16),
    ],
    ids=["bfloat16", "elsewhere", "small", "narrow"],
)
def test_only_large_float32_weights_on_a_cpu_are_screened(weight):
    assert not screening.can_screen(PlannedProduct(weight))
    assert screening.can_screen(PlannedProduct(torch.zeros(8192, 256)))


@pytest.mark.parametrize("capabilities", [{}, {"avx2": True}, {"avx512_vnni": True}])
def test_a_processor_without_the_instructions_is_seen(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    # sums that saturate, as oneDNN's do where the instructions are missing
    monkeypatch.setattr(screening, "IntegerProduct", lambda integers, scales: lambda x: x @ integers.float().t() - 1)
    assert not HAS_INTEGER_PRODUCTS()


@pytest.mark.parametrize("verify", ["none", "greedy"])
def test_a_screened_vocabulary_gives_the_same_tokens(screened_model, prompts, verify):
    batch, pattern = prompts(9, 4), DecodePattern.of([1, 3, 2, 2])
    constraint = SpanConstraint(5, 6, 7, 100, 8300)
    for restriction in (None, constraint):
        options = {"max_new_tokens": 24, "verify": verify, "constraint": restriction}
        runtime = Runtime(screened_model, kernels=Always("rows"))
        searched = generate(runtime, batch, pattern, **options)
        assert runtime.kernels.does["screen:8448x256"]
        plain = generate(Runtime(screened_model, kernels="rows"), batch, pattern, **options)
        writes = pattern if verify == "none" else DecodePattern.of("vanilla")
        found, expected = ([a.ids for a in answers] for answers in (searched, plain))
        assert_same_answers(screened_model, writes, batch, found, expected, constraint=restriction)


@pytest.fixture(scope="module")
def screened_model():
    from transformers import Qwen2Config

    from vita_audio_pl.models.speech_lm import SpeechLM, SpeechLMConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 8448}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    return SpeechLM(SpeechLMConfig(Qwen2Config(**sizes, **heads), 3)).eval()
