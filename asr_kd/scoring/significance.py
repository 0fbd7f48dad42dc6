"""Intervals and tests for scores of systems on the same utterances.

Frames of an utterance are not independent, so what is resampled is a unit: the utterance, or the speaker where there
are enough of them (ten or so). Seeds are averaged per utterance first, then systems are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from asr_kd.errors import AsrKdError
from asr_kd.scoring.wer import CORRECT, INSERTION, align_words

NUM_RESAMPLES = 10_000
MIN_SEGMENTS = 50
MIN_GOOD_WORDS = 2
SHARE_CLAIMED = 0.86  # Hinton, Vinyals & Dean 2015, section 4.1: 58.9 → 60.8 of 58.9 → 61.1 % frame accuracy

# Random unit numbers drawn at once, so that memory does not grow with the number of resamples.
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A difference a − b with its 95 % interval, two-sided p value, and the number of things it was tested on.

    `ci95` and `p_value` are None, with `reason`, where the test was refused.
    """

    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    test: str
    n: int
    reason: str | None = None


class ClusterBootstrap:
    """Resampled ratios of sums, the same resamples for every system and metric, so that all of them are paired.

    `columns` maps a name to values per utterance (num_utts,): correct frames, frames, errors, words …; `units` names
    the unit of each utterance. A resample draws as many units as there are, with replacement, each with all of its
    utterances (cluster bootstrap; Bisani & Ney 2004 for WER). The generator's seed is fixed: the same scores give
    the same interval.

    Raises AsrKdError where there are fewer than two units.
    """

    def __init__(
        self,
        units: Sequence[str],
        columns: Mapping[str, np.ndarray],
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        names, unit_of_utt = np.unique(np.asarray(units), return_inverse=True)
        self.num_units = len(names)
        if self.num_units < 2:
            raise AsrKdError("intervals need at least two utterances (or speakers) to resample.")
        per_unit = np.zeros((self.num_units, len(columns)))
        for k, values in enumerate(columns.values()):
            per_unit[:, k] = np.bincount(unit_of_utt, weights=values, minlength=self.num_units)
        self._total = dict(zip(columns, per_unit.sum(axis=0), strict=True))
        sums = _resampled_sums(per_unit, num_resamples, np.random.default_rng(seed))
        self._resampled = dict(zip(columns, sums.T, strict=True))

    def ratio(self, num: str, den: str) -> float:
        """Σ num / Σ den over all utterances; raises AsrKdError where Σ den is 0."""
        if self._total[den] == 0:
            raise AsrKdError(f"nothing to score: {den} is 0 in every utterance.")
        return float(self._total[num] / self._total[den])

    def resampled_ratios(self, num: str, den: str) -> np.ndarray:
        """Σ num / Σ den of each resample, (num_resamples,); the rare resamples with Σ den = 0 are left out."""
        kept = self._resampled[den] > 0
        return self._resampled[num][kept] / self._resampled[den][kept]

    def interval(self, num: str, den: str) -> tuple[float, float]:
        """Percentile interval of the ratio, 95 %. It covers the choice of test material, not that of seeds."""
        return _percentile_interval(self.resampled_ratios(num, den))

    def compare(self, num_a: str, num_b: str, den: str) -> Difference:
        """Difference of two ratios over the same denominator, with percentile interval and two-sided p value.

        The p value is (k + 1) / (B + 1): B resamples, k of them with |d* − d| ≥ |d|, where d is the difference on the
        full set and d* that on the resample (resamples centred on the null; Davison & Hinkley 1997, chapter 4). Never
        0; 1 for identical systems.
        """
        difference = self.ratio(num_a, den) - self.ratio(num_b, den)
        resampled = self.resampled_ratios(num_a, den) - self.resampled_ratios(num_b, den)
        # The slack counts ties that rounding would split as being as extreme: towards the larger p.
        as_extreme = np.abs(resampled - difference) >= abs(difference) - 1e-12
        p_value = (np.count_nonzero(as_extreme) + 1) / (len(resampled) + 1)
        return Difference(
            difference, _percentile_interval(resampled), float(p_value), "paired bootstrap", self.num_units
        )

    def covariance(self, nums: Sequence[str], den: str) -> np.ndarray:
        """Sampling covariance of several ratios over the same denominator, (len(nums), len(nums))."""
        return np.cov([self.resampled_ratios(num, den) for num in nums])


def _resampled_sums(per_unit: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(num_resamples, K) sums of (num_units, K) values, each over num_units units drawn with replacement."""
    num_units = len(per_unit)
    sums = np.empty((num_resamples, per_unit.shape[1]))
    block = max(1, _DRAWS_AT_ONCE // num_units)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = rng.integers(num_units, size=(size, num_units)) + num_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units)
        sums[start : start + size] = counts @ per_unit
    return sums


def _percentile_interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mapsswe(
    refs: Mapping[str, str],
    hyps_a: Sequence[Mapping[str, str]],
    hyps_b: Sequence[Mapping[str, str]],
    min_good_words: int = MIN_GOOD_WORDS,
    min_segments: int = MIN_SEGMENTS,
) -> Difference:
    """Matched pairs sentence-segment word error test (Gillick & Cox 1989) of WER a − b, as a fraction.

    `hyps_a`, `hyps_b`: one dictionary of decoded words per seed. A segment is a stretch with errors, bounded on both
    sides by `min_good_words` words in a row that every seed of both systems has right with nothing inserted, or by
    the end of the utterance; NIST's sc_stats asks for two such words, and so do we. Stretches without any error are
    no segments. The difference of each segment is that of its errors averaged over seeds; its mean over the n
    segments divided by its standard error is referred to the normal distribution, two-sided, so n must be large:
    below `min_segments` the test is refused (`p_value` None, with the reason), as it is where no variance is left.
    """
    differences = np.array(
        [
            segment_difference
            for utt_id, ref in refs.items()
            for segment_difference in _segment_differences(
                ref.split(), [hyp[utt_id] for hyp in hyps_a], [hyp[utt_id] for hyp in hyps_b], min_good_words
            )
        ]
    )
    n, num_words = len(differences), sum(len(ref.split()) for ref in refs.values())
    if num_words == 0:
        raise AsrKdError("nothing to score: no reference has words.")
    wer_difference = float(differences.sum() / num_words)
    if n < min_segments:
        reason = f"{n} segments with errors, fewer than the {min_segments} that the normal approximation needs"
        return Difference(wer_difference, None, None, "MAPSSWE", n, reason)
    standard_error = float(differences.std(ddof=1) * np.sqrt(n) / num_words)
    if standard_error == 0 and wer_difference != 0:
        reason = f"all {n} segments differ by the same number of errors, so their variance cannot be estimated"
        return Difference(wer_difference, None, None, "MAPSSWE", n, reason)
    margin = stats.norm.ppf(0.975) * standard_error
    p_value = 1.0 if wer_difference == 0 else float(2 * stats.norm.sf(abs(wer_difference) / standard_error))
    return Difference(wer_difference, (wer_difference - margin, wer_difference + margin), p_value, "MAPSSWE", n)


def _segment_differences(ref: list[str], hyps_a: list[str], hyps_b: list[str], min_good_words: int) -> list[float]:
    """Mean errors of a minus those of b in each segment of one utterance."""
    errors_a = np.mean([_errors_by_place(ref, hyp.split()) for hyp in hyps_a], axis=0)
    errors_b = np.mean([_errors_by_place(ref, hyp.split()) for hyp in hyps_b], axis=0)
    segments: list[float] = []
    last = None
    for place in np.flatnonzero(errors_a + errors_b):
        # Words are the odd places, so this counts those strictly between two places with errors; all of them are good.
        if last is None or place // 2 - (last + 1) // 2 >= min_good_words:
            segments.append(0.0)
        segments[-1] += float(errors_a[place] - errors_b[place])
        last = place
    return segments


def _errors_by_place(ref: list[str], hyp: list[str]) -> np.ndarray:
    """Errors at each place of the reference, (2 len(ref) + 1,): odd places are its words, even ones the gaps."""
    errors = np.zeros(2 * len(ref) + 1)
    word = 0
    for op, _, _ in align_words(ref, hyp).ops:
        if op == INSERTION:
            errors[2 * word] += 1
        else:
            errors[2 * word + 1] = op != CORRECT
            word += 1
    return errors


@dataclass(frozen=True)
class GainShare:
    """Share of the ensemble's gain that the student keeps, (s − b) / (e − b), and its test.

    `shortfall` is e − s. Where the share means nothing, `value`, `ci95` and `p_at_least` are None and `reason` says
    why. `p_at_least` is the one-sided p value of the null "share ≥ 0.86": small where the student keeps less, near 1
    (1 − p below 0.05) where the claim of at least 0.86 is itself shown.
    """

    value: float | None
    ci95: tuple[float, float] | None
    p_at_least: float | None
    shortfall: float
    reason: str | None


def share_of_gain(
    baseline: Sequence[float],
    ensemble: Sequence[float],
    student: Sequence[float],
    utterance_covariance: np.ndarray,
    num_units: int,
    claimed: float = SHARE_CLAIMED,
) -> GainShare:
    """Share of the gain kept, with Fieller's interval.

    `baseline`, `ensemble`, `student`: the score of each seed, larger being better (give WER negated).
    `utterance_covariance` (3, 3): sampling covariance of the three means over seeds, in that order, from the bootstrap
    over `num_units` units.

    With m = (b, e, s) the means over seeds, C = utterance_covariance + diag(σ_b²/S_b, σ_e²/S_e, σ_s²/S_s) is their
    covariance: σ² is the variance between the S seeds, and a system with one seed contributes none. For a share ρ the
    contrast s − b − ρ(e − b) = c(ρ)·m with c(ρ) = (ρ − 1, −ρ, 1) has the variance c(ρ)ᵀ C c(ρ). The interval is the
    set of ρ at which |c(ρ)·m| ≤ t √(c(ρ)ᵀ C c(ρ)) (Fieller 1954). Few seeds make a poor estimate of σ², so t is the
    0.975 quantile of Student's t with Welch-Satterthwaite degrees of freedom of the contrast at the estimated share.
    In simulation it covers 93–96 % with three seeds or more; with two seeds that vary more than the test material does,
    only 87–91 %.
    The share is undefined where the 95 % interval of e − b is not above 0. `p_at_least` is the p value of
    c(claimed)·m against 0, with the degrees of freedom of that contrast.
    """
    seeds = [np.asarray(scores, dtype=np.float64) for scores in (baseline, ensemble, student)]
    means = np.array([scores.mean() for scores in seeds])
    variance = _ContrastVariance(utterance_covariance, num_units, seeds)
    b, e, s = means
    gain_margin = variance.quantile(_GAIN) * np.sqrt(variance.of(_GAIN))
    if e - b <= gain_margin:
        reason = f"the ensemble's gain over the baseline, {e - b:.4g} ± {gain_margin:.2g}, is not above 0 at 95 %"
        return GainShare(None, None, None, float(e - s), reason)
    share = (s - b) / (e - b)
    interval = _fieller(s - b, e - b, variance, variance.quantile(_contrast(share)))
    if interval is None:
        return GainShare(None, None, None, float(e - s), "Fieller's interval of the share is unbounded")
    contrast = _contrast(claimed)
    spread = np.sqrt(variance.of(contrast))
    excess = float(contrast @ means)
    p_at_least = float(stats.t.cdf(excess / spread, variance.freedom(contrast))) if spread > 0 else float(excess >= 0)
    return GainShare(float(share), interval, p_at_least, float(e - s), None)


_GAIN = np.array([-1.0, 1.0, 0.0])
_KEPT = np.array([-1.0, 0.0, 1.0])


def _contrast(share: float) -> np.ndarray:
    return _KEPT - share * _GAIN


class _ContrastVariance:
    """Variance of contrasts of (b, e, s): one part from the utterances, one from the seeds of each system."""

    def __init__(self, utterance_covariance: np.ndarray, num_units: int, seeds: Sequence[np.ndarray]) -> None:
        self._utterances = np.asarray(utterance_covariance, dtype=np.float64)
        self._seeds = np.array([x.var(ddof=1) / len(x) if len(x) > 1 else 0.0 for x in seeds])
        self._freedom = np.array([num_units - 1, *(max(len(x) - 1, 1) for x in seeds)], dtype=np.float64)
        self.matrix = self._utterances + np.diag(self._seeds)

    def of(self, contrast: np.ndarray) -> float:
        return float(contrast @ self.matrix @ contrast)

    def freedom(self, contrast: np.ndarray) -> float:
        """Welch-Satterthwaite degrees of freedom: the parts' variances add, each known with its own precision."""
        parts = np.array([contrast @ self._utterances @ contrast, *(contrast**2 * self._seeds)])
        spread = float(np.sum(parts**2 / self._freedom))
        return float(parts.sum() ** 2 / spread) if spread > 0 else np.inf

    def quantile(self, contrast: np.ndarray) -> float:
        return float(stats.t.ppf(0.975, self.freedom(contrast)))


def _fieller(x: float, y: float, variance: _ContrastVariance, t: float) -> tuple[float, float] | None:
    """The ρ with (x − ρy)² ≤ t² Var(x − ρy), for x = s − b and y = e − b; None where they are no bounded interval."""
    var_x, var_y = variance.of(_KEPT), variance.of(_GAIN)
    cov = float(_KEPT @ variance.matrix @ _GAIN)
    a, half_b, c = y**2 - t**2 * var_y, x * y - t**2 * cov, x**2 - t**2 * var_x
    if a <= 0:
        return None
    root = np.sqrt(max(half_b**2 - a * c, 0.0))
    return float((half_b - root) / a), float((half_b + root) / a)
