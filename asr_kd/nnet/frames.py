"""Normalised features, resident on the device, from which one gather cuts the windows of a batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import mean_and_istd
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout

# Frames that are read and normalised at a time: some tens of megabytes.
BLOCK_FRAMES = 1 << 16
CMVN_MODES = ("global", "speaker", "utterance")
FRONT_END_KEYS = ("kind", "sample_rate", "frame_length_ms", "frame_shift_ms", "snip_edges", "num_mel_bins", "options")


def front_end(reader: FeatsReader) -> dict[str, Any]:
    """What must be equal for a net to be applied to other features: the attributes of its training features."""
    found = {key: reader.attrs[key] for key in FRONT_END_KEYS if key in reader.attrs}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}


@dataclass(frozen=True)
class Cmvn:
    """How features are brought to zero mean and unit variance.

    mode: over the whole training set, the speaker, or the utterance. mean, istd: (feat_dim,) float32, the training
    set's, which `global` applies and the other modes ignore.
    """

    mode: str
    mean: np.ndarray
    istd: np.ndarray

    @classmethod
    def from_training_set(cls, mode: str, reader: FeatsReader) -> "Cmvn":
        """Statistics of `reader`'s frames; raises AsrKdError for an unknown mode."""
        if mode not in CMVN_MODES:
            raise AsrKdError(f"cmvn {mode!r}: choose {', '.join(CMVN_MODES)}")
        return cls(mode, *mean_and_istd(reader.cmvn_stats.sum(axis=0), norm_vars=True))

    def normalised_blocks(
        self, reader: FeatsReader, block_frames: int = BLOCK_FRAMES
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The features of `reader`, normalised, some whole utterances at a time: (utterances, (n, feat_dim) float32).

        Raises AsrKdError naming an utterance whose values are not finite.
        """
        norms, groups = self._norms(reader)
        offsets = reader.layout.offsets
        for utts in _blocks_of_utterances(offsets, block_frames):
            begin = offsets[utts.start]
            feats = reader.read_rows(slice(int(begin), int(offsets[utts.stop])))
            for u in range(utts.start, utts.stop):
                mean, istd = norms[groups[u]]
                rows = feats[offsets[u] - begin : offsets[u + 1] - begin]
                rows -= mean
                rows *= istd
                if not np.isfinite(rows).all():
                    raise AsrKdError(
                        f"{reader.path}: features of {reader.layout.utt_ids[u]} are not finite; extract them again"
                    )
            yield utts, feats

    def _norms(self, reader: FeatsReader) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Sequence[str]]:
        """Mean and inverse deviation of every group of utterances, and each utterance's group."""
        if self.mode == "global":
            return {"": (self.mean, self.istd)}, [""] * reader.layout.num_utts
        groups = reader.spk_ids if self.mode == "speaker" else reader.layout.utt_ids
        totals: dict[str, np.ndarray] = {}
        for group, stats in zip(groups, reader.cmvn_stats, strict=True):
            totals[group] = totals.get(group, 0) + stats
        return {group: mean_and_istd(stats, norm_vars=True) for group, stats in totals.items()}, groups


def _blocks_of_utterances(offsets: np.ndarray, block_frames: int) -> Iterator[slice]:
    """Runs of whole utterances of about `block_frames` frames, at least one utterance each."""
    begin, num_utts = 0, len(offsets) - 1
    while begin < num_utts:
        end = int(np.searchsorted(offsets, offsets[begin] + block_frames, side="right")) - 1
        end = min(max(end, begin + 1), num_utts)
        yield slice(begin, end)
        begin = end


class Frames:
    """The frames of a set on a device, each with its window.

    Every utterance is padded by repeats of its first and last frame, as splice-feats does, so that each window is one
    contiguous run of memory: a batch is one index_select on an overlapping view, and nothing is stored 26 times.
    """

    def __init__(
        self,
        feats: np.ndarray | Iterable[tuple[slice, np.ndarray]],
        layout: Layout,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        feat_dim: int | None = None,
    ):
        """feats: (num_frames, feat_dim), already normalised, or blocks of them (utterances, (n, feat_dim)) in order.

        Blocks, with which feat_dim must be given, are copied one by one, so that nothing is in memory twice.
        Raises AsrKdError where they do not fit `layout`, or an utterance has no frame.
        """
        if isinstance(feats, np.ndarray):
            if len(feats) != layout.num_frames:
                raise AsrKdError(f"{len(feats)} feature rows do not fit a layout of {layout.num_frames} frames")
            feat_dim, feats = feats.shape[1], [(slice(0, layout.num_utts), feats)]
        if (layout.lengths == 0).any():
            raise AsrKdError(f"utterance {layout.utt_ids[int(layout.lengths.argmin())]} has no frames to be spliced")
        self.layout = layout
        self.window = left_context + 1 + right_context
        self.feat_dim = feat_dim
        self.device = device
        self._padding = left_context + right_context
        self._offsets = torch.from_numpy(layout.offsets).to(device)
        num_rows = layout.num_frames + layout.num_utts * self._padding
        self._padded = torch.empty((num_rows, feat_dim), dtype=dtype, device=device)
        for utts, block in feats:
            self._fill(utts, torch.from_numpy(block), left_context)
        self._windows = self._padded.as_strided(
            (max(num_rows - self.window + 1, 0), self.window * feat_dim), (feat_dim, 1)
        )

    def _fill(self, utts: slice, feats: torch.Tensor, left_context: int) -> None:
        """Copy the frames of some utterances to their places, and repeat the outer ones of each."""
        offsets = self.layout.offsets[utts.start : utts.stop + 1]
        lengths, first = np.diff(offsets), offsets[:-1] - offsets[0]
        padded = np.cumsum(np.concatenate([[0], lengths + self._padding]))
        utt = np.repeat(np.arange(len(lengths)), lengths + self._padding)
        frame = np.clip(np.arange(padded[-1]) - padded[utt] - left_context, 0, lengths[utt] - 1)
        begin = int(offsets[0]) + utts.start * self._padding
        self._padded[begin : begin + len(utt)] = feats[torch.from_numpy(first[utt] + frame)].to(self._padded.dtype)

    @classmethod
    def from_reader(
        cls,
        reader: FeatsReader,
        cmvn: Cmvn,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> "Frames":
        """Read, normalise and load a feats.h5; raises AsrKdError for values that are not finite."""
        blocks, feat_dim = cmvn.normalised_blocks(reader), reader.feat_dim
        return cls(blocks, reader.layout, left_context, right_context, device, dtype, feat_dim=feat_dim)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows of frames `index` (batch,) int64: (batch, window * feat_dim), a new tensor."""
        utt = torch.searchsorted(self._offsets, index, right=True) - 1
        return self._windows.index_select(0, index + utt * self._padding)

    def blocks(self, batch_size: int = 8192) -> Iterator[tuple[slice, torch.Tensor]]:
        """All windows in order, block by block: (rows, windows)."""
        for begin in range(0, self.layout.num_frames, batch_size):
            end = min(begin + batch_size, self.layout.num_frames)
            yield slice(begin, end), self.windows(torch.arange(begin, end, device=self.device))
