"""feats.h5 and ali.h5: what is written is read, digests see every change, and what does not fit is refused."""

import dataclasses
import importlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_kd.cli_common import run_main
from asr_kd.corpus.datadir import Recording, Utterance, read_data_dir, write_data_dir
from asr_kd.errors import AsrKdError
from asr_kd.features import cmvn
from asr_kd.features.extract import Recipe, extract, inputs_digest
from asr_kd.features.fbank import compute_fbank
from asr_kd.features.mfcc import compute_mfcc
from asr_kd.features.options import FbankOptions, MfccOptions
from asr_kd.features.splice import splice
from asr_kd.store.ali import FAILED, AliReader, require_fit, write_ali
from asr_kd.store.feats import FeatsReader, FeatsWriter, join_shards
from asr_kd.store.hdf5 import Layout

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
        assert {**joined.attrs} == {**whole.attrs}
        np.testing.assert_array_equal(joined.read_all(), whole.read_all())
        np.testing.assert_array_equal(joined.cmvn_stats, whole.cmvn_stats)
        assert joined.spk_ids == whole.spk_ids


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
    np.testing.assert_array_equal(queue.get(timeout=20), expected)
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
    a = write(tmp_path / "s" / "a.h5", random_utts([5])).path
    b = write(tmp_path / "s" / "b.h5", random_utts([5]), dtype="float16").path
    for shards, message in (([], "no shards"), ([a, a], "twice"), ([a, b], "dtype is 'float16'")):
        with pytest.raises(AsrKdError, match=message):
            join_shards(tmp_path / "feats.h5", shards)
    with pytest.raises(AsrKdError, match="below the folder"):
        join_shards(tmp_path / "other" / "feats.h5", [a])
    with pytest.raises(AsrKdError, match="'%'"):
        join_shards(tmp_path / "feats.h5", [write(tmp_path / "5%b.h5", random_utts([5])).path])
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
    write_good_ali(tmp_path / "ali.h5")
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

    def link(file):
        del file["pdf"]
        file["pdf"] = h5py.ExternalLink("other.h5", "pdf")

    for change, message in ((out_of_range, "states"), (no_model, "not complete"), (link, "link to elsewhere")):
        write_good_ali(path)
        edit(path, change)
        with pytest.raises(AsrKdError, match=message):
            AliReader(path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 5]), "'c' has 4 frames in one and 5 in the other"),
        (Layout.from_lengths(["a", "c", "b"], [3, 4, 2]), "different orders"),
        (Layout.from_lengths(["a", "b"], [3, 2]), "1 utterances are in one only, the first is 'c'"),
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 4], frame_shift_ms=30), "frame shift"),
        (Layout.from_lengths(["a", "b", "c"], [3, 2, 4], snip_edges=False), "snip_edges"),
    ],
)
def test_require_fit_names_the_first_difference(other, message):
    require_fit(LAYOUT, LAYOUT, ("ali.h5", "feats.h5"))
    with pytest.raises(AsrKdError, match=rf"ali\.h5 does not fit feats\.h5: .*{message}"):
        require_fit(LAYOUT, other, ("ali.h5", "feats.h5"))


# Extraction


@pytest.fixture
def data(tmp_path) -> Path:
    """A data directory of seven short recordings of noise at 8 kHz."""
    rng = np.random.default_rng(0)
    utts = []
    for i in range(7):
        wav = tmp_path / "data" / "wav" / f"{i}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, rng.integers(-9000, 9000, 1600 + 80 * i, dtype=np.int16), 8000)
        utts.append(Utterance(f"s{i // 4}-u{i}", f"s{i // 4}", Recording(f"s{i // 4}-u{i}", str(wav)), words=("one",)))
    write_data_dir(tmp_path / "data", utts)
    return tmp_path / "data"


