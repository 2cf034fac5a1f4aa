"""Run in a process of its own: answers of folders by vLLM, and what its drafts did; a JSON of jobs in, a JSON of results out."""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

from safetensors.torch import save_file  # noqa: E402  # after the environment that vLLM reads
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402

from vita_audio_pl.vllm_plugin.draft import MCTPHeads  # noqa: E402

COUNTERS = {"drafted": "vllm:spec_decode_num_draft_tokens", "accepted": "vllm:spec_decode_num_accepted_tokens"}


def keep_weights(file):
    """Has the drafts' parameters written to `file` once they are loaded: on a CPU, vLLM packs them afterwards."""
    load = MCTPHeads.load_weights

    def loading(self, weights):
        loaded = load(self, weights)
        save_file({name: value.contiguous() for name, value in self.named_parameters()}, file)
        return loaded

    MCTPHeads.load_weights = loading


def answers(folder, prompts, n_tokens, speculative=None, weights=None):
    if weights is not None:
        keep_weights(weights)
    engine = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        disable_log_stats=False,
        speculative_config=speculative,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=n_tokens, ignore_eos=True, detokenize=False)
    written = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False)
    found = {"ids": [list(answer.outputs[0].token_ids) for answer in written]}
    if speculative is not None:
        counted = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
        found |= {name: counted[metric] for name, metric in COUNTERS.items()}
    del engine
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    jobs = json.loads(open(sys.argv[1]).read())
    results = {name: answers(**job) for name, job in jobs.items()}
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)
