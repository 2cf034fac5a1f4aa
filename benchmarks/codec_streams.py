"""What a stream of the small world's codec loses by few rounds of Griffin-Lim, and what they cost.

    python benchmarks/codec_streams.py WORLD [--split dev] [--rounds 3 4 5 ...] [--chunk 8]

WORLD: data/spoken_world. Every recording of the split is decoded whole and as a stream, in all numbers of rounds by turns, on one thread. The error
is that of the magnitudes against their length, the mean of utterances. Flux is the spectral flux at the seams, against
that of whole decoding at the same places. The assistant is judged by pocketsphinx's large vocabulary (half a second to
three a text and number of rounds), the input voices by the grammar.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from arguments import count, mistakes_told

from vita_audio_pl.codecs import MelVQ, mel_vq_streams, read_audio, spectral
from vita_audio_pl.evaluation.judges.pocketsphinx import Judge, PocketsphinxJudge, PocketsphinxWordsJudge
from vita_audio_pl.evaluation.scores.measures import count_errors
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.text.lines import read_lines

WHOLE = 0  # in place of a number of rounds


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("world", type=Path)
    asked.add_argument("--split", default="dev")
    asked.add_argument("--rounds", type=count, nargs="+", default=[3, 4, 5, 6, 8, 12, 16])
    asked.add_argument("--chunk", type=count, default=8, help="codes that arrive at a time")
    options = asked.parse_args()
    torch.set_num_threads(1)
    codec = MelVQ.load(options.world / "codec")
    judges = {"tts": PocketsphinxWordsJudge(), "asr": PocketsphinxJudge(options.world / "grammar.jsgf")}
    ways = [WHOLE, *options.rounds]
    for task, name in (("tts", "the assistant"), ("asr", "the input voices")):
        texts, waves = recordings(options.world, task, options.split, codec.sample_rate)
        found = measured(codec, codec.encode(waves), ways, options.chunk)
        n_words = sum(len(plain(text)) for text in texts)
        wrong = word_errors(judges[task], texts, waves).sum()
        seconds = sum(map(len, waves)) / codec.sample_rate
        print(f"{name}: {len(texts)} recordings, {seconds:.0f} s, {wrong} of {n_words} words wrong as recorded")
        for way in ways:
            error, flux, cpu, decoded = found[way]
            wrong = word_errors(judges[task], texts, decoded).sum()
            print(
                f"{'whole' if way == WHOLE else f'{way} rounds':9} error {error:.3f}, flux {flux:.2f}, "
                f"{wrong} of {n_words} words wrong, {1000 * cpu:.2f} CPU ms a second",
                flush=True,
            )


def recordings(world: Path, task: str, split: str, rate: int) -> tuple[list[str], list[np.ndarray]]:
    """Texts and waves `(samples,)` of a split: what the assistant says (tts), or what is said to it (asr)."""
    rows = [json.loads(line.text) for line in read_lines(world / f"samples/{task}.{split}.jsonl")]
    said = "user" if task == "tts" else "assistant"
    texts = [next(m["content"] for m in row["messages"] if m["role"] == said).split("\n")[-1] for row in rows]
    return texts, [read_audio(world / row["audios"][0], rate) for row in rows]


def word_errors(judge: Judge, texts: list[str], waves: list[np.ndarray]) -> np.ndarray:
    """Words wrong in each utterance."""
    said = judge.transcribe(waves, 16_000)
    return np.array([count_errors(plain(text), plain(one)).errors for text, one in zip(texts, said, strict=True)])


def streamed(codec: MelVQ, codes: np.ndarray, chunk: int, rounds: int) -> list[np.ndarray]:
    """Pieces of a stream to which `chunk` codes come at a time."""
    usual = mel_vq_streams.STREAM_ROUNDS
    mel_vq_streams.STREAM_ROUNDS = (rounds - 0.5) / codec.config.griffin_lim_iterations
    try:
        stream = codec.decode_stream()
        pieces = [stream.push(codes[at : at + chunk]) for at in range(0, len(codes), chunk)]
        return [*pieces, stream.finish()]
    finally:
        mel_vq_streams.STREAM_ROUNDS = usual


def measured(
    codec: MelVQ, codes: list[np.ndarray], ways: list[int], chunk: int
) -> dict[int, tuple[float, float, float, list[np.ndarray]]]:
    """Of each way: error of the magnitudes, flux at the seams, CPU seconds a second of sound, and the sounds."""
    hop, rate = codec.config.hop, codec.sample_rate
    held_back = (spectral.OVERLAP - 1) * hop // 2
    filters = spectral.mel_filters(rate, spectral.OVERLAP * hop, codec.config.n_mels)
    errors, rises, cpu, sounds = (defaultdict(list) for _ in range(4))
    for number, row in enumerate(codes):
        wanted = codec._spectra(torch.from_numpy(row).long())[0]
        ends = chunk * codec.config.samples_per_code * np.arange(1, -(-len(row) // chunk)) - held_back
        seams = sorted({end // hop + step for end in ends.tolist() for step in (-2, -1, 0, 1)})
        for way in np.roll(ways, number).tolist():  # each stands in each place
            begun = time.process_time()
            wave = codec.decode(row) if way == WHOLE else np.concatenate(streamed(codec, row, chunk, way))
            cpu[way].append(time.process_time() - begun)
            heard = spectral.amplitudes(torch.from_numpy(wave), hop)
            magnitudes = heard * spectral.hann(hop).sum()
            errors[way].append(float((magnitudes - wanted).norm() / wanted.norm()))
            rising = torch.diff((heard @ filters).clamp(min=1e-4).log(), dim=0).clamp(min=0).mean(dim=1)
            rises[way].append(float(rising[seams].sum()))
            sounds[way].append(wave)
    seconds = sum(map(len, codes)) / codec.codes_per_second
    flux = {way: sum(some) / sum(rises[ways[0]]) for way, some in rises.items()}
    return {way: (float(np.mean(errors[way])), flux[way], sum(cpu[way]) / seconds, sounds[way]) for way in ways}


if __name__ == "__main__":
    with mistakes_told():
        main()
