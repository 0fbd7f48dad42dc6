"""The loop that one writes by hand: a Dataset of windows over HDF5, a DataLoader, float32, AdamW."""

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import torch
from ceilings import Clock
from generated import FEAT_DIM, UTT_FRAMES
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from asr_kd.config import DnnConfig


def write_feats(path: Path, feats: torch.Tensor) -> None:
    """/feats, flat, as feats.h5 has it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=feats.numpy(), chunks=(min(1024, len(feats)), FEAT_DIM))


class Windows(Dataset):
    """One window a frame, read from the file; each worker opens it for itself. Labels lie in memory."""

    def __init__(self, path: Path, pdf: np.ndarray, config: DnnConfig):
        self.path, self.pdf, self.file = path, pdf, None
        self.left, self.right = config.left_context, config.right_context

    def __len__(self) -> int:
        return len(self.pdf)

    def __getitem__(self, frame: int) -> tuple[torch.Tensor, int]:
        if self.file is None:
            self.file = h5py.File(self.path)
        first = frame - frame % UTT_FRAMES
        begin, end = max(frame - self.left, first), min(frame + self.right + 1, first + UTT_FRAMES)
        rows = self.file["feats"][begin:end]
        repeated = (begin - (frame - self.left), frame + self.right + 1 - end)
        return torch.from_numpy(np.pad(rows, (repeated, (0, 0)), mode="edge").reshape(-1)), int(self.pdf[frame])


class PlainLoop:
    """An nn.Sequential over a DataLoader; `speed` begins where training is under way."""

    def __init__(self, dims: list[int], config: DnnConfig, data: Dataset, device: torch.device, num_workers: int):
        layers = [module for a, b in pairwise(dims) for module in (nn.Linear(a, b), nn.ReLU())]
        self._net = nn.Sequential(*layers[:-1]).to(device)
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=config.learning_rate)
        self._loader = DataLoader(data, config.batch_size, shuffle=True, drop_last=True, num_workers=num_workers)
        self._device, self._batch_size = device, config.batch_size

    def speed(self, clock: Clock, seconds: float) -> float:
        """Frames a second over at least `seconds`, after the first batch (with workers that takes a while)."""
        begin, steps, batches = None, 0, iter(self._loader)
        while begin is None or clock() - begin < seconds:
            try:
                windows, pdf = next(batches)
            except StopIteration:
                batches = iter(self._loader)
                continue
            self._optimizer.zero_grad()
            loss = functional.cross_entropy(self._net(windows.to(self._device)), pdf.to(self._device))
            loss.backward()
            self._optimizer.step()
            steps += 1
            if begin is None:
                begin, steps = clock(), 0
        return steps * self._batch_size / (clock() - begin)
