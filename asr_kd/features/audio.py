"""Audio in, samples at int16 scale out; what is wrong with a recording is found here and said in one sentence."""

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from asr_kd.corpus.datadir import Recording, Utterance
from asr_kd.errors import AsrKdError, install_hint
from asr_kd.features.audio_headers import WavHeader, check_is_whole

INT16_SCALE = 32768.0
BLOCK_SAMPLES = 1 << 24
# Segments may end this much after their recording, they are cut then: extract-segments' --max-overshoot.
MAX_OVERSHOOT_S = 0.5


class AudioFile:
    """An opened recording: `sample_rate` in Hz, `num_channels`, `num_samples` of a channel, `read`."""

    def __init__(self, file: BinaryIO, name: str, accept_truncated: bool):
        self.name = name
        self._file = file
        self._wav = _as_pcm16(check_is_whole(file, name, accept_truncated))
        self._decoder = None
        if self._wav is not None:
            self.sample_rate, self.num_channels = self._wav.sample_rate, self._wav.num_channels
            self.num_samples = self._wav.num_held
        else:
            file.seek(0)
            # By its path where it has one: libsndfile reads through Python objects at a third of the speed.
            self._decoder = soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.name)
            self.sample_rate, self.num_channels = self._decoder.samplerate, self._decoder.channels
            self.num_samples = self._decoder.frames

    def close(self) -> None:
        """Let libsndfile go before its file is closed."""
        if self._decoder is not None:
            self._decoder.close()

    def read(self, start: int, stop: int, channel: int) -> np.ndarray:
        """Samples start to stop of a channel: (stop - start,) float32 at int16 scale, finite or refused."""
        if self._wav is not None:
            # Every corpus is full of these, and libsndfile takes five times as long as reading them plainly.
            self._file.seek(self._wav.data_offset + start * self._wav.block_bytes)
            content = self._file.read((stop - start) * self._wav.block_bytes)
            return np.frombuffer(content, "<i2")[channel :: self.num_channels].astype(np.float32)
        if start:  # a seek costs FLAC a search, even to where it is
            self._decoder.seek(start)
        blocks, missing = [], stop - start
        while missing:  # by blocks, since a damaged header may declare more than any memory holds
            wanted = min(missing, BLOCK_SAMPLES)
            blocks.append(self._decoder.read(wanted, dtype="float32", always_2d=True)[:, channel])
            missing -= len(blocks[-1])
            if len(blocks[-1]) < wanted:
                raise AsrKdError(
                    f"{self.name}: is truncated, its header declares {self.num_samples} samples, {missing} are missing"
                )
        with np.errstate(over="ignore"):
            samples = np.concatenate(blocks) * np.float32(INT16_SCALE)
        if not np.isfinite(samples).all():
            raise AsrKdError(f"{self.name}: holds samples that are NaN or infinite")
        return samples


def read_audio(
    path: str | Path,
    sample_rate: int,
    *,
    channel: int | None = None,
    resample: bool = False,
    start_s: float | None = None,
    end_s: float | None = None,
    accept_truncated: bool = False,
) -> np.ndarray:
    """Read a channel of an audio file: (num_samples,) float32 at int16 scale (full scale is 32768).

    Whatever libsndfile reads is read (WAV, FLAC, NIST sphere, Ogg, …). Channels count from 0; None stands for the
    only one. A part from `start_s` to `end_s` (seconds) is read by seeking to it, its samples counted as Kaldi's
    extract-segments does. With `resample`, audio of another rate is brought to `sample_rate` by soxr. With
    `accept_truncated`, a file that holds less than its header declares is taken as it is.

    Raises AsrKdError, naming the file, if it is missing, unreadable, empty or truncated, has another sample rate or
    no such channel, or holds NaN or infinity.
    """
    with _open_path(Path(path), accept_truncated) as audio:
        return _read_part(audio, sample_rate, pick_channel(audio, channel), resample, start_s, end_s)


def read_samples(
    utterance: Utterance,
    sample_rate: int,
    *,
    resample: bool = False,
    allow_pipes: bool = False,
    accept_truncated: bool = False,
    content: bytes | None = None,
) -> np.ndarray:
    """Read an utterance as `read_audio` does; with `allow_pipes`, run the command where the recording is one.

    A command is given to the shell from the current directory, as Kaldi does. The output of the last one is kept,
    so that a recording's segments, if they follow each other, need it once. content: what the recording's file holds,
    where it was read already; libsndfile, for what is not plain wav, reads it more slowly from there.

    Raises AsrKdError that names the utterance and the file or command.
    """
    try:
        if content:
            opened = _open_content(content, utterance.recording.source, accept_truncated)
        else:
            opened = open_recording(utterance.recording, allow_pipes, accept_truncated)
        with opened as audio:
            channel = pick_channel(audio, utterance.recording.channel, utterance.recording.may_be_separated)
            return _read_part(audio, sample_rate, channel, resample, utterance.start_s, utterance.end_s)
    except AsrKdError as error:
        raise AsrKdError(f"{utterance.utt_id}: {error}") from error


def duration_s(utterance: Utterance, *, allow_pipes: bool = False) -> float:
    """How long an utterance is, in seconds, from its segment or the header of its file; raises AsrKdError."""
    if utterance.end_s is not None:
        return utterance.end_s - (utterance.start_s or 0.0)
    try:
        with open_recording(utterance.recording, allow_pipes) as audio:
            return audio.num_samples / audio.sample_rate - (utterance.start_s or 0.0)
    except AsrKdError as error:
        raise AsrKdError(f"{utterance.utt_id}: {error}") from error


