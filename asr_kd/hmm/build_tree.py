"""Growing a tree: greedy splits by gain in likelihood, then leaves that hardly differ joined (Kaldi's build-tree).

Young, Odell & Woodland 1994, "Tree-based state tying". Every state of every root begins as one leaf. The leaf whose
best question gains most is split next, so that a limit on leaves is spent where the data differ most.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from asr_kd.choices import Questions, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.hmm.questions import best_division, division_gains
from asr_kd.hmm.tree import CENTRAL, ContextTree, Leaf, Node, Split, phone_table
from asr_kd.hmm.tree_stats import Moments, TreeStats

LEFT, RIGHT = 0, 2


@dataclass(frozen=True)
class TreeOptions:
    """num_leaves: at most so many, or one for each state of each root where those are more; questions: `clustered`
    (sets of phones) or `all` (every division of a node's neighbours); min_count: frames that a split leaves on either
    side; min_gain: log-likelihood that it gains over its frames (build-tree's --thresh, and its default); merge: join
    leaves of one root at the end that lose less than the last split gained (build-tree --cluster-thresh=-1).
    """

    num_leaves: int = 2000
    questions: Questions = "clustered"
    min_count: float = 200.0
    min_gain: float = 300.0
    merge: bool = True

    def __post_init__(self) -> None:
        require_choice("tree_questions", self.questions, Questions)
        if self.num_leaves < 1 or self.min_count < 0 or self.min_gain < 0:
            raise AsrKdError(f"num_leaves must be positive, min_count and min_gain not negative, in {self}")


@dataclass(frozen=True)
class Root:
    """Phones (ids) whose states begin as one leaf for each of `num_classes` pdf-classes; split: whether to grow it."""

    phones: tuple[int, ...]
    num_classes: int
    split: bool = True


@dataclass(frozen=True)
class GrownTree:
    """tree: the result; moments: of each pdf, zeros where it has no frame; gain: log-likelihood gained over the roots,
    in all; num_split: leaves before joining.
    """

    tree: ContextTree
    moments: Moments
    gain: float
    num_split: int


@dataclass
class _Grown:
    """A node that may still be split: rows of the statistics, and its split once it has one."""

    rows: np.ndarray
    key: int = 0
    values: tuple[int, ...] = ()
    yes: "_Grown | None" = None
    no: "_Grown | None" = None

    def leaves(self) -> "list[_Grown]":
        return [self] if self.yes is None else [*self.yes.leaves(), *self.no.leaves()]


@dataclass
class _Grower:
    stats: TreeStats
    asked: np.ndarray | None
    options: TreeOptions
    _serial: int = field(default=0, init=False)

    def best_split(self, node: _Grown) -> tuple[float, int, tuple[int, ...], np.ndarray] | None:
        """Gain, key, values that go to yes, and which of the node's rows they are; None where no split is allowed."""
        best = None
        for key in (LEFT, RIGHT, CENTRAL):
            values, group = np.unique(self.stats.events[node.rows, key], return_inverse=True)
            if len(values) < 2:
                continue
            moments = self.stats.moments.take(node.rows).grouped(group, len(values))
            found = self._divide(moments, values, key)
            if found is not None and (best is None or found[0] > best[0]):
                best = (found[0], key, found[1], np.isin(values, found[1])[group])
        return best

    def _divide(self, moments: Moments, values: np.ndarray, key: int) -> tuple[float, tuple[int, ...]] | None:
        # The phones of one root are few: their divisions are tried without questions.
        if self.asked is None or key == CENTRAL:
            found = best_division(moments, self.options.min_count)
            return None if found is None else (found[0], tuple(values[found[1]].tolist()))
        gains = division_gains(moments, self.asked[:, values], self.options.min_count)
        best = int(gains.argmax())
        return (float(gains[best]), tuple(np.flatnonzero(self.asked[best]).tolist())) if gains[best] > 0 else None

    def push(self, heap: list, node: _Grown) -> None:
        found = self.best_split(node)
        if found is not None and found[0] > self.options.min_gain:
            self._serial += 1
            heapq.heappush(heap, (-found[0], self._serial, node, found))

    def grow(self, roots: list[_Grown], num_fixed: int) -> list[float]:
        """Split until the limits are met; returns the gains, in order. num_fixed: leaves that are not split."""
        heap: list = []
        for node in roots:
            self.push(heap, node)
        gains: list[float] = []
        while heap and num_fixed + len(roots) + len(gains) < self.options.num_leaves:
            _, _, node, (gain, node.key, node.values, yes) = heapq.heappop(heap)
            gains.append(gain)
            node.yes, node.no = _Grown(node.rows[yes]), _Grown(node.rows[~yes])
            self.push(heap, node.yes)
            self.push(heap, node.no)
        return gains


def build_tree(
    stats: TreeStats,
    roots: Sequence[Root],
    questions: Sequence[Sequence[int]],
    options: TreeOptions,
    silence: int = 1,
) -> GrownTree:
    """Grow a tree with a leaf for every phone of `roots` in every context and pdf-class, seen or not.

    questions: sets of phone ids, asked about the left and right neighbours unless options.questions is `all`; silence:
    the phone that stands for what is beyond the ends of an utterance. The same arguments give the same tree.
    Raises AsrKdError where a phone is in two roots, or in the statistics but in none.
    """
    root_of_phone = _index_roots(stats, roots)
    events = stats.events.copy()
    for key in (LEFT, RIGHT):
        events[events[:, key] == 0, key] = silence
    size = int(max(events[:, :3].max(initial=0), len(root_of_phone) - 1)) + 1
    asked = None
    if options.questions == "clustered":
        asked = np.zeros((max(1, len(questions)), size), dtype=bool)
        for row, phones in enumerate(questions):
            asked[row, list(phones)] = True
    nodes = [
        [
            _Grown(np.flatnonzero((root_of_phone[events[:, 1]] == index) & (events[:, 3] == state)))
            for state in range(root.num_classes)
        ]
        for index, root in enumerate(roots)
    ]
    growing = [node for root, states in zip(roots, nodes, strict=True) if root.split for node in states]
    num_fixed = sum(root.num_classes for root in roots if not root.split)
    gains = _Grower(TreeStats(events, stats.moments), asked, options).grow(growing, num_fixed)
    pdf_rows: list[np.ndarray] = []
    lost = 0.0
    states_of_phone: dict[int, list[Node]] = {phone: [] for root in roots for phone in root.phones}
    for root, states in zip(roots, nodes, strict=True):
        for node in states:
            loss, clusters = _merge(stats.moments, node.leaves(), gains[-1] if gains and options.merge else 0.0)
            lost += loss
            pdf_of_leaf = {id(leaf): len(pdf_rows) + c for c, cluster in enumerate(clusters) for leaf in cluster}
            pdf_rows += [np.concatenate([leaf.rows for leaf in cluster]) for cluster in clusters]
            for phone in root.phones:
                states_of_phone[phone].append(_finished(node, phone, pdf_of_leaf, silence))
    pdf_of_row = np.zeros(len(events), dtype=np.int64)
    for pdf, rows in enumerate(pdf_rows):
        pdf_of_row[rows] = pdf
    return GrownTree(
        ContextTree(phone_table(states_of_phone)),
        stats.moments.grouped(pdf_of_row, len(pdf_rows)),
        sum(gains) - lost,
        num_fixed + len(growing) + len(gains),
    )


def _index_roots(stats: TreeStats, roots: Sequence[Root]) -> np.ndarray:
    """Index of the root of each phone id, −1 for none."""
    phones = [phone for root in roots for phone in root.phones]
    if len(set(phones)) < len(phones):
        raise AsrKdError("a phone is in two roots of the tree")
    root_of_phone = np.full(max(max(phones), int(stats.events[:, 1].max(initial=0))) + 1, -1)
    classes = np.zeros(len(root_of_phone), dtype=np.int64)
    for index, root in enumerate(roots):
        root_of_phone[list(root.phones)], classes[list(root.phones)] = index, root.num_classes
    unknown = stats.events[:, 3] >= classes[stats.events[:, 1]]
    if unknown.any():
        phone, state = stats.events[int(unknown.argmax()), [1, 3]]
        raise AsrKdError(f"the statistics have phone {phone} with pdf-class {state}, which no root of the tree has")
    return root_of_phone


def _merge(moments: Moments, leaves: list[_Grown], threshold: float) -> tuple[float, list[list[_Grown]]]:
    """Join leaves as long as the cheapest join loses less than `threshold`; the loss, and the clusters in order."""
    clusters: list[list[_Grown]] = [[leaf] for leaf in leaves]
    if len(leaves) < 2 or threshold <= 0:
        return 0.0, clusters
    parts = [moments.take(leaf.rows).total() for leaf in leaves]
    own = Moments(*(np.concatenate(c) for c in zip(*(vars(part).values() for part in parts), strict=True)))
    loglik = own.loglik()

    def losses(i: int) -> np.ndarray:
        joined = Moments(*(part + part[i] for part in vars(own).values()))
        return loglik + loglik[i] - joined.loglik()

    loss = np.stack([losses(i) for i in range(len(leaves))])
    np.fill_diagonal(loss, np.inf)
    lost = 0.0
    while loss.min() < threshold:
        i, j = sorted(int(index) for index in np.unravel_index(loss.argmin(), loss.shape))
        lost += float(loss[i, j])
        clusters[i], clusters[j] = clusters[i] + clusters[j], []
        for part in vars(own).values():
            part[i] += part[j]
        loglik[i] = own.take(np.array([i])).loglik()[0]
        gone = np.array([not cluster for cluster in clusters])
        loss[i], loss[:, i] = np.where(gone, np.inf, losses(i)), np.where(gone, np.inf, losses(i))
        loss[j], loss[:, j], loss[i, i] = np.inf, np.inf, np.inf
    return lost, [cluster for cluster in clusters if cluster]


def _finished(node: _Grown, phone: int, pdf_of_leaf: dict[int, int], silence: int) -> Node:
    """The part of a grown tree that one central phone can reach, as a tree over left and right phones."""
    if node.yes is None:
        return Leaf(pdf_of_leaf[id(node)])
    if node.key == CENTRAL:
        return _finished(node.yes if phone in node.values else node.no, phone, pdf_of_leaf, silence)
    values = (0, *node.values) if silence in node.values else node.values
    yes, no = (_finished(child, phone, pdf_of_leaf, silence) for child in (node.yes, node.no))
    return Split(node.key, values, yes, no)
