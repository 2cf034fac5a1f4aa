"""Folders that vLLM serves: the plain backbone, and the heads as its draft model.

The folder has the layout of `models.backbone`, which this package and transformers also read. `heads/` in it is what
vLLM calls a draft model: `config.json`, and the final norm that heads and backbone share. The heads' own weights are
stored once, with the backbone's. `vita_audio_pl.vllm_plugin` has the classes that run them.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.models.backbone import save_backbone
from vita_audio_pl.models.released import HEADS
from vita_audio_pl.models.speech_lm import SpeechLM
from vita_audio_pl.models.weight_files import SINGLE, write_json
from vita_audio_pl.storage.files import save_safetensors

DRAFT_FOLDER = "heads"
DRAFT_TYPE = "mtp"
"""`model_type` of the draft model; vLLM treats it as multi-token prediction for any model."""
DRAFT_CLASS = "MCTPHeads"
FINAL_NORM = "model.norm.weight"


def save_vllm(
    model: SpeechLM,
    folder: Path | str,
    *,
    decode_pattern: Sequence[int] | None = None,
    first_code: int | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write the folder that `vllm serve` takes, LoRA adapters merged; for the arguments see `save_backbone`.

    Raises:
        UserError: the model has no heads.
    """
    if not model.n_heads:
        raise UserError("the model has no heads that could draft; format=backbone is what vLLM serves without drafts")
    folder = Path(folder)
    save_backbone(model, folder, decode_pattern=decode_pattern, first_code=first_code, max_shard_bytes=max_shard_bytes)
    (folder / DRAFT_FOLDER).mkdir()
    norm = model.model.norm.weight.detach().contiguous()
    save_safetensors({FINAL_NORM: norm}, folder / DRAFT_FOLDER / SINGLE, metadata={"format": "pt"})
    write_json(folder / DRAFT_FOLDER / "config.json", draft_config(read_json(folder / "config.json"), model.n_heads))


def draft_config(backbone: dict[str, Any], n_heads: int) -> dict[str, Any]:
    """`config.json` of the heads as a draft model.

    backbone: fields of the backbone's `config.json`; `num_hidden_layers` is kept, as heads are numbered after it.
    """
    kind = {"architectures": [DRAFT_CLASS], "model_type": DRAFT_TYPE, "backbone_type": backbone["model_type"]}
    return backbone | kind | {HEADS: n_heads, "n_predict": n_heads}


def serve_command(folder: Path, name: str) -> str:
    """The command that serves an exported folder with vLLM, every head drafting; name: path of the folder."""
    n_heads = read_json(folder / DRAFT_FOLDER / "config.json")[HEADS]
    draft = {"method": "mtp", "model": f"{name}/{DRAFT_FOLDER}", "num_speculative_tokens": n_heads}
    return shlex.join(["vllm", "serve", name, "--speculative-config", json.dumps(draft)])
