"""Batched generation: answers to a list of prompts, several at a time."""

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from vita_audio_pl.config.decoding import Greedy, Sampling
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.code_groups import CodeGroups
from vita_audio_pl.inference.constraint import SpanConstraint
from vita_audio_pl.inference.decoder import Decoder
from vita_audio_pl.inference.generation import Generation
from vita_audio_pl.inference.runtime import Runtime
from vita_audio_pl.inference.sequence import DecodedSequence, Options
from vita_audio_pl.interleave import DecodePattern
from vita_audio_pl.models.speech_lm import SpeechLM


def generate(
    model: SpeechLM | Runtime,
    prompts: Sequence[Sequence[int]],
    pattern: DecodePattern,
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int] = (),
    sampling: Sampling | Sequence[Sampling] = Greedy,
    constraint: SpanConstraint | None = None,
    verify: str = "none",
    groups: CodeGroups | None = None,
    batch_size: int = 8,
    clips: Sequence[Sequence[Tensor]] | None = None,
    graphs: bool | None = None,
    decoder: Decoder | None = None,
) -> list[Generation]:
    """Generate an answer to every prompt; answers are in the order of the prompts.

    Up to `batch_size` prompts are decoded at a time; the next one starts when one ends. Batching does not change the
    answers, except for ties within rounding.

    Args:
        model: a model, or a `Runtime` made from it (faster where `generate` is called often).
        prompts: token ids, each of any length.
        pattern: which predictor writes which token.
        max_new_tokens: limit per answer.
        stop_ids: tokens that end an answer.
        sampling: for all, or one for each prompt; greedy by default.
        constraint: what may stand inside audio spans; None as in the published system.
        verify, groups: see `Options`.
        batch_size: prompts at a time.
        clips: for each prompt, features of its audio, for models with an audio encoder.
        graphs: replay passes as CUDA graphs; by default on a GPU.
        decoder: an idle decoder to reuse instead of a new one; its own slots and graphs replace `batch_size` and
            `graphs`.

    Raises:
        UserError: an invalid setting or prompt, or logits that are not finite; with the prompt's number.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    if len(settings) != len(prompts):
        raise UserError(f"{len(settings)} samplings were given for {len(prompts)} prompts; give one, or one for each")
    if not prompts:
        return []
    runtime = model if isinstance(model, Runtime) else Runtime(model)
    stops: Collection[int] = frozenset(stop_ids)
    options = [
        Options(pattern, max_new_tokens, frozenset(stops), s, constraint, verify, None, groups) for s in settings
    ]
    decoder = decoder or Decoder(
        runtime,
        slots=min(batch_size, len(prompts)),
        capacity=max(len(prompt) for prompt in prompts) + max_new_tokens,
        n_heads=max(0, *pattern.writers(max_new_tokens, runtime.n_heads).tolist()),
        graphs=graphs,
    )
    results: list[Generation | None] = [None] * len(prompts)
    waiting = list(enumerate(prompts))[::-1]
    running: dict[DecodedSequence, int] = {}
    while waiting or running:
        while waiting and decoder.free_slots:
            number, prompt = waiting.pop()
            try:
                heard = clips[number] if clips else ()
                running[decoder.open(prompt, options[number], heard)] = number
            except UserError as error:
                raise UserError(f"prompt {number + 1} of {len(prompts)}: {error}") from error
        decoder.step()
        for sequence in [s for s in running if s.finished]:
            number = running.pop(sequence)
            if sequence in decoder.errors:
                raise UserError(f"prompt {number + 1} of {len(prompts)}: {decoder.errors[sequence]}")
            results[number] = sequence.result()
            decoder.close(sequence)
    return [result for result in results if result is not None]
