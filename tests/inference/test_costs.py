"""What a draft costs is measured as the decoder's rounds pay it, whatever surrounds the passes."""

import pytest

from vita_audio_pl.inference import Runtime, costs
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.drafting import Drafting
from vita_audio_pl.inference.scoring import Scorer
from vita_audio_pl.inference.sequence import DecodedSequence
from vita_audio_pl.models.heads import FORMS


class Clock:
    """Goes on only where some work is done that takes a known time."""

    def __init__(self, monkeypatch):
        self.now, self.load, self._patch = 0.0, 1.0, monkeypatch.setattr
        self._patch(costs, "clock", lambda: lambda: self.now)

    def takes(self, owner, name, seconds):
        """seconds: of a call, of its arguments."""
        work = getattr(owner, name)

        def timed(*given, **named):
            self.now += self.load * seconds(*given)
            return work(*given, **named)

        self._patch(owner, name, timed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("positions", [4096, 30])
def test_the_costs_are_those_of_the_loop_and_not_of_the_passes_alone(tiny_model, monkeypatch, form, positions):
    runtime = Runtime(tiny_model(n_heads=3, form=form))
    runtime.max_positions = positions
    clock = Clock(monkeypatch)
    clock.takes(Runtime, "run", lambda _, head, rows, *rest: 10 + rows.total if head else 100 + 3 * rows.total)
    clock.takes(Scorer, "most_likely", lambda _, hidden, *rest: 20 + 2 * hidden.shape[0])
    clock.takes(DecodedSequence, "write_head", lambda *given: 7)
    clock.takes(Drafting, "pays", lambda *given: 5)
    clock.takes(Decoder, "_step", lambda *given: 50)
    found = costs.measure_rounds(runtime)
    assert found.backbone == pytest.approx(100 + 3 + 20 + 2 + 5 + 50)
    assert found.backbone_row == pytest.approx(3 + 2)
    # of three drafts; a round without any asks once whether one pays
    assert found.head == pytest.approx(10 + 1 + 20 + 2 + 7 + 5 * (3 - 1) / 3)
    assert found.head_row == pytest.approx(1.0 if runtime.chained else 0.0)


def measured(tiny_model, monkeypatch, load=lambda number: 1, backbone=0.01, head=0.001):
    """Costs where passes take these seconds, times the load in a round of that number; and the backbone's passes."""
    runtime, clock, passes, rounds = Runtime(tiny_model(n_heads=3)), Clock(monkeypatch), [], []

    def seconds(_, predictor, *rest):
        passes.append(predictor)
        return head if predictor else backbone

    def play(rehearsal, counts, played=costs.Rehearsal.play):
        clock.load = load(len(rounds))
        rounds.append(counts)
        played(rehearsal, counts)

    clock.takes(Runtime, "run", seconds)
    monkeypatch.setattr(costs.Rehearsal, "play", play)
    return costs.measure_rounds(runtime), passes.count(0)


@pytest.mark.parametrize("backbone", [0.3, 1.0, 60.0])
def test_a_model_of_slow_rounds_is_measured_by_few_of_them(tiny_model, monkeypatch, backbone):
    found, passes = measured(tiny_model, monkeypatch, backbone=backbone, head=backbone / 10)
    assert (found.backbone, found.head) == (pytest.approx(backbone), pytest.approx(backbone / 10))
    assert passes <= 3 * (costs.WARM_UP + 2)


def test_load_in_most_of_the_rounds_changes_no_cost(tiny_model, monkeypatch):
    found, _ = measured(tiny_model, monkeypatch, load=lambda number: 3 if number % 5 < 3 else 1)
    assert (found.backbone, found.head) == (pytest.approx(0.01), pytest.approx(0.001))


def test_load_in_all_rounds_but_one_makes_no_draft_dear(tiny_model, monkeypatch):
    found, _ = measured(tiny_model, monkeypatch, load=lambda number: 1 if number == costs.WARM_UP else 3)
    assert 0.1 <= found.head / found.backbone <= 0.1 * costs.CAUTION * (1 + 1e-9)
