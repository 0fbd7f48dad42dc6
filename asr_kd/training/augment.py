"""Other views of the same windows: spans of time and frequency masked (SpecAugment), noise added to the features."""

import numpy as np
import torch

from asr_kd.config import DnnConfig


class Augmentation:
    """Masks and noise for a batch of windows, a function of (seed, step) alone, so that a resumed run sees the same.

    Masks (Park et al. 2019, arXiv:1904.08779) are drawn anew for every window: the width uniformly from 0 to the key's,
    then the place; what is masked gets the mean, which is 0 after normalisation. Noise comes before masks.
    """

    def __init__(self, config: DnnConfig, window: int, feat_dim: int, seed: int, device: torch.device):
        self._config = config
        self._shape = (window, feat_dim)
        self._seed = seed
        self._generator = torch.Generator(device)

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        config = self._config
        time_masked, freq_masked = (
            config.time_masks * config.time_mask_width,
            config.freq_masks * config.freq_mask_width,
        )
        return bool(time_masked or freq_masked or config.feature_noise)

    def __call__(self, windows: torch.Tensor, step: int) -> torch.Tensor:
        """Augment `windows` (batch, window * feat_dim) in place, and return them."""
        if not self.active:
            return windows
        # Seeds of neighbouring steps must not give related numbers, which SeedSequence sees to.
        mixed = np.random.SeedSequence([self._seed % (1 << 63), step]).generate_state(1, np.uint64)[0]
        self._generator.manual_seed(int(mixed >> 1))
        config, (window, feat_dim) = self._config, self._shape
        if config.feature_noise:
            noise = torch.empty_like(windows).normal_(0.0, config.feature_noise, generator=self._generator)
            windows += noise
        view = windows.view(-1, window, feat_dim)
        for _ in range(config.time_masks):
            view.masked_fill_(self._spans(len(view), window, config.time_mask_width, windows.device)[:, :, None], 0.0)
        for _ in range(config.freq_masks):
            view.masked_fill_(self._spans(len(view), feat_dim, config.freq_mask_width, windows.device)[:, None, :], 0.0)
        return windows

    def _spans(self, batch: int, length: int, max_width: int, device: torch.device) -> torch.Tensor:
        """One span a window, (batch, length) bool."""
        uniform = torch.rand((2, batch, 1), generator=self._generator, device=device)
        widest = min(max_width, length)
        # A number just below 1 may be rounded up to the next whole one by the product.
        width = (uniform[0] * (widest + 1)).long().clamp(max=widest)
        start = torch.minimum((uniform[1] * (length - width + 1)).long(), length - width)
        place = torch.arange(length, device=device)
        return (place >= start) & (place < start + width)
