"""Questions about phones, from the data alone: the best division of sets of frames in two, and its recursion.

Kaldi's cluster-phones clusters phones top down and asks about each cluster on the way (`AutomaticallyObtainQuestions`);
so does clustered_questions. The division itself is found without a random start: exhaustively among few sets, else by
a cut along the first principal axis and Chou's iterations (1991, "Optimal partitioning for classification and
regression trees"), in which each set moves to the side whose Gaussian explains it better.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from asr_kd.hmm.tree_stats import Moments, TreeStats

# So many sets have 511 divisions, which are all tried.
EXHAUSTIVE_SETS = 10
MAX_ITERATIONS = 20


@cache
def _all_divisions(num_sets: int) -> np.ndarray:
    """Every division of num_sets in two sides that are not empty, (2^(num_sets−1) − 1, num_sets) bool."""
    codes = np.arange(1, 2 ** (num_sets - 1))
    return (codes[:, None] >> np.arange(num_sets) & 1).astype(bool)


def division_gains(moments: Moments, member: np.ndarray, min_count: float) -> np.ndarray:
    """Gain in log-likelihood of dividing all sets in members and others, for each row of member (num_divisions, n).

    −inf where a side has fewer than `min_count` frames, or none.
    """
    yes, total = moments.unions(member), moments.total()
    no = Moments(*(t - part for t, part in zip(vars(total).values(), vars(yes).values(), strict=True)))
    gains = yes.loglik() + no.loglik() - total.loglik()
    allowed = np.minimum(yes.count, no.count) >= max(min_count, 1e-3)
    return np.where(allowed, gains, -np.inf)


def best_division(moments: Moments, min_count: float = 0.0) -> tuple[float, np.ndarray] | None:
    """Gain and members (n,) bool of the best division of n sets of frames in two; the members are the lighter side.

    Exact for up to EXHAUSTIVE_SETS sets; above, a local optimum at least as good as the best cut along the principal
    axis. None where no division leaves min_count frames on both sides.
    """
    n = len(moments)
    if n < 2:
        return None
    divisions = _all_divisions(n) if n <= EXHAUSTIVE_SETS else _cuts(moments)
    gains = division_gains(moments, divisions, min_count)
    best = int(gains.argmax())
    if not np.isfinite(gains[best]):
        return None
    gain, member = float(gains[best]), divisions[best]
    if n > EXHAUSTIVE_SETS:
        gain, member = _refine(moments, member, gain, min_count)
    lighter = 2 * moments.count[member].sum() <= moments.count.sum()
    return gain, member if lighter else ~member


def _cuts(moments: Moments) -> np.ndarray:
    """Divisions of n sets in those before and after each place along their first principal axis, (n − 1, n)."""
    mean = moments.gaussians()[0]
    centre, spread = (part[0] for part in moments.total().gaussians())
    scaled = (mean - centre) / np.sqrt(spread)
    _, _, axes = np.linalg.svd(scaled * np.sqrt(moments.count)[:, None], full_matrices=False)
    rank = np.argsort(np.argsort(scaled @ axes[0], kind="stable"), kind="stable")
    return rank < np.arange(1, len(moments))[:, None]


def _refine(moments: Moments, member: np.ndarray, gain: float, min_count: float) -> tuple[float, np.ndarray]:
    """Move sets to the side that explains them better, as long as the division gains by it."""
    for _ in range(MAX_ITERATIONS):
        mean, variance = moments.unions(np.stack([member, ~member])).gaussians()
        precision = 1.0 / variance
        constant = (np.log(variance) + mean**2 * precision).sum(1)
        badness = (
            moments.count[:, None] * constant + moments.sumsq @ precision.T - 2.0 * moments.sum @ (mean * precision).T
        )
        moved = badness[:, 0] < badness[:, 1]
        moved_gain = float(division_gains(moments, moved[None], min_count)[0])
        if moved_gain <= gain + 1e-9 * abs(gain):
            break
        gain, member = moved_gain, moved
    return gain, member


def clustered_questions(stats: TreeStats, roots: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Sets of phones to ask about: every cluster of the phones clustered top down by their middle states.

    roots: sets of phone ids that are clustered as one (all positions of a phone). Sorted, without repetition.
    Phones without frames are in no question.
    """
    root_of_phone = np.full(max(max(phones) for phones in roots) + 1, -1)
    for index, phones in enumerate(roots):
        root_of_phone[list(phones)] = index
    root, state = root_of_phone[stats.events[:, 1]], stats.events[:, 3]
    num_states = np.zeros(len(roots), dtype=np.int64)
    np.maximum.at(num_states, root, state + 1)
    middle = np.flatnonzero(state == num_states[root] // 2)
    moments = stats.moments.take(middle).grouped(root[middle], len(roots))
    questions, todo = set(), [np.flatnonzero(moments.count > 0)]
    while todo:
        cluster = todo.pop()
        found = best_division(moments.take(cluster))
        if found is None:
            continue
        for side in (cluster[found[1]], cluster[~found[1]]):
            questions.add(tuple(sorted(phone for index in side for phone in roots[index])))
            todo.append(side)
    return sorted(questions)
