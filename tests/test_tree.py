"""Trees of tied states: statistics, questions, growth, Kaldi's binary form."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaldi_wheels import needs_kaldi, wheels_present

from asr_kd.choices import Questions, words
from asr_kd.errors import AsrKdError
from asr_kd.hmm.build_tree import GrownTree, Root, TreeOptions, build_tree
from asr_kd.hmm.questions import best_division, clustered_questions, division_gains
from asr_kd.hmm.tree import BINARY_MARK, ContextTree, Leaf, Split, Table
from asr_kd.hmm.tree_stats import VARIANCE_FLOOR, Moments, TreeStats
from asr_kd.hmm.wheels import kaldi

KALDI_TREE = Path(__file__).parents[2] / "shared" / "reference" / "kaldi_system" / "tree"
NUM_PHONES, NUM_CLASSES, DIM = 7, 2, 3
ALL_PHONES = range(1, NUM_PHONES + 1)


def random_frames(seed: int, num_frames: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Events and frames whose means depend on the phone, its state and both neighbours; phone 7 is never seen."""
    rng = np.random.default_rng(seed)
    events = np.column_stack([rng.integers(0, NUM_PHONES, (num_frames, 3)), rng.integers(0, NUM_CLASSES, num_frames)])
    events[:, 1] = np.maximum(events[:, 1], 1)
    effects = rng.normal(size=(4, NUM_PHONES + 1, DIM)) * np.array([1.0, 3.0, 0.7, 2.0])[:, None, None]
    frames = sum(effects[key][events[:, key]] for key in range(4)) + rng.normal(size=(num_frames, DIM))
    return events, frames.astype(np.float32)


def random_roots(seed: int) -> list[Root]:
    """Phone 1 (silence) alone and not split; the others divided among roots at random."""
    owner = np.random.default_rng(seed).integers(0, 4, NUM_PHONES + 1)
    groups = [tuple(p for p in range(2, NUM_PHONES + 1) if owner[p] == g) for g in range(4)]
    return [Root((1,), NUM_CLASSES, split=False), *(Root(group, NUM_CLASSES) for group in groups if group)]


def grow(seed: int, **options: object) -> tuple[TreeStats, list[Root], GrownTree]:
    stats, roots = TreeStats.from_frames(*random_frames(seed)), random_roots(seed)
    chosen = TreeOptions(**{"num_leaves": 40, "min_count": 20, "min_gain": 1.0, **options})
    return stats, roots, build_tree(stats, roots, clustered_questions(stats, [r.phones for r in roots]), chosen)


def all_events() -> tuple[np.ndarray, np.ndarray]:
    events = np.array(
        list(itertools.product(range(NUM_PHONES + 1), ALL_PHONES, range(NUM_PHONES + 1), range(NUM_CLASSES)))
    )
    return events[:, :3], events[:, 3]


def brute_loglik(frames: np.ndarray) -> float:
    """Log-likelihood of frames under their own Gaussian, frame by frame."""
    if not len(frames):
        return 0.0
    mean, variance = frames.mean(0), np.maximum(frames.var(0), VARIANCE_FLOOR)
    return float(-0.5 * (np.log(2 * np.pi * variance) + (frames - mean) ** 2 / variance).sum())


