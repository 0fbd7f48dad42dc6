"""Audio files in, samples at int16 scale out; what is wrong with a file is found here and said in one sentence."""

import os
import struct
from pathlib import Path

import numpy as np
import soundfile

from asr_kd.errors import AsrKdError

INT16_SCALE = 32768.0
# Sizes that programs write into a header before they know how much follows (a pipe); the file's end decides then.
PIPE_SIZE = 0x7FFFF000  # sox; ffmpeg writes 0xFFFFFFFF


def _check_wav_is_whole(path: Path) -> None:
    """Compare the size that a RIFF file's data chunk declares with what the file holds.

    libsndfile reads what there is and reports no error, so an interrupted copy would pass as a short recording.
    """
    with open(path, "rb") as file:
        header = file.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WAVE":
            return
        end = os.fstat(file.fileno()).st_size
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                held = end - file.tell()
                if held < size < PIPE_SIZE:
                    raise AsrKdError(
                        f"{path}: is truncated, its header declares {size} bytes of audio, {held} are there"
                    )
                return
            file.seek(size + size % 2, os.SEEK_CUR)
    raise AsrKdError(f"{path}: is truncated, it ends before its audio")


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Read a recording of one channel: (num_samples,) float32 at int16 scale (full scale is 32768).

    Whatever libsndfile reads is read (WAV, FLAC, SPHERE, Ogg); nothing is resampled.

    Raises AsrKdError if the file is missing, unreadable, empty or truncated, has another sample rate or several
    channels, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise AsrKdError(f"{path}: no such audio file")
    try:
        if path.stat().st_size == 0:
            raise AsrKdError(f"{path}: is empty")
        _check_wav_is_whole(path)
        with soundfile.SoundFile(path) as file:
            if file.samplerate != sample_rate:
                raise AsrKdError(
                    f"{path}: expected {sample_rate} Hz, found {file.samplerate}; resample it or set the "
                    f"sample frequency to {file.samplerate}"
                )
            if file.channels != 1:
                raise AsrKdError(f"{path}: has {file.channels} channels, but one was expected")
            declared = file.frames
            samples = file.read(dtype="float32")
    except (soundfile.SoundFileError, OSError) as error:
        raise AsrKdError(f"{path}: not readable as audio ({error})") from error
    if len(samples) == 0:
        raise AsrKdError(f"{path}: holds no samples")
    if len(samples) < declared:
        raise AsrKdError(f"{path}: is truncated, its header declares {declared} samples, {len(samples)} are there")
    if not np.isfinite(samples).all():
        raise AsrKdError(f"{path}: holds samples that are NaN or infinite")
    samples *= INT16_SCALE
    return samples
