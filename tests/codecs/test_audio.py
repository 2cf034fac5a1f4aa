"""Whatever file a person gives is read as documented, or refused in a sentence that names it."""

import errno
import io
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vita_audio_pl.codecs import AudioTooLong, read_audio, write_wav
from vita_audio_pl.codecs.audio import wav_file
from vita_audio_pl.errors import UserError


def tone(rate: int, seconds: float = 0.5, hz: float = 220.0, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def write(path, samples, rate, **options):
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 1e-2),
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "FLOAT", 1e-7),
        ("wav", "DOUBLE", 1e-7),
        ("wav", "ULAW", 3e-2),
        ("flac", "PCM_16", 1e-4),
        ("aiff", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 0.1),
    ],
)
def test_every_usual_sample_format_gives_the_same_wave(tmp_path, suffix, subtype, tolerance):
    wave = tone(16_000)
    path = write(tmp_path / f"a.{suffix}", wave, 16_000, subtype=subtype)
    read = read_audio(path, 16_000)
    assert read.dtype == np.float32 and read.shape == wave.shape
    assert np.abs(read - wave).max() < tolerance


@pytest.mark.parametrize("rate", [2_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_other_rates_keep_length_and_pitch(tmp_path, rate):
    path = write(tmp_path / "a.wav", tone(rate, 1.0), rate)
    read = read_audio(path, 16_000)
    assert abs(len(read) - 16_000) <= 2
    assert np.argmax(np.abs(np.fft.rfft(read, 16_000))) == 220


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(tmp_path, channels):
    waves = np.stack([tone(16_000) * k / channels for k in range(channels)], axis=1)
    path = write(tmp_path / "a.wav", waves, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, 16_000), waves.mean(axis=1), atol=1e-6)


def test_samples_beyond_full_scale_are_clipped(tmp_path):
    path = write(tmp_path / "a.wav", tone(16_000, peak=3.0), 16_000, subtype="FLOAT")
    read = read_audio(path, 16_000)
    assert read.max() == 1.0 and read.min() == -1.0


def test_a_piece_of_a_file_or_of_an_open_one_is_read(tmp_path):
    wave = tone(16_000, 1.0)
    path = write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    piece = read_audio(path, 16_000, start=0.25, seconds=0.5)
    np.testing.assert_array_equal(piece, wave[4_000:12_000])
    np.testing.assert_array_equal(read_audio(io.BytesIO(path.read_bytes()), 16_000), wave)
    with pytest.raises(UserError, match=r"a\.wav: it is 1\.00 s long and ends before 2\.00 s"):
        read_audio(path, 16_000, start=2.0)


def bad_files(folder):
    files = {name: folder / name for name in ("none.wav", "nothing.wav", "text.wav", "headless.wav", "folder.wav")}
    files["nothing.wav"].touch()
    files["text.wav"].write_text("this is a letter, not a song\n" * 50)
    files["headless.wav"].write_bytes(os.urandom(4000))
    files["folder.wav"].mkdir()
    files["no_samples.wav"] = write(folder / "no_samples.wav", np.zeros(0, np.float32), 16_000)
    files["slow.wav"] = write(folder / "slow.wav", np.zeros(5, np.float32), 1)
    files["nan.wav"] = write(folder / "nan.wav", np.array([0, np.nan, 0.1] * 90, np.float32), 16_000, subtype="FLOAT")
    files["inf.wav"] = write(folder / "inf.wav", np.array([0, np.inf, 0.1] * 90, np.float32), 16_000, subtype="FLOAT")
    files["cut.flac"] = write(folder / "cut.flac", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
    files["cut.flac"].write_bytes(files["cut.flac"].read_bytes()[:60])
    files["scaled.wav"] = write(folder / "scaled.wav", np.full((90, 2), 3e38, np.float32), 16_000, subtype="FLOAT")
    files["crowd.wav"] = write(folder / "crowd.wav", np.zeros((90, 300), np.float32), 16_000)
    files["pipe.wav"] = folder / "pipe.wav"
    os.mkfifo(files["pipe.wav"])
    return files


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.wav", "no such audio file"),
        ("nothing.wav", r"empty \(0 bytes\)"),
        ("text.wav", "not audio that can be read"),
        ("headless.wav", "not audio that can be read"),
        ("folder.wav", "is a folder"),
        ("no_samples.wav", "holds no samples"),
        ("slow.wav", "1 Hz is not one of speech"),
        ("nan.wav", "90 samples are NaN"),
        ("inf.wav", "90 samples are NaN or infinite"),
        ("cut.flac", "not audio|cannot be read|holds no samples"),
        ("scaled.wav", "samples reach 3e\\+38, where full scale is 1"),
        ("crowd.wav", "300 channels are more than a speech recording has"),
        ("pipe.wav", "is a device or a pipe"),
        ("x" * 300 + ".wav", "no such audio file"),
        ("nul\0.wav", "no such audio file"),
        ("half \ud83d.wav", "no such audio file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, reason):
    path = bad_files(tmp_path).get(name, tmp_path / name)
    with pytest.raises(UserError, match=reason) as error:
        read_audio(path, 16_000)
    assert name[:100] in str(error.value) and "\n" not in str(error.value)


def encoded(format: str, subtype: str | None = None, samples: np.ndarray | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    samples = samples if samples is not None else tone(16_000, 2.0) * (1 + np.sin(np.arange(32_000) / 900)) / 2
    soundfile.write(file, samples, 16_000, format=format, subtype=subtype, **options)
    return file.getvalue()


def wav_with_size(size: int, extra: bytes = b"") -> bytes:
    """A WAV of two seconds whose header gives `size` bytes of samples, with a chunk in front of them."""
    data = encoded("WAV", "PCM_16")
    return data[:36] + extra + b"data" + size.to_bytes(4, "little") + data[44:]


def mp3_without_its_length(bit_rate_mode: str) -> bytes:
    """An MP3 without the Xing frame that tells how many frames follow."""
    data = encoded("MP3", bitrate_mode=bit_rate_mode, compression_level=0.5)
    return data[data.index(data[:2], 4) :]


def flac_of_unknown_length() -> bytes:
    data = bytearray(encoded("FLAC"))
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # as an encoder leaves it that writes to a pipe
    return bytes(data)


NOTES = b"LIST" + (4000).to_bytes(4, "little") + b"INFOICMT" + (3988).to_bytes(4, "little") + b"note" * 997
WHOLE = {
    "WAV": lambda: encoded("WAV"),
    "extensible WAV": lambda: encoded("WAVEX"),
    "big-endian WAV": lambda: encoded("WAV", endian="BIG"),
    "RF64": lambda: encoded("RF64"),
    "W64": lambda: encoded("W64"),
    "IMA ADPCM": lambda: encoded("WAV", "IMA_ADPCM"),
    "AIFF": lambda: encoded("AIFF"),
    "AU": lambda: encoded("AU"),
    "FLAC": lambda: encoded("FLAC"),
    "Vorbis": lambda: encoded("OGG", "VORBIS"),
    "Opus": lambda: encoded("OGG", "OPUS"),
    "MP3": lambda: encoded("MP3"),
    "MP3 with a picture": lambda: b"ID3\4\0\0\0\0\x4e\x10" + bytes(10_000) + encoded("MP3"),
    "MP3 with a tag at its end": lambda: encoded("MP3") + b"TAG" + bytes(125),
    "MP3 of one bit rate without a length": lambda: mp3_without_its_length("CONSTANT"),
    "WAV with long notes": lambda: wav_with_size(64_000, NOTES),
    "WAV that counts its own header": lambda: wav_with_size(64_044),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_recording_is_read_whole_and_a_cut_one_is_refused_wherever_it_was_cut(tmp_path, kind):
    data, path = WHOLE[kind](), tmp_path / "a.wav"
    path.write_bytes(data)
    for source in (path, io.BytesIO(data)):
        assert len(read_audio(source, 16_000)) == pytest.approx(32_000, abs=1800)
    end = len(data) - (128 if "tag" in kind else 0) - 200  # later than that nothing is lost but the slack
    for cut in np.random.default_rng(0).integers(1, end, 40):
        with pytest.raises(UserError, match="cut short|not audio|cannot be read|no samples|ends"):
            read_audio(io.BytesIO(data[:cut]), 16_000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_streamed_or_never_closed_is_read_to_its_end(size):
    assert len(read_audio(io.BytesIO(wav_with_size(size)), 16_000)) == 32_000


@pytest.mark.parametrize("data", [mp3_without_its_length("VARIABLE"), flac_of_unknown_length()])
def test_a_recording_whose_length_nobody_knows_is_refused_rather_than_cut(data):
    with pytest.raises(UserError, match="no Xing header says how long it is|header has no length"):
        read_audio(io.BytesIO(data), 16_000)


@pytest.mark.parametrize("name", ["tone.m4a", "tone.amr"])
def test_formats_that_are_not_read_are_named(name):
    with pytest.raises(UserError, match=rf"{name} is not audio that can be read"):
        read_audio(Path(__file__).parent / "recordings" / name, 16_000)


def test_a_piece_must_lie_in_the_recording_and_a_cut_file_still_gives_its_pieces(tmp_path):
    data = encoded("WAV")
    cut = io.BytesIO(data[: len(data) // 2])
    assert len(read_audio(cut, 16_000, start=0.2, seconds=0.5)) == 8000
    assert len(read_audio(io.BytesIO(data), 16_000, start=1.0, seconds=1.05)) == 16_000  # a rounded end
    for start, seconds, said in [
        (1.0, 1.5, "ends at 2.00 s, before the piece that ends at 2.50 s"),
        (-1.0, 1.0, "not a piece of a recording"),
        (1.0, -0.5, "not a piece"),
        (1.0, 0.0, "not a piece"),
        (float("nan"), None, "not a piece"),
        (0.0, float("inf"), "not a piece"),
    ]:
        with pytest.raises(UserError, match=said):
            read_audio(io.BytesIO(data), 16_000, start=start, seconds=seconds)


def test_a_channel_is_taken_as_asked_and_channels_that_cancel_out_are_refused():
    left, right = tone(16_000, hz=220.0), tone(16_000, hz=330.0)
    stereo = encoded("WAV", "FLOAT", np.stack([left, right], axis=1))
    for channel, wave in enumerate((left, right)):
        np.testing.assert_array_equal(read_audio(io.BytesIO(stereo), 16_000, channel=channel), wave)
    with pytest.raises(UserError, match="there is no channel 2; it has 2"):
        read_audio(io.BytesIO(stereo), 16_000, channel=2)
    antiphase = encoded("WAV", "FLOAT", np.stack([left, -0.99 * left], axis=1))
    offset = encoded("WAV", "FLOAT", np.stack([left + 0.1, 0.1 - left], axis=1))
    for cancelling in (antiphase, offset):
        with pytest.raises(UserError, match="2 channels cancel each other out when mixed"):
            read_audio(io.BytesIO(cancelling), 16_000)
    np.testing.assert_array_equal(read_audio(io.BytesIO(antiphase), 16_000, channel=0), left)
    one_sided = encoded("WAV", "FLOAT", np.stack([left, 0 * left], axis=1))
    np.testing.assert_allclose(read_audio(io.BytesIO(one_sided), 16_000), left / 2, atol=1e-6)


def test_running_out_of_file_handles_is_not_called_a_bad_file(tmp_path):
    path = write(tmp_path / "a.wav", tone(16_000), 16_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError) as error:
            read_audio(path, 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.value.errno == errno.EMFILE


@pytest.mark.parametrize("hours", [3, 10])
def test_hours_of_audio_are_refused_before_they_are_decoded(tmp_path, hours):
    path = tmp_path / "long.wav"
    frames = hours * 3600 * 8_000
    soundfile.write(path, np.zeros(8, np.uint8).astype(np.int16), 8_000, subtype="PCM_U8")
    header = bytearray(path.read_bytes())
    header[4:8], header[40:44] = (36 + frames).to_bytes(4, "little"), frames.to_bytes(4, "little")
    path.write_bytes(header)
    os.truncate(path, 44 + frames)  # a sparse file: it takes no room
    with pytest.raises(AudioTooLong, match=rf"long\.wav: {hours * 3600} s of audio, more than the 600 s allowed"):
        read_audio(path, 16_000)
    assert len(read_audio(path, 16_000, seconds=2.0)) == 32_000


def test_wavs_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.wav"
    write_wav(path, tone(16_000, peak=2.0), 16_000)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 8_000)
    before = path.read_bytes()
    for bad in (np.array([0.0, np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="one channel of finite numbers"):
            write_wav(path, bad, 16_000)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.wav"]


@pytest.mark.parametrize("name", ["question.wav", "link.wav", "./folder/../question.wav", "answer.mp3", "answer.FLAC"])
def test_an_answer_is_not_written_over_a_recording_nor_under_another_formats_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "question.wav").write_bytes(b"of the user")
    (tmp_path / "link.wav").symlink_to("question.wav")
    with pytest.raises(UserError, match="would be lost|ends in .wav"):
        wav_file(name, ["other.wav", "question.wav"])
    assert wav_file("answer.wav", ["question.wav"]) == tmp_path.resolve() / "answer.wav"
    assert (tmp_path / "question.wav").read_bytes() == b"of the user"
