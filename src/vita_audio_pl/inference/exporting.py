"""Conversion of model folders between layouts: published, or a plain Qwen2 or Qwen3 folder with the heads beside it."""

import os
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.loading import load_speech_model
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.initialise import end_answers_with
from vita_audio_pl.models.released import save_released
from vita_audio_pl.models.vllm_export import save_vllm
from vita_audio_pl.models.weight_files import verify_model_files, weights_hash, write_json
from vita_audio_pl.storage.checksums import sum_of_folder, write_checksums
from vita_audio_pl.storage.model_folders import MANIFEST, find_model, part_of, read_manifest
from vita_audio_pl.storage.owned import atomic_folder
from vita_audio_pl.text.vocabulary import Vocabulary, code_token, special_tokens

LAYOUTS = {"released": save_released, "backbone": save_backbone, "vllm": save_vllm}


def export_model(
    source: Path | str,
    target: Path | str,
    layout: str = "released",
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    codec_folder: Path | str | None = None,
    runs: Path | str = "runs",
    quantize: str | None = None,
) -> None:
    """Write the model `source`, in any layout, to the new folder `target`.

    The tokenizer is written with its special and audio tokens; codec and manifest are copied.

    Args:
        source: any name of a model that `find_model` accepts.
        layout: `released` (published checkpoints), `backbone` (transformers loads it as Qwen2 or Qwen3) or `vllm` (the
            backbone, and the heads as drafts for it).
        dtype: dtype to convert to; None keeps the source's.
        codec_folder: folder of the audio codec; None uses the source's own, if it has one.
        runs: folder of runs, to find runs by name.
        quantize: hold the linear layers in few bits, see `models.quantised`; only this package reads them so.

    Raises:
        UserError: an unknown layout, one without the model's form of heads, one for others than this package with quantised
            weights, an inconsistent source, or a target that exists.
    """
    if layout not in LAYOUTS:
        raise UserError(f"format is '{layout}'; it must be one of {', '.join(LAYOUTS)}")
    if quantize is not None:
        _only_for_us(layout)
    source, target = find_model(source, runs), Path(target)
    if os.path.lexists(target):
        raise UserError(f"{target} is there already; give a folder that is not, or move it away")
    verify_model_files(source)
    with atomic_folder(target, "exported model", marked=False) as aside:
        loaded = load_speech_model(source, dtype=dtype, codec_folder=codec_folder, quantize=quantize)
        if loaded.model.config.quantize is not None:
            _only_for_us(layout)
        model, pattern, words = loaded.model, loaded.pattern.runs, loaded.vocabulary
        end_answers_with(model, words.im_end)
        if layout != "backbone" and model.config.heads != "mctp":
            raise UserError(
                f"{source} has {model.config.heads} heads, which neither the published layout nor vLLM knows; "
                f"{'leave quantize out and use ' if quantize else ''}format=backbone, which keeps them beside the backbone"
            )
        loaded.tokenizer.save(aside)
        spell_out(aside / "tokenizer.json", words)
        LAYOUTS[layout](
            model, aside, decode_pattern=pattern, first_code=words.first_code, max_shard_bytes=max_shard_bytes
        )
        beside = {"codec": loaded.codec_dir, "speech_input": part_of(source, "speech_input")}
        for name, folder in beside.items():
            if folder is not None and folder.is_dir():
                shutil.copytree(folder, aside / name, dirs_exist_ok=True)
        if manifest := read_manifest(source):
            if quantize is not None:  # other weights, whose results are not those of the exact ones
                manifest["weights"] = weights_hash(sum_of_folder(aside))
            write_json(aside / MANIFEST, manifest)
        write_checksums(aside, sum_of_folder(aside))


def _only_for_us(layout: str) -> None:
    if layout != "released":
        raise UserError(
            f"format={layout} is for transformers and vLLM, which do not read weights that this package has quantised: export "
            "exact ones, and let these quantise as they load (transformers: TorchAoConfig, vLLM: --quantization)"
        )


def spell_out(path: Path, vocabulary: Vocabulary) -> None:
    """Add special and audio tokens to the text tokenizer in the file `path`, in the published order."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in special_tokens(vocabulary.continuous_input)]
    )
    tokenizer.add_tokens([AddedToken(code_token(code), normalized=False) for code in range(vocabulary.n_codes)])
    tokenizer.save(str(path))
