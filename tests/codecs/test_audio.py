"""Whatever file a person gives is read as documented, or refused in a sentence that names it."""

import io
import os

import numpy as np
import pytest
import soundfile

from vita_audio_pl.codecs import AudioTooLong, read_audio, write_wav
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
        ("slow.wav", "1 Hz is too low"),
        ("nan.wav", "90 samples are NaN"),
        ("inf.wav", "90 samples are NaN or infinite"),
        ("cut.flac", "not audio|cannot be read|holds no samples"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, reason):
    path = bad_files(tmp_path)[name]
    with pytest.raises(UserError, match=reason) as error:
        read_audio(path, 16_000)
    assert name in str(error.value) and "\n" not in str(error.value)


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
