"""Normalised features, resident on the device, from which windows are cut by one gather per batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import mean_and_istd
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout

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

    def normalise(self, reader: FeatsReader) -> np.ndarray:
        """All features of `reader`, normalised: (num_frames, feat_dim) float32."""
        feats = reader.read_all()
        if self.mode == "global":
            return (feats - self.mean) * self.istd
        groups = reader.spk_ids if self.mode == "speaker" else reader.layout.utt_ids
        totals: dict[str, np.ndarray] = {}
        for group, stats in zip(groups, reader.cmvn_stats, strict=True):
            totals[group] = totals.get(group, 0) + stats
        norms = {group: mean_and_istd(stats, norm_vars=True) for group, stats in totals.items()}
        for u, group in enumerate(groups):
            mean, istd = norms[group]
            rows = slice(*reader.layout.offsets[u : u + 2])
            feats[rows] = (feats[rows] - mean) * istd
        return feats


class Frames:
    """The frames of a set on a device, each with its window.

    Every utterance is padded by repeats of its first and last frame, as splice-feats does, so that each window is one
    contiguous run of memory: a batch is one index_select on an overlapping view, and nothing is stored 26 times.
    """

    def __init__(
        self,
        feats: np.ndarray,
        layout: Layout,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        """feats: (num_frames, feat_dim), already normalised; raises AsrKdError where it does not fit `layout`."""
        if len(feats) != layout.num_frames:
            raise AsrKdError(f"{len(feats)} feature rows do not fit a layout of {layout.num_frames} frames")
        self.layout = layout
        self.window = left_context + 1 + right_context
        self.feat_dim = feats.shape[1]
        self.device = device
        padding = left_context + right_context
        utt_of_frame = np.repeat(np.arange(layout.num_utts), layout.lengths)
        self._start = torch.from_numpy(np.arange(layout.num_frames) + utt_of_frame * padding).to(device)
        self._padded = self._pad(torch.from_numpy(feats), left_context, right_context).to(device, dtype)
        self._windows = self._padded.as_strided(
            (max(len(self._padded) - self.window + 1, 0), self.window * self.feat_dim), (self.feat_dim, 1)
        )

    def _pad(self, feats: torch.Tensor, left: int, right: int) -> torch.Tensor:
        pieces = []
        for begin, end in zip(self.layout.offsets[:-1], self.layout.offsets[1:], strict=True):
            if begin == end:
                raise AsrKdError("an utterance without frames cannot be spliced")
            rows = torch.arange(begin - left, end + right).clamp(begin, end - 1)
            pieces.append(feats[rows])
        return torch.cat(pieces)

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
        """Read, normalise and load a feats.h5."""
        return cls(cmvn.normalise(reader), reader.layout, left_context, right_context, device, dtype)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows of frames `index` (batch,) int64: (batch, window * feat_dim)."""
        return self._windows.index_select(0, self._start[index])

    def blocks(self, batch_size: int = 8192) -> Iterator[tuple[slice, torch.Tensor]]:
        """All windows in order, block by block: (rows, windows)."""
        for begin in range(0, self.layout.num_frames, batch_size):
            end = min(begin + batch_size, self.layout.num_frames)
            yield slice(begin, end), self.windows(torch.arange(begin, end, device=self.device))
