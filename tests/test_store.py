"""feats.h5 and ali.h5: what is written is read, digests see every change, and what does not fit is refused."""

import dataclasses
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.features import cmvn
from asr_kd.features.options import FbankOptions
from asr_kd.features.splice import splice
from asr_kd.store.ali import FAILED, AliReader, require_fit, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter, join_shards
from asr_kd.store.hdf5 import SEAL, Layout
from asr_kd.store.stored_rows import StoredRows

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "data_prep" / "extract_fbank.py"
OPTIONS = FbankOptions(sample_frequency=8000, num_mel_bins=3)
IN_ONE_FOLDER = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def writer(path: Path, options: FbankOptions = OPTIONS, **more) -> FeatsWriter:
    return FeatsWriter(path, kind="fbank", options=options, sample_rate=int(options.sample_frequency), **more)


def random_utts(lengths: list[int], seed: int = 0) -> list[tuple[str, str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (f"s{i % 2}-u{i}", f"s{i % 2}", rng.normal(size=(n, OPTIONS.feat_dim)).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


def write(path: Path, utts: list[tuple[str, str, np.ndarray]], **more) -> FeatsReader:
    with writer(path, **more) as out:
        for utt in utts:
            out.append(*utt)
    return FeatsReader(path)


@IN_ONE_FOLDER
@given(
    lengths=st.lists(st.one_of(st.integers(1, 30), st.integers(1000, 5000)), max_size=8),
    dtype=st.sampled_from(["float32", "float16"]),
    left=st.integers(0, 4),
    right=st.integers(0, 4),
)
def test_what_is_written_is_read(tmp_path, lengths, dtype, left, right):
    utts = random_utts(lengths)
    with write(tmp_path / "feats.h5", utts, dtype=dtype) as reader:
        assert reader.layout.utt_ids == tuple(u for u, _, _ in utts)
        assert reader.layout.lengths.tolist() == lengths
        assert reader.spk_ids == [s for _, s, _ in utts]
        stored = [f.astype(dtype).astype(np.float32) for _, _, f in utts]
        whole = reader.read_all()
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, np.concatenate([np.empty((0, reader.feat_dim)), *stored]))
        for row, ((utt_id, _, _), feats) in enumerate(zip(utts, stored, strict=True)):
            np.testing.assert_array_equal(reader[utt_id], feats)
            np.testing.assert_array_equal(reader.windows(utt_id, left, right), splice(feats, left, right))
            np.testing.assert_allclose(reader.cmvn_stats[row], cmvn.accumulate(feats))


@settings(IN_ONE_FOLDER, max_examples=12)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), cuts=st.lists(st.integers(0, 9), max_size=3))
def test_joined_shards_are_as_if_written_in_one_go(tmp_path, lengths, cuts):
    utts = random_utts(lengths)
    bounds = [0, *sorted(min(c, len(utts)) for c in cuts), len(utts)]
    shards = []
    for k in range(len(bounds) - 1):
        shards.append(tmp_path / "feats.h5.shards" / f"{k}.h5")
        write(shards[-1], utts[bounds[k] : bounds[k + 1]])
    whole = write(tmp_path / "whole.h5", utts)
    join_shards(tmp_path / "feats.h5", shards)
    with whole, FeatsReader(tmp_path / "feats.h5") as joined:
        assert joined.content_digest == whole.content_digest
        assert joined.layout.digest == whole.layout.digest
        sealed_apart = {SEAL: joined.attrs[SEAL]}  # with the list of shards
        assert {**joined.attrs} == {**whole.attrs, **sealed_apart}
        np.testing.assert_array_equal(joined.read_all(), whole.read_all())
        np.testing.assert_array_equal(joined.cmvn_stats, whole.cmvn_stats)
        assert joined.spk_ids == whole.spk_ids


@pytest.mark.parametrize("where", ["attribute", "data set"])
def test_what_is_changed_by_hand_is_found_and_the_seal_can_be_taken_off(tmp_path, where):
    write(tmp_path / "feats.h5", random_utts([5, 7])).close()
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        if where == "attribute":
            file.attrs["num_mel_bins"] = 4
        else:
            file["more"] = [1, 2]
    with pytest.raises(AsrKdError, match=r"feats\.h5: its tables are not those of its tables_digest"):
        FeatsReader(tmp_path / "feats.h5")
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        del file.attrs[SEAL]
    FeatsReader(tmp_path / "feats.h5").close()


