"""Lattices against enumeration of all their paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_lattices import NUM_WORDS, all_paths, best_by_words, lattices

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.word_search import determinize, nbest

SCALES = st.tuples(st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([-1.0, 0.0, 0.5]))


@settings(max_examples=60, deadline=None)
@given(lattices(), SCALES, st.integers(1, 40))
def test_nbest_is_every_word_sequence_once_in_order_of_its_best_cost(lattice, scales, n):
    best = best_by_words(lattice, *scales)
    found = nbest(lattice, n, *scales)
    assert len({path.words for path in found}) == len(found) == min(n, len(best))
    np.testing.assert_allclose([path.cost for path in found], sorted(best.values())[: len(found)], atol=1e-9)
    for path in found:
        assert path.cost == pytest.approx(best[path.words], abs=1e-9)
        assert path.cost == pytest.approx(path.graph + scales[0] * path.acoustic + scales[1] * len(path.words))
        assert len(path.transition_ids) == lattice.num_frames
        assert (path.transition_ids // 100 == np.arange(lattice.num_frames) + 1).all()


@settings(max_examples=60, deadline=None)
@given(lattices(), SCALES, st.sampled_from([0.0, 0.3, 2.0, 100.0]))
def test_determinised_it_holds_each_word_sequence_within_the_beam_once_at_its_cost(lattice, scales, beam):
    best = best_by_words(lattice, *scales)
    compact = determinize(lattice, beam, *scales)
    assert compact.num_frames == lattice.num_frames
    ends = compact.target == compact.num_states - 1
    assert ((compact.word == 0) == ends).all()
    leaving = list(zip(compact.source.tolist(), compact.word.tolist(), strict=True))
    assert len(leaving) == len(set(leaving))
    kept = best_by_words(compact, *scales)
    near = {words for words, cost in best.items() if cost <= min(best.values()) + beam - 1e-9}
    assert near <= set(kept)
    for words, cost in kept.items():
        assert cost == pytest.approx(best[words], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(lattices(), SCALES, st.sampled_from([0.0, 0.3, 2.0, 100.0]))
def test_pruning_keeps_exactly_the_arcs_of_paths_within_the_beam(lattice, scales, beam):
    costs, paths = lattice.costs(*scales), all_paths(lattice)
    totals = [costs[path].sum() for path in paths]
    near = [path for path, total in zip(paths, totals, strict=True) if total <= min(totals) + beam + 1e-9]
    pruned = lattice.pruned(beam, *scales)
    expected = lattice.of_arcs(np.unique(np.concatenate(near)))
    for name in ("source", "target", "word", "graph", "acoustic"):
        np.testing.assert_array_equal(getattr(pruned, name), getattr(expected, name))
    assert pruned.tids == expected.tids


def edit_distance(a, b) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(lattices(), st.lists(st.integers(1, NUM_WORDS + 1), max_size=6))
def test_oracle_errors_are_the_fewest_of_any_path(lattice, ref):
    assert lattice.oracle_errors(ref) == min(edit_distance(words, ref) for words in best_by_words(lattice, 1.0, 0.0))


def test_what_is_no_lattice_is_refused():
    def made(arcs, end):
        return Lattice.from_arcs(0, end, *(list(c) for c in zip(*arcs, strict=True)))

    with pytest.raises(AsrKdError, match="a cycle"):
        made([(0, 1, 1, 0.0, 0.0, b""), (1, 0, 1, 0.0, 0.0, b""), (1, 2, 0, 0.0, 0.0, b"")], 2)
    with pytest.raises(AsrKdError, match="no path"):
        made([(0, 1, 1, 0.0, 0.0, b""), (2, 3, 1, 0.0, 0.0, b"")], 3)
    one = b"\1\0\0\0"
    lattice = made([(0, 1, 1, 0.0, 0.0, one), (0, 1, 2, 0.0, 0.0, b""), (1, 2, 0, 0.0, 0.0, b"")], 2)
    with pytest.raises(AsrKdError, match="frames"):
        _ = lattice.times
    with pytest.raises(AsrKdError, match="beam"):
        lattice.pruned(-1.0, 1.0)
