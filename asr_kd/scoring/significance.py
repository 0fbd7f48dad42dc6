"""Intervals and tests for scores of systems on the same utterances.

Frames of an utterance are not independent, so what is resampled is a unit: the utterance, or the speaker where there
are enough of them (`resampling_unit`). Seeds are averaged per utterance first, then systems are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit  # scipy.stats takes seconds to import

from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import CORRECT, INSERTION, KALDI, Alignment, Weights, align_words

NUM_RESAMPLES = 10_000
MIN_SPEAKERS = 20
MIN_SEGMENTS = 50
MIN_GOOD_WORDS = 2
# Of a frame or word: what other arithmetic, or another file format, leaves of no difference at all.
ROUNDING = 1e-6
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


RESAMPLING_UNITS = ("auto", "utterance", "speaker")


def resampling_unit(spk_ids: Sequence[str] | None, asked: str = "auto") -> tuple[str, str]:
    """What to resample, "speaker" or "utterance", and why in words; `spk_ids` names the speaker of each utterance.

    `asked` is one of RESAMPLING_UNITS, of which "auto" decides by the number of speakers.

    Utterances of one speaker are alike, so intervals over utterances are too narrow for voices that were not heard;
    but the percentile bootstrap needs units by the dozen. In simulation (error rates of speakers that vary by 60 % of
    their mean, 12 utterances of each) intervals over 5, 10, 20 and 50 speakers cover 83, 88, 91 and 93 % where they
    promise 95 %, and those over utterances 72 to 74 %; so MIN_SPEAKERS is where they begin to be better than none.

    Raises AsrKdError for another unit, and where speakers are asked for that are not known.
    """
    if asked not in RESAMPLING_UNITS:
        raise AsrKdError(f"resampling unit must be one of {', '.join(RESAMPLING_UNITS)}, not {asked}.")
    if asked == "speaker" and spk_ids is None:
        raise AsrKdError("speakers cannot be resampled, since they are not known; name them with utt2spk.")
    if asked != "auto":
        return asked, f"{asked}s are resampled, as asked for"
    num_speakers = len(set(spk_ids or ()))
    if num_speakers == 0:
        return "utterance", "speakers are not known: intervals cover other utterances, not other speakers"
    if num_speakers < MIN_SPEAKERS:
        return "utterance", (
            f"{num_speakers} speaker{'s are' if num_speakers > 1 else ' is'} fewer than the {MIN_SPEAKERS} that "
            "resampling them needs: intervals cover other utterances of these speakers, not other speakers"
        )
    return "speaker", f"{num_speakers} speakers are resampled, each with all of their utterances"


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
        self._per_unit = dict(zip(columns, per_unit.T, strict=True))
        self._total = {name: values.sum() for name, values in self._per_unit.items()}
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

    def compare(self, num_a: str, num_b: str, den: str, den_b: str | None = None) -> Difference:
        """Difference of two ratios, with percentile interval and two-sided p value.

        The ratios have the same denominator unless `den_b` is given. The p value is (k + 1) / (B + 1): B resamples, k
        of them with |d* − d| ≥ |d|, where d is the difference on the full set and d* that on the resample (resamples
        centred on the null; Davison & Hinkley 1997, chapter 4). Never 0; 1 for identical systems, and for those that
        differ by ROUNDING at most in every unit.
        """
        den_b = den_b or den
        difference = self.ratio(num_a, den) - self.ratio(num_b, den_b)
        kept = (self._resampled[den] > 0) & (self._resampled[den_b] > 0)
        a, b = (self._resampled[num][kept] / self._resampled[of][kept] for num, of in ((num_a, den), (num_b, den_b)))
        # The slack counts ties that rounding would split as being as extreme: towards the larger p.
        as_extreme = np.abs(a - b - difference) >= abs(difference) - 1e-12
        p_value = (np.count_nonzero(as_extreme) + 1) / (len(a) + 1)
        if self._equal(num_a, num_b, den) and self._equal(den, den_b, den):
            p_value = 1.0
        return Difference(difference, _percentile_interval(a - b), float(p_value), "paired bootstrap", self.num_units)

    def _equal(self, a: str, b: str, den: str) -> bool:
        """Whether two columns are the same in every unit but for rounding."""
        return bool(np.all(np.abs(self._per_unit[a] - self._per_unit[b]) <= ROUNDING * self._per_unit[den]))

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


@dataclass(frozen=True, kw_only=True)
class MatchedPairs(Difference):
    """A matched pairs test: beside the difference of error rates, what sc_stats prints of its segments.

    mean, std_dev: errors of a minus those of b in a segment; z: mean / (std_dev / √n), 0 where std_dev is.
    """

    mean: float
    std_dev: float
    z: float


def mapsswe(
    refs: Mapping[str, str],
    hyps_a: Sequence[Mapping[str, str]],
    hyps_b: Sequence[Mapping[str, str]],
    min_good_words: int = MIN_GOOD_WORDS,
    min_segments: int = MIN_SEGMENTS,
    weights: Weights = KALDI,
) -> MatchedPairs:
    """`matched_pairs` of decoded words: `hyps_a`, `hyps_b` hold a dictionary utt_id → words joined by blanks per seed.

    With the weights of sclite it is sc_stats' test, with Kaldi's the one that fits Kaldi's error rate.
    """
    words = {utt_id: ref.split() for utt_id, ref in refs.items()}
    placed = [
        place_errors([[align_words(ref, hyp[u].split(), weights) for u, ref in words.items()] for hyp in hyps])
        for hyps in (hyps_a, hyps_b)
    ]
    num_ref = np.array([len(ref) for ref in words.values()], dtype=np.int64)
    return matched_pairs(*placed, num_ref, min_good_words, min_segments)


def matched_pairs(
    placed_a: np.ndarray,
    placed_b: np.ndarray,
    num_ref: np.ndarray,
    min_good_words: int = MIN_GOOD_WORDS,
    min_segments: int = MIN_SEGMENTS,
) -> MatchedPairs:
    """Matched pairs sentence-segment word error test (MAPSSWE; Gillick & Cox 1989) of WER a − b, as a fraction.

    `placed_a`, `placed_b`: what `place_errors` makes of each system; `num_ref` (num_utts,): reference words. A segment
    is a stretch with errors, bounded on both sides by `min_good_words` words in a row that every seed of both systems
    has right with nothing inserted, or by the end of the utterance; NIST's sc_stats asks for two such words, and so do
    we. Stretches without any error are no segments. The difference of each segment is that of its errors averaged over
    seeds; its mean over the n segments divided by its standard error is referred to the normal distribution, two-sided,
    so n must be large: below `min_segments` the test is refused (`p_value` None, with the reason), as it is where no
    variance is left.
    """
    num_words = int(num_ref.sum())
    if num_words == 0:
        raise AsrKdError("nothing to score: no reference has words.")
    differences = segment_differences(placed_a, placed_b, num_ref, min_good_words)
    n = len(differences)
    wer_difference = float(differences.sum() / num_words)
    std_dev = float(differences.std(ddof=1)) if n > 1 else 0.0
    std_dev = std_dev if std_dev > 1e-12 else 0.0  # what rounding leaves of averages over seeds is no variance
    mean = wer_difference * num_words / n if n else 0.0
    z = mean / (std_dev / np.sqrt(n)) if std_dev > 0 else 0.0

    def result(ci95: tuple[float, float] | None, p_value: float | None, reason: str | None = None) -> MatchedPairs:
        return MatchedPairs(wer_difference, ci95, p_value, "MAPSSWE", n, reason, mean=mean, std_dev=std_dev, z=float(z))

    if n < min_segments:
        reason = f"{n} segments with errors, fewer than the {min_segments} that the normal approximation needs"
        return result(None, None, reason)
    if std_dev == 0 and wer_difference != 0:
        reason = f"all {n} segments differ by the same number of errors, so their variance cannot be estimated"
        return result(None, None, reason)
    margin = ndtri(0.975) * std_dev * np.sqrt(n) / num_words
    p_value = 1.0 if wer_difference == 0 else float(2 * ndtr(-abs(z)))
    return result((float(wer_difference - margin), float(wer_difference + margin)), p_value)


def place_errors(seeds: Sequence[Sequence[Alignment]]) -> np.ndarray:
    """Errors at each place of the references, averaged over seeds: (Σ (2 num_ref + 1),) over the utterances.

    `seeds` holds the alignments of the same utterances for each seed, references without alternatives. Odd places of
    an utterance are its words, even ones the gaps before, between and after them, where words were inserted.
    """
    places = np.zeros(sum(2 * alignment.num_ref + 1 for alignment in seeds[0]))
    for alignments in seeds:
        start = 0
        for alignment in alignments:
            place = start
            for op, _, _ in alignment.ops:
                if op == INSERTION:
                    places[place] += 1
                else:
                    places[place + 1] += op != CORRECT
                    place += 2
            start += 2 * alignment.num_ref + 1
    return places / len(seeds)


def segment_differences(
    placed_a: np.ndarray, placed_b: np.ndarray, num_ref: np.ndarray, min_good_words: int = MIN_GOOD_WORDS
) -> np.ndarray:
    """Errors of a minus those of b in each segment, (n,); segments as `matched_pairs` says.

    They are those of test_comp_sents in sc_stats (mtchprs.c). Raises AsrKdError where the systems were not aligned
    with the same words.
    """
    lengths = 2 * np.asarray(num_ref) + 1
    if not len(placed_a) == len(placed_b) == lengths.sum():
        raise AsrKdError("the systems were aligned with different words, so their segments cannot be paired")
    wrong = np.flatnonzero(placed_a + placed_b)
    if len(wrong) == 0:
        return np.zeros(0)
    utt = np.repeat(np.arange(len(lengths)), lengths)[wrong]
    place = wrong - (np.cumsum(lengths) - lengths)[utt]
    # Words are the odd places, so this counts those strictly between two places with errors; all of them are good.
    good_words = place[1:] // 2 - (place[:-1] + 1) // 2
    starts = np.flatnonzero(np.concatenate([[True], (utt[1:] != utt[:-1]) | (good_words >= min_good_words)]))
    return np.add.reduceat((placed_a - placed_b)[wrong], starts)


@dataclass(frozen=True)
class GainShare:
    """Share of the ensemble's gain that the student keeps, (s − b) / (e − b), and its test.

    `shortfall` is e − s; `gain` is e − b, with the 95 % interval by which it is judged. Where the share
    means nothing, `value`, `ci95` and `p_at_least` are None and `reason` says why. `p_at_least` is the one-sided p
    value of the null "share ≥ 0.86": small where the student keeps less, near 1 (1 − p below 0.05) where the claim of
    at least 0.86 is itself shown.
    """

    value: float | None
    ci95: tuple[float, float] | None
    p_at_least: float | None
    shortfall: float
    gain: float
    gain_ci95: tuple[float, float]
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
    gain, margin = float(e - b), float(variance.quantile(_GAIN) * np.sqrt(variance.of(_GAIN)))
    points = {"shortfall": float(e - s), "gain": gain, "gain_ci95": (gain - margin, gain + margin)}
    if not gain > margin:  # also where no covariance is known
        reason = "at 95 % the ensemble has no gain over the baseline"
        return GainShare(None, None, None, **points, reason=reason)
    share = (s - b) / (e - b)
    interval = _fieller(s - b, e - b, variance, variance.quantile(_contrast(share)))
    if interval is None:
        return GainShare(None, None, None, **points, reason="Fieller’s interval of the share is unbounded")
    contrast = _contrast(claimed)
    spread = np.sqrt(variance.of(contrast))
    excess = float(contrast @ means)
    p_at_least = float(stdtr(variance.freedom(contrast), excess / spread)) if spread > 0 else float(excess >= 0)
    return GainShare(float(share), interval, p_at_least, **points, reason=None)


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
        return float(stdtrit(self.freedom(contrast), 0.975))


def _fieller(x: float, y: float, variance: _ContrastVariance, t: float) -> tuple[float, float] | None:
    """The ρ with (x − ρy)² ≤ t² Var(x − ρy), for x = s − b and y = e − b; None where they are no bounded interval."""
    var_x, var_y = variance.of(_KEPT), variance.of(_GAIN)
    cov = float(_KEPT @ variance.matrix @ _GAIN)
    a, half_b, c = y**2 - t**2 * var_y, x * y - t**2 * cov, x**2 - t**2 * var_x
    if a <= 0:
        return None
    root = np.sqrt(max(half_b**2 - a * c, 0.0))
    return float((half_b - root) / a), float((half_b + root) / a)
