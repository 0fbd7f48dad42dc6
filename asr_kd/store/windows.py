"""Windows of frames with their labels, for other people's trainers.

With torch, a map-style data set that DataLoader may shuffle and read from any number of workers:

    dataset = WindowDataset("train.fbank.h5", "train.ali.h5", left_context=20, right_context=5, cmvn="speaker")
    loader = DataLoader(dataset, batch_size=256, shuffle=True, num_workers=2)
    for windows, pdfs in loader:  # (256, 26 * feat_dim) float32, (256,) int64
        ...

Without torch, and without this package, h5py is enough; frames of an utterance lie together:

    import h5py
    import numpy as np

    def windows_of(feats_h5, ali_h5, utt_id, left=20, right=5):
        with h5py.File(feats_h5) as feats, h5py.File(ali_h5) as ali:
            assert feats.attrs["layout_digest"] == ali.attrs["layout_digest"]
            row = list(feats["utt/id"].asstr()[:]).index(utt_id)
            first, last = feats["utt/offset"][row : row + 2]
            frames = feats["feats"][first:last].astype(np.float32)
            around = np.arange(len(frames))[:, None] + np.arange(-left, right + 1)
            windows = frames[np.clip(around, 0, len(frames) - 1)].reshape(len(frames), -1)
            return windows, ali["pdf"][first:last]

This package trains from frames on the device (asr_kd.nnet.frames), which is faster than any of these.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from asr_kd.choices import CmvnMode, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import mean_and_istd, pool
from asr_kd.store.ali import FAILED, AliReader, require_fit
from asr_kd.store.feats import FeatsReader


class WindowDataset(Dataset):
    """Every labelled frame with its neighbours: dataset[i] is (window ((left + 1 + right) * feat_dim,) float32, pdf).

    Frames of utterances whose alignment failed are left out; at the edges of an utterance the first or last frame is
    repeated. The file is opened in each worker by itself, and pickling the data set carries no open file.
    cmvn: over what mean and deviation are normalised; stats: Kaldi's statistics (2, feat_dim + 1) for "global",
    those of the training set for a dev set, say (default: of these features).

    Raises AsrKdError if alignment and features are of other frames, or nothing is labelled.
    """

    def __init__(
        self,
        feats_h5: str | Path,
        ali_h5: str | Path,
        *,
        left_context: int = 20,
        right_context: int = 5,
        cmvn: CmvnMode = "none",
        stats: np.ndarray | None = None,
    ) -> None:
        require_choice("cmvn", cmvn, CmvnMode)
        if stats is not None and cmvn != "global":
            raise AsrKdError(f"cmvn {cmvn!r}: stats are for global alone")
        if left_context < 0 or right_context < 0:
            raise AsrKdError(f"a context of {left_context} frames left and {right_context} right is negative")
        self._reader = FeatsReader(feats_h5)
        ali = AliReader(ali_h5)
        require_fit(ali.layout, self._reader.layout, (str(ali_h5), str(feats_h5)))
        self._around = np.arange(-left_context, right_context + 1)
        self._frames = np.flatnonzero(ali.pdf != FAILED)
        if not len(self._frames):
            raise AsrKdError(f"{ali_h5}: no frame has a label")
        self._pdf = torch.from_numpy(ali.pdf[self._frames])
        self.num_pdfs = ali.num_pdfs
        self.feat_dim = self._reader.feat_dim
        self._offsets = self._reader.layout.offsets
        self._mean, self._istd = self._norms(cmvn, stats)

    def _norms(self, cmvn: CmvnMode, stats: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and inverse deviation of each utterance, or of all in one row: (num_utts or 1, feat_dim)."""
        reader = self._reader
        if cmvn == "none":
            return np.zeros((1, self.feat_dim), np.float32), np.ones((1, self.feat_dim), np.float32)
        if cmvn == "global":
            mean, istd = mean_and_istd(reader.cmvn_stats.sum(axis=0) if stats is None else stats)
            return mean[None], istd[None]
        groups = reader.spk_ids if cmvn == "speaker" else list(reader.layout.utt_ids)
        norms = {group: mean_and_istd(pooled) for group, pooled in pool(reader.cmvn_stats, groups).items()}
        return np.stack([norms[group][0] for group in groups]), np.stack([norms[group][1] for group in groups])

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The window around a labelled frame, and its state."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        frame = int(self._frames[index])
        utt = int(np.searchsorted(self._offsets, frame, side="right")) - 1
        wanted = np.clip(frame + self._around, self._offsets[utt], self._offsets[utt + 1] - 1)
        rows = self._reader.read_rows(slice(int(wanted[0]), int(wanted[-1]) + 1))
        norm = utt if len(self._mean) > 1 else 0
        rows = (rows - self._mean[norm]) * self._istd[norm]
        return torch.from_numpy(rows[wanted - wanted[0]].reshape(-1)), self._pdf[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A batch, as DataLoader asks for it; read in the order in which it lies in the file."""
        found = {index: self[index] for index in sorted(indices)}
        return [found[index] for index in indices]
