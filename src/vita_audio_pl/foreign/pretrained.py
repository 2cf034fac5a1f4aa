"""Checkpoint folders that transformers reads: what is missing or damaged is told by the name of its file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vita_audio_pl.errors import UserError, is_machine_fault
from vita_audio_pl.foreign.fields import read_json
from vita_audio_pl.foreign.weights import open_safetensors

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json")
_LARGEST = 1 << 26  # bytes; a tokenizer has some MiB


def require_checkpoint(folder: Path, name: str, setting: str, *files: tuple[str, ...]) -> None:
    """Refuse a folder that lacks a file, or whose JSON or safetensors cannot be read, before it is loaded.

    Args:
        name: of the checkpoint, in messages.
        setting: that names the folder.
        files: names of which one must be there, beside `config.json` and weights.

    Raises:
        UserError: names the folder and the file.
    """
    for names in (("config.json",), *files, WEIGHTS):
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise UserError(f"{folder} is not a {name} checkpoint (it has no {names[0]}); give {setting}=FOLDER")
        if found.suffix == ".json":
            read_json(found, largest=_LARGEST)
        elif found.suffix == ".safetensors":
            with open_safetensors(found):
                pass


@contextmanager
def loading(folder: Path, name: str) -> Iterator[None]:
    """Whatever a library raises in the block is a sentence about the folder that it reads, but for a fault of the machine.

    Raises:
        UserError: names the folder, and what the library said.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # nearly any type, on a file that cannot be
        if is_machine_fault(error):
            raise
        reason = " ".join(str(error).split()).partition(" If you were trying to load it from")[0][:200]
        raise UserError(
            f"{folder} cannot be loaded as a {name} checkpoint ({type(error).__name__}: {reason}); download the whole folder again"
        ) from None


def from_pretrained(kind: type[Any], folder: Path, name: str, **options: Any) -> Any:
    """What `kind.from_pretrained` makes of a folder on disk, with every one of a model's tensors from its files.

    Args:
        kind: a class of transformers: a model, or what prepares its inputs.
        name: of the checkpoint, in messages.
        options: of `kind.from_pretrained`.

    Raises:
        UserError: the folder cannot be loaded, or lacks tensors, which transformers would draw at random.
    """
    from transformers import PreTrainedModel

    with loading(folder, name):
        if not issubclass(kind, PreTrainedModel):
            return kind.from_pretrained(folder, local_files_only=True, **options)
        # with its report it returns a pair, which its types do not say
        loaded: Any = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder} lacks {len(missing)} tensors that config.json calls for, such as '{missing[0]}'; without them it is another "
            "model: download the whole folder"
        )
    return model
