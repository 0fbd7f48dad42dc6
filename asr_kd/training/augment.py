"""Other views of the same windows: warped, bent, shifted, with noise, and with spans of time and frequency masked."""

import math

import numpy as np
import torch
from torch.nn import functional

from asr_kd.config import DnnConfig
from asr_kd.errors import AsrKdError

# Pixels, the standard deviation of the Gaussian that makes neighbours move alike, as in Simard et al. 2003.
_ELASTIC_WIDTH = 4.0


def mixed_seed(seed: int, *numbers: int) -> int:
    """A seed for every step: neighbouring ones must not give related numbers, which SeedSequence sees to."""
    return int(np.random.SeedSequence([seed % (1 << 63), *numbers]).generate_state(1, np.uint64)[0] >> 1)


class Augmentation:
    """Views of a batch of windows, a function of (seed, step) alone: a resumed run sees the same.

    time_warp and freq_warp draw for every window by how much it is spoken faster or slower, and by a longer or shorter
    vocal tract (Jaitly & Hinton 2013): both axes are stretched by factors uniform in [1 - w, 1 + w], time about the
    frame that is classified, the filterbanks about the lowest one, with linear interpolation between frames or
    filterbanks and the outermost one repeated. Then come shifts and noise, masks last.

    Masks (Park et al. 2019, arXiv:1904.08779) are drawn anew for every window: the width uniformly from 0 to the key's,
    then the place; what is masked gets the mean, which is 0 after normalisation.

    The keys of images take a frame for the rows of a square image, one after the other, and change all frames of a
    window alike (Simard, Steinkraus & Platt 2003, Best practices for convolutional neural networks). image_affine
    draws the four entries of a matrix, each within the key's of those of the identity, which moves pixels about the
    centre; image_elastic draws for every pixel how far it moves along both axes, from normal noise smoothed by a
    Gaussian, of the key's standard deviation everywhere; values are interpolated linearly. image_jitter then draws by
    how many whole pixels the image is shifted right and down, up to the key's. What enters is 0: the background of
    images that are taken as they are (cmvn none). Raises AsrKdError for frames of other dims.

    view_share is the share of the windows that any of this is done to, drawn for each; the others stay as they are.
    """

    def __init__(self, config: DnnConfig, window: int, feat_dim: int, seed: int, device: torch.device):
        self._config = config
        self._shape = (window, feat_dim)
        self._seed = seed
        self._generator = torch.Generator(device)
        self._side = math.isqrt(feat_dim)
        for key in ("image_affine", "image_elastic", "image_jitter"):
            if (value := getattr(config, key)) and self._side**2 != feat_dim:
                raise AsrKdError(f"{key} {value:g}: frames of {feat_dim} values are no square images")

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        config = self._config
        time_masked, freq_masked = (
            config.time_masks * config.time_mask_width,
            config.freq_masks * config.freq_mask_width,
        )
        warped = config.time_warp or config.freq_warp
        moved = config.image_affine or config.image_elastic or config.image_jitter
        return config.view_share > 0 and bool(warped or time_masked or freq_masked or config.feature_noise or moved)

    def __call__(self, windows: torch.Tensor, step: int) -> torch.Tensor:
        """Other views of `windows` (batch, window * feat_dim), which may be overwritten."""
        if not self.active:
            return windows
        self._generator.manual_seed(mixed_seed(self._seed, step))
        config, (window, feat_dim) = self._config, self._shape
        as_they_are = windows.clone() if config.view_share < 1 else None
        if config.time_warp or config.freq_warp:
            windows = self._warped(windows)
        if config.image_affine or config.image_elastic:
            windows = self._deformed(windows)
        if config.image_jitter:
            windows = self._shifted(windows, config.image_jitter)
        if config.feature_noise:
            noise = torch.empty_like(windows).normal_(0.0, config.feature_noise, generator=self._generator)
            windows += noise
        view = windows.view(-1, window, feat_dim)
        for _ in range(config.time_masks):
            view.masked_fill_(self._spans(len(view), window, config.time_mask_width, windows.device)[:, :, None], 0.0)
        for _ in range(config.freq_masks):
            view.masked_fill_(self._spans(len(view), feat_dim, config.freq_mask_width, windows.device)[:, None, :], 0.0)
        if as_they_are is None:
            return windows
        chosen = torch.rand((len(windows), 1), generator=self._generator, device=windows.device) < config.view_share
        return torch.where(chosen, windows, as_they_are)

    def _warped(self, windows: torch.Tensor) -> torch.Tensor:
        """Each window stretched along time and frequency."""
        view = windows.view(-1, *self._shape)
        if self._config.time_warp:
            centre = min(self._config.left_context, self._shape[0] - 1)
            view = torch.bmm(self._stretch(view, self._config.time_warp, self._shape[0], centre), view)
        if self._config.freq_warp:
            view = torch.bmm(view, self._stretch(view, self._config.freq_warp, self._shape[1], 0).transpose(1, 2))
        return view.flatten(1)

    def _stretch(self, view: torch.Tensor, most: float, length: int, fixed: int) -> torch.Tensor:
        """Matrices (batch, length, length) that interpolate at fixed + (place - fixed) * factor, a factor a window."""
        factor = torch.empty((len(view), 1), device=view.device).uniform_(1 - most, 1 + most, generator=self._generator)
        place = torch.arange(length, device=view.device)
        source = (fixed + (place - fixed) * factor).clamp_(0, length - 1)
        return (1 - (source[:, :, None] - place).abs_()).clamp_(min=0).to(view.dtype)

    def _deformed(self, windows: torch.Tensor) -> torch.Tensor:
        """Each window's images moved pixel by pixel: by a matrix, and smoothly at random."""
        side, num_windows, device = self._side, len(windows), windows.device
        axis = torch.arange(side, device=device) - (side - 1) / 2
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))  # (2, side, side): rows, columns
        affine = torch.empty((num_windows, 2, 2), device=device)
        affine.uniform_(-self._config.image_affine, self._config.image_affine, generator=self._generator)
        source = place + (affine @ place.flatten(1)).view(-1, 2, side, side)
        if self._config.image_elastic:
            noise = torch.empty_like(source).normal_(0.0, self._config.image_elastic, generator=self._generator)
            smooth = torch.exp(-0.5 * ((axis[:, None] - axis) / _ELASTIC_WIDTH) ** 2)
            smooth /= smooth.norm(dim=1, keepdim=True)
            source += smooth @ noise @ smooth.T
        grid = source.flip(1).permute(0, 2, 3, 1) * (2 / max(side - 1, 1))  # columns first, from -1 to 1
        images = windows.view(-1, self._shape[0], side, side).float()
        return functional.grid_sample(images, grid, align_corners=True).to(windows.dtype).flatten(1)

    def _shifted(self, windows: torch.Tensor, most: int) -> torch.Tensor:
        """Each window's images shifted by -most to most pixels along both axes."""
        side, window, device = self._side, self._shape[0], windows.device
        images = functional.pad(windows.view(-1, window, side, side), (most,) * 4).flatten(2)
        row, column = torch.randint(2 * most + 1, (2, len(images), 1), generator=self._generator, device=device)
        place = torch.arange(side, device=device)
        pixels = ((row + place)[:, :, None] * (side + 2 * most) + (column + place)[:, None, :]).view(-1, 1, side**2)
        return images.gather(2, pixels.expand(-1, window, -1)).flatten(1)

    def _spans(self, batch: int, length: int, max_width: int, device: torch.device) -> torch.Tensor:
        """One span a window, (batch, length) bool."""
        uniform = torch.rand((2, batch, 1), generator=self._generator, device=device)
        widest = min(max_width, length)
        # A number just below 1 may be rounded up to the next whole one by the product.
        width = (uniform[0] * (widest + 1)).long().clamp(max=widest)
        start = torch.minimum((uniform[1] * (length - width + 1)).long(), length - width)
        place = torch.arange(length, device=device)
        return (place >= start) & (place < start + width)
