"""`asr-kd inspect`: what it says is so, what is flawed is found, and no file makes it hang, crash or go elsewhere."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from conftest import NUM_PDFS

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.inspection import describe, flaws, format_description
from asr_kd.store import hdf5_guard
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import readable
from asr_kd.store.kaldi_ark import write_int_vectors, write_matrices, write_vectors
from asr_kd.store.targets import TargetsReader, write_targets

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def targets(toy, tmp_path) -> Path:
    layout = FeatsReader(toy["feats"]).layout
    prob = np.tile([0.5, 0.25], (layout.num_frames, 1))
    arrays = {"prob": prob, "pdf": np.tile([0, 1], (layout.num_frames, 1)), "tail": np.full(layout.num_frames, 0.25)}
    attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["a", "b"]}
    attributes |= {"content_digest": "c", "model_digest": "m"}
    blocks = [(slice(0, layout.num_frames), arrays)]
    write_targets(tmp_path / "targets.h5", layout, blocks, num_pdfs=NUM_PDFS, top_k=2, attributes=attributes)
    return tmp_path / "targets.h5"


def test_features(toy):
    reader = FeatsReader(toy["feats"])
    values = reader.read_all().astype(np.float64)
    found = describe(toy["feats"])
    assert (found["num_utts"], found["num_frames"], found["num_speakers"]) == (30, len(values), 2)
    assert found["frames_per_utterance"]["longest"] == reader.layout.lengths.max()
    assert found["seconds_per_utterance"]["shortest"] == pytest.approx(reader.layout.lengths.min() / 100)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(found[name], getattr(values, name)(axis=0), rtol=1e-6)
    assert found["attributes"]["options"]["num_mel_bins"] == 40
    assert found["attributes"]["content_digest"] == reader.content_digest
    assert flaws(found) == []
    quick = describe(toy["feats"], quick=True)
    np.testing.assert_allclose(quick["mean"], found["mean"], rtol=1e-6)
    assert "damaged_utts" not in quick


def test_changed_values_and_values_that_are_not_finite_are_found(toy, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(toy["feats"].read_bytes())
    with h5py.File(path, "r+") as file:
        file["feats"][5, 3] += 1
        file["feats"][file["utt/offset"][4], 0] = np.nan
    found = describe(path)
    utt_ids = FeatsReader(path).layout.utt_ids
    assert found["damaged_utts"] == [utt_ids[0], utt_ids[4]]
    assert found["keys_not_finite"] == [utt_ids[4]]
    assert all(np.isfinite(found["mean"]))
    assert main(["inspect", str(path)]) == 1


def test_alignment(toy, tmp_path):
    ali = AliReader(toy["ali"])
    pdf = ali.pdf.copy()
    pdf[ali.layout.rows(ali.layout.utt_ids[2])] = -1
    phone = np.where(pdf < 0, -1, pdf // 2)
    path = tmp_path / "ali.h5"
    write_ali(
        path,
        ali.layout,
        pdf,
        num_pdfs=NUM_PDFS + 1,
        model_digest="m",
        sil_pdfs=[0, 1],
        phone=phone,
        phones=["SIL", "A", "B"],
    )
    found = describe(path)
    labelled = pdf[pdf >= 0]
    assert (found["num_pdfs"], found["num_pdfs_seen"]) == (NUM_PDFS + 1, NUM_PDFS)
    assert found["failed_utts"] == [ali.layout.utt_ids[2]]
    assert found["share_unlabelled"] == pytest.approx((pdf < 0).mean())
    assert found["share_silence"] == pytest.approx((labelled <= 1).mean())
    assert found["phone_shares"]["SIL"] == pytest.approx(found["share_silence"])
    runs = sum(
        1 + np.count_nonzero(np.diff(pdf[ali.layout.rows(u)]))
        for u in ali.layout.utt_ids
        if u not in found["failed_utts"]
    )
    assert found["mean_frames_in_a_state"] == pytest.approx(len(labelled) / runs)


def test_targets(toy, targets):
    found = describe(targets)
    assert found["kind"] == "soft targets"
    assert (found["temperature"], found["num_members"], found["entries_per_frame"]) == (2.0, 2, 2)
    assert "sequence_weight" not in found
    assert found["mean_mass_kept"] == pytest.approx(0.75)
    assert found["mean_largest"] == pytest.approx(0.5)
    assert found["layout_digest"] == FeatsReader(toy["feats"]).layout.digest


def test_kaldis_tables(tmp_path):
    rng = np.random.default_rng(0)
    items = [(f"u{i}", rng.normal(i, 1, size=(5 + i, 3)).astype(np.float32)) for i in range(4)]
    write_matrices(f"ark,scp:{tmp_path}/x.ark,{tmp_path}/x.scp", items)
    values = np.concatenate([matrix for _, matrix in items]).astype(np.float64)
    for table in (f"{tmp_path}/x.ark", f"{tmp_path}/x.scp", f"scp:{tmp_path}/x.scp"):
        found = describe(table)
        assert (found["num_utts"], found["num_frames"], found["feat_dim"]) == (4, len(values), 3)
        np.testing.assert_allclose(found["std"], values.std(axis=0), rtol=1e-6)
    write_int_vectors(f"ark:{tmp_path}/i.ark", [("a", np.array([7, 7, 9])), ("b", np.array([], dtype=int))])
    assert describe(f"ark:{tmp_path}/i.ark").items() >= {"num_utts": 2, "max": 9, "num_distinct": 2}.items()
    write_vectors(f"ark:{tmp_path}/v.ark", [("a", np.array([1.0, np.inf, 3.0]))])
    found = describe(f"{tmp_path}/v.ark")
    assert found["keys_not_finite"] == ["a"]
    assert found["mean"] == [2.0]
    write_matrices(f"ark:{tmp_path}/mixed.ark", [("a", np.ones((2, 2))), ("b", np.ones((2, 3)))])
    with pytest.raises(AsrKdError, match=r"mixed.ark.*'b' has 3 columns"):
        describe(f"{tmp_path}/mixed.ark")
    write_matrices(f"ark:{tmp_path}/empty.ark", [])
    with pytest.raises(AsrKdError, match="empty table"):
        describe(f"{tmp_path}/empty.ark")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_audio_is_told_from_what_is_damaged(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, np.zeros(800), 8000)
    with pytest.raises(AsrKdError, match=r"x\..*is audio"):
        describe(path)


def test_folders_by_their_records(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "hmm.json").write_text(json.dumps({"format": "asr_kd-hmm", "version": 1, "num_pdfs": 60}))
    assert describe(tmp_path).items() >= {"kind": "folder (asr_kd-hmm)", "num_pdfs": 60}.items()
    (tmp_path / "hmm.json").write_text("{")
    with pytest.raises(AsrKdError, match="no record of this project"):
        describe(tmp_path)


def test_lines_for_people_and_json_for_programs(toy, capsys):
    assert main(["inspect", str(toy["feats"]), str(toy["ali"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in found] == ["features (fbank)", "alignment"]
    lines = list(format_description(found[0]))
    assert any(line.split() == ["num_utts", "30"] for line in lines)
    assert max(map(len, lines)) <= 120
    assert main(["inspect", str(toy["feats"]), str(toy["dev_ali"])]) == 1
    assert "is not of the same utterances and frames" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(toy, tmp_path, suffix):
    out = tmp_path / f"x.{suffix}"
    utt_id = FeatsReader(toy["feats"]).layout.utt_ids[3]
    assert main(["inspect", str(toy["feats"]), str(toy["ali"]), "--picture", str(out), "--utt", utt_id]) == 0
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert len(content) > 5000


def test_picture_of_an_archive(tmp_path, capsys):
    matrices = {"b": np.zeros((30, 3), np.float32), "a": np.ones((40, 3), np.float32)}
    table = f"ark:{tmp_path / 'x.ark'}"
    write_matrices(table, matrices.items())
    for options, drawn in (([], "b"), (["--utt", "a"], "a")):
        assert main(["inspect", table, "--picture", str(tmp_path / "x.png"), *options]) == 0
        assert capsys.readouterr().err.endswith(f"x.png: {drawn}\n")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", table, "--picture", str(tmp_path / "y.png"), "--utt", "c"]) == 1
    assert "has no utterance 'c'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["feats"], ["--picture", "x.gif"], "drawn as .png"),
        (["feats"], ["--picture", "x.png", "--utt", "none"], "'none' is not in"),
        (["ali"], ["--picture", "x.png"], "needs one feats.h5"),
        (["feats", "dev_ali"], ["--picture", "x.png"], "does not fit"),
    ],
)
def test_pictures_that_cannot_be_drawn(toy, tmp_path, monkeypatch, capsys, files, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "--quick", *(str(toy[file]) for file in files), *options]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_missing_files_get_one_sentence_each(tmp_path, capsys):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1, 2]
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "folder").mkdir()
    names = ["foreign.h5", "text.h5", "empty.h5", "folder", "none.h5", "none.ark"]
    assert main(["inspect", *(str(tmp_path / name) for name in names)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(names)
    for name, line in zip(names, errors, strict=True):
        assert name in line
    assert "not one of this project" in errors[0]


def replaced_by(link):
    def change(file: h5py.File, name: str) -> None:
        del file[name]
        file[name] = link

    return change


def stored_elsewhere(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype, external=[("secret", 0, h5py.h5f.UNLIMITED)])


def made_virtual(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("secret.h5", name, shape)
    file.create_virtual_dataset(name, layout)


def made_huge(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, (1 << 40, *shape[1:]), dtype, chunks=(1024, *shape[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced_by(h5py.ExternalLink("secret.h5", "x")), "link to elsewhere, which is not followed"),
        (replaced_by(h5py.SoftLink("/utt/offset")), "link to elsewhere, which is not followed"),
        (stored_elsewhere, "stored in another file"),
        (made_virtual, "stored in another file"),
        (made_huge, "more than the file can hold"),
    ],
)
@pytest.mark.parametrize("kind", ["feats", "ali", "targets"])
def test_no_hdf5_file_leads_out_of_itself_or_promises_what_it_lacks(toy, targets, tmp_path, kind, change, message):
    source, name, reader = {
        "feats": (toy["feats"], "utt/digest", FeatsReader),
        "ali": (toy["ali"], "pdf", AliReader),
        "targets": (targets, "prob", TargetsReader),
    }[kind]
    path = tmp_path / "x.h5"
    path.write_bytes(source.read_bytes())
    (tmp_path / "secret").write_bytes(os.urandom(1 << 16))
    with h5py.File(path, "r+") as file:
        change(file, name)
    with pytest.raises(AsrKdError, match=message):
        reader(path)


def test_a_file_cut_anywhere_is_refused(toy, tmp_path):
    whole = toy["ali"].read_bytes()
    path = tmp_path / "x.h5"
    for length in np.linspace(1, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(AsrKdError, match=r"x\.h5"):
            describe(path)


def test_a_crash_is_found_where_memory_is_limited_too():
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code += (
        "from asr_kd.store import hdf5_guard as guard; guard._limit(); print(resource.getrlimit(resource.RLIMIT_AS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_system_refuses_is_not_the_fault_of_the_file(tmp_path):
    with pytest.raises(OSError, match="Too many open files"), readable(tmp_path / "x.h5"):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "shard.h5")


def test_a_file_over_which_the_hdf5_library_never_returns(monkeypatch):
    """Three bits of a good ali.h5 are flipped; with HDF5 1.14 reading its attributes is an endless loop."""
    monkeypatch.setattr(hdf5_guard, "CPU_SECONDS", 2)
    with pytest.raises(AsrKdError, match=r"hangs_hdf5\.h5: is damaged: HDF5 does not come to an end"):
        describe(GOLDEN / "hangs_hdf5.h5")
