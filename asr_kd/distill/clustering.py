"""Which states a specialist takes: those that the generalist confuses (Hinton, Vinyals & Dean 2015, section 5.3).

Three ways, to compare: on-line K-means on the columns of the covariance of the generalist's predictions (the paper's,
which needs no labels), Ward's agglomeration of the states by how labelled frames are confused, and chance.
"""

from dataclasses import dataclass

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.model import FrameClassifier
from asr_kd.training.data import LabelledSet


@dataclass(frozen=True)
class PredictionStatistics:
    """Of a net's predictions p over the labelled frames of a set; N states.

    covariance: (N, N) of p over frames. confusions: (N, N), row y the mean of p where the label is y; a state without
    frames is confused with none. Both float64.
    """

    covariance: np.ndarray
    confusions: np.ndarray


def prediction_statistics(net: FrameClassifier, data: LabelledSet, dtype: torch.dtype) -> PredictionStatistics:
    """One pass over `data`; holds two matrices (N, N) on its device, whatever the number of frames."""
    num_pdfs = net.architecture.num_pdfs
    sums = {"dtype": torch.float64, "device": data.frames.device}
    products, by_label = (torch.zeros((num_pdfs, num_pdfs), **sums) for _ in range(2))
    counts = torch.zeros(num_pdfs, **sums)
    for rows, log_post in mean_log_posteriors([net], data.frames, dtype=dtype):
        labels = data.labels_of(rows)
        prob, labels = log_post[labels >= 0].exp().double(), labels[labels >= 0]
        products += prob.T @ prob
        by_label.index_add_(0, labels, prob)
        counts += torch.bincount(labels, minlength=num_pdfs)
    num_frames = counts.sum()
    mean = by_label.sum(dim=0) / num_frames
    confusions = by_label / counts.clamp(min=1)[:, None] + torch.diag((counts == 0).double())
    return PredictionStatistics(
        (products / num_frames - torch.outer(mean, mean)).cpu().numpy(), confusions.cpu().numpy()
    )


@dataclass(frozen=True)
class Clusters:
    """A partition of N states into M clusters.

    cluster: (N,) int64, the cluster of a state. distance: (M, N), of every state from every cluster's centre.
    """

    cluster: np.ndarray
    distance: np.ndarray


def cluster_states(name: str, statistics: PredictionStatistics, num_clusters: int, seed: int) -> Clusters:
    """Cluster by kmeans, confusions or random; raises AsrKdError for another name, or too few states."""
    num_pdfs = len(statistics.covariance)
    if not 2 <= num_clusters <= num_pdfs // 2:
        raise AsrKdError(f"num_specialists {num_clusters}: must lie between 2 and half of the {num_pdfs} states")
    if name == "kmeans":
        points = correlations(statistics.covariance)
        cluster = online_kmeans(points, num_clusters, seed)
        return Clusters(cluster, 1.0 - _unit(_means(_unit(points), cluster)) @ _unit(points).T)
    if name == "confusions":
        from scipy.spatial.distance import cdist

        # Hellinger's distance: rows are distributions, whose rare entries tell confusable states apart from others.
        points = np.sqrt(statistics.confusions)
        cluster = agglomerate(points, num_clusters)
        return Clusters(cluster, cdist(_means(points, cluster), points))
    if name == "random":
        order = np.random.default_rng(seed).permutation(num_pdfs)
        cluster = np.empty(num_pdfs, dtype=np.int64)
        cluster[order] = np.arange(num_pdfs) % num_clusters
        return Clusters(cluster, np.random.default_rng(seed + 1).random((num_clusters, num_pdfs)))
    raise AsrKdError(f"clustering {name!r}: choose kmeans, confusions or random")


def correlations(covariance: np.ndarray) -> np.ndarray:
    """The covariance with every state brought to unit variance, (N, N): its columns are what K-means clusters.

    Without that the variances on the diagonal, which grow with a state's share of the frames, are all that it sees.
    """
    variance = np.diag(covariance)
    deviation = np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny))
    varies = variance > 0  # a sum that should be 0 may round below
    return np.where(np.outer(varies, varies), covariance, 0) / np.outer(deviation, deviation)


def online_kmeans(points: np.ndarray, num_clusters: int, seed: int, max_passes: int = 100) -> np.ndarray:
    """On-line K-means (MacQueen 1967) by angles, of points (n, dim) other than 0 → (n,) int64.

    A point is taken out of its cluster and put into the one to whose mean its angle is smallest; the means move at
    once. Passes go on in the order that `seed` draws, whose first points begin the clusters, until no point moves. A
    cluster's last point stays, so that there are `num_clusters` in the end.

    By Euclid's distance, columns that are nearly orthogonal are nearest to the largest cluster, whose mean is nearest
    to 0: of 60 states it put 52 into one of 8 clusters, where angles make clusters of 3 to 12.
    """
    points = _unit(points)
    order = np.random.default_rng(seed).permutation(len(points))
    cluster = np.full(len(points), -1, dtype=np.int64)
    cluster[order[:num_clusters]] = np.arange(num_clusters)
    sums, counts = points[order[:num_clusters]], np.ones(num_clusters, dtype=np.int64)
    for _ in range(max_passes):
        moved = False
        for number in order:
            old = cluster[number]
            if old >= 0:
                if counts[old] == 1:
                    continue
                sums[old] -= points[number]
                counts[old] -= 1
            new = int((_unit(sums) @ points[number]).argmax())
            sums[new] += points[number]
            counts[new] += 1
            cluster[number] = new
            moved |= bool(new != old)
        if not moved:
            break
    return cluster


def _unit(points: np.ndarray) -> np.ndarray:
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def agglomerate(points: np.ndarray, num_clusters: int) -> np.ndarray:
    """Ward's agglomeration of points (n, dim), cut where `num_clusters` are left → (n,) int64."""
    from scipy.cluster.hierarchy import cut_tree, ward  # which start slowly, and chance has no need of

    return cut_tree(ward(points), n_clusters=num_clusters)[:, 0].astype(np.int64)


def _means(points: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    return np.stack([points[cluster == m].mean(axis=0) for m in range(cluster.max() + 1)])


def choose_classes(clusters: Clusters, size: int | None) -> list[np.ndarray]:
    """States of every specialist, each sorted: those of its cluster, or with `size` the `size` nearest to its centre.

    With `size` a specialist takes states of its own cluster first, so that sets may overlap and states be left over
    (in the paper each of 61 specialists has 300 classes). Raises AsrKdError where that leaves nothing for the dustbin.
    """
    num_pdfs = len(clusters.cluster)
    if size is not None and not 1 <= size < num_pdfs:
        raise AsrKdError(f"specialist_size {size}: must lie between 1 and {num_pdfs - 1}, one less than the states")
    chosen = []
    for m, distance in enumerate(clusters.distance):
        own = clusters.cluster == m
        order = np.lexsort((distance, ~own))
        chosen.append(np.sort(order[: own.sum() if size is None else size]))
    return chosen