@contextlib.contextmanager
def open_recording(
    recording: Recording, allow_pipes: bool = False, accept_truncated: bool = False
) -> Iterator[AudioFile]:
    """Open a recording, running its command if it is one and that is allowed; raises AsrKdError that names it."""
    if not recording.is_pipe:
        with _open_path(Path(recording.source), accept_truncated) as audio:
            yield audio
        return
    if not allow_pipes:
        raise AsrKdError(f"{recording.source}: commands (pipes) are not run unless that is allowed (--allow-pipes)")
    with _open_content(_run_pipe(recording.source), recording.source, accept_truncated) as audio:
        yield audio


@contextlib.contextmanager
def _open_content(content: bytes, name: str, accept_truncated: bool) -> Iterator[AudioFile]:
    with _reporting(name), contextlib.closing(AudioFile(io.BytesIO(content), name, accept_truncated)) as audio:
        yield audio


def pick_channel(audio: AudioFile, channel: int | None, may_be_separated: bool = False) -> int:
    """The channel to read, from 0; may_be_separated as in Recording.

    Raises AsrKdError if there is no such channel, or there are several and none is asked for.
    """
    if audio.num_channels == 1 and (channel is None or may_be_separated):
        return 0
    if channel is None:
        raise AsrKdError(
            f"{audio.name}: has {audio.num_channels} channels, but one was expected; "
            "choose one by --channel, or in a data directory by reco2file_and_channel"
        )
    if not 0 <= channel < audio.num_channels:
        has = f"{audio.num_channels} channel{'s' * (audio.num_channels > 1)}"
        raise AsrKdError(f"{audio.name}: has {has}, but channel {channel} (they count from 0) was asked for")
    return channel


def resample_audio(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Band-limited resampling by soxr (high quality, as librosa's default): (about n · to_rate / from_rate,) float32.

    Raises AsrKdError if soxr is not installed.
    """
    try:
        import soxr
    except ImportError as error:
        raise AsrKdError(f"resampling needs soxr: {install_hint('audio')}") from error
    return soxr.resample(samples.astype(np.float32, copy=False), from_rate, to_rate, quality="HQ")


def _as_pcm16(header: WavHeader | None) -> WavHeader | None:
    return header if header is not None and header.is_pcm16 else None


@contextlib.contextmanager
def _reporting(name: str) -> Iterator[None]:
    """Errors of libsndfile and of the system as ours."""
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        raise AsrKdError(f"{name}: not readable as audio ({error}), it may be damaged or truncated") from error


@contextlib.contextmanager
def _open_path(path: Path, accept_truncated: bool) -> Iterator[AudioFile]:
    if not os.path.isfile(path):  # which takes names that are none, too
        raise AsrKdError(f"{path}: no such audio file")
    with _reporting(str(path)), open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise AsrKdError(f"{path}: is empty")
        with contextlib.closing(AudioFile(file, str(path), accept_truncated)) as audio:
            yield audio


def _read_part(
    audio: AudioFile, sample_rate: int, channel: int, resample: bool, start_s: float | None, end_s: float | None
) -> np.ndarray:
    if audio.num_samples == 0:
        raise AsrKdError(f"{audio.name}: holds no samples")
    if audio.sample_rate != sample_rate and not resample:
        raise AsrKdError(
            f"{audio.name}: expected {sample_rate} Hz, found {audio.sample_rate}; give --resample, or make "
            f"features and models of {audio.sample_rate} Hz"
        )
    start, stop = _sample_range(audio, start_s, end_s)
    samples = audio.read(start, stop, channel)
    if audio.sample_rate != sample_rate:
        return resample_audio(samples, audio.sample_rate, sample_rate)
    return samples


def _sample_range(audio: AudioFile, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """The samples of a part, cut off (not rounded) to whole ones as in Kaldi's extract-segments."""
    start = 0 if start_s is None else int(start_s * audio.sample_rate)
    stop = audio.num_samples if end_s is None else int(end_s * audio.sample_rate)
    duration_s = audio.num_samples / audio.sample_rate
    if not 0 <= start < audio.num_samples or stop >= audio.num_samples + int(MAX_OVERSHOOT_S * audio.sample_rate):
        wanted = f"{start_s or 0:g} to {duration_s if end_s is None else end_s:g} s"
        raise AsrKdError(f"{audio.name}: is {duration_s:.3f} s long, but {wanted} was asked for")
    stop = min(stop, audio.num_samples)
    if stop <= start:
        raise AsrKdError(f"{audio.name}: from {start_s or 0:g} to {end_s:g} s there are no samples")
    return start, stop


@functools.lru_cache(maxsize=1)
def _run_pipe(command: str) -> bytes:
    """The output of a command of wav.scp; raises AsrKdError with its last words if it fails or says nothing."""
    # In bash, since sh would not notice the failure of a program before the last `|`.
    # A group of its own, so that the programs of a pipe end together when we are interrupted.
    bash = shutil.which("bash")
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
    process = subprocess.Popen(
        [*shell, command.rstrip().removesuffix("|")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, messages = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    said = messages.decode("utf-8", "replace").strip()
    if process.returncode != 0:
        last = f": {said.splitlines()[-1]}" if said else ""
        raise AsrKdError(f"{command}: the command failed with exit status {process.returncode}{last}")
    if said:
        print(said, file=sys.stderr, flush=True)
    if not output:
        raise AsrKdError(f"{command}: the command wrote no audio")
    return output
