"""What features are made from, so that they are made again when it changed, and not when it only moved.

Each utterance has two digests. The stamp is of the names, sizes and times of its recording's file, which costs a look
at the folder; the other is of the file's contents. Neither knows the folder. Those of a set of utterances are added up,
so that the sum of a file is that of its shards and of what is appended, in whatever portions they were made.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from asr_kd.corpus.datadir import Utterance
from asr_kd.features.options import FrontEndOptions, MfccOptions

# Raised when the values that this code makes change, so that files of an older version are made anew.
FRONT_END_VERSION = 4
_MODULUS = 1 << 256
WHOLE_BYTES = 1 << 26
READ_BYTES = 1 << 20
COMMAND_BYTES = 1 << 20  # running a command takes as long as this much audio


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How recordings become stored features.

    options: the front end; dtype: of a stored value; resample: bring audio of another rate to that of the options;
    allow_pipes: run the commands of wav.scp; accept_truncated: use files that hold less than their headers declare.
    """

    options: FrontEndOptions
    dtype: str = "float32"
    resample: bool = False
    allow_pipes: bool = False
    accept_truncated: bool = False

    @property
    def kind(self) -> str:
        """fbank or mfcc."""
        return "mfcc" if isinstance(self.options, MfccOptions) else "fbank"

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.options.sample_frequency)


def _hash_of(recipe: Recipe) -> "hashlib._Hash":
    how = [recipe.kind, recipe.dtype, recipe.resample, recipe.allow_pipes, recipe.accept_truncated]
    return hashlib.sha256(json.dumps([FRONT_END_VERSION, *how, recipe.options.to_json()]).encode())


class Stamp(NamedTuple):
    """The stamp of an utterance, and the bytes of audio that it takes (a guess where it is a part or a command)."""

    number: int
    num_bytes: int


def _number(recipe_hash: "hashlib._Hash", utt: Utterance, file: object) -> int:
    digest = recipe_hash.copy()
    part = (utt.recording.channel, utt.start_s, utt.end_s)
    digest.update(json.dumps([utt.utt_id, utt.spk_id, *part, file]).encode())
    return int.from_bytes(digest.digest(), "little")


def total(numbers: Iterable[int]) -> str:
    """One digest of a set of utterances, as 64 hexadecimal digits."""
    return f"{sum(numbers) % _MODULUS:064x}"


def add(*digests: str) -> str:
    """The digest of several sets taken together."""
    return total(int(digest, 16) for digest in digests)


def stamps(utterances: Iterable[Utterance], recipe: Recipe) -> list[Stamp]:
    """Stamp of each utterance. A file that is not there has one too: its absence is reported when it is read."""
    found, recipe_hash = [], _hash_of(recipe)
    for utt in utterances:
        source = utt.recording.source
        num_bytes = 0
        if utt.recording.is_pipe:
            file: object = source
            num_bytes = COMMAND_BYTES
        else:
            try:
                stat = os.stat(source)
                num_bytes = stat.st_size
                file = [os.path.basename(source), stat.st_size, stat.st_mtime_ns]
            except OSError:
                file = None
        if utt.start_s is not None and utt.end_s is not None:
            num_bytes = int((utt.end_s - utt.start_s) * 2 * recipe.sample_rate)
        found.append(Stamp(_number(recipe_hash, utt, file), num_bytes))
    return found


class ContentDigest:
    """Add up the digests of utterances by contents; the file of consecutive segments is read once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe_hash = _hash_of(recipe)
        self._sum = 0
        self._last: tuple[str, object] | None = None

    def add(self, utt: Utterance, content: bytes | None = None) -> None:
        """Take in one utterance, with the content of its file if that was read."""
        source = utt.recording.source
        if content is not None:
            self._last = (source, [len(content), zlib.crc32(content)])
        elif self._last is None or self._last[0] != source:
            self._last = (source, source if utt.recording.is_pipe else _checksum(source))
        self._sum += _number(self._recipe_hash, utt, self._last[1])

    def hexdigest(self) -> str:
        """The digest of all so far."""
        return total([self._sum])


def whole_file(utt: Utterance) -> bytes | None:
    """What an utterance's file holds, if the utterance is all of it and it is not long."""
    if utt.recording.is_pipe or utt.start_s is not None or utt.end_s is not None:
        return None
    try:
        with open(utt.recording.source, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(size) if size <= WHOLE_BYTES else None
    except OSError:  # is reported when it is opened as audio
        return None


def _checksum(path: str) -> list[int] | None:
    """Size and CRC-32 of a file: against edits, not against forgery, at a twentieth of the cost of the features."""
    checksum = size = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(READ_BYTES):
                checksum = zlib.crc32(block, checksum)
                size += len(block)
    except OSError:
        return None
    return [size, checksum]


def contents_digest(utterances: Iterable[Utterance], recipe: Recipe) -> str:
    """What the features are made from by contents: every recording is read."""
    digest = ContentDigest(recipe)
    for utt in utterances:
        digest.add(utt, whole_file(utt))
    return digest.hexdigest()
