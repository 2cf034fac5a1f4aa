"""Whether another decoder could read more from the small world's codes: words wrong after it, against the recordings'.

    python benchmarks/codec_decoders.py WORLD [--split dev] [--more] [--ways codec network ...]

WORLD: data/spoken_world. The assistant's texts of the split, judged by pocketsphinx's large vocabulary (half a second to three a text and
way); --more adds the statements that are in no split, spoken now. The codes are always those of the codec. Intervals are those of a paired
bootstrap over utterances. `off` is the mean squared error of the log spectra. All by whole decoding, one thread:

- spectra: those of the recordings; components: the same, put together from the codec's components;
- codec: its own decoder; network: its network alone, without the speech that it keeps; quarter: with a quarter of that speech;
- wide, dull: networks alone, fitted again to the same training audio: twice as wide; without the spread that is restored;
- wide_speech: twice as wide, with the speech.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from arguments import count, mistakes_told
from codec_streams import recordings, word_errors
from torch import Tensor, nn

from vita_audio_pl.codecs import MelVQ, context_decoder, mel_vq, spectral
from vita_audio_pl.codecs.context_decoder import ContextDecoder
from vita_audio_pl.codecs.mel_vq import _log_spectra, _padded
from vita_audio_pl.codecs.unit_selection import Trail, Units
from vita_audio_pl.evaluation.judges.pocketsphinx import PocketsphinxWordsJudge
from vita_audio_pl.evaluation.scores.normalisers import plain
from vita_audio_pl.spoken_world import plan, synthesis
from vita_audio_pl.spoken_world.build import World
from vita_audio_pl.spoken_world.sentences import LEXICONS, split_sentences
from vita_audio_pl.spoken_world.training_material import training_waves

DRAWS = 10_000
FITTED = {"wide": 2, "wide_speech": 2, "dull": 1}
"""Networks that are fitted here: how many times as wide as the codec's."""
FITTED_WITH = {"dull": {"_SPREAD": 0.0}}
"""Other constants of a network's fit."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("world", type=Path)
    asked.add_argument("--split", default="dev")
    asked.add_argument("--utterances", type=count, help="at most, of the split")
    asked.add_argument("--more", action="store_true")
    asked.add_argument("--unheard", action="store_true", help="errors of the spectra alone, without the judge")
    ways = ["spectra", "components", "codec", "network", "quarter", *FITTED]
    asked.add_argument("--ways", nargs="+", choices=ways, default=ways[:4])
    options = asked.parse_args()
    torch.set_num_threads(1)
    codec, judge = MelVQ.load(options.world / "codec"), PocketsphinxWordsJudge()
    texts, waves = recordings(options.world, "tts", options.split, codec.sample_rate)
    texts, waves = texts[: options.utterances], waves[: options.utterances]
    if options.more:
        unused = unused_statements(World.load(options.world))
        texts += unused
        waves += [wave.astype(np.float32) / 32768 for wave in synthesis.speak(unused, plan.ASSISTANT)]
    codes = [torch.from_numpy(row).long() for row in codec.encode(waves)]
    true = [_log_spectra(wave, codec.config) for wave in _padded(waves, codec.config)]
    n_words = sum(len(plain(text)) for text in texts)
    if not options.unheard:
        recorded = word_errors(judge, texts, waves)
        told = f"{recorded.sum()} of {n_words} words wrong, {recorded.sum() / n_words:.1%}"
        print(f"recordings: {len(texts)}, {told}", flush=True)
    for way in options.ways:
        begun = time.process_time()
        made = decoder_of(way, codec, options.world)
        seconds = time.process_time() - begun
        with torch.no_grad():
            found = [made(*pair) for pair in zip(codes, true, strict=True)]
        off = sum(float((one - other).square().sum()) for one, other in zip(found, true, strict=True))
        told = f"{way:12} off {off / sum(one.numel() for one in true):.3f}, fitted in {seconds:.0f} CPU s"
        if not options.unheard:
            wrong = word_errors(judge, texts, [sound(codec, one) for one in found])
            low, high = ratio_interval(wrong, recorded)
            times = f"{wrong.sum() / max(recorded.sum(), 1):.2f} times ({low:.2f} to {high:.2f})"
            told += f"; {wrong.sum()} of {n_words} words wrong, {wrong.sum() / n_words:.1%}, {times}"
        print(told, flush=True)


def unused_statements(world: World) -> list[str]:
    """Statements of the world that are in no split."""
    lexicon = LEXICONS[world.info["size"]]
    used = {text for some in split_sentences(lexicon, world.info["seed"]).values() for text in some.statements}
    every = itertools.product(lexicon.people, lexicon.views, lexicon.sizes, lexicon.animals)
    texts = (f"the {person} {view} the {size} {animal.name}" for person, view, size, animal in every)
    return [text for text in texts if text not in used]


def ratio_interval(wrong: np.ndarray, recorded: np.ndarray) -> tuple[float, float]:
    """95 % of `wrong / recorded`, of the same utterances drawn with replacement."""
    drawn = np.random.default_rng(0).integers(0, len(wrong), (DRAWS, len(wrong)))
    some = drawn[recorded[drawn].sum(axis=1) > 0]
    if not len(some):
        return float("nan"), float("nan")
    low, high = np.quantile(wrong[some].sum(axis=1) / recorded[some].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def decoder_of(way: str, codec: MelVQ, world: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes the log spectra of an utterance out of its codes and, for upper bounds, its true ones."""
    own = codec._decoder
    assert own is not None
    if way == "spectra":
        return lambda codes, true: true
    if way == "components":
        return lambda codes, true: (true - own.mean) @ own.basis @ own.basis.T + own.mean
    units = codec._units if way == "codec" else None
    if way in FITTED:
        spoken, others = training(world, codec)
        with fit_constants(**FITTED_WITH.get(way, {})):
            own = fitted(codec, FITTED[way] * codec.config.decoder_width, spoken, others)
        units = kept(codec, own, spoken) if way == "wide_speech" else None
    if way == "quarter":
        spoken, _ = training(world, codec)
        units = kept(codec, own, spoken[: len(spoken) // 4])

    def made(codes: Tensor, true: Tensor) -> Tensor:
        network = partial(own.components, codes)
        return own.spectra(network() if units is None else units.chosen(codes, network, Trail())[0])

    return made


def kept(codec: MelVQ, network: ContextDecoder, spoken: list[np.ndarray]) -> Units:
    """Speech that is kept, by the components of a network."""
    codes = [torch.from_numpy(row).long() for row in codec.encode(spoken)]
    spectra = [_log_spectra(wave, codec.config) for wave in _padded(spoken, codec.config)]
    return Units(**Units.weights(codes, [(rows - network.mean) @ network.basis for rows in spectra]))


def training(folder: Path, codec: MelVQ) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Audio to fit to: the assistant's and the others'."""
    from vita_audio_pl.preparation import _FIT_HEARD, _FIT_SPOKEN, WORLD_SOURCES

    world = World.load(folder)
    spoken, others = (
        training_waves(world, WORLD_SOURCES, codec.sample_rate, world.info["seed"], seconds, assistant)
        for seconds, assistant in ((_FIT_SPOKEN, True), (_FIT_HEARD, False))
    )
    return spoken, others


@contextmanager
def fit_constants(**values: float) -> Iterator[None]:
    """With other constants of a decoder's fit."""
    usual = {name: getattr(context_decoder, name) for name in values}
    try:
        for name, value in values.items():
            setattr(context_decoder, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(context_decoder, name, value)


def fitted(codec: MelVQ, width: int, spoken: list[np.ndarray], others: list[np.ndarray]) -> ContextDecoder:
    """A network for the codec's codes, which reads the spoken voice as often as the codec's own."""
    config, spoken = replace(codec.config, decoder_width=width), spoken * mel_vq._SPOKEN_TIMES
    decoder = ContextDecoder(
        config.codebook_size, width, config.decoder_components, config.frames_per_code * config.bins
    )
    waves = _padded([*spoken, *others], config)
    codes = [torch.from_numpy(row).long() for row in codec.encode([*spoken, *others])]
    points, generator = torch.from_numpy(codec.codebook()), torch.Generator().manual_seed(0)
    decoder.fit(codes, lambda number: _log_spectra(waves[number], config), points, generator)
    return decoder.requires_grad_(False)


def sound(codec: MelVQ, log_spectra: Tensor) -> np.ndarray:
    """What whole decoding makes of log spectra `(codes, frames_per_code * bins)`."""
    config = codec.config
    least, edge = config.quietest * mel_vq._NEAR_SILENCE, (spectral.OVERLAP - 1) * config.hop // 2
    amplitudes = nn.functional.threshold(log_spectra.exp(), least, 0.0).view(1, -1, config.bins)
    magnitudes, phases = amplitudes * spectral.hann(config.hop).sum(), spectral.first_phases(*amplitudes.shape[1:])
    wave = spectral.griffin_lim(magnitudes, config.hop, config.griffin_lim_iterations, phases)[0]
    return wave[edge : edge + len(log_spectra) * config.samples_per_code].clamp(-1, 1).numpy()


if __name__ == "__main__":
    with mistakes_told():
        main()
