"""Merged models are what plain torch arithmetic makes of their tensors, and only what belongs together is merged."""

import json
import shutil

import pytest
import torch

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.exporting import export_model
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.merge import MergeConfig, merge
from vita_audio_pl.merging import merge_models
from vita_audio_pl.models.load import load_model
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.weight_files import folder_weights
from vita_audio_pl.storage.checksums import read_checksums
from vita_audio_pl.text.tokenizer import TextTokenizer
from vita_audio_pl.training.run_folder.manifest import StageManifest

WORDS = TextTokenizer.train(["the big red cow sees the small blue cat"], 300)


@pytest.fixture
def made(tiny_model, tmp_path):
    """Writes a model folder of several files; tied, in either type."""

    def write(name, seed, dtype=torch.float32, words=WORDS, n_heads=2, tied=True):
        vocabulary = words.vocabulary(32)
        model = tiny_model(n_heads=n_heads, vocabulary=vocabulary.size, seed=seed, tied=tied).to(dtype)
        folder = tmp_path / name
        save_released(model, folder, decode_pattern=[1, 2], first_code=vocabulary.first_code, max_shard_bytes=30_000)
        words.save(folder)
        return folder

    return write


def tensors(folder):
    return {name: tensor.detach() for name, tensor in load_model(folder).named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_and_task_vectors_are_torchs(made, tmp_path, dtype):
    one, two, base = (made(name, seed, dtype) for name, seed in (("one", 1), ("two", 2), ("base", 3)))
    a, b, c = (tensors(folder) for folder in (one, two, base))
    wanted = {
        "mean": {name: (a[name].float() + b[name].float()) / 2 for name in a},
        "weighted": {name: 0.75 * a[name].float() + 0.25 * b[name].float() for name in a},
        "tasks": {
            name: c[name].float()
            + 0.5 * (a[name].float() - c[name].float())
            - 0.25 * (b[name].float() - c[name].float())
            for name in a
        },
    }
    merge_models([one, two], tmp_path / "mean")
    merge_models([one, two], tmp_path / "weighted", [3, 1])
    merge_models([one, two], tmp_path / "tasks", [0.5, -0.25], base)
    for name, expected in wanted.items():
        found = tensors(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == dtype
            torch.testing.assert_close(
                found[key], value.to(dtype), atol=1e-6, rtol=1e-6 if dtype == torch.float32 else 1e-2
            )
    assert {path.name for path in (tmp_path / "mean").glob("model-*")} == {path.name for path in one.glob("model-*")}
    merge_models([one], tmp_path / "nothing", [0.0], base)
    assert all(torch.equal(value, c[name]) for name, value in tensors(tmp_path / "nothing").items())


def test_the_result_is_a_model_that_says_what_it_was_merged_from(made, tmp_path, capsys):
    one, two = made("one", 1), made("two", 2)
    config = MergeConfig(models=[str(one), str(two)], target=str(tmp_path / "mean"))
    merge(config)
    assert "the mean of" in capsys.readouterr().out
    manifest = StageManifest.read(tmp_path / "mean")
    assert manifest.merged["method"] == "mean" and manifest.merged["base"] is None
    assert [part["share"] for part in manifest.merged["models"]] == [0.5, 0.5]
    assert [part["weights"] for part in manifest.merged["models"]] == [folder_weights(one), folder_weights(two)]
    assert manifest.weights not in (folder_weights(one), folder_weights(two))
    loaded = load_speech_model(tmp_path / "mean")
    assert loaded.pattern.runs == load_speech_model(one).pattern.runs
    assert set(read_checksums(tmp_path / "mean")) >= {"config.json", "tokenizer.json", "manifest.json"}
    export_model(tmp_path / "mean", tmp_path / "plain", "backbone")
    merge_models([tmp_path / "plain", tmp_path / "plain"], tmp_path / "again")  # heads in a file of their own
    assert all(
        torch.equal(value, tensors(tmp_path / "plain")[name]) for name, value in tensors(tmp_path / "again").items()
    )


def test_models_that_only_transformers_ends_otherwise_are_merged(made, tmp_path):
    """A stage's folder and an export of its sibling, which ends at `<|im_end|>` as well."""
    one, two = made("one", 1), made("two", 2)
    export_model(two, tmp_path / "exported")
    ends = [json.loads((folder / "config.json").read_text())["eos_token_id"] for folder in (one, tmp_path / "exported")]
    assert ends[0] != ends[1]
    merge_models([one, tmp_path / "exported"], tmp_path / "mean")
    assert load_speech_model(tmp_path / "mean").model.config.backbone.eos_token_id == ends[0]


def test_what_does_not_belong_together_is_refused_by_name_and_leaves_nothing(made, tmp_path):
    one = made("one", 1)
    other_words = TextTokenizer.train(["another text altogether, with words of its own"], 300)
    cases = {
        "number of heads is 2 in the first and 3": made("heads", 2, n_heads=3),
        "text tokenizer is": made("words", 2, words=other_words),
        "tie_word_embeddings is True in the first and False": made("tied", 2, tied=False),
    }
    wide = shutil.copytree(one, tmp_path / "theta")
    fields = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(fields | {"rope_theta": 5.0}))
    for says, folder in (*cases.items(), ("rope_theta is 10000.0 in the first and 5.0", wide)):
        with pytest.raises(UserError, match=f"one and .* cannot be merged: {says}"):
            merge_models([one, folder], tmp_path / "out")
    for arguments, says in (
        (([one],), "a mean needs two models or more"),
        (([one, one], tmp_path / "out", [1.0]), "there are 2 models and 1 weights"),
        (([one, one], tmp_path / "out", [1.0, -1.0]), "add up to 0"),
        (([one], tmp_path / "out", None, one), "with base=, give weights="),
        (([one, one], one), "is there already"),
    ):
        with pytest.raises(UserError, match=says):
            merge_models(*(arguments if len(arguments) > 1 else (*arguments, tmp_path / "out")))
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))
