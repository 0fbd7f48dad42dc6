"""Kaldi's tables: read and written to the byte as Kaldi does, and a stranger's file ends in one sentence.

golden/kaldi_compressed.npz holds generated matrices, the archives that Kaldi's own code (kaldi_native_io 1.23.0) makes
of them in its seven ways of compression, and the matrices that it expands those to.
"""

import contextlib
import gzip
import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asr_kd.errors import AsrKdError
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_ark import (
    read_int_vectors,
    read_matrices,
    read_vectors,
    write_int_vectors,
    write_matrices,
    write_vectors,
)
from asr_kd.store.kaldi_compression import warn_of_clipped
from asr_kd.store.table_names import files_of_table, is_table

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(Path(__file__).parent / "golden" / "kaldi_compressed.npz")
MATRICES = {name.removeprefix("matrix_"): GOLDEN[name] for name in GOLDEN if name.startswith("matrix_")}
SYSTEM = ROOT.parent / "shared" / "reference" / "kaldi_system"
with_system = pytest.mark.skipif(not SYSTEM.is_dir(), reason=f"needs archives made by Kaldi in {SYSTEM}")
IN_ONE_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

floats = st.floats(width=32, allow_nan=False)
matrices = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=floats)
)


def test_values_that_a_method_cuts_off_are_told():
    told = []
    matrix = np.array([[-1.0, 0.5], [1.0, 20.0]], dtype=np.float32)
    assert len(list(warn_of_clipped([("a", matrix), ("b", matrix)], 7, told.append))) == 2
    assert told == [
        "warning: 4 of 8 values are outside of 0 to 1, the range of compression method 7, and were set to its ends"
    ]
    for method in (0, 1, 4):
        list(warn_of_clipped([("a", matrix)], method, told.append))
    assert len(told) == 1


@pytest.mark.parametrize("method", range(1, 8))
def test_compression_is_kaldis_to_the_byte(tmp_path, method):
    path = tmp_path / "x.ark"
    write_matrices(f"ark:{path}", MATRICES.items(), method)
    assert path.read_bytes() == GOLDEN[f"archive_{method}"].tobytes()
    for key, matrix in read_matrices(f"ark:{path}"):
        np.testing.assert_array_equal(matrix, GOLDEN[f"expanded_{method}_{key}"])


@with_system
@pytest.mark.parametrize("method", range(8))
def test_archives_of_a_real_system(tmp_path, method):
    path, name = tmp_path / "x.ark", f"mfcc_compressed_method{method}.ark" if method else "mfcc.ark"
    assert write_matrices(f"ark:{path}", read_matrices(str(SYSTEM / "mfcc.ark")), method) == 60
    assert path.read_bytes() == (SYSTEM / name).read_bytes()


@with_system
def test_text_and_alignments_of_a_real_system(tmp_path):
    path = tmp_path / "x"
    write_matrices(f"ark,t:{path}", read_matrices(str(SYSTEM / "mfcc.ark")))
    assert path.read_bytes() == (SYSTEM / "mfcc.txt").read_bytes()
    write_int_vectors(f"ark:{path}", read_int_vectors(f"ark:{SYSTEM / 'ali.1.gz'}"))
    assert path.read_bytes() == gzip.decompress((SYSTEM / "ali.1.gz").read_bytes())
    write_int_vectors(f"ark,t:{path}", read_int_vectors(f"ark:{SYSTEM / 'pdf.txt'}"))
    assert path.read_bytes() == (SYSTEM / "pdf.txt").read_bytes()


@IN_ONE_FOLDER
@given(
    items=st.dictionaries(st.text("ab-_äß0", min_size=1), matrices, max_size=4),
    text=st.booleans(),
    zipped=st.booleans(),
)
def test_matrices_come_back(tmp_path, items, text, zipped):
    path = tmp_path / ("x.ark.gz" if zipped else "x.ark")
    assert write_matrices(f"ark{',t' * text}:{path}", items.items()) == len(items)
    back = list(read_matrices(str(path)))
    assert [key for key, _ in back] == list(items)
    for key, matrix in back:
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, items[key], rtol=1e-6 if text else 0)


