"""Recordings of all kinds as samples, and what is refused."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_kd.errors import AsrKdError
from asr_kd.features.audio import read_audio


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.wav", "FLOAT")])
def test_samples_come_at_int16_scale(tmp_path, name, subtype):
    samples = np.array([0, 1, -1, 32767, -32768, 12345], dtype=np.int16)
    full_scale = samples / 32768 if subtype == "FLOAT" else samples
    soundfile.write(tmp_path / name, full_scale, 8000, subtype=subtype)
    read = read_audio(tmp_path / name, 8000)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, samples)


def test_wrong_rate_and_channels(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros(100), rate=16000)
    with pytest.raises(AsrKdError, match="expected 8000 Hz, found 16000;"):
        read_audio(path, 8000)
    with pytest.raises(AsrKdError, match="2 channels"):
        read_audio(write_wav(tmp_path / "b.wav", np.zeros(100), channels=2), 8000)


@pytest.mark.parametrize("kept", [46, 100, 20043])
def test_truncated_wav(tmp_path, kept):
    path = write_wav(tmp_path / "a.wav", np.arange(10000))
    whole = path.read_bytes()
    assert len(whole) == 20044
    path.write_bytes(whole[:kept])
    with pytest.raises(AsrKdError, match="truncated"):
        read_audio(path, 8000)


def test_truncated_before_the_audio(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.arange(100))
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(AsrKdError, match=str(path)):
        read_audio(path, 8000)


def test_truncated_flac(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).integers(-9000, 9000, 20000, dtype=np.int16), 8000)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(AsrKdError, match=str(path)):
        read_audio(path, 8000)


def test_header_of_a_pipe_is_accepted(tmp_path):
    """ffmpeg and sox cannot know the size when they write to a pipe; what is there is the recording."""
    path = write_wav(tmp_path / "a.wav", np.arange(1000))
    content = bytearray(path.read_bytes())
    for size in (0xFFFFFFFF, 0x7FFFF000 + 0x24):
        content[40:44] = struct.pack("<I", size)
        path.write_bytes(content)
        np.testing.assert_array_equal(read_audio(path, 8000), np.arange(1000))


def test_bytes_after_the_audio_are_no_harm(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.arange(101))
    path.write_bytes(path.read_bytes() + b"LIST\x04\x00\x00\x00abcd")
    assert len(read_audio(path, 8000)) == 101


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, value):
    soundfile.write(tmp_path / "a.wav", np.array([0, value, 0], dtype=np.float32), 8000, subtype="FLOAT")
    with pytest.raises(AsrKdError, match="NaN or infinite"):
        read_audio(tmp_path / "a.wav", 8000)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(AsrKdError, match="no such audio file"):
        read_audio(tmp_path / "none.wav", 8000)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AsrKdError, match="is empty"):
        read_audio(tmp_path / "empty.wav", 8000)
    with pytest.raises(AsrKdError, match="no samples"):
        read_audio(write_wav(tmp_path / "none.wav", np.zeros(0)), 8000)
    (tmp_path / "text.wav").write_text("no audio at all, but long enough to be looked into")
    with pytest.raises(AsrKdError, match="not readable as audio"):
        read_audio(tmp_path / "text.wav", 8000)
