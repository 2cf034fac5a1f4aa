"""The heads in vLLM, as drafts that the backbone checks (`export format=vllm` writes what is served).

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). It uses two public registries and
changes nothing inside vLLM.
"""

from vita_audio_pl.models.vllm_export import DRAFT_CLASS, DRAFT_TYPE


def register() -> None:
    """Makes the drafts known to transformers and vLLM; may be called again."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from vita_audio_pl.vllm_plugin.chain import DraftConfig

    AutoConfig.register(DRAFT_TYPE, DraftConfig, exist_ok=True)
    for name in (DRAFT_CLASS, f"Eagle{DRAFT_CLASS}"):
        ModelRegistry.register_model(name, f"vita_audio_pl.vllm_plugin.draft:{name}")
