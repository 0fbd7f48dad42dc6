"""Recordings of all kinds as samples, and what is refused."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_kd.corpus.datadir import Recording, Utterance, read_data_dir, write_data_dir
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import duration_s, read_audio, read_samples
from asr_kd.features.extract import extract
from asr_kd.features.options import FbankOptions
from asr_kd.store.feats import FeatsReader


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


# Formats, channels, parts

FORMATS = [
    ("a.wav", {"subtype": "PCM_16"}),
    ("a.wav", {"subtype": "PCM_24"}),
    ("a.wav", {"subtype": "PCM_U8"}),
    ("a.wav", {"subtype": "ULAW"}),
    ("a.wav", {"subtype": "PCM_16", "endian": "BIG"}),
    ("a.wav", {"subtype": "PCM_16", "format": "WAVEX"}),
    ("a.wav", {"subtype": "PCM_16", "format": "RF64"}),
    ("a.wav", {"subtype": "DOUBLE"}),
    ("a.flac", {"subtype": "PCM_16"}),
    ("a.flac", {"subtype": "PCM_24"}),
    ("a.sph", {"subtype": "PCM_16", "format": "NIST"}),
    ("a.sph", {"subtype": "PCM_16", "format": "NIST", "endian": "BIG"}),
    ("a.sph", {"subtype": "ALAW", "format": "NIST"}),
    ("a.ogg", {"subtype": "VORBIS"}),
    ("a.ogg", {"subtype": "OPUS"}),
]
# wav and sphere; in the others the decoder itself notices
UNCOMPRESSED = [item for item in FORMATS if not item[0].endswith((".flac", ".ogg"))]


def write(path: Path, options: dict, num_samples: int = 8000, channels: int = 2, rate: int = 8000) -> Path:
    """Noise, with libsndfile."""
    path.parent.mkdir(exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (num_samples, channels))
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(("name", "options"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_format_channel_and_part(tmp_path, name, options, channels):
    path = write(tmp_path / name, options, channels=channels)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0] * 32768
    for channel in range(channels):
        whole = read_audio(path, 8000, channel=channel)
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, expected[:, channel])
        # Lossy decoders come back to the same samples after a seek, but for their own rounding.
        part = read_audio(path, 8000, channel=channel, start_s=0.25, end_s=0.7501)
        np.testing.assert_allclose(part, expected[2000:6000, channel], atol=1.0 if name == "a.ogg" else 0.0)
        np.testing.assert_allclose(
            read_audio(path, 8000, channel=channel, start_s=0.5), expected[4000:, channel], atol=1.0
        )
    if channels > 1:
        with pytest.raises(AsrKdError, match=f"{name}: has {channels} channels, but one was expected"):
            read_audio(path, 8000)
        with pytest.raises(AsrKdError, match=f"{name}: has {channels} channels, but channel {channels} "):
            read_audio(path, 8000, channel=channels)


def test_one_channel_is_read_whatever_the_conversation_calls_it(tmp_path):
    path = write(tmp_path / "a.wav", {}, channels=1)
    side = Utterance("u", "s", Recording("r", str(path), channel=1, may_be_separated=True))
    np.testing.assert_array_equal(read_samples(side, 8000), read_audio(path, 8000))
    with pytest.raises(AsrKdError, match="has 1 channel, but channel 1"):
        read_audio(path, 8000, channel=1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.lists(st.integers(-32768, 32767), min_size=1, max_size=60), channels=st.integers(1, 3), data=st.data()
)
def test_16_bit_wav_read_plainly_is_what_libsndfile_reads(tmp_path, samples, channels, data):
    pcm = np.repeat(np.array(samples, dtype=np.int16)[:, None], channels, axis=1) // np.arange(1, channels + 1)
    soundfile.write(tmp_path / "a.wav", pcm.astype(np.int16), 100)
    start = data.draw(st.integers(0, len(pcm) - 1))
    stop = data.draw(st.integers(start + 1, len(pcm)))
    channel = data.draw(st.integers(0, channels - 1))
    read = read_audio(tmp_path / "a.wav", 100, channel=channel, start_s=start / 100 + 1e-6, end_s=stop / 100 + 1e-6)
    expected = soundfile.read(tmp_path / "a.wav", dtype="int16", always_2d=True)[0][start:stop, channel]
    np.testing.assert_array_equal(read, expected)


def test_parts_past_the_end_as_in_extract_segments(tmp_path):
    path = write(tmp_path / "a.wav", {}, channels=1)  # one second
    assert len(read_audio(path, 8000, start_s=0.5, end_s=1.49)) == 4000
    for start_s, end_s in ((0.5, 1.5), (1.0, 1.1), (0.5, 0.50001)):
        with pytest.raises(AsrKdError, match=r"a.wav: (is 1.000 s long, but|from 0.5 to 0.50001 s there are no)"):
            read_audio(path, 8000, start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(("name", "options"), UNCOMPRESSED)
def test_what_the_header_promises_too_much_is_counted(tmp_path, name, options):
    """A few recordings of real corpora are so: an error unless one decides otherwise."""
    path = write(tmp_path / name, options, num_samples=1000, channels=2)
    whole = read_audio(path, 8000, channel=1)
    content = path.read_bytes()
    block_bytes = {"PCM_16": 4, "PCM_24": 6, "PCM_U8": 2, "ULAW": 2, "ALAW": 2, "DOUBLE": 16}[options["subtype"]]
    path.write_bytes(content[: len(content) - 400 * block_bytes])
    with pytest.raises(AsrKdError, match=r"declares 1000 samples and the file holds 600, 400 \(0.050 s\) are missing"):
        read_audio(path, 8000, channel=1)
    np.testing.assert_array_equal(read_audio(path, 8000, channel=1, accept_truncated=True), whole[:600])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_truncated_ogg(tmp_path, subtype):
    path = write(tmp_path / "a.ogg", {"subtype": subtype}, num_samples=20000)
    content = path.read_bytes()
    for kept in (len(content) - 1, len(content) * 2 // 3, content.rindex(b"OggS")):
        path.write_bytes(content[:kept])
        with pytest.raises(AsrKdError, match=r"a.ogg: is truncated, the end of its Ogg stream"):
            read_audio(path, 8000, channel=0)
    path.write_bytes(content[: len(content) * 2 // 3])
    assert 0 < len(read_audio(path, 8000, channel=0, accept_truncated=True)) < 20000


def test_compressed_and_damaged_sphere(tmp_path):
    path = write(tmp_path / "a.sph", {"format": "NIST"}, channels=1)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"-s3 pcm\n", b"-s26 pcm,embedded-shorten-v2.00\n"))
    with pytest.raises(AsrKdError, match=r"a.sph: is a compressed sphere file \(embedded-shorten-v2.00\), decompress"):
        read_audio(path, 8000)
    for damaged in (content[:9], content.replace(b"   1024\n", b"   many\n"), content.replace(b"-i 1\n", b"-i x\n")):
        path.write_bytes(damaged)
        with pytest.raises(AsrKdError, match=str(path)):
            read_audio(path, 8000)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_samples_or_one_sentence(tmp_path, data):
    """Whatever happens to the bytes: no other exception, no endless loop."""
    name, options = data.draw(st.sampled_from([item for item in FORMATS if not item[0].endswith(".ogg")]))
    content = bytearray(write(tmp_path / name, options, num_samples=50, channels=1).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 120)))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        samples = read_audio(tmp_path / name, 8000)
    except AsrKdError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert samples.ndim == 1
        assert np.isfinite(samples).all()


# Resampling


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resampling_keeps_a_tone(tmp_path, rate):
    time_s = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time_s), rate, subtype="FLOAT")
    with pytest.raises(AsrKdError, match=f"expected 16000 Hz, found {rate}; give --resample"):
        read_audio(tmp_path / "a.wav", 16000)
    samples = read_audio(tmp_path / "a.wav", 16000, resample=True)
    assert len(samples) == 16000
    expected = 16384 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(samples[1000:-1000], expected[1000:-1000], atol=16)


def test_resampling_without_soxr(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    path = write(tmp_path / "a.wav", {}, channels=1)
    with pytest.raises(AsrKdError, match=r"resampling needs soxr: run in the checkout: pip install '\.\[audio\]'"):
        read_audio(path, 16000, resample=True)
    assert len(read_audio(path, 8000, resample=True)) == 8000


# Utterances, and commands in the place of recordings


def utterance(source: object, start_s: float | None = None, end_s: float | None = None, channel: int | None = None):
    return Utterance("s-1", "s", Recording("rec", str(source), channel), start_s, end_s)


def test_utterance_is_its_part_of_its_channel(tmp_path):
    path = write(tmp_path / "a.flac", {})
    expected = soundfile.read(path, dtype="float32")[0] * 32768
    np.testing.assert_array_equal(read_samples(utterance(path, 0.5, 0.75, 1), 8000), expected[4000:6000, 1])
    with pytest.raises(AsrKdError, match=rf"^s-1: {path}: expected 16000 Hz"):
        read_samples(utterance(path, channel=0), 16000)
    assert duration_s(utterance(path, 0.5, 0.75)) == 0.25
    assert duration_s(utterance(path, 0.25)) == 0.75
    with pytest.raises(AsrKdError, match=r"^s-1: .*none.wav: no such"):
        duration_s(utterance(tmp_path / "none.wav"))


def test_commands_are_run_only_where_that_is_allowed(tmp_path):
    path = write(tmp_path / "a b.wav", {}, channels=1)
    command = f"echo ran >> {tmp_path}/log; cat '{path}' | cat |"
    with pytest.raises(AsrKdError, match=r"^s-1: .*commands \(pipes\) are not run unless that is allowed"):
        read_samples(utterance(command), 8000)
    assert not (tmp_path / "log").exists()
    whole = read_audio(path, 8000)
    for start in (0, 0.25, 0.5):
        part = read_samples(utterance(command, start, start + 0.25), 8000, allow_pipes=True)
        np.testing.assert_array_equal(part, whole[int(start * 8000) :][:2000])
    assert (tmp_path / "log").read_text() == "ran\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo first >&2; echo no such codec >&2; exit 3 |", "failed with exit status 3: no such codec$"),
        ("exit 4 |", "failed with exit status 4$"),
        ("true |", "the command wrote no audio"),
        ("echo this is no audio at all |", "not readable as audio"),
        ("cat FILE | head -c 5000 |", r"is truncated, .* 5522 \(0.690 s\) are missing"),
    ],
)
def test_commands_that_fail(tmp_path, command, message):
    path = write(tmp_path / "a.wav", {}, channels=1)
    with pytest.raises(AsrKdError, match=message) as raised:
        read_samples(utterance(command.replace("FILE", str(path))), 8000, allow_pipes=True)
    assert str(raised.value).startswith("s-1: ")


@pytest.mark.skipif(shutil.which("bash") is None, reason="without bash only a pipe's last program is asked how it was")
def test_failure_of_a_program_before_the_last(tmp_path):
    path = write(tmp_path / "a.wav", {}, channels=1)
    with pytest.raises(AsrKdError, match="failed with exit status 7"):
        read_samples(utterance(f"(cat {path}; exit 7) | cat |"), 8000, allow_pipes=True)


def test_what_a_command_says_is_shown(tmp_path, capsys):
    path = write(tmp_path / "a.wav", {}, channels=1)
    read_samples(utterance(f"echo clipped 3 samples >&2; cat {path} |"), 8000, allow_pipes=True)
    assert capsys.readouterr().err == "clipped 3 samples\n"


def test_interrupting_ends_the_command_too(tmp_path):
    code = (
        "import sys\n"
        "from asr_kd.corpus.datadir import Recording, Utterance\n"
        "from asr_kd.features.audio import read_samples\n"
        "read_samples(Utterance('s-1', 's', Recording('r', sys.argv[1])), 8000, allow_pipes=True)\n"
    )
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    # More bytes than a pipe holds: once they are gone, the reader is at work.
    command = f"head -c 1000000 /dev/zero; sleep 60 & echo $! > {fifo}; wait |"
    process = subprocess.Popen([sys.executable, "-c", code, command], stderr=subprocess.DEVNULL)
    sleeping = int(fifo.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    for _ in range(100):
        try:
            state = Path(f"/proc/{sleeping}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # gone, perhaps while this was looking
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the command is still running")


# From the data directory to features


def test_parts_channels_and_formats_reach_the_features(tmp_path):
    """Segments of channels A and B of two files, one cut off, against the same samples in files."""
    sphere = write(tmp_path / "audio" / "a.sph", {"format": "NIST"}, num_samples=8000)
    ogg = write(tmp_path / "audio" / "b.ogg", {}, num_samples=8000)
    pieces = []
    for path in (sphere, ogg):
        whole = soundfile.read(path, dtype="float32")[0]
        pieces += [
            (path, channel, whole[2000 * part : 2000 * (part + 1), channel]) for part, channel in ((0, 0), (1, 1))
        ]
    parts, files = [], []
    for i, (path, channel, samples) in enumerate(pieces):
        recording = Recording(f"s-{path.stem}-{channel}", str(path), channel)
        parts.append(Utterance(f"s-{i}", "s", recording, channel * 0.25, channel * 0.25 + 0.25))
        soundfile.write(tmp_path / "audio" / f"{i}.wav", samples, 8000, subtype="FLOAT")
        files.append(Utterance(f"s-{i}", "s", Recording(f"s-{i}", str(tmp_path / "audio" / f"{i}.wav"))))
    sphere.write_bytes(sphere.read_bytes()[:-400])
    write_data_dir(tmp_path / "data", parts)
    options = FbankOptions(sample_frequency=8000)
    with pytest.raises(AsrKdError, match=r"2 of 4 .* s-0: .*a.sph: is truncated"):
        extract(read_data_dir(tmp_path / "data", need_text=False), tmp_path / "parts.h5", options)
    extract(read_data_dir(tmp_path / "data", need_text=False), tmp_path / "parts.h5", options, accept_truncated=True)
    extract(files, tmp_path / "files.h5", options)
    np.testing.assert_array_equal(
        FeatsReader(tmp_path / "parts.h5").read_all(), FeatsReader(tmp_path / "files.h5").read_all()
    )