def test_plain_h5py_reads_it(tmp_path):
    utts = random_utts([5, 7])
    write(tmp_path / "feats.h5", utts)
    with h5py.File(tmp_path / "feats.h5") as file:
        np.testing.assert_array_equal(file["feats"][5:], utts[1][2])
        assert file["utt/offset"][:].tolist() == [0, 5, 12]
        assert file["utt/id"].asstr()[:].tolist() == ["s0-u0", "s1-u1"]
        assert file["feats"].compression is None
        assert file["feats"].chunks == (1024, 3)
        expected = {"sample_rate": 8000, "frame_length_ms": 25, "frame_shift_ms": 10, "snip_edges": True}
        expected |= {"num_mel_bins": 3, "dtype": "float32", "kind": "fbank"}
        assert {name: file.attrs[name] for name in expected} == expected


def test_digests_see_every_change(tmp_path):
    utts = random_utts([5, 7])
    changed_value = [utts[0], (*utts[1][:2], utts[1][2] + np.float32(1e-6))]
    variants = {
        "itself": (utts, {}),
        "value": (changed_value, {}),
        "id": ([utts[0], ("s1-other", *utts[1][1:])], {}),
        "speaker": ([utts[0], (utts[1][0], "s2", utts[1][2])], {}),
        "order": (utts[::-1], {}),
        "boundary": (
            [(*utts[0][:2], np.concatenate([utts[0][2], utts[1][2][:1]])), (*utts[1][:2], utts[1][2][1:])],
            {},
        ),
        "fewer": (utts[:1], {}),
        "option": (utts, {"options": dataclasses.replace(OPTIONS, low_freq=30)}),
        "shift": (utts, {"options": dataclasses.replace(OPTIONS, frame_shift=5)}),
        "dtype": (utts, {"dtype": "float16"}),
    }
    readers = {name: write(tmp_path / f"{name}.h5", list(u), **more) for name, (u, more) in variants.items()}
    contents = {name: reader.content_digest for name, reader in readers.items()}
    assert len(set(contents.values())) == len(variants)
    layouts = {name: reader.layout.digest for name, reader in readers.items()}
    same = {name for name, digest in layouts.items() if digest == layouts["itself"]}
    assert same == {"itself", "value", "speaker", "option", "dtype"}
    assert write(tmp_path / "again.h5", utts).content_digest == contents["itself"]


@pytest.mark.parametrize(
    ("utt", "message"),
    [
        (("s0-u0", "s0", np.zeros((2, 3))), "twice"),
        (("a", "a", np.zeros((2, 4))), r"shape \(2, 4\)"),
        (("a", "a", np.zeros((0, 3))), r"shape \(0, 3\)"),
        (("a", "a", np.full((2, 3), np.nan)), "not finite"),
        (("a", "a", np.full((2, 3), 1e5)), "not finite as float16"),
    ],
)
def test_writer_refuses_and_leaves_nothing(tmp_path, utt, message):
    with pytest.raises(AsrKdError, match=message):
        write(tmp_path / "feats.h5", [*random_utts([5]), utt], dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_another_rate_and_type(tmp_path):
    with pytest.raises(AsrKdError, match="16000"):
        FeatsWriter(tmp_path / "feats.h5", kind="fbank", options=OPTIONS, sample_rate=16000)
    with pytest.raises(AsrKdError, match="float64"):
        writer(tmp_path / "feats.h5", dtype="float64")


def test_a_failed_rewrite_leaves_the_old_file(tmp_path):
    before = write(tmp_path / "feats.h5", random_utts([5])).content_digest
    with pytest.raises(AsrKdError, match="twice"):
        write(tmp_path / "feats.h5", random_utts([3]) * 2)
    assert FeatsReader(tmp_path / "feats.h5").content_digest == before


def test_only_a_file_of_its_kind_is_replaced_or_a_damaged_one(tmp_path):
    path = tmp_path / "f.h5"
    for content, kind in ((b"utt1 hello\n", "no HDF5 file"), (None, "asr_kd.other")):
        if content is None:
            with h5py.File(path, "w") as file:
                file.attrs["format"] = "asr_kd.other"
        else:
            path.write_bytes(content)
        before = path.read_bytes()
        with pytest.raises(AsrKdError, match=f"f.h5: exists and is {kind}, not asr_kd"):
            write(path, random_utts([3]))
        assert path.read_bytes() == before
    path.unlink()
    write(path, random_utts([3]))
    path.write_bytes(path.read_bytes()[:100])
    assert write(path, random_utts([4])).layout.num_frames == 4


def _read_in_child(reader: FeatsReader, queue: multiprocessing.Queue) -> None:
    queue.put(reader.read_all())


def test_reader_crosses_fork_and_pickle(tmp_path):
    reader = write(tmp_path / "feats.h5", random_utts([5, 9]))
    expected = reader.read_all()  # the handle is open now
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read_all(), expected)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_read_in_child, args=(reader, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=1200), expected)
    child.join()
    np.testing.assert_array_equal(reader.read_all(), expected)


