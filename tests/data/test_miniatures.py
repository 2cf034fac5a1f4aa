"""Every corpus of the mixtures, laid out as its publisher ships it, prepared by its recipe."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from miniatures import MINIATURES, Miniature
from remote_stores import put
from toy_codec import N_CODES, LoudnessCodec
from toy_corpus import toy_tokenizer

from vita_audio_pl.config.component import Custom
from vita_audio_pl.data.mixture import load_mixture
from vita_audio_pl.data.prepare_source import prepare_source
from vita_audio_pl.data.prepared import PreparedSource
from vita_audio_pl.data.recipe import SourceRecipe, load_recipe
from vita_audio_pl.data.tokenize import TokenizeJob
from vita_audio_pl.preparation import tokenize_job
from vita_audio_pl.storage.places import Place, place
from vita_audio_pl.text import TTS_INSTRUCTION, AudioCodes, TextTokenizer, Turn

MOST_OF_A_PART = 1024  # bytes; of a corpus of 200,000 hours there are tens of thousands
CODEC = {"name": "loudness", "fingerprint": "loudness-1", "codes_per_second": 12.5, "codebook_size": N_CODES}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return toy_tokenizer()


def written(turn: Turn, tokenizer: TextTokenizer) -> str:
    return "".join("<|audio|>" if isinstance(s, AudioCodes) else tokenizer.decode(s.ids) for s in turn.segments)


def text_of(turns: tuple[Turn, ...], task: str, tokenizer: TextTokenizer) -> str:
    """What `Expected.texts` says of a sample."""
    if task == "asr":
        return written(turns[-1], tokenizer)
    if task == "tts":  # the text stands in front of the spoken answer, too
        text = written(turns[-1], tokenizer).removesuffix("<|audio|>")
        assert written(turns[-2], tokenizer) == f"{TTS_INSTRUCTION}\n{text}"
        return text
    return "\n".join(f"{turn.role}: {written(turn, tokenizer)}" for turn in turns)


def job_of(
    recipe: SourceRecipe, split: str, root: Place, shards: Path, tokenizer: TextTokenizer, heard: bool
) -> TokenizeJob:
    voice = Custom("toy_codec.Tone", {}) if recipe.speak else None
    job = tokenize_job(recipe, split, root=root, shards=shards, tokenizer=tokenizer, codec_folder=None, voice=voice)
    codec = {"make_codec": LoudnessCodec, "codec": CODEC} if heard else {}
    return replace(job, max_skipped=1.0, **codec)


@pytest.mark.parametrize("mixture", ["mixture_1", "mixture_2"])
def test_every_corpus_of_a_mixture_has_a_miniature(mixture: str) -> None:
    assert {share.source for share in load_mixture(mixture).shares} <= {m.source for m in MINIATURES}


@pytest.mark.parametrize("miniature", MINIATURES, ids=lambda m: f"{m.source}, {m.name}")
def test_a_corpus_as_its_publisher_ships_it(miniature: Miniature, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    root, recipe = tmp_path / "corpus", load_recipe(miniature.source)
    root.mkdir()
    miniature.make(root)
    published = set(recipe.all_splits) - ({"dev"} if recipe.held_out else set())  # a miniature has no share to hold out
    assert set(miniature.expected) == published, "a miniature says what becomes of every split"
    for split, expected in miniature.expected.items():
        job = job_of(recipe, split, root, tmp_path, tokenizer, heard=expected.seconds > 0)
        manifest = prepare_source(job)
        assert manifest is not None
        source = PreparedSource(job.out)
        texts = [text_of(source.read(n).turns, recipe.task, tokenizer) for n in range(len(source))]
        assert texts == list(expected.texts)
        assert manifest.report["skipped"] == expected.skipped and manifest.report["filtered"] == expected.filtered
        assert manifest.seconds == pytest.approx(expected.seconds, abs=0.06 * len(texts))  # MP3 is padded to its frames
        assert load_recipe(miniature.source).checked, "a recipe says what it was checked against"
        assert all(len(pickle.dumps(part)) <= MOST_OF_A_PART for part in job.reader.parts())
        store = put(root, place(f"memory://{tmp_path.name}/corpus"))  # the same, read from a store
        there = job_of(recipe, split, store, tmp_path / "there", tokenizer, heard=expected.seconds > 0)
        remote = prepare_source(there)
        assert remote is not None and remote.report == manifest.report and remote.seconds == manifest.seconds
        source = PreparedSource(there.out)
        assert [text_of(source.read(n).turns, recipe.task, tokenizer) for n in range(len(source))] == texts