@IN_ONE_FOLDER
@given(
    ints=st.lists(arrays(np.int32, st.integers(0, 9)), max_size=4),
    reals=st.lists(arrays(np.float64, st.integers(0, 9), elements=floats), max_size=4),
    text=st.booleans(),
)
def test_vectors_come_back(tmp_path, ints, reals, text):
    kind = "ark,t" if text else "ark"
    write_int_vectors(f"{kind}:{tmp_path}/i.ark", ((f"u{i}", v) for i, v in enumerate(ints)))
    write_vectors(f"{kind}:{tmp_path}/r.ark", ((f"u{i}", v) for i, v in enumerate(reals)))
    for expected, (_, found) in zip(ints, read_int_vectors(f"{tmp_path}/i.ark"), strict=True):
        np.testing.assert_array_equal(found, expected)
    for expected, (_, found) in zip(reals, read_vectors(f"{tmp_path}/r.ark", np.float64), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6 if text else 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_double_precision_is_kept_where_it_is_asked_for(tmp_path, dtype):
    stats = np.random.default_rng(0).normal(size=(2, 5)).astype(dtype) * 1e5
    write_matrices(f"ark:{tmp_path}/x.ark", [("spk", stats)])
    ((_, found),) = read_matrices(f"{tmp_path}/x.ark", np.float64)
    np.testing.assert_array_equal(found, stats)


def test_a_script_gives_any_order_and_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = {f"u{i}": np.arange(i * 100, i * 100 + 30, dtype=np.float32).reshape(10, 3) for i in range(4)}
    write_matrices("ark,scp:x.ark,x.scp", items.items())
    for key, matrix in read_matrices("x.scp"):
        np.testing.assert_array_equal(matrix, items[key])
    lines = Path("x.scp").read_text().splitlines()
    parts = ["[2:4]", "[0:9,1:1]", "[8:12]", "[:,0:1]"]  # Kaldi lets rows end a little late
    Path("y.scp").write_text("".join(f"{line}{part}\n" for line, part in zip(reversed(lines), parts, strict=True)))
    found = dict(read_matrices("scp:y.scp"))
    assert list(found) == ["u3", "u2", "u1", "u0"]
    np.testing.assert_array_equal(found["u3"], items["u3"][2:5])
    np.testing.assert_array_equal(found["u2"], items["u2"][:, 1:2])
    np.testing.assert_array_equal(found["u1"], items["u1"][8:])
    np.testing.assert_array_equal(found["u0"], items["u0"][:, :2])


def test_one_object_a_file_and_offsets_into_gzip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrix = np.ones((2, 3), dtype=np.float32)
    write_matrices("ark:x.ark", [("a", matrix)])
    archive = Path("x.ark").read_bytes()
    Path("one.mat").write_bytes(archive[2:])
    Path("x.ark.gz").write_bytes(gzip.compress(archive * 2))
    Path("x.scp").write_text(f"a one.mat\nb x.ark.gz:{len(archive) + 2}\nc x.ark.gz:2\n")
    assert all((found == matrix).all() for _, found in read_matrices("x.scp"))


TEXTS = {
    "u [ 1 2\n 3 4 ]\n": [[1, 2], [3, 4]],
    "u  [\n  1 2 \n  3 4 ]\n": [[1, 2], [3, 4]],
    "u [ 1 2 ; 3 4 ]": [[1, 2], [3, 4]],
    "\nu [ 1 -inf\n nan 1e3 ]\r\n": [[1, -np.inf], [np.nan, 1000]],
    "u [ ]\n": np.zeros((0, 0)),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_as_people_write_it(tmp_path, text):
    (tmp_path / "x.ark").write_text(text)
    ((key, matrix),) = read_matrices(f"{tmp_path}/x.ark")
    assert key == "u"
    np.testing.assert_array_equal(matrix, np.array(TEXTS[text], dtype=np.float32))


HEADER = b"u \0BFM "
BAD = {
    b"u": "within a key",
    b"u \0BF": "ends early",
    HEADER + b"\x04\x02\0\0\0\x04\x02\0\0\0" + bytes(15): "ends early",
    HEADER + b"\x04\xff\xff\xff\x7f\x04\xff\xff\xff\x7f": "more than the",
    HEADER + b"\x04\xff\xff\xff\xff\x04\x02\0\0\0": "declares -1 rows",
    HEADER + b"\x04\xff\xff\xff\x0f\x04\0\0\0\0": "and 0 columns",
    HEADER + b"\x08\x02\0\0\0\x04\x02\0\0\0": "whole number of 8 bytes",
    b"u \0BSM " + bytes(20): "is of type 'SM'",
    b"u \0BCM " + b"\0\0\0\0\0\0\xc0\x7f\x09\0\0\0\x02\0\0\0" + bytes(40): "not finite",
    b"u \0BCM3 " + b"\0\0\0\0\0\0\x80\x3f\xff\xff\xff\x7f\x02\0\0\0": "more than one object",
    b"u \0X": "no object of Kaldi",
    b"\x89HDF\r\n\x1a\n" + bytes(50): "damaged",
    b"\x7fELF\x01 \0B": "cannot be printed",
    b"u [ 1 2\n 3 ]\n": "row 2 has 1 numbers",
    b"u [ 1 two ]\n": "not a number",
    b"u [ 1 2\n": "ends early",
    b"u [ 1 2 ] 3\n": "is followed by '3'",
    b"u 1 2 3\n": r"should begin with \[",
    b"k" * 5000: "no key of fewer",
    b"\x1f\x8b" + bytes(10): "damaged",
    gzip.compress(b"u \0BFM \x04\xff\xff\xff\x0f\x04\x01\0\0\0", mtime=0)[:-4]: "damaged",
}


@pytest.mark.parametrize("content", BAD)
def test_bad_archives_are_refused_by_name(tmp_path, content):
    path = tmp_path / "x.ark"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(AsrKdError, match=BAD[content]) as error:
        list(read_matrices(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert "x.ark" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u gunzip -c x.ark.gz |", r"x\.scp:1.*commands are not run"),
        ("u", r"x\.scp:1.*a key, a space and a file"),
        ("", r"x\.scp:1"),
        ("u none.ark:5", "none.ark: cannot be read"),
        ("u x.ark:999999", "behind the end"),
        ("u x.ark:2[0:99]", "does not lie in"),
        ("u x.ark:2[3:1]", "does not lie in"),
        ("u x.ark:2[0:1,0:3]", "does not lie in"),
        ("u x.ark:2[a:b]", "is not first:last"),
        ("u x.ark:3", "neither a binary object nor text"),
        ("u .", "cannot be read"),
    ],
)
def test_bad_scripts_are_refused_by_name(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    write_matrices("ark:x.ark", [("u", np.ones((3, 3)))])
    Path("x.scp").write_text(line + "\n")
    with pytest.raises(AsrKdError, match=message):
        list(read_matrices("x.scp"))


def test_no_command_is_ever_run(tmp_path):
    for table in ("ark:touch {} |", "scp:touch {} |", "touch {} |"):
        with pytest.raises(AsrKdError):
            list(read_matrices(table.format(tmp_path / "ran")))
    with pytest.raises(AsrKdError):
        write_matrices(f"ark:| cat > {tmp_path / 'ran' / 'x'}", [("u", np.ones((1, 1)))])
    assert not (tmp_path / "ran").exists()


READERS = (read_matrices, read_vectors, read_int_vectors)


def whole_archives() -> list[bytes]:
    """One small archive of each kind."""
    contents = [GOLDEN[f"archive_{method}"].tobytes()[:600] for method in (2, 3, 5)]
    rng = np.random.default_rng(2)
    for write, items in (
        (write_matrices, [(f"u{i}", rng.normal(size=(3, 2))) for i in range(3)]),
        (write_vectors, [(f"u{i}", rng.normal(size=4)) for i in range(3)]),
        (write_int_vectors, [(f"u{i}", np.arange(5)) for i in range(3)]),
    ):
        for kind in ("ark", "ark,t"):
            with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as out:
                write(f"{kind}:-", items)
                contents.append(out.buffer.getvalue())
    return [*contents, *(gzip.compress(content, mtime=0) for content in contents)]


def test_thousands_of_damaged_archives_end_in_one_sentence(tmp_path):
    """Cut, flipped, overwritten and spliced: a result or one AsrKdError."""
    rng = np.random.default_rng(3)
    whole = whole_archives()
    path, script = tmp_path / "x.ark", tmp_path / "x.scp"
    refused = []
    for case in range(3000):
        content = bytearray(whole[case % len(whole)])
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, len(content)))
            match rng.integers(0, 4):
                case 0:
                    del content[place:]
                    content = content or bytearray(b"u")
                case 1:
                    content[place] ^= 1 << int(rng.integers(0, 8))
                case 2:
                    content[place : place + 4] = b"\xff\xff\xff\x7f"
                case 3:
                    content[place:place] = whole[int(rng.integers(0, len(whole)))][:40]
        path.write_bytes(content)
        if case % 4 == 0:
            script.write_text(f"u {path}:{rng.integers(0, len(content) + 2)}\n")
        try:
            with np.errstate(all="ignore"):
                for _ in READERS[case % 3](str(path if case % 4 else script)):
                    pass
        except AsrKdError as error:
            refused.append(str(error))
    assert len(refused) > 2000
    assert all(("x.ark" in sentence or "x.scp" in sentence) and "\n" not in sentence for sentence in refused)


@pytest.mark.parametrize(
    ("items", "method", "message"),
    [
        ([("a b", np.ones((2, 2)))], 0, "cannot be a key"),
        ([("", np.ones((2, 2)))], 0, "cannot be a key"),
        ([("u", np.ones(3))], 0, "two dimensions"),
        ([("u", np.full((20, 2), np.nan))], 2, "not finite"),
        ([("u", np.array([[3e38, -3e38]]))], 3, "not finite"),
        ([("u", np.ones((2, 2)))], 8, "not one of 1 to 7"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, items, method, message):
    with pytest.raises(AsrKdError, match=message):
        write_matrices(f"ark,scp:{tmp_path}/x.ark,{tmp_path}/x.scp", [("good", np.ones((2, 2))), *items], method)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["x.bin", "scp:x.scp", "ark,scp:x.ark", "ark,scp:x.ark.gz,x.scp", "ark,q:x.ark"])
def test_where_nothing_can_be_written(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AsrKdError):
        write_matrices(where, [("u", np.ones((2, 2)))])
    with pytest.raises(AsrKdError, match="text are not compressed"):
        write_matrices("ark,t:x.ark", [("u", np.ones((2, 2)))], 2)


def copy_feats(*args: object, stdin: bytes | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "data_prep" / "copy_feats.py", *args]
    return subprocess.run([str(part) for part in command], input=stdin, capture_output=True)


def test_copy_feats_there_and_back(tmp_path):
    rng = np.random.default_rng(4)
    items = {f"s{i % 2}-u{i}": rng.normal(size=(5 + i, 3)).astype(np.float32) for i in range(4)}
    ark, h5, speakers = tmp_path / "x.ark", tmp_path / "x.h5", tmp_path / "utt2spk"
    write_matrices(f"ark:{ark}", items.items())
    speakers.write_text("".join(f"{utt_id} {utt_id[:2]}\n" for utt_id in sorted(items)))
    foreign = ("--kind", "plp", "--sample-frequency", 8000, "--utt2spk", speakers)
    assert copy_feats("ark:-", h5, *foreign, stdin=ark.read_bytes()).returncode == 0
    reader = FeatsReader(h5)
    assert reader.attrs["kind"] == "plp"
    assert '"foreign": true' in reader.attrs["options"]
    assert set(reader.spk_ids) == {"s0", "s1"}
    back = tmp_path / "back.ark"
    assert copy_feats(h5, f"ark:{back}", "--write-utt2spk", tmp_path / "back").returncode == 0
    assert back.read_bytes() == ark.read_bytes()
    assert (tmp_path / "back").read_text() == speakers.read_text()


def test_copy_feats_asks_for_what_an_archive_does_not_say_and_lists_what_it_leaves_out(tmp_path):
    ark, h5 = tmp_path / "x.ark", tmp_path / "x.h5"
    items = [(f"u{i}", np.full((5, 3), np.nan if i == 3 else i)) for i in range(10)]
    write_matrices(f"ark:{ark}", items)
    asked = copy_feats(ark, h5)
    assert asked.returncode == 1
    assert b"--kind and --sample-frequency" in asked.stderr
    refused = copy_feats(ark, h5, "--kind", "fbank", "--sample-frequency", 16000)
    assert refused.returncode == 1
    assert b"u3" in refused.stderr
    assert not h5.exists()
    assert copy_feats(ark, h5, "--kind", "fbank", "--sample-frequency", 16000, "--max-bad-share", 0.1).returncode == 0
    assert FeatsReader(h5).skipped[0][0] == "u3"


@pytest.mark.parametrize("name", ["x.h5", "a/x.hdf5", "x.ark", "x.ark.gz", "x.scp", "scp:x", "ark,t:-", "ark:x.h5"])
def test_a_name_says_whether_it_is_a_table(name):
    assert is_table(name) == (name not in ("x.h5", "a/x.hdf5"))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        *((name, [name]) for name in ("x.ark", "x.ark.gz", "a,b.scp")),
        *((f"{kinds}:x,y", ["x,y"]) for kinds in ("ark", "scp", "b,ark", "ark,t", "scp,p", " ark ")),
        *((f"{kinds}:x,y", ["x", "y"]) for kinds in ("ark,scp", "scp,ark", "ark,t,scp")),
        ("ark,scp:-,y", ["y"]),
        *((name, []) for name in ("ark:-", "scp:", "-", "", "x", "x.h5", "dark:x", "http://x.h5")),
    ],
)
def test_a_name_tells_the_files_of_a_table(name, files):
    assert files_of_table(name) == list(map(Path, files))


