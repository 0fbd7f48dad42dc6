"""Features from elsewhere into feats.h5, and from feats.h5 into Kaldi's tables."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from asr_kd.corpus.tables import read_table
from asr_kd.errors import AsrKdError
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.kaldi_ark import read_matrices, write_matrices
from asr_kd.store.kaldi_compression import warn_of_clipped
from asr_kd.store.parsing import parse_json

PROGRESS_UTTS = 5000

Log = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class RecordedOptions:
    """The front end of features that this program did not compute, or has changed since: for the record.

    fields: what feats.h5 keeps as /options; sample_frequency in Hz, frame_length and frame_shift in milliseconds.
    It stands where FeatsWriter wants the options of a front end, but nothing can be extracted with it.
    """

    fields: Mapping[str, Any]
    feat_dim: int
    num_mel_bins: int

    @property
    def sample_frequency(self) -> float:
        """Hz."""
        return self.fields["sample_frequency"]

    @property
    def frame_length(self) -> float:
        """Milliseconds."""
        return self.fields["frame_length"]

    @property
    def frame_shift(self) -> float:
        """Milliseconds."""
        return self.fields["frame_shift"]

    @property
    def snip_edges(self) -> bool:
        """Whether only whole windows make frames."""
        return self.fields["snip_edges"]

    def to_json(self) -> str:
        """The fields in a canonical form."""
        return json.dumps(dict(self.fields), sort_keys=True)

    def with_processing(self, name: str, settings: Mapping[str, Any]) -> "RecordedOptions":
        """These options with a note of what was done to the features since.

        Raises AsrKdError if it was done before.
        """
        if name in self.fields:
            raise AsrKdError(f"these features have been through {name} before ({self.fields[name]})")
        return replace(self, fields={**self.fields, name: dict(settings)})


@dataclass(frozen=True)
class ForeignFrontEnd:
    """What an archive does not say about its features: kind ("fbank", "mfcc" or any name), Hz, and milliseconds."""

    kind: str
    sample_frequency: float
    frame_length: float = 25.0
    frame_shift: float = 10.0
    snip_edges: bool = True

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in (self.sample_frequency, self.frame_length, self.frame_shift)):
            raise AsrKdError("sample frequency, frame length and frame shift must be positive and finite")
        if self.sample_frequency != int(self.sample_frequency):
            raise AsrKdError(f"the sample frequency is {self.sample_frequency} Hz, which is not a whole number")

    def options(self, feat_dim: int) -> RecordedOptions:
        """For features of so many columns; they are marked as foreign."""
        fields = {
            "foreign": True,
            "sample_frequency": float(self.sample_frequency),
            "frame_length": float(self.frame_length),
            "frame_shift": float(self.frame_shift),
            "snip_edges": bool(self.snip_edges),
        }
        return RecordedOptions(fields, feat_dim, feat_dim if self.kind == "fbank" else 0)


@dataclass(frozen=True)
class FeatureSource:
    """Features with all that feats.h5 keeps of them; utts yields (utt_id, spk_id, feats (num_frames, feat_dim))."""

    name: str
    kind: str
    options: RecordedOptions
    utts: Iterable[tuple[str, str, np.ndarray]]
    dtype: str = "float32"


def source_of_feats(reader: FeatsReader) -> FeatureSource:
    """The utterances of feats.h5, read one at a time."""
    try:
        fields = parse_json(reader.attrs["options"])
        options = RecordedOptions(fields, reader.feat_dim, int(reader.attrs["num_mel_bins"]))
        kind, dtype = str(reader.attrs["kind"]), str(reader.attrs["dtype"])
        if float(options.sample_frequency) != reader.attrs["sample_rate"]:
            raise ValueError("sample rate")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AsrKdError(f"{reader.path}: its options cannot be read ({error})") from error
    ids = zip(reader.layout.utt_ids, reader.spk_ids, strict=True)
    return FeatureSource(str(reader.path), kind, options, ((u, s, reader[u]) for u, s in ids), dtype)


def source_of_table(rspecifier: str, front_end: ForeignFrontEnd, utt2spk: str | Path | None = None) -> FeatureSource:
    """The matrices of one of Kaldi's tables; without utt2spk every utterance is its own speaker.

    Raises AsrKdError for a table without a frame and for an utterance that utt2spk lacks.
    """
    speakers = None if utt2spk is None else _read_utt2spk(Path(utt2spk))
    matrices = read_matrices(rspecifier)
    begin = []  # up to the first with a frame, which tells how many columns there are
    for utt_id, feats in matrices:
        begin.append((utt_id, feats))
        if len(feats):
            break
    else:
        raise AsrKdError(f"{rspecifier}: holds no matrix with a frame")

    def utts() -> Iterator[tuple[str, str, np.ndarray]]:
        for utt_id, feats in itertools.chain(begin, matrices):
            if speakers is not None and utt_id not in speakers:
                raise AsrKdError(f"{utt2spk}: has no line for {utt_id}, of which there are features in {rspecifier}")
            yield utt_id, utt_id if speakers is None else speakers[utt_id], feats

    return FeatureSource(rspecifier, front_end.kind, front_end.options(begin[-1][1].shape[1]), utts())


def _read_utt2spk(path: Path) -> dict[str, str]:
    table, problems = read_table(path)
    if problems:
        raise AsrKdError(str(problems[0]))
    return table.rows


def write_feats(
    out: str | Path,
    source: FeatureSource,
    *,
    dtype: str | None = None,
    inputs_digest: str = "",
    max_bad_share: float = 0.0,
    log: Log = lambda _: None,
) -> int:
    """Write a source to feats.h5, complete or not at all; returns the number of utterances.

    Utterances without frames, of another width, twice there or not finite are listed through log, noted in the file
    and left out. Raises AsrKdError if they are more than max_bad_share of all.
    """
    writer = FeatsWriter(
        out,
        kind=source.kind,
        options=source.options,
        sample_rate=int(source.options.sample_frequency),
        dtype=dtype or source.dtype,
    )
    writer.inputs_digest = inputs_digest
    total, left_out = 0, []
    with writer:
        for total, (utt_id, spk_id, feats) in enumerate(source.utts, 1):
            try:
                writer.append(utt_id, spk_id, feats)
            except AsrKdError as error:
                writer.skip(utt_id, str(error))
                left_out.append(str(error))
                log(f"left out {utt_id}: {error}")
                if max_bad_share == 0:
                    break
            if total % PROGRESS_UTTS == 0:
                log(f"{total} utterances")
        if len(left_out) > max_bad_share * total:
            raise AsrKdError(
                f"{source.name}: {len(left_out)} of the first {total} utterances cannot be stored, more than the share "
                f"of {max_bad_share:g} that is allowed; the first: {left_out[0]}"
            )
        if len(left_out) == total:
            raise AsrKdError(f"{source.name}: has no utterance that can be stored")
    return total - len(left_out)


def write_table_of(
    wspecifier: str, source: FeatureSource, *, compression_method: int = 0, log: Log = lambda _: None
) -> int:
    """Write a source to one of Kaldi's tables, complete or not at all; returns the number of utterances."""

    matrices = ((utt_id, feats) for utt_id, _, feats in source.utts)
    matrices = warn_of_clipped(counted(matrices, log), compression_method, log)
    return write_matrices(wspecifier, matrices, compression_method)


def counted(items: Iterable[T], log: Log) -> Iterator[T]:
    """The same items; log is told of every PROGRESS_UTTS of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % PROGRESS_UTTS == 0:
            log(f"{number} utterances")
