import itertools
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from toy_corpus import N_CODES, Corpus, boost, rows_of, take

from tests.patience import PATIENCE, wait_until
from vita_audio_pl.data.held_out import HeldOut
from vita_audio_pl.data.mixture import Mixture, Share, load_mixture
from vita_audio_pl.data.plan import Place
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.shards import iterate_shard
from vita_audio_pl.errors import UserError
from vita_audio_pl.storage.files import write_json
from vita_audio_pl.text import TextTokenizer


def merged(corpus: Corpus, ranks: int, batches: int, position: dict | None, workers: int) -> tuple[list[str], dict]:
    """Rows of all ranks in the order of the plan, and the position after them."""
    per_rank = []
    for rank in range(ranks):
        module = corpus.module(ranks=ranks, rank=rank, rows=2, workers=workers, render=boost(prompt_corruption=0.3))
        if position is not None:
            module.load_state_dict(position)
        per_rank.append([rows_of(batch) for batch in take(module, batches)])
    return [row for rows in zip(*(sum(b, []) for b in per_rank), strict=True) for row in rows], module.state_dict()


def test_the_sequence_is_the_same_over_changes_of_ranks_and_workers(corpus: Corpus) -> None:
    expected, _ = merged(corpus, 1, 72, None, 0)
    position, found = None, []
    for ranks, workers, batches in ((1, 2, 12), (4, 0, 6), (3, 1, 12)):
        rows, position = merged(corpus, ranks, batches, position, workers)
        found += rows
    assert found == expected


@pytest.mark.parametrize(
    ("ranks", "rows", "accumulate"), [(1, 5, 1), (1, 2, 3), (2, 3, 1), (2, 1, 3), (4, 2, 1), (4, 1, 2)]
)
def test_rows_that_do_not_divide_are_the_same_step_with_empty_places(
    corpus: Corpus, ranks: int, rows: int, accumulate: int
) -> None:
    steps, [expected] = 3, [take(corpus.module(rows=5), 3)]
    shared = [
        corpus.module(ranks=ranks, rank=rank, rows=rows, accumulate=accumulate, rows_per_step=5)
        for rank in range(ranks)
    ]
    batches = [take(module, steps * accumulate) for module in shared]
    for step, whole in enumerate(expected):
        mine = [batch for rank in batches for batch in rank[step * accumulate :][:accumulate]]
        assert {len(batch.input_ids) for batch in mine} == {rows} and {batch.divisor for batch in mine} == {
            whole.divisor
        }
        found = sorted(row for batch in mine for row in rows_of(batch) if any(batch.names))
        assert [row for row in found if row in rows_of(whole)] == sorted(rows_of(whole))
        assert sum(len(names) for batch in mine for names in batch.names) == sum(map(len, whole.names))
        assert sum(int((batch.labels >= 0).sum()) for batch in mine) == int((whole.labels >= 0).sum())
    reference = corpus.module(rows=5)
    take(reference, steps)
    assert all(module.state_dict() == reference.state_dict() for module in shared)


def test_state_is_tens_of_bytes_and_the_same_on_every_rank(corpus: Corpus) -> None:
    states = []
    for rank in range(3):
        module = corpus.module(ranks=3, rank=rank)
        take(module, 5)
        states.append(module.state_dict())
    assert states[0] == states[1] == states[2]
    numbers = {key: value for key, value in states[0].items() if key != "plan"}
    assert len(pickle.dumps(numbers)) < 150


def test_the_divisor_is_the_weight_of_the_whole_global_step(corpus: Corpus) -> None:
    render = boost(text_weight=4.0)
    batches = [take(corpus.module(ranks=2, rank=r, accumulate=3, render=render), 6) for r in range(2)]
    for step in (slice(0, 3), slice(3, 6)):
        window = [batch for rank in batches for batch in rank[step]]
        weight = sum(float(batch.loss_weights.sum()) for batch in window)
        assert all(batch.divisor == pytest.approx(weight) for batch in window)


def test_without_weights_the_divisor_counts_labels(corpus: Corpus) -> None:
    batch = take(corpus.module(), 1)[0]
    assert batch.loss_weights is None
    assert batch.divisor == (batch.labels >= 0).sum()