def test_unknown_utterance(tmp_path):
    reader = write(tmp_path / "feats.h5", random_utts([5]))
    assert "s0-u0" in reader
    assert "other" not in reader
    with pytest.raises(AsrKdError, match="other"):
        reader["other"]


def edit(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def external_link(file: h5py.File) -> None:
    del file["feats"]
    file["feats"] = h5py.ExternalLink("secret.h5", "feats")


def soft_link(file: h5py.File) -> None:
    del file["utt/spk"]
    file["utt/spk"] = h5py.SoftLink("/utt/id")


def external_storage(file: h5py.File) -> None:
    del file["feats"]
    file.create_dataset("feats", (12, 3), "f4", external=[("secret.h5", 0, h5py.h5f.UNLIMITED)])


def virtual_table(file: h5py.File) -> None:
    del file["cmvn/stats"]
    layout = h5py.VirtualLayout((2, 2, 4), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "stats", (2, 2, 4))
    file.create_virtual_dataset("cmvn/stats", layout)


def virtual_feats(file: h5py.File) -> None:
    del file["feats"]
    layout = h5py.VirtualLayout((12, 3), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "feats", (12, 3))
    file.create_virtual_dataset("feats", layout)


def listed_outside(file: h5py.File) -> None:
    virtual_feats(file)
    file["shards/path"] = ["../secret.h5", "secret.h5"]
    file["shards/content_digest"] = ["", ""]


def no_feats(file: h5py.File) -> None:
    del file["feats"]


def fewer_rows(file: h5py.File) -> None:
    file["feats"].resize(11, axis=0)


def other_id(file: h5py.File) -> None:
    file["utt/id"][0] = "other"


def newer(file: h5py.File) -> None:
    file.attrs["version"] = 99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "link to elsewhere"),
        (soft_link, "link to elsewhere"),
        (external_storage, "stored in another file"),
        (virtual_table, "stored in another file"),
        (virtual_feats, "lacks the list"),
        (listed_outside, "outside of its folder"),
        (no_feats, "lacks its two-dimensional"),
        (fewer_rows, "do not match"),
        (other_id, "layout_digest"),
        (newer, "newer"),
    ],
)
def test_changed_or_foreign_files_are_refused(tmp_path, change, message):
    write(tmp_path / "secret.h5", random_utts([5, 7]))
    write(tmp_path / "feats.h5", random_utts([5, 7]))
    edit(tmp_path / "feats.h5", change)
    with pytest.raises(AsrKdError, match=message):
        FeatsReader(tmp_path / "feats.h5")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "feats.h5"
    write(path, random_utts([500]))
    whole = path.read_bytes()
    for content in (b"", b"not HDF5", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(AsrKdError, match=r"feats\.h5"):
            FeatsReader(path)
    with pytest.raises(AsrKdError, match="no such file"):
        FeatsReader(tmp_path / "none.h5")


@given(st.data())
def test_rows_are_read_where_they_lie(data):
    num_rows = data.draw(st.integers(0, 40))
    shape = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    dtype = data.draw(st.sampled_from(["<f4", "<f2", "<i4", ">i2"]))
    chunk_rows = data.draw(st.sampled_from([None, 1, 7, 64]))
    values = np.arange(num_rows * int(np.prod(shape))).reshape(num_rows, *shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.h5"
        with h5py.File(path, "w") as file:
            chunked = {} if chunk_rows is None else {"chunks": (chunk_rows, *shape), "maxshape": (None, *shape)}
            wanted = file.create_dataset("wanted", (0, *shape) if chunked else values.shape, dtype, **chunked)
            other = file.create_dataset("other", (0,), "u1", chunks=(5,), maxshape=(None,))  # its chunks lie between
            if chunked:
                for begin in range(0, num_rows, 7):
                    wanted.resize(min(begin + 7, num_rows), axis=0)
                    wanted[begin:] = values[begin : begin + 7]
                    other.resize(begin + 5, axis=0)
                    other[begin:] = 9
            elif num_rows:
                wanted[:] = values
        with h5py.File(path) as file:
            stored = StoredRows(file["wanted"])
            begin, end = sorted(data.draw(st.tuples(*2 * [st.integers(0, num_rows)])))
            found = stored.read(slice(begin, end))
            assert (found.dtype, found.shape) == (values.dtype, (end - begin, *shape))
            np.testing.assert_array_equal(found, values[begin:end])
            np.testing.assert_array_equal(stored.read(slice(begin, num_rows + 5)), values[begin:])


def test_rows_that_were_compressed_never_stored_or_cut_off_are_refused(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file.create_dataset("compressed", data=np.zeros(9), compression="gzip")
        file.create_dataset("unstored", (9,), "f4", chunks=(3,))[:3] = 1
        file["whole"] = np.zeros(9)
    with h5py.File(tmp_path / "rows.h5") as file:
        offset = file["whole"].id.get_offset()
        with pytest.raises(AsrKdError, match="compressed is compressed"):
            StoredRows(file["compressed"])
        with pytest.raises(AsrKdError, match="unstored was not stored as a whole"):
            StoredRows(file["unstored"])
        whole = StoredRows(file["whole"])
    np.testing.assert_array_equal(whole.read(slice(2, 99)), np.zeros(7))  # its file was closed
    os.truncate(tmp_path / "rows.h5", offset + 8)
    with pytest.raises(AsrKdError, match="cut off while it was read"):
        whole.read(slice(0, 9))


@pytest.fixture
def joined(tmp_path) -> tuple[Path, list[Path]]:
    shards = [tmp_path / "feats.h5.shards" / f"{k}.h5" for k in range(2)]
    utts = random_utts([5, 7])
    for shard, utt in zip(shards, utts, strict=True):
        write(shard, [utt])
    join_shards(tmp_path / "feats.h5", shards)
    return tmp_path / "feats.h5", shards


def test_a_lost_or_changed_shard_is_not_read_as_zeros(joined):
    path, shards = joined
    reader = FeatsReader(path)
    reader["s0-u0"]  # opens the file and the first shard
    shards[1].unlink()
    with pytest.raises(AsrKdError, match="removed while it was in use"):
        reader["s1-u1"]
    with pytest.raises(AsrKdError, match="is missing"):
        FeatsReader(path)
    write(shards[1], random_utts([5, 7], seed=1)[1:])
    with pytest.raises(AsrKdError, match="replaced while it was in use"):
        reader["s1-u1"]
    with pytest.raises(AsrKdError, match="was changed"):
        FeatsReader(path)


def test_joined_file_moves_with_its_shards_and_is_found_through_a_link(joined, tmp_path, monkeypatch):
    path, _ = joined
    expected = FeatsReader(path).read_all()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for entry in (path, path.with_name("feats.h5.shards")):
        entry.rename(elsewhere / entry.name)
    (tmp_path / "link.h5").symlink_to(elsewhere / "feats.h5")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(FeatsReader("elsewhere/feats.h5").read_all(), expected)
    np.testing.assert_array_equal(FeatsReader("link.h5").read_all(), expected)


def test_shards_that_cannot_be_joined(tmp_path):
    folder = tmp_path / "feats.h5.shards"
    a = write(folder / "a.h5", random_utts([5])).path
    b = write(folder / "b.h5", random_utts([5]), dtype="float16").path
    for shards, message in (([], "no shards"), ([a, a], "twice"), ([a, b], "dtype is 'float16'")):
        with pytest.raises(AsrKdError, match=message):
            join_shards(tmp_path / "feats.h5", shards)
    with pytest.raises(AsrKdError, match="must lie in the folder"):
        join_shards(tmp_path / "other" / "feats.h5", [a])
    with pytest.raises(AsrKdError, match="'%'"):
        join_shards(tmp_path / "feats.h5", [write(folder / "5%b.h5", random_utts([5])).path])
    assert not (tmp_path / "feats.h5").exists()


# Alignments


LAYOUT = Layout.from_lengths(["a", "b", "c"], [3, 2, 4])
PDF = np.array([0, 1, 2, FAILED, FAILED, 3, 3, 1, 0])


def write_good_ali(path: Path, **changes) -> None:
    arguments = {"layout": LAYOUT, "pdf": PDF, "num_pdfs": 4, "model_digest": "m", "sil_pdfs": [0]}
    write_ali(path, **{**arguments, **changes})


def test_alignment_round_trip(tmp_path):
    phone = np.where(PDF == FAILED, -1, PDF // 2)
    write_good_ali(tmp_path / "ali.h5", phone=phone, phones=["SIL", "AH"])
    ali = AliReader(tmp_path / "ali.h5")
    assert ali.layout.digest == LAYOUT.digest
    assert ali.pdf.dtype == np.int64
    np.testing.assert_array_equal(ali.pdf, PDF)
    np.testing.assert_array_equal(ali.phone, phone)
    assert (ali.num_pdfs, ali.model_digest, ali.phones) == (4, "m", ["SIL", "AH"])
    assert ali.sil_pdfs.tolist() == [0]
    assert ali.failed_utt_ids == ["b"]
    tid = np.where(PDF == FAILED, -1, 2 * PDF + 1)
    write_good_ali(tmp_path / "ali.h5", tid=tid)
    np.testing.assert_array_equal(AliReader(tmp_path / "ali.h5").tid, tid)
    write_good_ali(tmp_path / "ali.h5")
    assert AliReader(tmp_path / "ali.h5").tid is None
    assert AliReader(tmp_path / "ali.h5").phone is None
    assert AliReader(tmp_path / "ali.h5").phones is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pdf": PDF[:-1]}, "9 frames"),
        ({"pdf": PDF.astype(float)}, "not whole numbers"),
        ({"num_pdfs": 3}, "states -1 to 3"),
        ({"pdf": np.where(PDF == FAILED, -2, PDF)}, "states -2"),
        ({"pdf": np.where(PDF == 2, FAILED, PDF)}, "'a' is aligned only in part"),
        ({"sil_pdfs": [4]}, "silence"),
        ({"phone": np.maximum(PDF, 0)}, "need the list"),
        ({"phone": PDF, "phones": ["SIL"]}, "not among the 1"),
        ({"phone": np.zeros(9, int), "phones": ["SIL"]}, "missing from"),
        ({"tid": PDF}, "has no transition-id"),
        ({"tid": np.ones(9, int)}, "one that is not aligned has"),
        ({"tid": PDF[:-1]}, "/tid has shape"),
    ],
)
def test_alignment_that_does_not_fit_its_layout(tmp_path, changes, message):
    with pytest.raises(AsrKdError, match=message):
        write_good_ali(tmp_path / "ali.h5", **changes)
    assert list(tmp_path.iterdir()) == []


def test_changed_alignment_is_refused(tmp_path):
    path = tmp_path / "ali.h5"

    def out_of_range(file):
        file["pdf"][0] = 9

    def no_model(file):
        del file.attrs["model_digest"]

    def another_tid(file):
        file["tid"][0] = 5

    def link(file):
        del file["pdf"]
        file["pdf"] = h5py.ExternalLink("other.h5", "pdf")

    for change, message in ((out_of_range, "states"), (no_model, "damaged or incomplete"), (link, "link to elsewhere")):
        write_good_ali(path)
        edit(path, change)
        with pytest.raises(AsrKdError, match=message):
            AliReader(path)
    write_good_ali(path, tid=np.where(PDF == FAILED, -1, 1))
    edit(path, another_tid)
    with pytest.raises(AsrKdError, match="values_digest"):
        AliReader(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 5]), "'c' has 4 frames in one and 5 in the other"),
        (Layout.from_lengths(["a", "c", "b"], [3, 4, 2]), "different orders"),
        (Layout.from_lengths(["a", "b"], [3, 2]), "1 utterances are in one only, the first is 'c'"),
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 4], frame_shift_ms=30), "frame shift"),
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 4], snip_edges=False), "snip_edges"),
        (Layout.from_lengths(["a", "b", "c"], [9, 5, 12]), "one state for 3 frames, as alignments of chain models"),
    ],
)
def test_require_fit_names_the_first_difference(other, message):
    require_fit(LAYOUT, LAYOUT, ("ali.h5", "feats.h5"))
    with pytest.raises(AsrKdError, match=rf"ali\.h5 does not fit feats\.h5: .*{message}"):
        require_fit(LAYOUT, other, ("ali.h5", "feats.h5"))