def test_extraction_is_the_front_end_of_each_recording(data, tmp_path):
    utts = read_data_dir(data, need_text=False)
    mfcc = MfccOptions(sample_frequency=8000)
    assert extract(utts, tmp_path / "fbank.h5", OPTIONS)
    assert extract(utts, tmp_path / "mfcc.h5", mfcc)
    fbanks, mfccs = FeatsReader(tmp_path / "fbank.h5"), FeatsReader(tmp_path / "mfcc.h5")
    assert fbanks.layout.digest == mfccs.layout.digest
    assert fbanks.content_digest != mfccs.content_digest
    assert mfccs.attrs["kind"] == "mfcc"
    for utt in utts:
        samples = soundfile.read(utt.recording.source, dtype="int16")[0]
        np.testing.assert_array_equal(fbanks[utt.utt_id], compute_fbank(samples, OPTIONS))
        np.testing.assert_array_equal(mfccs[utt.utt_id], compute_mfcc(samples, mfcc))


def test_extraction_again_only_if_something_changed(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    assert extract(utts, out, OPTIONS)
    lines: list[str] = []
    assert not extract(utts, out, OPTIONS, log=lines.append)
    assert lines == [f"{out}: up to date"]
    assert extract(utts, out, dataclasses.replace(OPTIONS, low_freq=30))
    assert extract(utts, out, OPTIONS, dtype="float16")
    assert extract(utts[:-1], out, OPTIONS)
    os.utime(utts[0].recording.source, ns=(1, 1))
    assert extract(utts[:-1], out, OPTIONS)
    out.write_bytes(out.read_bytes()[:1000])
    assert extract(utts[:-1], out, OPTIONS)
    assert not extract(utts[:-1], out, OPTIONS)


def test_bad_recordings_are_listed_and_skipped_up_to_a_share(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    soundfile.write(utts[2].recording.source, np.zeros(100, dtype=np.int16), 8000)
    lines: list[str] = []
    with pytest.raises(AsrKdError, match=r"1 of 7 utterances could not be used.* s0-u2: .*100 samples are shorter"):
        extract(utts, out, OPTIONS, log=lines.append)
    assert lines[0].startswith("skipped s0-u2: ")
    assert not out.exists()
    assert extract(utts, out, OPTIONS, max_bad_share=0.2)
    reader = FeatsReader(out)
    assert reader.layout.num_utts == 6
    assert [utt_id for utt_id, _ in reader.skipped] == ["s0-u2"]
    assert not extract(utts, out, OPTIONS, max_bad_share=0.2)
    with pytest.raises(AsrKdError, match="1 of 7"):  # up to date, but no longer acceptable
        extract(utts, out, OPTIONS)


def test_nothing_usable_is_an_error_at_any_share(data, tmp_path):
    with pytest.raises(AsrKdError, match=r"7 of 7.*expected 16000 Hz, found 8000"):
        extract(read_data_dir(data), tmp_path / "feats.h5", FbankOptions(), max_bad_share=1.0)
    with pytest.raises(AsrKdError, match="no utterances"):
        extract([], tmp_path / "feats.h5", OPTIONS)
    with pytest.raises(AsrKdError, match="nj is 0"):
        extract(read_data_dir(data), tmp_path / "feats.h5", OPTIONS, nj=0)


def test_shards_equal_one_process_and_are_reused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("asr_kd.features.extract.MIN_UTTS_PER_PROCESS", 1)
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    Path(utts[5].recording.source).write_bytes(b"")
    extract(utts, tmp_path / "single.h5", OPTIONS, max_bad_share=0.2)
    extract(utts, out, OPTIONS, nj=2, max_bad_share=0.2)
    single, sharded = FeatsReader(tmp_path / "single.h5"), FeatsReader(out)
    assert dict(single.attrs) == dict(sharded.attrs)
    assert single.skipped == sharded.skipped
    np.testing.assert_array_equal(single.read_all(), sharded.read_all())

    out.unlink()  # as if killed before the join
    lines: list[str] = []
    extract(utts, out, OPTIONS, nj=2, max_bad_share=0.2, log=lines.append)
    assert "2 of 2 shards are there from before" in lines
    assert FeatsReader(out).content_digest == single.content_digest

    extract(utts[:5], out, OPTIONS)  # in one process: the shards go
    assert not (tmp_path / "feats.h5.shards").exists()


def test_inputs_digest_is_of_ids_speakers_recordings_and_options(data):
    utts = read_data_dir(data)
    changed = [
        (utts, Recipe(OPTIONS)),
        (utts[1:], Recipe(OPTIONS)),
        ([dataclasses.replace(utts[0], utt_id="x"), *utts[1:]], Recipe(OPTIONS)),
        ([dataclasses.replace(utts[0], spk_id="x"), *utts[1:]], Recipe(OPTIONS)),
        ([dataclasses.replace(utts[0], recording=utts[1].recording), *utts[1:]], Recipe(OPTIONS)),
        (utts, Recipe(OPTIONS, "float16")),
        (utts, Recipe(MfccOptions(sample_frequency=8000, num_mel_bins=13))),
    ]
    assert len({inputs_digest(*arguments) for arguments in changed}) == len(changed)


def test_command_line(data, tmp_path):
    out = tmp_path / "feats.h5"
    command = [sys.executable, SCRIPT, "--data", data, "--out", out]
    command += ["--sample-frequency=8000", "--num-mel-bins", "5", "--snip-edges=false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("# extract_fbank.py --data ")
    reader = FeatsReader(out)
    assert reader.feat_dim == 5
    assert not reader.layout.snip_edges


@pytest.fixture
def extract_fbank(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("extract_fbank")


def test_command_line_reports_an_error_in_one_line(extract_fbank, data, tmp_path, capsys):
    soundfile.write(data / "wav" / "0.wav", np.zeros(100, dtype=np.int16), 8000)
    arguments = ["--data", str(data), "--out", str(tmp_path / "feats.h5"), "--sample-frequency=8000"]
    assert run_main(extract_fbank.main, extract_fbank.build_parser(), arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'feats.h5'}: 1 of 7 utterances")


def test_command_line_options(extract_fbank, capsys):
    parser = extract_fbank.build_parser()
    text = parser.format_help()
    for name in ("--num-mel-bins", "--low-freq", "--high-freq", "--snip-edges", "--use-energy", "--cepstral-lifter"):
        assert name in text
    assert "Kaldi's default is 1" in text
    needed = ["--data", "d", "--out", "o"]
    assert extract_fbank.front_end_options(parser.parse_args(needed)) == FbankOptions()
    assert extract_fbank.front_end_options(parser.parse_args([*needed, "--kind=mfcc"])) == MfccOptions()
    given_options = extract_fbank.front_end_options(parser.parse_args([*needed, "--use-energy=true", "--low-freq=64"]))
    assert given_options == FbankOptions(use_energy=True, low_freq=64)
    with pytest.raises(AsrKdError, match="--num-ceps is not an option of fbank"):
        extract_fbank.front_end_options(parser.parse_args([*needed, "--num-ceps=5"]))
    for refused in ("--dither=1", "--snip-edges=yes", "--unknown=1"):
        with pytest.raises(SystemExit):
            parser.parse_args([*needed, refused])
    assert "features do not depend on chance" in capsys.readouterr().err


def test_killed_extraction_leaves_no_file_and_continues(data, tmp_path):
    """kill -9 while a file is being written: nothing is at its place, and the same command makes it whole."""
    out = tmp_path / "feats.h5"
    command = [
        sys.executable,
        "-c",
        "import sys, time\n"
        "from asr_kd.features import extract as e\n"
        "from asr_kd.corpus.datadir import read_data_dir\n"
        "from asr_kd.features.options import FbankOptions\n"
        "real = e.read_samples\n"
        "def slow(utt, rate):\n"
        "    if utt.utt_id == 's1-u5':\n"
        "        print('there', flush=True); time.sleep(60)\n"
        "    return real(utt, rate)\n"
        "e.read_samples = slow\n"
        "e.extract(read_data_dir(sys.argv[1]), sys.argv[2], FbankOptions(sample_frequency=8000, num_mel_bins=3))\n",
        str(data),
        str(out),
    ]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    assert extract(read_data_dir(data), out, OPTIONS)
    assert FeatsReader(out).layout.num_utts == 7
    assert not list(tmp_path.glob(".*.partial"))
