"""Diagonal GMMs in numpy: likelihood, one step of EM, and growth by splitting.

Splitting is done here because the wheels' own is seeded from the operating system: two flat starts would differ.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MIN_VARIANCE = 1e-3
MIN_OCCUPANCY = 10.0
MIN_WEIGHT = 1e-5


@dataclass(frozen=True)
class Gmm:
    """A diagonal GMM in the natural parameters that Kaldi stores.

    weights: (num_gauss,); means_invvars, inv_vars: (num_gauss, feat_dim); all float32.
    """

    weights: np.ndarray
    means_invvars: np.ndarray
    inv_vars: np.ndarray

    @classmethod
    def from_moments(cls, weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> "Gmm":
        """From weights (num_gauss,), means and variances (num_gauss, feat_dim)."""
        return cls(
            np.asarray(weights, np.float32),
            np.asarray(means / variances, np.float32),
            np.asarray(1.0 / variances, np.float32),
        )

    @cached_property
    def gconsts(self) -> np.ndarray:
        """Log weight plus normaliser of each Gaussian, (num_gauss,) float64."""
        inv_vars, means_invvars = self.inv_vars.astype(np.float64), self.means_invvars.astype(np.float64)
        quadratic = (means_invvars**2 / inv_vars).sum(1)
        log_det = np.log(inv_vars).sum(1)
        return np.log(self.weights.astype(np.float64)) - 0.5 * (
            inv_vars.shape[1] * np.log(2 * np.pi) - log_det + quadratic
        )

    def component_logliks(self, feats: np.ndarray) -> np.ndarray:
        """Weighted log-likelihood of each Gaussian, (num_frames, num_gauss), for feats (num_frames, feat_dim)."""
        return self.gconsts + feats @ self.means_invvars.T - 0.5 * (feats**2) @ self.inv_vars.T

    def reestimate(self, feats: np.ndarray) -> "Gmm":
        """One step of EM on the frames of this pdf, feats (num_frames, feat_dim) float64.

        Floors as in Kaldi's MleDiagGmmUpdate: a variance is at least 1e-3; a Gaussian with fewer than 10 frames or
        a weight below 1e-5 is removed, unless it is the last. Without frames enough for one, the GMM stays as it is.
        """
        if len(feats) < MIN_OCCUPANCY:
            return self
        logliks = self.component_logliks(feats)
        posteriors = np.exp(logliks - logliks.max(1, keepdims=True))
        posteriors /= posteriors.sum(1, keepdims=True)
        occupancy = posteriors.sum(0)
        keep = (occupancy >= MIN_OCCUPANCY) & (occupancy >= MIN_WEIGHT * len(feats))
        if not keep.any():
            keep[occupancy.argmax()] = True
        posteriors, occupancy = posteriors[:, keep], occupancy[keep]
        means = posteriors.T @ feats / occupancy[:, None]
        variances = posteriors.T @ feats**2 / occupancy[:, None] - means**2
        return Gmm.from_moments(occupancy / occupancy.sum(), means, np.maximum(variances, MIN_VARIANCE))

    def split(self, num_gauss: int, generator: np.random.Generator) -> "Gmm":
        """Split the heaviest Gaussian until there are `num_gauss`; means move apart by about 0.01 deviations.

        The scheme of Kaldi's DiagGmm::Split, with the perturbation drawn from `generator`.
        """
        weights = list(self.weights.astype(np.float64))
        variances = list(1.0 / self.inv_vars.astype(np.float64))
        means = list(self.means_invvars.astype(np.float64) / self.inv_vars)
        while len(weights) < num_gauss:
            heaviest = int(np.argmax(weights))
            weights[heaviest] /= 2
            shift = 0.01 * np.sqrt(variances[heaviest]) * generator.standard_normal(len(variances[heaviest]))
            weights.append(weights[heaviest])
            variances.append(variances[heaviest])
            means.append(means[heaviest] + shift)
            means[heaviest] = means[heaviest] - shift
        return Gmm.from_moments(np.array(weights), np.array(means), np.array(variances))


class GmmStack:
    """Many GMMs in one, so that all their likelihoods take two products of matrices."""

    def __init__(self, gmms: Sequence[Gmm]) -> None:
        self._gconsts = np.concatenate([gmm.gconsts for gmm in gmms])
        self._means_invvars = np.concatenate([gmm.means_invvars for gmm in gmms]).astype(np.float64).T
        self._inv_vars = np.concatenate([gmm.inv_vars for gmm in gmms]).astype(np.float64).T
        sizes = [len(gmm.weights) for gmm in gmms]
        self._first, self._sizes = np.cumsum([0, *sizes[:-1]]), sizes

    def logliks(self, feats: np.ndarray) -> np.ndarray:
        """Log-likelihood of each GMM, (num_frames, num_gmms) float32, for feats (num_frames, feat_dim)."""
        wide = feats.astype(np.float64)
        parts = self._gconsts + wide @ self._means_invvars - 0.5 * wide**2 @ self._inv_vars
        if not len(parts):
            return np.zeros((0, len(self._sizes)), np.float32)
        highest = np.maximum.reduceat(parts, self._first, axis=1)
        parts = np.exp(parts - np.repeat(highest, self._sizes, axis=1))
        return (highest + np.log(np.add.reduceat(parts, self._first, axis=1))).astype(np.float32)


def split_targets(occupancy: np.ndarray, total_gauss: int, power: float = 0.25, min_count: float = 20.0) -> np.ndarray:
    """How many Gaussians each pdf should have, (num_pdfs,) int64, at least one each, about `total_gauss` in all.

    occupancy: (num_pdfs,) frames. Shares follow occupancy**power, and a Gaussian has at least `min_count` frames
    (Kaldi's GetSplitTargets).
    """
    targets = np.ones(len(occupancy), dtype=np.int64)
    queue = [(-(max(count, 1e-9) ** power), pdf) for pdf, count in enumerate(occupancy)]
    heapq.heapify(queue)
    while queue and targets.sum() < total_gauss:
        _, pdf = heapq.heappop(queue)
        if (targets[pdf] + 1) * min_count > occupancy[pdf]:
            continue
        targets[pdf] += 1
        heapq.heappush(queue, (-(occupancy[pdf] ** power) / targets[pdf], pdf))
    return targets
