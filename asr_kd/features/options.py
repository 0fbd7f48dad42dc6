"""Options of the front end, by the names and with the meaning of Kaldi's compute-fbank-feats and compute-mfcc-feats.

Dither is fixed at 0 (Kaldi's default is 1), so that the same audio always gives the same features, and there is no
option for it. A warp of the mel axis (VTLN) is one for all utterances: Kaldi's --vtln-map is left out.
"""

import dataclasses
import json
import math
from dataclasses import dataclass

from asr_kd.errors import AsrKdError

WINDOW_TYPES = ("povey", "hamming", "hanning", "sine", "rectangular", "blackman")


@dataclass(frozen=True)
class FrontEndOptions:
    """What fbank and MFCC share; the windowing alone decides the number of frames.

    sample_frequency, low_freq, high_freq in Hz (high_freq <= 0 counts down from the Nyquist frequency);
    frame_length and frame_shift in milliseconds; samples enter at int16 scale. subtract_mean takes each utterance's
    mean away; delta_order and delta_window are those of add-deltas, which follows it (Kaldi's order is 2, ours 0).

    Raises AsrKdError for values that do not fit together.
    """

    sample_frequency: float = 16000.0
    frame_length: float = 25.0
    frame_shift: float = 10.0
    snip_edges: bool = True
    remove_dc_offset: bool = True
    preemphasis_coefficient: float = 0.97
    window_type: str = "povey"
    blackman_coeff: float = 0.42
    round_to_power_of_two: bool = True
    num_mel_bins: int = 40
    low_freq: float = 20.0
    high_freq: float = 0.0
    use_energy: bool = False
    raw_energy: bool = True
    energy_floor: float = 0.0
    htk_compat: bool = False
    vtln_warp: float = 1.0
    vtln_low: float = 100.0
    vtln_high: float = -500.0
    subtract_mean: bool = False
    delta_order: int = 0
    delta_window: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # 8000 and 8000.0 are one option and must give one digest
            value = field.type(getattr(self, field.name))
            if isinstance(value, float) and not math.isfinite(value):
                raise AsrKdError(f"{field.name} {value:g} is not a finite number")
            object.__setattr__(self, field.name, value)
        if self.window_type not in WINDOW_TYPES:
            raise AsrKdError(f"window_type {self.window_type!r} is not one of {', '.join(WINDOW_TYPES)}")
        if self.window_size < 2 or self.window_shift < 1:
            raise AsrKdError(
                f"a window of {self.frame_length:g} ms every {self.frame_shift:g} ms holds too few samples "
                f"at {self.sample_frequency:g} Hz"
            )
        if not 0 <= self.low_freq < self.upper_freq <= self.sample_frequency / 2:
            raise AsrKdError(
                f"the mel filters cannot reach from {self.low_freq:g} to {self.upper_freq:g} Hz "
                f"at a sample rate of {self.sample_frequency:g} Hz"
            )
        if self.num_mel_bins < 3:
            raise AsrKdError(f"num_mel_bins is {self.num_mel_bins}, but Kaldi needs at least 3")
        if self.num_mel_bins > self.fft_size // 2:
            raise AsrKdError(
                f"num_mel_bins={self.num_mel_bins} is too many for the {self.fft_size // 2} bins of the FFT"
            )
        if not 0 <= self.preemphasis_coefficient <= 1:
            raise AsrKdError(f"preemphasis_coefficient {self.preemphasis_coefficient:g} is not between 0 and 1")
        if self.energy_floor < 0:
            raise AsrKdError(f"energy_floor {self.energy_floor:g} is negative")
        if self.delta_order < 0 or self.delta_window < 1:
            raise AsrKdError(
                f"deltas need delta_order >= 0 and delta_window >= 1, not {self.delta_order} and {self.delta_window}"
            )
        if self.vtln_warp <= 0 or (
            self.vtln_warp != 1 and not self.low_freq < self.vtln_low < self.vtln_upper < self.upper_freq
        ):
            raise AsrKdError(
                f"a vtln_warp of {self.vtln_warp:g} needs to be positive, and its knees, {self.vtln_low:g} and "
                f"{self.vtln_upper:g} Hz, to lie between the edges of the mel filters"
            )

    @property
    def window_size(self) -> int:
        """Samples in a window."""
        return int(self.sample_frequency * 0.001 * self.frame_length)

    @property
    def window_shift(self) -> int:
        """Samples between the starts of two windows."""
        return int(self.sample_frequency * 0.001 * self.frame_shift)

    @property
    def fft_size(self) -> int:
        """Samples of the zero-padded window that is transformed."""
        return 1 << (self.window_size - 1).bit_length() if self.round_to_power_of_two else self.window_size

    @property
    def upper_freq(self) -> float:
        """Upper edge of the highest mel filter, in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_frequency / 2 + self.high_freq

    @property
    def vtln_upper(self) -> float:
        """Frequency above which the warp bends back, in Hz."""
        return self.vtln_high if self.vtln_high > 0 else self.sample_frequency / 2 + self.vtln_high

    @property
    def static_dim(self) -> int:
        """Columns of the features without their derivatives."""
        raise NotImplementedError

    @property
    def feat_dim(self) -> int:
        """Columns of the features."""
        return self.static_dim * (self.delta_order + 1)

    def to_json(self) -> str:
        """All options in a canonical form, as stored in feats.h5 and digested."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True)
class FbankOptions(FrontEndOptions):
    """Options of compute-fbank-feats; 40 mel bins where Kaldi's default is 23, no dither where it is 1."""

    use_log_fbank: bool = True
    use_power: bool = True

    @property
    def static_dim(self) -> int:
        """One column a mel bin, and one for the log energy if that is used."""
        return self.num_mel_bins + int(self.use_energy)


@dataclass(frozen=True)
class MfccOptions(FrontEndOptions):
    """Options of compute-mfcc-feats, with its defaults but for dither (0 where Kaldi's is 1)."""

    num_mel_bins: int = 23
    use_energy: bool = True
    num_ceps: int = 13
    cepstral_lifter: float = 22.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_ceps <= self.num_mel_bins:
            raise AsrKdError(f"num_ceps is {self.num_ceps}, but must be between 1 and num_mel_bins={self.num_mel_bins}")

    @property
    def static_dim(self) -> int:
        """One column a cepstral coefficient."""
        return self.num_ceps


OPTIONS_OF_KIND: dict[str, type[FrontEndOptions]] = {"fbank": FbankOptions, "mfcc": MfccOptions}
