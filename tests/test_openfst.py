"""Graphs in OpenFst's binary form, read without OpenFst, whole, damaged and forged."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.hmm import wheels
from asr_kd.hmm.graph import GraphArcs
from asr_kd.hmm.openfst import read_vector_fst

KALDI_GRAPH = Path(__file__).parents[2] / "shared/reference/kaldi_system/HCLG.fst"


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory) -> Path:
    """A graph of four states, one without arcs, and of infinite and negative weights, as OpenFst writes it."""
    try:
        fst = wheels.kaldi().fst
    except AsrKdError:
        pytest.skip("the Kaldi wheels (asr_kd[hmm]) are not installed")
    path = tmp_path_factory.mktemp("fst") / "HCLG.fst"
    assert fst.compile("0 1 3 1 0.5\n0 2 0 0 -1.25\n1 2 70000 2\n2 2 1 0\n2 0.75\n3\n", acceptor=False).write(str(path))
    return path


def assert_same(ours: GraphArcs, theirs: GraphArcs) -> None:
    for name in GraphArcs.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert np.asarray(getattr(ours, name)).dtype == np.asarray(getattr(theirs, name)).dtype


def test_what_openfst_writes_is_read_alike(graph_file):
    theirs = GraphArcs.from_fst(wheels.kaldi().fst.StdVectorFst.read(str(graph_file)))
    ours = GraphArcs(*read_vector_fst(graph_file))
    assert_same(ours, theirs)
    assert (ours.num_states, len(ours.source), ours.ilabel.max()) == (4, 4, 70000)


@pytest.mark.skipif(not KALDI_GRAPH.is_file(), reason="../shared/reference (made by Kaldi) is not there")
def test_kaldis_own_graph_is_read_alike():
    wheels.kaldi()
    theirs = GraphArcs.from_fst(wheels.kaldi().fst.StdVectorFst.read(str(KALDI_GRAPH)))
    assert_same(GraphArcs(*read_vector_fst(KALDI_GRAPH)), theirs)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_another_graph_but_never_a_crash(graph_file, tmp_path_factory, data):
    content = bytearray(graph_file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "change", "insert"]))
    position = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[position:]
    elif kind == "change":
        some = data.draw(st.binary(min_size=1, max_size=9))
        content[position : position + len(some)] = some
    else:
        content[position:position] = data.draw(st.binary(min_size=1, max_size=30))
    path = tmp_path_factory.getbasetemp() / "damaged.fst"
    path.write_bytes(content)
    graph = None
    with contextlib.suppress(AsrKdError):
        graph = GraphArcs(*read_vector_fst(path))
    if graph is not None:
        assert kind != "cut"
        assert len(graph.source) * 16 + graph.num_states * 12 < len(content)


def test_a_header_that_promises_more_is_refused(graph_file, tmp_path):
    whole = graph_file.read_bytes()
    num_states = whole.index(np.int64(4).tobytes(), 30)
    for promised in (-1, 0, 5, 2**62):
        changed = whole[:num_states] + np.int64(promised).tobytes() + whole[num_states + 8 :]
        (tmp_path / "x.fst").write_bytes(changed)
        with pytest.raises(AsrKdError, match=r"x\.fst: is damaged"):
            read_vector_fst(tmp_path / "x.fst")
    with pytest.raises(AsrKdError, match=r"none\.fst: cannot be read"):
        read_vector_fst(tmp_path / "none.fst")