def test_rows_hold_whole_documents_and_nothing_else(corpus: Corpus) -> None:
    for batch in take(corpus.module(), 20):
        real = batch.document_ids >= 0
        assert (batch.sources >= 0).equal(real)
        pad = corpus.tokenizer.vocabulary(N_CODES).pad
        assert (batch.input_ids[~real] == pad).all() and (batch.labels[~real] == -100).all()
        labelled = batch.labels >= 0
        assert batch.labels[labelled].equal(batch.input_ids[labelled])
        assert (batch.writers[labelled] >= 0).all() and (batch.writers[~labelled] == -1).all()
        for r, names in enumerate(batch.names):
            assert batch.document_ids[r].max() == len(names) - 1
            for d in range(len(names)):
                inside = batch.position_ids[r][batch.document_ids[r] == d]
                assert inside.tolist() == list(range(len(inside)))


def test_the_ratio_is_chosen_at_load_time(corpus: Corpus) -> None:
    boosted = corpus.module()
    plain = corpus.module(render=replace(boost(), ratio=None))
    assert boosted.fingerprint != plain.fingerprint
    assert sum(s.tokens.sum() for s in boosted.plan.sources) > sum(s.tokens.sum() for s in plain.plan.sources)


def test_workers_need_no_shared_memory(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    mine, theirs = (take(corpus.module(workers=workers), 4) for workers in (0, 1))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)


def test_a_prefetched_batch_that_was_not_consumed_comes_again(corpus: Corpus) -> None:
    module = corpus.module(workers=2)
    stream = iter(module.train_dataloader())
    batches = [next(stream) for _ in range(6)]
    module.consumed(batches[2])
    resumed = corpus.module()
    resumed.load_state_dict(module.state_dict())
    assert rows_of(take(resumed, 1)[0]) == rows_of(batches[3])


@pytest.mark.parametrize("change", ["seed", "row_length", "render"])
def test_a_position_of_another_order_is_refused(corpus: Corpus, change: str) -> None:
    state = corpus.module().state_dict()
    settings = {"seed": 1, "row_length": 300, "render": replace(boost(), ratio=None)}
    with pytest.raises(UserError, match="another plan"):
        corpus.module(**{change: settings[change]}).load_state_dict(state)


def test_other_shares_are_refused_or_adopted_from_the_next_window_on(corpus: Corpus, tmp_path: Path) -> None:
    first = corpus.module()
    take(first, 5)
    other = tmp_path / "other.yaml"
    other.write_text("sources: {asr: {ratio: 0.1}, tts: {ratio: 0.1}, text: {ratio: 3.0}}")
    with pytest.raises(UserError, match="adopt_changes"):
        corpus.module(mixture=str(other)).load_state_dict(first.state_dict())
    adopted = corpus.module(mixture=str(other), adopt_changes=True)
    adopted.load_state_dict(first.state_dict())
    rows = [rows_of(batch) for batch in take(adopted, 60)]
    assert adopted.state_dict()["changes"]
    names = [name.split("/")[0] for batch in take(adopted, 30) for row in batch.names for name in row]
    assert names.count("text") > 0.8 * len(names)

    again = corpus.module(mixture=str(other), adopt_changes=True)
    again.load_state_dict({**first.state_dict(), "changes": adopted.state_dict()["changes"]})
    assert [rows_of(batch) for batch in take(again, 60)] == rows


def test_shares_can_be_changed_while_training(corpus: Corpus, tmp_path: Path) -> None:
    module = corpus.module()
    take(module, 3)
    other = tmp_path / "other.yaml"
    other.write_text("sources: {asr: {ratio: 3.0}, tts: {ratio: 0.1}, text: {ratio: 0.1}}")
    module.change_mixture(load_mixture(str(other)))
    take(module, 90)
    names = [name.split("/")[0] for batch in take(module, 30) for row in batch.names for name in row]
    assert names.count("asr") > 0.8 * len(names)


def test_another_tokenizer_is_refused(corpus: Corpus) -> None:
    stranger = TextTokenizer.train(["quite other words"], 300)
    with pytest.raises(UserError, match="another tokenizer"):
        replace(corpus, tokenizer=stranger).module()


def test_samples_longer_than_a_row_are_counted(corpus: Corpus) -> None:
    module = corpus.module(row_length=40)
    left_out = {name: facts["left_out"] for name, facts in module.describe()["sources"].items()}
    assert left_out["asr"]["longer than a row"] > 0
    planned = sum(int((source.tokens > 0).sum()) for source in module.plan.sources)
    assert planned + sum(sum(counts.values()) for counts in left_out.values()) == 300


