import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_corpus import N_CODES, Corpus, boost, take

from vita_audio_pl.data.__main__ import DataToolsConfig, look, main
from vita_audio_pl.data.options import DataOptions
from vita_audio_pl.data.prepared import PreparedSource, nothing_prepared
from vita_audio_pl.data.shards import iterate_shard
from vita_audio_pl.data.staging import tokenizer_there
from vita_audio_pl.data.tools.lint import lint_source, quarantine
from vita_audio_pl.data.tools.preview import preview_html
from vita_audio_pl.data.tools.tables import info_table, plan_table, stats_table
from vita_audio_pl.errors import UserError
from vita_audio_pl.training.settings import TrainConfig


@pytest.fixture
def source(corpus: Corpus, tmp_path: Path) -> Path:
    shutil.copytree(corpus.shards, tmp_path / "shards")
    return tmp_path / "shards" / "asr"


def first_shard(source: Path) -> Path:
    return source / PreparedSource(source).manifest.shards[0].name


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_a_whole_source_is_clean(source: Path) -> None:
    found = lint_source(source)
    assert found.clean and found.samples == 120


def test_flipped_bytes_are_counted_exactly_and_can_be_left_out(source: Path, corpus: Corpus) -> None:
    shard = first_shard(source)
    samples = list(iterate_shard(shard))
    chosen = [0, 7, 31]
    for number in chosen:
        flip(shard, samples[number][0] + len(samples[number][1]) // 2)
    found = lint_source(source)
    assert sorted(found.broken) == chosen and found.kinds == {"wrong checksum": 3}
    assert all(shard.name in sentence for sentence in found.broken.values())
    quarantine(source, found)
    assert sorted(PreparedSource(source).quarantined) == chosen


def test_a_truncated_shard_names_what_is_lost_and_what_is_not(source: Path) -> None:
    shard = first_shard(source)
    whole = list(iterate_shard(shard))
    cut = whole[20][0] + 10
    shard.write_bytes(shard.read_bytes()[:cut])
    found = lint_source(source)
    assert found.kinds["wrong size"] == found.kinds["damaged shard"] == 1
    assert sorted(found.broken) == list(range(20, len(whole)))
    with pytest.raises(UserError, match="prepare it again"):
        quarantine(source, found)


def test_a_missing_shard_names_all_its_samples(source: Path) -> None:
    shard = first_shard(source)
    shard.unlink()
    found = lint_source(source)
    assert sorted(found.broken) == list(range(50)) and found.kinds["missing shard"] == 1


def test_an_index_of_other_shards_or_a_flipped_index_is_found(source: Path) -> None:
    flip(source / "index.bin", 200)
    assert lint_source(source).kinds["damaged index"] == 1
    shutil.copy(source.parent / "tts" / "index.bin", source / "index.bin")
    assert lint_source(source).kinds["stale index"] == 1


def test_the_preview_shows_every_token_its_target_and_its_writer(corpus: Corpus) -> None:
    module = corpus.module(rows=3, render=boost(text_weight=4.0))
    batch = take(module, 1)[0]
    page = preview_html(batch, corpus.tokenizer, corpus.tokenizer.vocabulary(N_CODES), "a <title>")
    assert "a &lt;title&gt;" in page
    tokens = re.findall(r'<div class="t [^"]*" title="place (\d+), position (\d+), id (\d+), label ([^,]*),', page)
    used = batch.document_ids >= 0
    assert len(tokens) == int(used.sum())
    assert [int(id) for _, _, id, _ in tokens] == batch.input_ids[used].tolist()
    assert [int(position) for _, position, _, _ in tokens] == batch.position_ids[used].tolist()
    targets = re.findall(r"trained to be followed by (\w+)\"", page)
    labels = batch.labels.clone()
    following = np.roll(labels.numpy(), -1, axis=1)
    same = np.roll(batch.document_ids.numpy(), -1, axis=1) == batch.document_ids.numpy()
    expected = np.where(same & (following >= 0), following, -1)[used.numpy()]
    assert [-1 if target == "nothing" else int(target) for target in targets] == expected.tolist()
    heads = batch.writers[used]
    assert page.count("written by head 9") == int((heads == 10).sum()) > 0
    assert page.count("written by the backbone") == int((heads == 0).sum())
    feet = re.findall(r"<i[^>]*>(\w*)</i></div>", page)
    assert feet == [{-1: "", 0: "B"}.get(writer, str(writer - 1)) for writer in heads.tolist()]


def test_tables_show_every_source(corpus: Corpus) -> None:
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    sources = [PreparedSource(corpus.shards / name) for name in ("asr", "tts", "text")]
    module = corpus.module()
    console.print(info_table([source.manifest for source in sources]))
    console.print(stats_table(sources, module.renderer.length_rule, 256, False))
    console.print(plan_table(module, 50))
    text = console.export_text()
    assert all(text.count(name) >= 3 for name in ("asr", "tts", "text"))
    assert "300" in text and "rows are" in text and module.fingerprint in text


def test_the_command_ends_with_status_1_where_something_is_broken(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = first_shard(source)
    offset, data = list(iterate_shard(shard))[4]
    flip(shard, offset + len(data) // 2)
    config = DataToolsConfig(command="lint", data=DataOptions(shards=str(source.parent)))
    with pytest.raises(SystemExit) as ended:
        look(config)
    assert ended.value.code == 1
    assert "asr sample 4" in (output := capsys.readouterr().out) and shard.name in output
    with pytest.raises(UserError, match="nothing is prepared"):
        look(replace(config, data=DataOptions(shards=str(tmp_path))))


def test_a_misspelt_tool_is_named_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["data", "ifno"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "command is 'ifno': choose one of info, " in (said := capsys.readouterr().err)
    assert "did you mean 'info'?" in said


def test_a_folder_in_which_nothing_is_prepared_is_said_and_the_right_one_beside_it(
    source: Path, tmp_path: Path
) -> None:
    for folder, meant in ((source, source.parent), (tmp_path, source.parent)):
        assert f"nothing is prepared in {folder} (" in (said := nothing_prepared(folder))
        assert said.endswith(f"did you mean {meant}?")
    (tmp_path / "empty").mkdir()
    assert nothing_prepared(tmp_path / "empty").endswith("or set data.shards=DIR")


def test_shards_without_their_tokenizer_ask_for_it(source: Path) -> None:
    with pytest.raises(
        UserError, match="there is no tokenizer beside .*/shards: put .* or give data.tokenizer_folder=DIR"
    ):
        tokenizer_there(DataOptions(shards=str(source.parent)))


def test_what_is_previewed_is_made_by_trainings_own_function_with_its_settings(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[TrainConfig, int]] = []

    def of_training(config: TrainConfig, n_heads: int) -> None:
        seen.append((config, n_heads))
        raise UserError("seen")

    monkeypatch.setattr("vita_audio_pl.training.stage.data.prepared_data", of_training)
    given = ["stage=mtp1", f"data.shards={corpus.shards}", "rendering.lead_in_codes=3", "rendering.text_weight=0.25"]
    for word in ("preview", "plan"):
        monkeypatch.setattr("sys.argv", ["data", word, *given, f"paths.runs={tmp_path}"])
        with pytest.raises(SystemExit):
            main()
        config, n_heads = seen.pop()
        assert (config.rendering.lead_in_codes, config.rendering.text_weight) == (3, 0.25)
        assert n_heads == config.stage.n_heads == 1
