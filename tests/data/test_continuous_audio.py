import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bit_flips import flip
from remote_stores import put
from toy_codec import N_CODES
from toy_corpus import Corpus, boost, rows_of, take, toy_job, toy_tokenizer, write_corpus

from vita_audio_pl.data.clips import at_rate
from vita_audio_pl.data.datamodule import SpeechDataModule
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.plan import Place, Plan, PlannedSource
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import BrokenSample, PreparedSource
from vita_audio_pl.data.shards import iterate_shard
from vita_audio_pl.data.staging import local_folder
from vita_audio_pl.data.tools.lint import lint_source
from vita_audio_pl.errors import UserError
from vita_audio_pl.models.sensevoice_frontend import SenseVoiceFrontEnd
from vita_audio_pl.preparation import encoder_placeholders
from vita_audio_pl.storage.places import place
from vita_audio_pl.training.callback_settings import SamplesConfig
from vita_audio_pl.training.callbacks.sample_prompts import sample_prompts


@dataclass(frozen=True)
class Listening(Corpus):
    """A corpus whose models take audio through an encoder."""

    def module(self, **options: object) -> SpeechDataModule:
        return SpeechDataModule(
            DataOptions(**{"shards": str(self.shards), "mixture": str(self.mixture), "workers": 0, **options}),
            self.tokenizer.vocabulary(N_CODES, continuous_input=True),
            self.tokenizer,
            boost(),
            rows_per_batch=2,
            row_length=256,
            accumulate=1,
            seed=0,
            front_end=SenseVoiceFrontEnd(n_mels=8),
        )


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Listening:
    folder, tokenizer = tmp_path_factory.mktemp("listening"), toy_tokenizer()
    for task, n in {"asr": 80, "tts": 30, "text": 20}.items():
        write_corpus(folder / "raw", task, n)
        prepare_source(
            replace(toy_job(folder / "raw", folder / "s", task, tokenizer), placeholders=encoder_placeholders)
        )
    (folder / "mixture.yaml").write_text("sources: {asr: 1, tts: 1, text: 1}")
    return Listening(folder / "raw", folder / "s", tokenizer, folder / "mixture.yaml")


def test_clips_stand_where_their_placeholders_are(listening: Listening) -> None:
    vocabulary = listening.tokenizer.vocabulary(N_CODES, continuous_input=True)
    source = PreparedSource(listening.shards / "asr", with_audio=True)
    heard = 0
    for batch in take(listening.module(workers=1), 30):
        clips = iter(batch.clips)
        for r, names in enumerate(batch.names):
            for d, name in enumerate(names):
                here = batch.input_ids[r][batch.document_ids[r] == d]
                placeholders = int((here == vocabulary.context_of_audio).sum())
                if not name.startswith("asr/"):
                    assert placeholders == 0
                    continue
                clip = next(clips)
                assert placeholders == len(clip) + 4
                wave = source.read_clips(int(name.removeprefix("asr/asr-")))[0]
                assert torch.equal(clip, SenseVoiceFrontEnd(n_mels=8).features(wave))
                heard += 1
        assert next(clips, None) is None
    assert heard > 30


def test_held_out_prompts_have_their_clips(listening: Listening, tmp_path: Path) -> None:
    shutil.copytree(listening.shards, tmp_path / "shards")
    for task in ("asr", "tts"):
        (tmp_path / "shards" / task).rename(tmp_path / "shards" / f"{task}.dev")
        shutil.copytree(listening.shards / task, tmp_path / "shards" / task)
    module = replace(listening, shards=tmp_path / "shards").module()
    settings = SamplesConfig(tasks=["tts", "asr"], per_task=3)
    prompts = sample_prompts(settings, module, listening.tokenizer, longest=200)
    assert [prompt.task for prompt in prompts] == ["tts"] * 3 + ["asr"] * 3
    placeholder = listening.tokenizer.vocabulary(N_CODES, continuous_input=True).context_of_audio
    for prompt in prompts:
        assert sum(len(clip) + 4 for clip in prompt.clips) == prompt.ids.count(placeholder)
        assert len(prompt.clips) == (prompt.task == "asr") and len(prompt.ids) <= 200
        assert prompt.asked == (prompt.reference if prompt.task == "tts" else "")
    short = sample_prompts(settings, module, listening.tokenizer, longest=min(len(p.ids) for p in prompts))
    assert all(len(prompt.ids) <= min(len(p.ids) for p in prompts) for prompt in short)


