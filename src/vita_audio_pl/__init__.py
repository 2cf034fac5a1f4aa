"""Train, run and measure speech language models that write text and audio tokens in one stream.

The names below are loaded when first used, so that importing the package costs nothing:
`from vita_audio_pl import IntervalRatio, load_speech_model, train_config`. See the page "From Python".

`transformers.AutoModelForCausalLM` loads published and exported folders once this package is imported (`models.auto`).
"""

import os
import signal
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from vita_audio_pl import leaving

_HOMES = {
    "DecodePattern": "vita_audio_pl.interleave",
    "IntervalRatio": "vita_audio_pl.interleave",
    "PackedBatch": "vita_audio_pl.packed",
    "Session": "vita_audio_pl.inference.session",
    "SpeechDataModule": "vita_audio_pl.data.datamodule",
    "SpeechLM": "vita_audio_pl.models.speech_lm",
    "SpeechLMModule": "vita_audio_pl.training.step.module",
    "TextTokenizer": "vita_audio_pl.text",
    "UserError": "vita_audio_pl.errors",
    "load_codec": "vita_audio_pl.codecs",
    "load_speech_model": "vita_audio_pl.inference.loading",
    "named_model": "vita_audio_pl.model_names",
    "open_stage": "vita_audio_pl.notebook",
    "prepare_data": "vita_audio_pl.notebook",
    "train_config": "vita_audio_pl.notebook",
    "train_stage": "vita_audio_pl.notebook",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vita_audio_pl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


# only where this is a command (`python -m vita_audio_pl.train`), never where the package is imported
if leaving.command():
    leaving.check_surroundings()
    leaving.quieten_libraries()
    sys.excepthook = leaving.tell_of_memory
    for _number in leaving.STATUS:
        signal.signal(_number, leaving.leave_at_start)
elif os.environ.get(leaving.QUIET):
    leaving.quieten_libraries()


class _WithOurs(Loader):
    """Loads transformers' table of models, then adds ours to it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        later = _OnceTransformersIsWhole()
        if not later.registered():
            sys.meta_path.insert(0, later)


class _OnceTransformersIsWhole(MetaPathFinder):
    """Adds ours with a later import, where a module that ours may need is what is importing the table."""

    def registered(self) -> bool:
        for name, module in list(sys.modules.items()):
            if name.startswith(_NEEDED) and name != _AUTO and _is_being_imported(module):
                return False
        import_module("vita_audio_pl.models.auto").register()
        return True

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)  # before it is asked again by what it imports
            if not self.registered():
                sys.meta_path.insert(0, self)
        return None


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(vars(module).get("__spec__"), "_initializing", False))


class _BeforeTransformers(MetaPathFinder):
    """Waits for that table to be imported, so that importing this package does not import transformers."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithOurs(spec.loader)
        return spec


_AUTO = "transformers.models.auto.modeling_auto"
_NEEDED = ("transformers.", f"{__name__}.models.")
if _AUTO in sys.modules:
    import_module("vita_audio_pl.models.auto").register()
else:
    sys.meta_path.insert(0, _BeforeTransformers())
