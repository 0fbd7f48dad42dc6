"""Kaldi's tables of lattices: the format byte by byte, round trips, and files of strangers."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_table import read_lattices, write_lattices
from asr_kd.hmm.word_search import nbest


def ids(*tids: int) -> bytes:
    return struct.pack(f"<{len(tids)}i", *tids)


@pytest.fixture
def lattice() -> Lattice:
    """Two word sequences, 3 and 4 4, of three frames."""
    arcs = [
        (0, 1, 3, 0.5, -10.25, ids(7, 8)),
        (0, 2, 4, 1.5, -10.0, ids(9)),
        (2, 1, 4, 0.25, -1.0, ids(9)),
        (1, 3, 0, 2.0, 3.0, ids(11)),
    ]
    return Lattice.from_arcs(0, 3, *zip(*arcs, strict=True))


TEXT = "utt \n0\t1\t4\t1.5,-10,9\n0\t2\t3\t0.5,-10.25,7_8\n1\t2\t4\t0.25,-1,9\n2\t2,3,11\n\n"


def binary() -> bytes:
    """The same as OpenFst writes it, field by field."""
    out = b"utt " + struct.pack("<i", 2125659606)
    for name in (b"vector", b"compactlattice44"):
        out += struct.pack("<i", len(name)) + name
    out += struct.pack("<ii", 2, 0) + struct.pack("<Q", 3) + struct.pack("<qqq", 0, 3, 3)
    not_final = struct.pack("<ffi", np.inf, np.inf, 0)
    out += not_final + struct.pack("<q", 2)
    out += struct.pack("<iiffi", 4, 4, 1.5, -10, 1) + ids(9) + struct.pack("<i", 1)
    out += struct.pack("<iiffi", 3, 3, 0.5, -10.25, 2) + ids(7, 8) + struct.pack("<i", 2)
    out += not_final + struct.pack("<q", 1)
    out += struct.pack("<iiffi", 4, 4, 0.25, -1, 1) + ids(9) + struct.pack("<i", 2)
    return out + struct.pack("<ffi", 2, 3, 1) + ids(11) + struct.pack("<q", 0)


def assert_equal(one: Lattice, other: Lattice) -> None:
    for name in ("source", "target", "word", "graph", "acoustic"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.tids == other.tids


def test_lattices_are_written_as_kaldi_writes_them(lattice, tmp_path):
    write_lattices(f"ark,t:{tmp_path}/lat.txt", [("utt", lattice)])
    assert (tmp_path / "lat.txt").read_text() == TEXT
    write_lattices(f"ark,scp:{tmp_path}/lat.ark,{tmp_path}/lat.scp", [("utt", lattice)])
    assert (tmp_path / "lat.ark").read_bytes() == binary()
    for name in (f"ark:{tmp_path}/lat.txt", f"ark:{tmp_path}/lat.ark", f"scp:{tmp_path}/lat.scp"):
        ((key, read),) = read_lattices(name)
        assert key == "utt"
        assert_equal(read, lattice)


def test_several_lattices_in_a_compressed_archive(lattice, tmp_path):
    name = f"ark:{tmp_path}/lat.1.gz"
    assert write_lattices(name, [("a", lattice), ("b", lattice.pruned(0.0, 1.0))]) == 2
    read = dict(read_lattices(name))
    assert list(read) == ["a", "b"]
    assert [path.words for path in nbest(read["a"], 9, 1.0)] == [(3,), (4, 4)]
    assert len(nbest(read["b"], 9, 1.0)) == 1


def test_text_may_leave_out_weights_and_number_states_as_it_likes(tmp_path):
    (tmp_path / "x.ark").write_text("a \n7 2147483647 5\n2147483647 0.5,1,\n7 9 4 1,2,3_4\n9 2147483647 0 0,0,\n9\n\n")
    with pytest.raises(AsrKdError, match="frames"):
        list(read_lattices(f"ark:{tmp_path}/x.ark"))
    (tmp_path / "x.ark").write_text("a \n7 2147483647 5\n2147483647 0.5,1,\n7 9 4 1,2,\n9 2147483647 0 0,0,\n9\n\n")
    ((_, lattice),) = read_lattices(f"ark:{tmp_path}/x.ark")
    assert [(path.words, path.cost) for path in nbest(lattice, 9, 1.0)] == [((5,), 1.5), ((4,), 3.0)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("utt \n0 1 2 x\n\n", "neither"),
        ("utt \n0 1 2 1,2\n\n", "neither"),
        ("utt \n0 1 2 3 4 5\n\n", "neither"),
        ("utt \n0 1 -2 1,2,3\n1\n\n", "neither"),
        ("utt \n0 1 2 1,2,99999999999\n1\n\n", "neither"),
        ("utt \n0 1 2 nan,2,3\n1\n\n", "a cost of nan"),
        ("utt \n0 1 2 1,inf,3\n1\n\n", "a cost of 1,inf"),
        ("utt \n0 1 2 1,2,0\n1\n\n", "transition-id below 1"),
        ("utt \n0 1 2 1,2,3\n\n", "no final state"),
        ("utt \n0 1 2 1,2,3\n2\n\n", "no path"),
        ("utt \n0 1 2 1,2,3\n1 0 2 1,2,3\n1\n\n", "cycle"),
        ("utt \n0 1 2 1,2,3\n1\n", "ends early"),
        ("utt \n\n", "without a state"),
        ("utt 0 1 2 1,2,3\n1\n\n", "line after its key"),
    ],
)
def test_what_is_no_lattice_is_refused(text, complaint, tmp_path):
    (tmp_path / "lat.ark").write_text(text)
    with pytest.raises(AsrKdError, match=complaint) as failed:
        list(read_lattices(f"ark:{tmp_path}/lat.ark"))
    assert "lat.ark" in str(failed.value)


def test_other_fsts_and_promises_that_are_not_kept_are_refused(tmp_path):
    whole = binary()
    other = whole.replace(b"\x10\0\0\0compactlattice44", b"\x08\0\0\0standard")
    huge = whole.replace(struct.pack("<qqq", 0, 3, 3), struct.pack("<qqq", 0, 2**60, 3))
    long = whole.replace(struct.pack("<iiffi", 4, 4, 1.5, -10, 1), struct.pack("<iiffi", 4, 4, 1.5, -10, 2**30))
    for content, complaint in (
        (other, "vector standard"),
        (huge, "ends early"),
        (long, "more than"),
        (whole[:-9], "ends"),
    ):
        (tmp_path / "lat.ark").write_bytes(content)
        with pytest.raises(AsrKdError, match=complaint):
            list(read_lattices(f"ark:{tmp_path}/lat.ark"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.booleans(), data=st.data())
def test_damage_is_an_error_or_another_lattice_but_never_a_crash(tmp_path, text, data):
    content = bytearray(TEXT.encode() if text else binary())
    position = data.draw(st.integers(4, len(content) - 1))
    some = data.draw(st.binary(min_size=1, max_size=9))
    if data.draw(st.booleans()):
        content[position : position + len(some)] = some
    else:
        content[position:position] = some
    (tmp_path / "lat.ark").write_bytes(content)
    with contextlib.suppress(AsrKdError):
        for _, lattice in read_lattices(f"ark:{tmp_path}/lat.ark"):
            nbest(lattice, 5, 0.1)