@pytest.mark.parametrize("name", ["x", "x.txt", "h5", "-", "."])
def test_a_name_that_says_nothing_is_told_both_forms(name):
    with pytest.raises(AsrKdError, match=r"FILE\.h5 .*ark:FILE"):
        is_table(name)


@pytest.mark.parametrize("name", ["x.scp", "scp:x.scp", "scp,t:x"])
def test_a_script_alone_is_not_written(name):
    with pytest.raises(AsrKdError, match=r"ark,scp:FILE\.ark,FILE\.scp"):
        write_matrices(name, [])


def test_an_archive_is_not_its_own_script(tmp_path):
    with pytest.raises(AsrKdError, match="names one file as archive and script"):
        write_matrices(f"ark,scp:{tmp_path}/x,{tmp_path}/x", [])


@pytest.mark.parametrize("out", ["ark:x.ark", "ark,scp:x.ark,x.scp", "ark:x.ark.gz", "x.h5"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, out):
    source, folder = tmp_path / "x.ark", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(5)
    write_matrices(f"ark:{source}", ((f"u{i}", rng.normal(size=(100, 40)).astype(np.float32)) for i in range(20)))
    script = f"ulimit -f 64; cd {folder}; {sys.executable} {ROOT}/data_prep/copy_feats.py {source} {out}"
    options = " --kind fbank --sample-frequency 16000"
    done = subprocess.run(["bash", "-c", script + options], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: x.")
    assert list(folder.iterdir()) == []
