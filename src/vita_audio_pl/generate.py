"""`python -m vita_audio_pl.generate`: one answer of a trained model, text on the screen and audio on disk."""

import sys
import time

from vita_audio_pl.config.decoding import DRAFTED_NOTHING
from vita_audio_pl.config.entry import run_entry_point
from vita_audio_pl.errors import UserError
from vita_audio_pl.inference.options import GenerateConfig


def generate(config: GenerateConfig) -> None:
    """Generate the configured answer."""
    import torch

    from vita_audio_pl.codecs.audio import wav_file, write_wav
    from vita_audio_pl.inference.answering import SPOKEN_TASKS, codec_of, open_session
    from vita_audio_pl.inference.kernels import check_kernels
    from vita_audio_pl.inference.loading import load_speech_model
    from vita_audio_pl.inference.prompts import Prompter
    from vita_audio_pl.inference.sinks import PIPE, show_stream
    from vita_audio_pl.model_names import named_model

    speaks = config.output != PIPE and (config.task in SPOKEN_TASKS or config.output != GenerateConfig.output)
    if speaks:
        # an unwritable output is reported before the answer is generated
        wav_file(config.output, filter(None, (config.audio, config.voice)))
    check_kernels(config.kernels, config.verify, config.sampling, config.device)
    torch.set_num_threads(config.threads)
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    loaded = load_speech_model(
        named_model(config.model, config.paths.runs),
        device=config.device,
        dtype=dtype,
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
        kernels=config.kernels,
        quantize=config.quantize,
    )
    if loaded.codec_dir is None and (config.task in SPOKEN_TASKS or config.voice is not None):
        raise UserError(
            f"task={config.task} answers in speech, but the model {config.model} has no audio codec: give codec_folder=DIR, the one "
            "that it was trained with"
        )
    codec = codec_of(loaded, config.device)
    with open_session(config, loaded, codec) as session:
        begun = time.perf_counter()
        if config.stream:
            spoken = show_stream(session, loaded, codec, config.output)
        else:
            for _ in session:
                pass
            print(Prompter(loaded.vocabulary, loaded.tokenizer).text(session.result()))
            codes = session.result().codes(loaded.vocabulary)
            spoken = 0.0
            if codec is not None and codes.size:
                wave = codec.decode(codes)
                write_wav(config.output, wave, codec.sample_rate)
                spoken = wave.size / codec.sample_rate
        seconds, answer = time.perf_counter() - begun, session.result()
    silent = f"; the answer has no speech, so {config.output} is not written" if speaks else ""
    print(
        f"{len(answer.ids)} tokens in {answer.backbone_passes} backbone and {answer.head_passes} head passes, "
        f"{seconds:.2f} s"
        + (f"; {spoken:.2f} s of speech in {config.output}" if spoken else silent)
        + ("" if answer.stopped else f"; cut at max_new_tokens={config.token_limit}"),
        file=sys.stderr,
    )
    pattern = loaded.decode_pattern(config.mode, config.task in SPOKEN_TASKS)
    if config.verify != "none" and pattern.uses_heads and not answer.head_passes:
        print(DRAFTED_NOTHING, file=sys.stderr)


def main() -> None:
    run_entry_point(generate, "generate", GenerateConfig, own=("model",))


if __name__ == "__main__":
    main()
