"""Masks and noise: their shares, their places, and that they follow from seed and step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.config import DnnConfig, resolve
from asr_kd.training.augment import Augmentation

CPU = torch.device("cpu")


def augmentation(seed: int = 1, window: int = 26, feat_dim: int = 40, **values: object) -> Augmentation:
    return Augmentation(resolve(DnnConfig, values), window, feat_dim, seed, CPU)


def masked(batch: int, augment: Augmentation, window: int = 26, feat_dim: int = 40, step: int = 3) -> torch.Tensor:
    """Where zeros stand, (batch, window, feat_dim), after augmenting ones."""
    return augment(torch.ones(batch, window * feat_dim), step).view(batch, window, feat_dim) == 0


def runs(line: torch.Tensor) -> int:
    """Number of runs of True."""
    return int(line[0]) + int((line[1:] & ~line[:-1]).sum())


def test_time_masks_are_whole_frames_of_uniform_widths_at_uniform_places():
    mask = masked(6000, augmentation(time_masks=1, time_mask_width=5))
    assert torch.equal(mask.all(dim=2), mask.any(dim=2))
    frames = mask.any(dim=2)
    assert max(map(runs, frames[:500])) == 1
    width = frames.sum(dim=1)
    shares = torch.bincount(width, minlength=6) / len(width)
    assert shares.tolist() == pytest.approx([1 / 6] * 6, abs=0.02)
    start = frames.int().argmax(dim=1)[width == 5]
    assert (start.min(), start.max()) == (0, 21)
    # The mean of 0..21 and its standard error over a sixth of 6000 windows.
    assert float(start.float().mean()) == pytest.approx(10.5, abs=4 * 6.35 / 1000**0.5)


def test_frequency_masks_are_whole_bands():
    mask = masked(2000, augmentation(freq_masks=1, freq_mask_width=8))
    assert torch.equal(mask.all(dim=1), mask.any(dim=1))
    width = mask.any(dim=1).sum(dim=1)
    assert int(width.max()) == 8
    assert float(width.float().mean()) == pytest.approx(4.0, abs=0.25)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_masks_never_leave_the_window_and_are_no_wider_than_asked(window, feat_dim, time_width, freq_width, seed):
    options = {"time_masks": 1, "time_mask_width": time_width, "freq_masks": 1, "freq_mask_width": freq_width}
    mask = masked(20, augmentation(seed, window, feat_dim, **options), window, feat_dim)
    assert int(mask.all(dim=2).sum(dim=1).max()) <= (time_width if freq_width < feat_dim else window)
    assert int(mask.all(dim=1).sum(dim=1).max()) <= (freq_width if time_width < window else feat_dim)


def test_two_masks_can_be_in_two_places():
    frames = masked(200, augmentation(time_masks=2, time_mask_width=3)).any(dim=2)
    assert max(map(runs, frames)) == 2


def test_noise_has_its_standard_deviation_and_masks_come_after_it():
    windows = augmentation(feature_noise=0.5)(torch.ones(200, 1040), 1)
    assert float(windows.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(windows.std()) == pytest.approx(0.5, abs=0.01)
    both = augmentation(feature_noise=0.5, time_masks=1, time_mask_width=26)(torch.ones(200, 1040), 1)
    assert float((both == 0).float().mean()) > 0.3


def test_a_step_sees_the_same_view_whatever_came_before_and_another_one_at_another_step_or_seed():
    options = {"feature_noise": 0.1, "time_masks": 1, "freq_masks": 1}
    one, other = augmentation(**options), augmentation(**options)
    for step in range(5):
        one(torch.ones(7, 1040), step)
    view = one(torch.ones(8, 1040), 5)
    assert torch.equal(view, other(torch.ones(8, 1040), 5))
    assert not torch.equal(view, other(torch.ones(8, 1040), 6))
    assert not torch.equal(view, augmentation(2, **options)(torch.ones(8, 1040), 5))
    assert not torch.equal(view[0], view[1])


def test_the_global_random_numbers_are_left_alone():
    """They are dropout's: what a net drops must not depend on masks."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    augmentation(feature_noise=0.1, time_masks=1)(torch.ones(8, 1040), 5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("values", [{}, {"time_masks": 2, "time_mask_width": 0}])
def test_without_masks_and_noise_the_windows_are_left_alone(values):
    windows = torch.randn(4, 1040)
    assert augmentation(**values)(windows, 0) is windows
    assert not augmentation(**values).active


def test_warps_stretch_time_about_the_classified_frame_and_frequency_about_the_lowest_filterbank():
    ramp = torch.arange(26.0)[:, None].expand(26, 40)
    warped = augmentation(time_warp=0.2)(ramp.expand(500, 26, 40).reshape(500, -1).clone(), 1).view(500, 26, 40)
    assert torch.allclose(warped[:, 20], torch.tensor(20.0))
    slope = (warped[:, 20] - warped[:, 16])[:, 0] / 4
    assert 0.8 <= float(slope.min()) < 0.82
    assert 1.18 < float(slope.max()) <= 1.2001
    assert float(slope.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(warped.min()) >= 0  # nothing from beyond the window
    assert float(warped.max()) <= 25
    ramp = torch.arange(40.0).expand(500, 26, 40)
    warped = augmentation(freq_warp=0.1)(ramp.reshape(500, -1).clone(), 1).view(500, 26, 40)
    assert torch.equal(warped[:, :, 0], torch.zeros(500, 26))
    slope = warped[:, 0, 10] / 10
    assert 0.9 <= float(slope.min()) < 0.92
    assert 1.08 < float(slope.max()) <= 1.1001


def test_a_share_of_the_windows_is_left_as_it_is():
    options = {"freq_warp": 0.1, "feature_noise": 0.1, "time_masks": 1}
    windows = torch.randn(2000, 1040, generator=torch.Generator().manual_seed(1))
    everything = augmentation(**options)(windows.clone(), 3)
    some = augmentation(**options, view_share=0.3)(windows.clone(), 3)
    same, changed = (some == windows).all(1), (some == everything).all(1)
    assert bool((same ^ changed).all())
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert not augmentation(**options, view_share=0.0).active


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_warped_values_lie_between_those_of_the_window(window, feat_dim, time_warp, freq_warp, seed):
    windows = torch.randn(20, window * feat_dim, generator=torch.Generator().manual_seed(seed))
    warped = augmentation(seed, window, feat_dim, time_warp=time_warp, freq_warp=freq_warp)(windows.clone(), 2)
    assert warped.shape == windows.shape
    low, high = windows.min(dim=1).values, windows.max(dim=1).values
    assert bool(((warped >= low[:, None] - 1e-5) & (warped <= high[:, None] + 1e-5)).all())