def test_kept_audio_is_the_corpus_audio_at_16_khz(listening: Listening) -> None:
    source = PreparedSource(listening.shards / "asr", with_audio=True)
    for number in (0, 49, 50, 79):
        wave, rate = soundfile.read(listening.root / f"audio/asr{number:05d}.wav", dtype="float32")
        kept = source.read_clips(number)
        assert len(kept) == 1 and np.abs(kept[0] - np.clip(at_rate(wave, rate), -1, 1)).max() < 1e-4
    assert PreparedSource(listening.shards / "tts", with_audio=True).read_clips(3) == []


def test_rows_are_planned_exactly_and_resume_exactly(listening: Listening) -> None:
    module = listening.module()
    for batch in take(module, 10):
        assert batch.divisor == (batch.labels >= 0).sum()
    resumed = listening.module()
    resumed.load_state_dict(module.state_dict())
    here, there = take(module, 5), take(resumed, 5)
    assert [rows_of(batch) for batch in here] == [rows_of(batch) for batch in there]
    assert all(
        torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x.clips, y.clips, strict=True)
    )


def test_blocks_stay_together_and_every_sample_comes_once() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 3000).astype(np.uint32)
    plan = Plan([PlannedSource("a", lengths, 1.0, block=64)], 64, 0, window=640)
    count: Counter[int] = Counter()
    for number in range(plan.phases[0].windows):
        window = plan.window(0, 0, number)
        count.update(window.sample.tolist())
        blocks = Counter((window.sample // 64).tolist())
        assert len(blocks) <= 640 / 64 + 3  # few stretches to read
        assert not np.all(np.diff(window.sample[:20].astype(int)) == 1)  # but shuffled among one another
    count.update(plan._tail(0, 0)[1].tolist())
    assert count == Counter(range(3000))
    assert next(iter(plan.rows(Place())))[0].dtype == np.int16


def test_a_source_without_its_audio_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="'asr' was prepared without the audio .* keep_audio=true"):
        replace(Listening(**vars(corpus))).module()


def test_damaged_audio_is_found(listening: Listening, tmp_path: Path) -> None:
    shutil.copytree(listening.shards / "asr", tmp_path / "asr")
    source = PreparedSource(tmp_path / "asr", with_audio=True)
    shard = tmp_path / "asr" / source.manifest.audio_shards[0].name
    offset, data = list(iterate_shard(shard, "audio"))[5]
    with open(shard, "r+b") as file:
        file.seek(offset + len(data) // 2)
        file.write(b"\xff\x00\xff")
    with pytest.raises(BrokenSample, match="sample 5 of 'asr'"):
        source.read_clips(5)
    found = lint_source(tmp_path / "asr")
    assert list(found.broken) == [5] and found.kinds == {"wrong checksum of audio": 1}


def test_kept_audio_is_trained_on_from_a_store(
    listening: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = put(listening.shards, place(f"memory://{tmp_path.name}/shards"))
    remote, cache = replace(listening, shards=store), tmp_path / "cache"
    without = local_folder(store, "asr", str(cache))
    assert not list(without.glob("*.audio.tar"))  # who needs no audio copies none
    there = take(remote.module(cache=str(cache)), 6)
    here = take(listening.module(), 6)
    assert [rows_of(batch) for batch in there] == [rows_of(batch) for batch in here]
    assert all(
        torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x.clips, y.clips, strict=True)
    )
    assert "again" not in caplog.text
    audio = next(without.glob("*.audio.tar"))
    written = audio.read_bytes()
    flip(audio, 8 * 300)
    remote.module(cache=str(cache))
    assert audio.read_bytes() == written  # a damaged copy is copied again
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr("vita_audio_pl.data.staging.shutil.disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"GB to be copied .*data\.cache=DIR"):
        remote.module(cache=str(tmp_path / "small"))
