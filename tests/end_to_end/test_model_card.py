"""The card of an exported model says what the run's own files say; the hub gets the folder as it is."""

import huggingface_hub
import pytest
import yaml

from tests.end_to_end.conftest import RUN
from vita_audio_pl.errors import UserError
from vita_audio_pl.model_card import model_card, push_to_hub
from vita_audio_pl.storage.model_folders import find_model


def test_the_card_tells_stages_data_and_results_of_these_weights(smoke_demo, monkeypatch, tmp_path):
    monkeypatch.chdir(smoke_demo.folder)
    source = find_model(f"{RUN}/sft")
    card = model_card(source, tmp_path / "mine", "released", "apache-2.0")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["language"] == ["en"] and head["library_name"] == "transformers"
    stages = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")]
    assert [stage for stage in stages if stage in ("align", "mtp1", "mtp10", "sft")] == [
        "align",
        "mtp1",
        "mtp10",
        "sft",
    ]
    assert "Started from random weights." in card and "| world_tts |" in card
    assert "error rate of the text beside the speech" in card.partition("## Results")[2]
    other = model_card(find_model(f"{RUN}/align"), tmp_path / "mine", "backbone", None)
    assert "| sft |" not in other and "speech_lm" not in other and 'license: "unknown"' in other


def test_what_is_uploaded_is_the_folder(monkeypatch, tmp_path):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            if repo_id == "someone/else":
                raise OSError("403 Forbidden")
            calls.append((repo_id, folder_path))
            return type("Commit", (), {"commit_url": "https://hub/me/model/commit/1"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push_to_hub(tmp_path, "me/model", private=True) == "https://hub/me/model/commit/1"
    assert calls == [("me/model", {"private": True, "exist_ok": True}), ("me/model", tmp_path)]
    with pytest.raises(UserError, match="is written, and was not uploaded to someone/else: 403"):
        push_to_hub(tmp_path, "someone/else", private=True)
