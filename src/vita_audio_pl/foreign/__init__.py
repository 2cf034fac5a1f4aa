"""Files made by other projects, read as data: nothing in them is executed, unless a person says that a file is trusted."""

from vita_audio_pl.foreign.fields import Fields, read_json, read_tagged_yaml
from vita_audio_pl.foreign.weights import load_strict, read_weights, require_trust

__all__ = ["Fields", "load_strict", "read_json", "read_tagged_yaml", "read_weights", "require_trust"]