# --- statistics


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_moments_are_those_of_the_frames(seed):
    events, frames = random_frames(seed, 120)
    stats = TreeStats.from_frames(events, frames)
    assert len(stats.events) == len({tuple(event) for event in events.tolist()})
    for event, count, total, squares in zip(stats.events, *vars(stats.moments).values(), strict=True):
        mine = frames[(events == event).all(1)].astype(np.float64)
        assert count == len(mine)
        np.testing.assert_allclose(total, mine.sum(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(squares, (mine**2).sum(0), rtol=1e-9)


@needs_kaldi
def test_likelihood_is_kaldis():
    stats = TreeStats.from_frames(*random_frames(3, 400))
    one_frame = stats.moments.count == 1
    assert one_frame.any(), "floored variances are compared too"
    for count, total, squares, ours in zip(*vars(stats.moments).values(), stats.moments.loglik(), strict=True):
        theirs = kaldi().khg.GaussClusterable(total, squares, VARIANCE_FLOOR, count)
        assert ours == pytest.approx(theirs.objf(), rel=1e-6)


# --- divisions and questions


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.0, 12.0]))
@settings(max_examples=25, deadline=None)
def test_few_sets_are_divided_in_the_best_way(seed, num_sets, min_count):
    rng = np.random.default_rng(seed)
    sets = [rng.normal(rng.normal(0, 2, 2), 1, (rng.integers(1, 12), 2)) for _ in range(num_sets)]
    moments = Moments(*(np.array([f(s) for s in sets]) for f in (len, lambda s: s.sum(0), lambda s: (s**2).sum(0))))
    whole, best = brute_loglik(np.concatenate(sets)), -np.inf
    for code in range(1, 2 ** (num_sets - 1)):
        sides = [[s for i, s in enumerate(sets) if (code >> i & 1) == side] for side in (0, 1)]
        sides = [np.concatenate(side) for side in sides]
        if min(map(len, sides)) >= min_count:
            best = max(best, sum(map(brute_loglik, sides)) - whole)
    found = best_division(moments, min_count)
    if found is None:
        assert best == -np.inf
        return
    assert found[0] == pytest.approx(best, rel=1e-6, abs=1e-6)
    members = moments.take(np.flatnonzero(found[1])).count.sum()
    assert max(min_count, 1) <= members <= moments.count.sum() / 2


def test_many_sets_are_divided_along_their_difference():
    rng = np.random.default_rng(0)
    side = rng.permutation(np.arange(30) % 2 == 0)
    sets = [rng.normal(4.0 * s, 1.0, (20, 5)) for s in side]
    moments = Moments(np.full(30, 20.0), np.array([s.sum(0) for s in sets]), np.array([(s**2).sum(0) for s in sets]))
    gain, member = best_division(moments)
    assert (member == side).all() or (member == ~side).all()
    assert gain == pytest.approx(float(division_gains(moments, side[None], 0.0)[0]))


def test_questions_are_clusters_of_phones_that_sound_alike():
    """Phones in three pairs of like sound; the two positions of a phone are asked about together."""
    rng = np.random.default_rng(1)
    roots = [(1,), (2, 3), (4,), (5, 8), (6,), (7,)]
    centre = {1: 0.0, 2: 0.1, 3: 0.1, 4: 20.0, 5: 20.1, 8: 20.1, 6: 60.0, 7: 60.1}
    phones = np.repeat(list(centre), 30)
    frames = rng.normal([[centre[p]] for p in phones.tolist()], 0.5)
    events = np.column_stack([np.zeros_like(phones), phones, np.zeros_like(phones), np.zeros_like(phones)])
    # The outer state tells nothing: questions come of the middle one.
    events = np.concatenate([events + np.array([0, 0, 0, state]) for state in range(3)])
    frames = np.concatenate([rng.normal(0, 50, frames.shape), frames, rng.normal(0, 50, frames.shape)])
    stats = TreeStats.from_frames(events, frames)
    questions = clustered_questions(stats, roots)
    for expected in ((1, 2, 3), (4, 5, 8), (6, 7), (1,), (2, 3), (4,), (5, 8), (6,), (7,)):
        assert expected in questions
    assert len(questions) == 2 * len(roots) - 2, "every cluster but the whole, once"
    order = rng.permutation(len(events))
    assert clustered_questions(TreeStats.from_frames(events[order], frames[order]), roots) == questions


# --- growth


