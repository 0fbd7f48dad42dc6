"""Normalised features, resident on the device, from which one gather takes the windows of a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asr_kd.choices import CmvnMode, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import mean_and_istd, pool
from asr_kd.nnet.device import has_kernels
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, blocks_of_utterances
from asr_kd.world import ALONE, World

# Frames that are read and normalised at a time: some tens of megabytes.
BLOCK_FRAMES = 1 << 16
# Of features that are held in 8 bits, in deviations: the error of rounding is 0.024 of one.
STEP = 1 / 12
FRONT_END_KEYS = ("kind", "sample_rate", "frame_length_ms", "frame_shift_ms", "snip_edges", "num_mel_bins", "options")


def front_end(reader: FeatsReader) -> dict[str, Any]:
    """What must be equal for a net to be applied to other features: the attributes of its training features."""
    found = {key: reader.attrs[key] for key in FRONT_END_KEYS if key in reader.attrs}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}


@dataclass(frozen=True)
class Cmvn:
    """How features are brought to zero mean and unit variance.

    mode: over the whole training set, the speaker, or the utterance, or `none`. mean, istd: (feat_dim,) float32, the
    training set's, which `global` applies and `speaker` and `utterance` ignore; 0 and 1 with `none`.
    """

    mode: CmvnMode
    mean: np.ndarray
    istd: np.ndarray

    @classmethod
    def from_training_set(cls, mode: CmvnMode, reader: FeatsReader) -> "Cmvn":
        """Statistics of `reader`'s frames; raises AsrKdError for an unknown mode."""
        require_choice("cmvn", mode, CmvnMode)
        if mode == "none":
            return cls(mode, np.zeros(reader.feat_dim, np.float32), np.ones(reader.feat_dim, np.float32))
        return cls(mode, *mean_and_istd(reader.cmvn_stats.sum(axis=0), norm_vars=True))

    @property
    def fixed(self) -> bool:
        """Whether every utterance is treated alike, by mean and istd."""
        return self.mode in ("global", "none")

    def normalised_blocks(
        self, reader: FeatsReader, block_frames: int = BLOCK_FRAMES
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The features of `reader`, normalised, some whole utterances at a time: (utterances, (n, feat_dim) float32).

        Raises AsrKdError naming an utterance whose values are not finite, or not those of its digest.
        """
        normalised = self.normaliser(reader)
        for utts in blocks_of_utterances(reader.layout.offsets, block_frames):
            yield utts, normalised(utts)

    def normaliser(self, reader: FeatsReader) -> Callable[[slice], np.ndarray]:
        """What reads and normalises utterances of `reader` that follow each other: (n, feat_dim) float32.

        It raises AsrKdError as normalised_blocks does.
        """
        norms, groups = self._norms(reader)
        offsets = reader.layout.offsets
        # What was whole once is not checked again: streams read the same utterances in every pass.
        is_intact = np.zeros(reader.layout.num_utts, dtype=bool)

        def normalised(utts: slice) -> np.ndarray:
            begin = offsets[utts.start]
            feats = reader.read_rows(slice(int(begin), int(offsets[utts.stop])))
            for u in range(utts.start, utts.stop):
                rows = feats[offsets[u] - begin : offsets[u + 1] - begin]
                if not is_intact[u]:
                    reader.require_intact(u, rows)
                    is_intact[u] = True
                mean, istd = norms[groups[u]]
                rows -= mean
                rows *= istd
                if not np.isfinite(rows).all():
                    raise AsrKdError(
                        f"{reader.path}: features of {reader.layout.utt_ids[u]} are not finite; extract them again"
                    )
            return feats

        return normalised

    def _norms(self, reader: FeatsReader) -> tuple[np.ndarray, np.ndarray]:
        """Mean and inverse deviation of groups of utterances, (num_groups, 2, feat_dim), and each utterance's group."""
        if self.fixed:
            return np.array([[self.mean, self.istd]]), np.zeros(reader.layout.num_utts, dtype=int)
        names = reader.spk_ids if self.mode == "speaker" else reader.layout.utt_ids
        totals = pool(reader.cmvn_stats, names)
        norms = np.array([mean_and_istd(stats, norm_vars=True) for stats in totals.values()])
        number = {name: group for group, name in enumerate(totals)}
        return norms.reshape(-1, 2, reader.feat_dim), np.array([number[name] for name in names], dtype=int)


def joined_layout(readers: Sequence[FeatsReader]) -> Layout:
    """That of the frames of several files one after another; raises AsrKdError where they hold an utterance twice."""
    layout = readers[0].layout
    if len(readers) == 1:
        return layout
    utt_ids = [utt_id for reader in readers for utt_id in reader.layout.utt_ids]
    lengths = np.concatenate([reader.layout.lengths for reader in readers])
    return Layout.from_lengths(utt_ids, lengths, layout.frame_shift_ms, layout.snip_edges)


def as_held(feats: torch.Tensor, held_as: torch.dtype) -> torch.Tensor:
    """Normalised features as they are held: multiples of STEP in 8 bits, the largest 10.6 deviations from the mean."""
    if held_as == torch.int8:
        return (feats / STEP).round_().clamp_(-127, 127).to(held_as)
    return feats.to(held_as)


def windows_of(
    feats: torch.Tensor, offsets: torch.Tensor, context: torch.Tensor, index: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The windows of rows `index` (batch,) int64: (batch, window * feat_dim), a new tensor.

    feats: (num_rows, feat_dim), as_held; offsets: where utterances begin and end; context: (window,) rows from the
    middle one.
    """
    utt_end = torch.searchsorted(offsets, index, right=True)
    first, last = offsets[utt_end - 1], offsets[utt_end] - 1
    if feats.is_cuda and has_kernels(feats.device):
        from asr_kd.nnet.gpu_kernels import gathered

        return gathered(feats, index, context, first, last, dtype, STEP if feats.dtype == torch.int8 else 1.0)
    rows = torch.clamp(index[:, None] + context, first[:, None], last[:, None])
    # A gather of rows of 160 bytes is hardly slower than one of whole windows from padded utterances, which would hold
    # a tenth more in memory.
    windows = feats.index_select(0, rows.flatten()).view(len(index), len(context) * feats.shape[1])
    return windows.to(dtype).mul_(STEP) if feats.dtype == torch.int8 else windows


class Frames:
    """The frames of a set on a device, once; windows are gathered from them as splice-feats does.

    Where a window reaches beyond its utterance, the first or last frame is repeated.
    """

    def __init__(
        self,
        feats: np.ndarray | torch.Tensor,
        layout: Layout,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        held_as: torch.dtype | None = None,
    ):
        """feats: (num_frames, feat_dim), already normalised; not copied where they are on the device as they are held.

        dtype: of windows; held_as: that, or int8. Raises AsrKdError where they do not fit `layout`.
        """
        if len(feats) != layout.num_frames:
            raise AsrKdError(f"{len(feats)} feature rows do not fit a layout of {layout.num_frames} frames")
        self.layout = layout
        self.window = left_context + 1 + right_context
        self.feat_dim = feats.shape[1]
        self.device = device
        feats = torch.as_tensor(feats).to(device)
        self._feats = feats if feats.dtype == (held_as or dtype) else as_held(feats, held_as or dtype)
        self._dtype = dtype
        self._offsets = torch.from_numpy(layout.offsets).to(device)
        self._context = torch.arange(-left_context, right_context + 1, device=device)

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
        """Read, normalise and load a feats.h5, block by block; raises AsrKdError for values that are not finite."""
        return cls.from_readers([reader], cmvn, left_context, right_context, device, dtype)

    @classmethod
    def from_readers(
        cls,
        readers: Sequence[FeatsReader],
        cmvn: Cmvn,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        held_as: torch.dtype | None = None,
    ) -> "Frames":
        """The frames of several files one after another; raises AsrKdError where they hold an utterance twice."""
        layout, held_as = joined_layout(readers), held_as or dtype
        feats = torch.empty((layout.num_frames, readers[0].feat_dim), dtype=held_as, device=device)
        begin = 0
        for reader in readers:
            for _, block in cmvn.normalised_blocks(reader):
                feats[begin : begin + len(block)] = as_held(torch.from_numpy(block), held_as)
                begin += len(block)
        return cls(feats, layout, left_context, right_context, device, dtype, held_as)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """The windows of frames `index` (batch,) int64: (batch, window * feat_dim), a new tensor."""
        return windows_of(self._feats, self._offsets, self._context, index, self._dtype)

    def block_rows(self, batch_size: int = 8192, world: World = ALONE) -> Iterator[slice]:
        """The rows of all windows in order, block by block; of several processes, each has its share of the blocks."""
        for begin in world.share(range(0, self.layout.num_frames, batch_size)):
            yield slice(begin, min(begin + batch_size, self.layout.num_frames))

    def blocks(self, batch_size: int = 8192, world: World = ALONE) -> Iterator[tuple[slice, torch.Tensor]]:
        """The windows of block_rows: (rows, windows)."""
        for rows in self.block_rows(batch_size, world):
            yield rows, self.windows(torch.arange(rows.start, rows.stop, device=self.device))


class FramesOnDisk(Frames):
    """As Frames, but none is held: the utterances that windows are asked for are read for them.

    For what goes through all frames in order, of sets that do not fit into memory.
    """

    def __init__(
        self,
        reader: FeatsReader,
        cmvn: Cmvn,
        left_context: int,
        right_context: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        """Windows raise AsrKdError as Cmvn.normaliser says."""
        self.layout, self.feat_dim, self.device = reader.layout, reader.feat_dim, device
        self.window = left_context + 1 + right_context
        self._normalised = cmvn.normaliser(reader)
        self._shape = (left_context, right_context, device, dtype)

    def windows(self, index: torch.Tensor) -> torch.Tensor:
        """See Frames; frames that lie far apart are read one after the other."""
        first, last = int(index.min()), int(index.max())
        if last - first > BLOCK_FRAMES:
            return torch.cat([self.windows(half) for half in index.chunk(2)])
        offsets = self.layout.offsets
        begin, end = np.searchsorted(offsets, [first, last], side="right").tolist()
        utts = slice(begin - 1, end)
        frames = Frames(self._normalised(utts), self.layout.part(utts), *self._shape)
        return frames.windows(index - int(offsets[utts.start]))
