"""What the header of an audio file promises, compared with what the file holds.

libsndfile reads what there is and reports no error, so an interrupted copy would pass as a short recording.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from asr_kd.errors import AsrKdError

# Sizes from this on are written into a header by programs that do not know yet how much follows (a pipe): sox writes
# this one, ffmpeg the largest. Others write zeros for both sizes. The file's end decides then, as in Kaldi.
PIPE_SIZE = 0x7FFFF000
_EXTENSIBLE = 0xFFFE
_PCM = 1
_UNCOMPRESSED = {_PCM, 3, 6, 7}  # PCM, float, A-law, mu-law: a block is a sample of each channel
_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255


@dataclass(frozen=True)
class WavHeader:
    """Where the audio of a RIFF file is. Lengths are in blocks: for uncompressed audio, a sample of each channel."""

    sample_rate: int
    num_channels: int
    block_bytes: int
    is_pcm16: bool
    data_offset: int
    num_declared: int
    num_held: int


def check_is_whole(file: BinaryIO, name: str, accept_truncated: bool) -> WavHeader | None:
    """Check that a file holds what its header declares; the header, where it is a RIFF file's.

    WAV (RIFF, RIFX, RF64), NIST sphere and Ogg are looked into here; in FLAC and MP3 the decoder notices what is
    missing. With `accept_truncated` what is there of the audio is taken for all of it.

    Raises AsrKdError that tells how much is missing, and for sphere files that are compressed.
    """
    file.seek(0)
    magic = file.read(12)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64") and magic[8:] == b"WAVE":
        return _check_wav(file, name, ">" if magic[:4] == b"RIFX" else "<", accept_truncated)
    if magic[:7] == b"NIST_1A":
        _check_sphere(file, name, accept_truncated)
    elif magic[:4] == b"OggS" and not accept_truncated:
        _check_ogg(file, name)
    return None


def _check_wav(file: BinaryIO, name: str, order: str, accept_truncated: bool) -> WavHeader:
    end = _size(file)
    file.seek(4)
    riff_size = struct.unpack(order + "I", file.read(4))[0]
    file.seek(12)
    form = long_size = None
    while len(chunk := file.read(8)) == 8:
        kind, size = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
        start = file.tell()
        if kind == b"fmt " and len(content := file.read(min(size, 40))) >= 16:
            form = struct.unpack(order + "HHIIHH", content[:16])
            if form[0] == _EXTENSIBLE and len(content) >= 26:
                form = struct.unpack(order + "H", content[24:26]) + form[1:]
        elif kind == b"ds64" and len(content := file.read(16)) == 16:
            long_size = struct.unpack("<Q", content[8:])[0]
        elif kind == b"data":
            if form is None or not form[1] or not form[4]:
                raise AsrKdError(f"{name}: is a damaged wav file, no format is given before its audio")
            if size == 0xFFFFFFFF and long_size is not None:
                size = long_size
            elif size >= PIPE_SIZE or size == riff_size == 0:
                size = end - start
            header = _wav_header(form, order, start, size, end - start)
            _require_all(name, header.num_declared, header.num_held, header.sample_rate, accept_truncated)
            return header
        file.seek(start + size + size % 2)
    raise AsrKdError(f"{name}: is truncated, it ends before its audio")


def _wav_header(form: tuple, order: str, start: int, size: int, held: int) -> WavHeader:
    tag, num_channels, sample_rate, _, block_bytes, bits = form
    return WavHeader(
        sample_rate=sample_rate,
        num_channels=num_channels,
        block_bytes=block_bytes,
        is_pcm16=tag == _PCM and order == "<" and bits == 16 and block_bytes == 2 * num_channels,
        data_offset=start,
        num_declared=-(-size // block_bytes) if held < size else size // block_bytes,
        num_held=min(size, held) // block_bytes,
    )


def _check_sphere(file: BinaryIO, name: str, accept_truncated: bool) -> None:
    """NIST's header is text: its size in line 2, then `name -type value` lines up to `end_head`."""
    file.seek(8)
    try:
        header_bytes = int(file.read(8))
        file.seek(0)
        lines = file.read(header_bytes).decode("ascii", "replace").splitlines()[2:]
        fields = {line.split()[0]: line.split(maxsplit=2)[2] for line in lines if len(line.split(maxsplit=2)) == 3}
        coding = fields.get("sample_coding", "pcm")
        frame_bytes = int(fields.get("channel_count", 1)) * int(fields.get("sample_n_bytes", 2))
        declared, rate = int(fields.get("sample_count", 0)), int(fields.get("sample_rate", 0))
        if frame_bytes < 1:
            raise ValueError
    except ValueError as error:
        raise AsrKdError(f"{name}: is a damaged sphere file, its header cannot be read") from error
    if "," in coding:
        raise AsrKdError(
            f"{name}: is a compressed sphere file ({coding.split(',')[1]}), decompress it, for example with sph2pipe"
        )
    held = max(0, _size(file) - header_bytes) // frame_bytes
    _require_all(name, declared, held, rate, accept_truncated)


def _check_ogg(file: BinaryIO, name: str) -> None:
    """The last page of an Ogg stream is marked as such (RFC 3533, section 6)."""
    end = _size(file)
    file.seek(max(0, end - _LARGEST_OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    is_whole = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not is_whole or not page[5] & 4:
        raise AsrKdError(f"{name}: is truncated, the end of its Ogg stream is missing")


def _require_all(name: str, declared: int, held: int, rate: int, accept_truncated: bool) -> None:
    if held < declared and not accept_truncated:
        seconds = f" ({(declared - held) / rate:.3f} s)" if rate else ""
        raise AsrKdError(
            f"{name}: is truncated, its header declares {declared} samples and the file holds {held}, "
            f"{declared - held}{seconds} are missing"
        )


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)
