"""`python -m vita_audio_pl.prepare`: prepare a corpus, or the spoken world, as shards for training."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.data.options import PrepareConfig
from vita_audio_pl.errors import UserError

if TYPE_CHECKING:
    from vita_audio_pl.data.recipe import SourceRecipe
    from vita_audio_pl.data.tokenize import TokenizeJob
    from vita_audio_pl.storage.places import Place


def prepare(config: PrepareConfig) -> None:
    """Prepare the configured source."""
    from vita_audio_pl.config.screen import messages
    from vita_audio_pl.data.executors import executor_of
    from vita_audio_pl.data.readers.sides import planned_once
    from vita_audio_pl.data.recipe import DEV, load_recipe
    from vita_audio_pl.judged_speech import chosen_judge, judge_speech, judged_told, transcriber_of
    from vita_audio_pl.preparation import describe_manifest, prepare_split, prepare_spoken_world, tokenize_job
    from vita_audio_pl.storage.copies import local_copy
    from vita_audio_pl.storage.places import place
    from vita_audio_pl.storage.remote import RemotePath
    from vita_audio_pl.text import TextTokenizer

    console = messages()
    if config.samples is not None:
        from vita_audio_pl.own_data import prepare_own_data

        out = prepare_own_data(config, console)
        print(f"ready for python -m vita_audio_pl.train {training_on(config, out)}")
        return
    if config.source == "spoken_world":
        folder = Path(config.root or f"{config.paths.data}/spoken_world{'_smoke' if config.size == 'smoke' else ''}")
        shards = prepare_spoken_world(
            folder,
            config.size,
            config.seed,
            workers=config.executor.workers,
            console=console,
            keep_audio=config.keep_audio,
        )
        print(f"the spoken world is ready: {shards}")
        return
    recipe = load_recipe(config.source)
    if config.root is None or config.tokenizer_folder is None:
        raise UserError(
            f"preparing '{config.source}' needs root=DIR, where the corpus lies, and tokenizer_folder=DIR, whose ids its text "
            "becomes; a source with audio needs codec_folder=DIR, too"
        )
    target = place(config.shards, "shards")
    if isinstance(target, RemotePath):
        target.check_writable()
    root, judge = place(config.root, "root"), chosen_judge(config, recipe.languages)
    make_job = partial(
        tokenize_job,
        recipe,
        root=root,
        shards=target,
        tokenizer=TextTokenizer.load(local_copy(place(config.tokenizer_folder, "tokenizer_folder"), config.cache)),
        codec_folder=place(config.codec_folder, "codec_folder") if config.codec_folder else None,
        batch_seconds=config.batch_seconds,
        decoders=config.decoders,
        shard_bytes=round(config.shard_mb * 1e6),
        codes=place(config.codes, "codes") if config.codes else None,
        cache=config.cache,
        keep_audio=config.keep_audio,
        device=config.device,
        dtype=config.dtype,
        max_skipped=config.max_skipped,
        voice=config.tts,
        spoken=place(config.spoken, "spoken") if config.spoken else None,
        transcriber=transcriber_of(judge, config.device),
    )
    with planned_once():
        for job in _jobs(recipe, root, config.split, make_job):
            drawn = bool(recipe.held_out) and job.source == recipe.folder(DEV)
            manifest = prepare_split(job, executor_of(config.executor), console, config.parts, config.prune, drawn)
            if manifest is None:
                continue
            print(describe_manifest(manifest, target))
            if judge is not None and "transcripts" not in job.about:
                print(judged_told(job, judge_speech(job, manifest, judge, config.judged, config.parts, config.device)))


def training_on(config: PrepareConfig, out: Path) -> str:
    """What `train` is told to train on the samples prepared in `out`."""
    from vita_audio_pl.data.prepared import Manifest
    from vita_audio_pl.data.readers.jsonl import PREFERENCE
    from vita_audio_pl.model_names import named_model
    from vita_audio_pl.own_data import MIXTURE, SHARDS, SOURCE
    from vita_audio_pl.training.finetune import codec_settings, continuing
    from vita_audio_pl.training.run_folder.origin import is_plain_backbone

    manifest, model = Manifest.load(out / SHARDS / SOURCE), named_model(str(config.model), config.paths.runs)
    data = [f"data.shards={out / SHARDS}", *codec_settings([manifest]), "run_name=NAME"]
    if manifest.task == PREFERENCE:
        return shlex.join([*continuing(model, "dpo"), *data])
    if is_plain_backbone(model):
        return shlex.join(["stage=align", f"init_from={config.model}", f"stage.mixture={out / MIXTURE}", *data])
    return shlex.join([f"finetune={config.model}", f"shards={out}"])


def _jobs(
    recipe: "SourceRecipe", root: "Place", split: str | None, make_job: Callable[[str], "TokenizeJob"]
) -> list["TokenizeJob"]:
    """The tasks of one split, or of all that are there; what is missing of the corpus is told before anything is done."""
    jobs = []
    for name in [split] if split else recipe.all_splits:
        if not split and name in recipe.splits and root.is_dir() and not recipe.is_there(root, name):
            print(f"there is no '{recipe.folder(name)}': {root} has no file of the split '{name}' of {recipe.home}")
            continue
        jobs.append(make_job(name))
        if missing := jobs[-1].about.get("absent"):
            print(
                f"'{recipe.folder(name)}' is prepared without a part of the corpus: no file matches {', '.join(missing)}"
            )
    return jobs


def main() -> None:
    run_entry_point(prepare, "prepare", PrepareConfig, own=("model",))


if __name__ == "__main__":
    main()