def test_long_answers_of_text_can_be_cut(corpus: Corpus) -> None:
    module = corpus.module(row_length=40, overlong="cut", render=boost(text_weight=2.0))
    assert module.describe()["sources"]["text"]["left_out"]["cut to a row"] > 0
    for batch in take(module, 30):
        assert batch.divisor == pytest.approx(float(batch.loss_weights.sum()))


def test_held_out_rows_are_fixed_and_numbered_like_training(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.shards, tmp_path / "shards")
    shutil.copytree(corpus.shards / "text", tmp_path / "shards" / "text.dev")
    held_out = replace(corpus, shards=tmp_path / "shards")
    one = [rows_of(batch) for batch in held_out.module(seed=0, validation_rows=3).val_dataloader()]
    module = held_out.module(seed=5, validation_rows=3)
    two = list(module.val_dataloader())
    assert [rows_of(batch) for batch in two] == one
    assert module.validation_batches == len(two) == 2
    assert set(np.unique(two[0].sources)) <= {-1, 2}
    ranks = [list(held_out.module(ranks=2, rank=r, validation_rows=3).val_dataloader()) for r in range(2)]
    assert [len(batch.names) for batch in ranks[0]] == [len(batch.names) for batch in ranks[1]]


def test_single_held_out_conversations_are_the_same_ones_each_time(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.shards, tmp_path / "shards")
    for task in ("asr", "tts"):
        shutil.copytree(corpus.shards / task, tmp_path / "shards" / f"{task}.dev")
    PreparedSource(tmp_path / "shards" / "asr.dev").quarantine({0: "flipped"})
    held_out = replace(corpus, shards=tmp_path / "shards")

    def chosen(seed: int) -> list[HeldOut]:
        module = held_out.module(seed=seed, render=boost(prompt_corruption=0.5))
        return module.held_out(("asr", "tts", "text"), 2, lambda held: held.id != "tts.dev/tts-0")

    half = {task: len(PreparedSource(corpus.shards / task)) // 2 for task in ("asr", "tts")}
    names = ["asr.dev/asr-1", f"asr.dev/asr-{half['asr']}", "tts.dev/tts-1", f"tts.dev/tts-{half['tts']}"]
    assert [held.id for held in chosen(0)] == [held.id for held in chosen(7)] == names
    for held in chosen(0):
        assert [turn.role for turn in held.asked] == ["user"] and held.answer.role == "assistant"
        assert held.asked[0].counts().n_audios == (held.task == "asr")
        assert held.answer.counts().n_audios == (held.task == "tts")


def test_an_epoch_has_the_rows_that_are_planned_for_it(corpus: Corpus) -> None:
    module = corpus.module()
    epochs = [place.epoch for _, _, place in itertools.islice(module.plan.rows(Place()), 2000)]
    assert module.plan.rows_per_epoch == epochs.count(0) < len(epochs)
    rows_per_step = module.geometry.rows_per_step
    assert module.steps_of(2) == math.ceil(2 * epochs.count(0) / rows_per_step)


def damaged(corpus: Corpus, folder: Path, source: str, share: float) -> tuple[Corpus, set[int]]:
    """The corpus with a flipped bit in a share of a source's samples, and which."""
    shutil.copytree(corpus.shards, folder / "shards")
    prepared = PreparedSource(folder / "shards" / source)
    chosen = np.random.default_rng(0).permutation(len(prepared))[: round(share * len(prepared))]
    numbers = [shard.name for shard in prepared.manifest.shards]
    flat = [(name, offset, len(data)) for name in numbers for offset, data in iterate_shard(prepared.folder / name)]
    for sample in chosen.tolist():
        name, offset, size = flat[sample]
        with open(prepared.folder / name, "r+b") as file:
            file.seek(offset + size - 6)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 4]))
    return replace(corpus, shards=folder / "shards"), set(chosen.tolist())