@given(st.integers(0, 10_000), st.sampled_from(words(Questions)), st.booleans())
@settings(max_examples=15, deadline=None)
def test_grown_trees(seed, questions, merge):
    """Every context reaches a leaf, counts and gains are what the frames say, limits are kept."""
    _, roots, grown = grow(seed, questions=questions, merge=merge)
    events, frames = random_frames(seed)
    windows, classes = all_events()
    pdfs = grown.tree.pdfs(windows, classes)
    assert sorted(set(pdfs.tolist())) == list(range(grown.tree.num_pdfs))
    root_of_phone = {phone: index for index, root in enumerate(roots) for phone in root.phones}
    owners = {
        (pdf, root_of_phone[w[1]], c)
        for pdf, w, c in zip(pdfs.tolist(), windows.tolist(), classes.tolist(), strict=True)
    }
    assert len(owners) == grown.tree.num_pdfs, "a pdf belongs to one state of one root"
    assert len(set(pdfs[windows[:, 1] == 1].tolist())) == NUM_CLASSES, "silence is not split"
    np.testing.assert_array_equal(pdfs[windows[:, 0] == 0], pdfs[windows[:, 0] == 1])
    pdf_of_frame = grown.tree.pdfs(events[:, :3], events[:, 3])
    np.testing.assert_array_equal(grown.moments.count, np.bincount(pdf_of_frame, minlength=grown.tree.num_pdfs))
    state_of_frame = np.array([root_of_phone[p] for p in events[:, 1].tolist()]) * NUM_CLASSES + events[:, 3]
    before = sum(brute_loglik(frames[state_of_frame == s]) for s in set(state_of_frame.tolist()))
    after = sum(brute_loglik(frames[pdf_of_frame == p]) for p in set(pdf_of_frame.tolist()))
    assert grown.gain == pytest.approx(after - before, rel=1e-5, abs=0.01)
    assert grown.tree.num_pdfs <= grown.num_split <= 40
    assert merge or grown.tree.num_pdfs == grown.num_split
    split_states = {s for s in state_of_frame.tolist() if len(set(pdf_of_frame[state_of_frame == s].tolist())) > 1}
    assert split_states, "something was there to learn"
    assert all(grown.moments.count[p] >= 20 for s in split_states for p in pdf_of_frame[state_of_frame == s].tolist())


@pytest.mark.parametrize("questions", words(Questions))
def test_first_split_is_the_best_of_all_and_gains_fall_with_their_limit(questions):
    stats, roots, one = grow(5, questions=questions, num_leaves=2 * len(random_roots(5)) + 1, merge=False)
    asked = clustered_questions(stats, [r.phones for r in roots])
    best = -np.inf
    for root, state in itertools.product(roots[1:], range(NUM_CLASSES)):
        rows = np.flatnonzero(np.isin(stats.events[:, 1], root.phones) & (stats.events[:, 3] == state))
        for key, values in ((0, ALL_PHONES), (2, ALL_PHONES), (1, root.phones)):
            phone = np.where(stats.events[rows, key] == 0, 1, stats.events[rows, key])
            sets = asked if questions == "clustered" and key != 1 else powerset(values)
            member = np.array([np.isin(phone, chosen) for chosen in sets])
            if len(member):
                best = max(best, division_gains(stats.moments.take(rows), member, 20).max())
    assert one.gain == pytest.approx(best, rel=1e-9)
    grown = [grow(5, questions=questions, min_gain=gain, merge=False)[2].tree.num_pdfs for gain in (1.0, 20.0, 1e9)]
    assert grown[0] > grown[1] > grown[2] == NUM_CLASSES * len(roots)


def powerset(values: object) -> list[tuple[int, ...]]:
    values = list(values)
    return [c for n in range(1, len(values)) for c in itertools.combinations(values, n)]


def test_joining_costs_less_than_the_last_split_gained():
    """Few contexts, cut so small that some leaves of different branches are alike."""
    options = {"num_leaves": 300, "min_count": 5, "min_gain": 2.0}
    _, _, apart = grow(8, merge=False, **options)
    _, _, joined = grow(8, merge=True, **options)
    assert joined.num_split == apart.num_split
    assert joined.tree.num_pdfs < apart.tree.num_pdfs
    assert 0 < apart.gain - joined.gain < 0.05 * apart.gain


