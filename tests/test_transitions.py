"""Kaldi's transition models and trees in all their forms, and the paths that alignments may be."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_files import TOPOLOGY_TRANSITIONS, made_up_gmms, text_mdl, text_tree
from made_up_kaldi import binary_gmms, binary_transitions, random_walk

from asr_kd.errors import AsrKdError
from asr_kd.hmm.kaldi_model import parse_model
from asr_kd.hmm.tree import ContextTree, Leaf, Split, Table


def test_all_forms_are_the_same_model():
    gmms = made_up_gmms(TOPOLOGY_TRANSITIONS.num_pdfs)
    plain = binary_transitions(TOPOLOGY_TRANSITIONS)
    tuples = binary_transitions(TOPOLOGY_TRANSITIONS, with_tuples=True)
    for data in (
        plain,
        plain + binary_gmms(gmms),
        tuples,
        tuples + b"<Nnet3> \x04",
        text_mdl(TOPOLOGY_TRANSITIONS).encode(),
    ):
        found = parse_model(data, "final.mdl")
        assert found.transitions.topology == TOPOLOGY_TRANSITIONS.topology
        np.testing.assert_array_equal(found.transitions.tuples, TOPOLOGY_TRANSITIONS.tuples)
        np.testing.assert_allclose(found.transitions.log_probs, TOPOLOGY_TRANSITIONS.log_probs, atol=1e-6)
        if found.gmms is not None:
            for ours, theirs in zip(found.gmms, gmms, strict=True):
                np.testing.assert_array_equal(ours.inv_vars, theirs.inv_vars)
    assert TOPOLOGY_TRANSITIONS.t2pdf.tolist() == [-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3]
    assert TOPOLOGY_TRANSITIONS.is_self_loop.tolist() == [False, *[True, False] * 6]
    assert np.flatnonzero(TOPOLOGY_TRANSITIONS.leaves_phone).tolist() == [4, 8, 12]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"<Triples>", b"<Quadruples>", "<Quadruples>"),
        (b"<Triples> 6", b"<Triples> 5", "belongs"),
        (b"<Triples> 6", b"<Triples> 600000000", "declares"),
        (b"\n1 1 1 \n", b"\n1 1 -1 \n", "that its topology lacks"),
        (b"\n1 1 1 \n", b"\n1 7 1 \n", "that its topology lacks"),
        (b"\n2 0 2 \n", b"\n1 0 2 \n", "not in order"),
        (b"-0.6931472", b"-1.6931472", "sum to"),
        (b"-0.6931472", b"nan", "sum to"),
        (b"<State> 1 <PdfClass> 1", b"<State> 1", "that is none"),
        (b"<PdfClass> 1", b"<ForwardPdfClass> 1 <SelfLoopPdfClass> 2", "chain model"),
        (b"<Transition> 1 0.25", b"<Transition> 9 0.25", "that is none"),
        (b"<ForPhones> \n2", b"<ForPhones> \n1", "two topologies of phone 1"),
    ],
)
def test_what_is_no_transition_model_is_refused(old, new, message):
    text = text_mdl(TOPOLOGY_TRANSITIONS).encode()
    assert old in text
    with pytest.raises(AsrKdError, match=message) as error:
        parse_model(text.replace(old, new, 1), "exp/final.mdl")
    assert str(error.value).startswith("exp/final.mdl: ")


@settings(max_examples=60, deadline=None)
@given(phones=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5), seed=st.integers(0, 1000), data=st.data())
def test_walks_are_paths_in_either_order_of_loops_and_what_is_cut_is_none(phones, seed, data):
    rng = np.random.default_rng(seed)
    walk = [tid for phone in phones for tid in random_walk(TOPOLOGY_TRANSITIONS, phone, rng)]
    TOPOLOGY_TRANSITIONS.require_path(np.array(walk))
    loops_first = np.array(walk).copy()
    begins = [*np.flatnonzero(~TOPOLOGY_TRANSITIONS.is_self_loop[loops_first]).tolist(), len(walk)]
    for begin, end in pairwise(begins):
        loops_first[begin:end] = loops_first[begin:end][::-1]
    TOPOLOGY_TRANSITIONS.require_path(loops_first)
    without = np.delete(walk, data.draw(st.sampled_from(begins[:-1])))
    with pytest.raises(AsrKdError):
        TOPOLOGY_TRANSITIONS.require_path(without)
    other = np.array(walk)
    other[data.draw(st.integers(0, len(walk) - 1))] = data.draw(st.sampled_from([0, -3, 13, 1 << 30]))
    with pytest.raises(AsrKdError, match="transition-ids from"):
        TOPOLOGY_TRANSITIONS.require_path(other)


def test_trees_in_text_are_those_in_binary():
    split = Split(0, (0, 2), Leaf(2), Split(2, (1,), Leaf(3), Leaf(4)))
    tree = ContextTree(Table(1, (None, Table(-1, (Leaf(0), Leaf(1))), split)))
    assert ContextTree.from_bytes(text_tree(tree).encode(), "t") == ContextTree.from_bytes(tree.to_bytes(), "t") == tree
    bomb = b"ContextDependency 3 1 ToPdf " + b"TE 0 1 ( " * 5000
    with pytest.raises(AsrKdError, match="deeper"):
        ContextTree.from_bytes(bomb, "t")