def test_five_percent_broken_are_each_named_and_leave_the_rest_untouched(corpus: Corpus, tmp_path: Path) -> None:
    broken, chosen = damaged(corpus, tmp_path, "asr", 0.05)
    module = broken.module(max_broken=0.2, workers=1)
    rows = module.steps_per_epoch + 5
    for batch, whole in zip(take(module, rows), take(corpus.module(), rows), strict=True):
        bad = [(r, d) for r, names in enumerate(batch.names) for d, n in enumerate(names) if n.endswith("(broken)")]
        same = batch.input_ids == whole.input_ids
        for r, d in bad:
            here = batch.document_ids[r] == d
            assert (batch.labels[r][here] == -100).all()
            same[r][here] = True
        assert same.all() and batch.document_ids.equal(whole.document_ids)
    assert set(module.broken["asr"]) == chosen
    assert all(f"sample {sample} of 'asr'" in reason for sample, reason in module.broken["asr"].items())


def test_a_source_that_is_broken_throughout_stops_the_run_with_its_name(corpus: Corpus, tmp_path: Path) -> None:
    broken, _ = damaged(corpus, tmp_path, "tts", 1.0)
    with pytest.raises(UserError, match="of 'tts' are broken, more than data.max_broken"):
        take(broken.module(workers=1), 200)


def test_quarantined_samples_are_not_planned(corpus: Corpus, tmp_path: Path) -> None:
    broken, chosen = damaged(corpus, tmp_path, "asr", 0.05)
    PreparedSource(broken.shards / "asr").quarantine({sample: "flipped" for sample in chosen})
    module = broken.module()
    assert module.describe()["sources"]["asr"]["left_out"] == {"quarantined": len(chosen)}
    take(module, module.steps_per_epoch + 5)
    assert not module.broken
    assert module.fingerprint != corpus.module().fingerprint


def test_a_run_goes_on_with_the_same_rows_after_its_broken_samples_were_quarantined(
    corpus: Corpus, tmp_path: Path
) -> None:
    """As the advice says that a run ends with: its own samples in quarantine must not make another run of it."""
    broken, _ = damaged(corpus, tmp_path, "tts", 1.0)
    module = corpus.module()  # before they broke
    whole = take(module, 40)
    module.consumed(whole[2])
    state = json.loads(json.dumps(module.state_dict()))
    source = PreparedSource(broken.shards / "tts")
    source.quarantine({sample: "flipped" for sample in range(len(source))})

    module = broken.module()
    module.load_state_dict(state)
    after = take(module, 37)
    for batch, expected in zip(after, whole[3:], strict=True):
        assert batch.divisor == expected.divisor and batch.document_ids.equal(expected.document_ids)
        documents = [
            pair for names in zip(batch.names, expected.names, strict=True) for pair in zip(*names, strict=True)
        ]
        assert all(a.endswith("(broken)") if b.startswith("tts/") else a == b for a, b in documents)
    assert not module.broken and module.state_dict()["quarantined"] == {}
    with pytest.raises(UserError, match="of another source than 'tts'"):
        module.load_state_dict(state | {"quarantined": {"tts": [10**6]}})