def test_the_same_statistics_in_another_order_give_the_same_tree():
    events, frames = random_frames(4)
    order = np.random.default_rng(0).permutation(len(events))
    trees = []
    for rows in (np.arange(len(events)), order):
        stats = TreeStats.from_frames(events[rows], frames[rows])
        asked = clustered_questions(stats, [(p,) for p in ALL_PHONES])
        roots = [Root((p,), NUM_CLASSES, p > 1) for p in ALL_PHONES]
        trees.append(build_tree(stats, roots, asked, TreeOptions(num_leaves=40, min_count=20, min_gain=1.0)).tree)
    assert trees[0] == trees[1]


def test_bad_options_and_roots_are_refused():
    stats = TreeStats.from_frames(*random_frames(0))
    with pytest.raises(AsrKdError, match="tree_questions 'some': choose clustered or all"):
        TreeOptions(questions="some")
    with pytest.raises(AsrKdError, match="min_count and min_gain not negative"):
        TreeOptions(min_count=-1)
    with pytest.raises(AsrKdError, match="a phone is in two roots"):
        build_tree(stats, [Root((1, 2), 2), Root((2, 3), 2)], [(1,)], TreeOptions())
    with pytest.raises(AsrKdError, match="phone 6 with pdf-class 0, which no root"):
        build_tree(stats, [Root((p,), 2) for p in range(1, 6)], [(1,)], TreeOptions())


# --- Kaldi's binary form


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_trees_survive_their_bytes_and_kaldi_reads_them_alike(seed):
    _, _, grown = grow(seed, questions="all")
    data = grown.tree.to_bytes()
    assert ContextTree.from_bytes(data, "tree") == ContextTree.from_bytes(BINARY_MARK + data, "tree") == grown.tree
    if not wheels_present():
        return
    khg = kaldi().khg
    theirs = khg.ContextDependency.__new__(khg.ContextDependency)
    theirs.__setstate__((np.frombuffer(data, np.int8).tolist(),))
    assert np.array(theirs.__getstate__()[0], np.int8).tobytes() == data
    windows, classes = all_events()
    rows = np.random.default_rng(seed).choice(len(windows), 60)
    answers = [theirs.compute(windows[row].tolist(), int(classes[row])) for row in rows]
    assert answers == [(True, pdf) for pdf in grown.tree.pdfs(windows[rows], classes[rows]).tolist()]


@pytest.mark.skipif(not KALDI_TREE.exists(), reason="../shared/reference is not there")
def test_a_tree_of_kaldi_is_written_as_it_was_read():
    data = KALDI_TREE.read_bytes()
    tree = ContextTree.from_bytes(data, str(KALDI_TREE))
    assert BINARY_MARK + tree.to_bytes() == data
    assert (tree.num_pdfs, tree.context_width, tree.central) == (60, 1, 0)


def test_damaged_trees_are_refused_with_their_name():
    tree = ContextTree(Table(1, (None, Split(0, (0, 2), Leaf(0), Leaf(1)))))
    data = tree.to_bytes()
    assert ContextTree.from_bytes(data, "t") == tree
    for end in range(len(data)):
        with pytest.raises(AsrKdError, match=r"^exp/tree: "):
            ContextTree.from_bytes(data[:end], "exp/tree")
    for old, new, message in [
        (b"SE ", b"XX ", "has 'XX' where a tree has CE, TE or SE"),
        (b"ToPdf", b"ToPDF", "has 'ToPDF' where"),
        (b"EndContextDependency ", b"EndContextDependency x", "nothing else"),
        (b"CE \x04\x00\x00\x00\x00", b"NULL ", "answer missing"),
    ]:
        assert old in data
        with pytest.raises(AsrKdError, match=message):
            ContextTree.from_bytes(data.replace(old, new), "exp/tree")
    with pytest.raises(AsrKdError, match="deeper"):
        ContextTree.from_bytes(data[: data.index(b"TE ")] + b"SE \x04\0\0\0\0\x04\0\0\0\0{ " * 600, "exp/tree")
    with pytest.raises(AsrKdError, match="no leaf for phones"):
        tree.pdfs(np.array([[1, 5, 1]]), np.array([0]))
