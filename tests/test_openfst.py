"""Graphs in OpenFst's binary form, read and written without OpenFst, whole, damaged and forged."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.hmm import wheels
from asr_kd.hmm.graph_arcs import GraphArcs
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


def by_the_wheels(fst: object) -> GraphArcs:
    """A StdVectorFst, asked for arc after arc."""
    rows = []
    for state in range(fst.num_states):
        iterator = wheels.kaldi().fst.ArcIterator(fst, state)
        while not iterator.done:
            arc = iterator.value
            rows.append((state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value))
            iterator.next()
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    final = np.array([fst.final(state).value for state in range(fst.num_states)])
    return GraphArcs(fst.start, *table[:, :4].astype(np.int64).T, table[:, 4], final)


def assert_same(ours: GraphArcs, theirs: GraphArcs) -> None:
    for name in GraphArcs.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert np.asarray(getattr(ours, name)).dtype == np.asarray(getattr(theirs, name)).dtype


def test_what_openfst_writes_is_read_alike(graph_file):
    fst = wheels.kaldi().fst.StdVectorFst.read(str(graph_file))
    ours = GraphArcs.read(graph_file)
    assert_same(ours, by_the_wheels(fst))
    assert_same(GraphArcs.from_fst(fst), ours)
    assert (ours.num_states, len(ours.source), ours.ilabel.max()) == (4, 4, 70000)


@pytest.mark.skipif(not KALDI_GRAPH.is_file(), reason="../shared/reference (made by Kaldi) is not there")
def test_kaldis_own_graph_is_read_alike():
    wheels.kaldi()
    theirs = by_the_wheels(wheels.kaldi().fst.StdVectorFst.read(str(KALDI_GRAPH)))
    assert_same(GraphArcs.read(KALDI_GRAPH), theirs)


def test_openfst_reads_what_we_write_alike(graph_file, tmp_path):
    ours = GraphArcs.read(graph_file)
    assert_same(by_the_wheels(ours.to_fst()), ours)
    ours.write(tmp_path / "copy.fst")
    assert_same(GraphArcs.read(tmp_path / "copy.fst"), ours)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_graph_is_read_as_it_was_written(tmp_path_factory, data):
    num_states = data.draw(st.integers(1, 6))
    numbers = st.integers(0, 2**31 - 1)
    weights = st.floats(width=32, allow_nan=False)
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=num_states, max_size=num_states))
    num_arcs = sum(lengths)

    def column(values: st.SearchStrategy, dtype: type) -> np.ndarray:
        return np.array(data.draw(st.lists(values, min_size=num_arcs, max_size=num_arcs)), dtype=dtype)

    source = np.repeat(np.arange(num_states), lengths)
    labels = [column(numbers, np.int64) for _ in range(3)]
    final = np.array(data.draw(st.lists(weights, min_size=num_states, max_size=num_states)))
    graph = GraphArcs(data.draw(st.integers(0, num_states - 1)), source, *labels, column(weights, np.float64), final)
    path = tmp_path_factory.getbasetemp() / "any.fst"
    graph.write(path)
    assert_same(GraphArcs.read(path), graph)


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
        graph = GraphArcs.read(path)
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