def train_until_killed(corpus: Corpus, state: Path, last: int) -> None:
    """Trains on, saves its position after every batch, and stands still after row `last`."""
    os.setsid()
    module = corpus.module(workers=1)
    if state.exists():
        module.load_state_dict(json.loads(state.read_text()))
    for batch in module.train_dataloader():
        module.consumed(batch)
        write_json(state, module.state_dict())
        if module.position.rows >= last:
            time.sleep(PATIENCE)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_resume_is_exact_after_kill_at_random_steps(corpus: Corpus, tmp_path: Path, kills: int) -> None:
    state = tmp_path / "state.json"
    rng = np.random.default_rng(kills)
    expected = [row for batch in take(corpus.module(), 50 * kills + 100) for row in rows_of(batch)]
    at = 0
    for _ in range(kills):
        goal = at + int(rng.integers(2, 60))
        arguments = corpus, state, goal + 40
        process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=arguments)
        process.start()
        wait_until(lambda goal=goal: state.exists() and json.loads(state.read_text())["rows"] >= goal, "the next rows")
        time.sleep(float(rng.random() * 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        module = corpus.module()
        module.load_state_dict(json.loads(state.read_text()))
        at = module.position.rows
        resumed = [row for batch in take(module, 100) for row in rows_of(batch)]
        assert resumed == expected[at : at + 200]


def train_until_the_workers_wait(corpus: Corpus, ready: Connection) -> None:
    """Takes one batch, and leaves the workers with full queues."""
    batches = iter(corpus.module(workers=2, prefetch=200).train_dataloader())
    next(batches)
    ready.send(None)
    time.sleep(PATIENCE)


def test_workers_end_with_a_killed_training(corpus: Corpus, ended: Callable[[Sequence[psutil.Process]], bool]) -> None:
    ready, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=train_until_the_workers_wait, args=(corpus, there))
    process.start()
    ready.recv()
    time.sleep(1.0)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    process.kill()
    process.join()
    assert ended(workers)


def test_a_source_that_is_not_prepared_is_left_out_when_asked_to_and_told(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources: {asr: {ratio: 1.0}, elsewhere: {ratio: 1.0}, tts: {ratio: 2.0}}")
    wider = replace(corpus, mixture=mixture)
    with pytest.raises(UserError, match="the source 'elsewhere' is not prepared"):
        wider.module()
    module = wider.module(skip_missing=True)
    assert [source.name for source in module.sources] == ["asr", "tts"] and take(module, 1)
    assert "WITHOUT 1 of the 3 sources" in caplog.text and "elsewhere" in caplog.text
    mixture.write_text("sources: {elsewhere: {ratio: 1.0}}")
    with pytest.raises(UserError, match="none of the sources"):
        wider.module(skip_missing=True)


def test_hours_of_a_source_are_what_an_epoch_takes_of_it(corpus: Corpus, tmp_path: Path) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources: {asr: {hours: 0.05}, tts: {hours: 0.02}, text: {ratio: 1.0}}")
    module = replace(corpus, mixture=mixture).module()
    assert {name: source["hours"] for name, source in module.describe()["sources"].items()} == {
        "asr": 0.05, "tts": 0.02, "text": 0.0
    }  # fmt: skip
    codes = {n: s.index["prompt_codes"] + s.index["answer_codes"] for n, s in enumerate(module.sources)}
    taken: Counter[str] = Counter()
    for source, sample, place in module.plan.rows(Place()):
        if place.epoch:
            break
        for number in np.unique(source).tolist():
            taken[module.sources[number].name] += int(codes[number][sample[source == number]].sum())
    for source, hours in zip(module.sources, (0.05, 0.02), strict=False):
        passes = taken[source.name] / source.manifest.codes
        assert passes * source.manifest.seconds / 3600 == pytest.approx(hours, rel=0.03)
    mixture.write_text("sources: {asr: {ratio: 2.0, num: 30}, tts: {ratio: 1.0}}")
    few = replace(corpus, mixture=mixture).module()
    passes = 2 * 30 / len(few.sources[0])
    expected = passes * few.sources[0].manifest.seconds / 3600
    assert few.describe()["sources"]["asr"]["hours"] == pytest.approx(expected, abs=1e-4)
    levelled = replace(corpus, mixture=mixture).module(temperature=2.0)  # an epoch is as large as without
    assert levelled.plan.phases[0].tokens_per_epoch == pytest.approx(few.plan.phases[0].tokens_per_epoch, rel=0.1)
    mixture.write_text("sources: {asr: {ratio: 1.0}, text: {hours: 1}}")
    with pytest.raises(UserError, match="1 hours of 'text' are wanted in an epoch, and it has 0 h"):
        replace(corpus, mixture=mixture).module().plan  # noqa: B018
    mixture.write_text("sources: {asr: {hours: 1, ratio: 2}}")
    with pytest.raises(UserError, match="take the place of ratio"):
        replace(corpus, mixture=mixture).module()


def test_temperature_levels_tokens_or_hours() -> None:
    shares = (Share("a", 1.0), Share("b", hours=40.0), Share("text", 0.5))
    tokens, hours = np.array([1000, 3000, 500]), np.array([10.0, 160.0, 0.0])
    by_hours = Mixture("m", shares, 2.0, "hours").ratios(tokens, hours)
    assert (by_hours * hours).sum() == pytest.approx(50)  # as much audio as without, which is 10 and 40 hours
    assert (by_hours * hours)[1] / (by_hours * hours)[0] == pytest.approx(2) and by_hours[2] == 0.5
    by_tokens = Mixture("m", shares, 2.0).ratios(tokens, hours)
    assert (by_tokens * tokens).sum() == pytest.approx(1000 + 750 + 250)
    assert (by_tokens * tokens) / (by_tokens * tokens)[2] == pytest.approx([2, 3**0.5, 1])
