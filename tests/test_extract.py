"""From recordings to feats.h5: the same whatever the portions, made again only when needed, and whole or not there."""

import dataclasses
import importlib
import io
import os
import shutil
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
from asr_kd.features.deltas import add_deltas
from asr_kd.features.extract import extract
from asr_kd.features.fbank import compute_fbank
from asr_kd.features.inputs import Recipe, add, contents_digest, stamps, total
from asr_kd.features.mfcc import compute_mfcc
from asr_kd.features.options import FbankOptions, MfccOptions
from asr_kd.features.quality import remark_on
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import SEAL
from asr_kd.store.kaldi_ark import read_matrices
from asr_kd.store.lock import only_writer

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "data_prep" / "extract_fbank.py"
OPTIONS = FbankOptions(sample_frequency=8000, num_mel_bins=3)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def utterance(utt_id: str, wav: Path, **more) -> Utterance:
    return Utterance(utt_id, utt_id.split("-")[0], Recording(utt_id, str(wav)), words=("one",), **more)


def wav_of(utt: Utterance) -> Path:
    return Path(utt.recording.source)


@pytest.fixture
def data(tmp_path) -> Path:
    """A data directory of seven short recordings of noise at 8 kHz."""
    rng = np.random.default_rng(0)
    utts = []
    for i in range(7):
        wav = tmp_path / "data" / "wav" / f"{i}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, rng.integers(-9000, 9000, 1600 + 80 * i, dtype=np.int16), 8000)
        utts.append(utterance(f"s{i // 4}-u{i}", wav))
    write_data_dir(tmp_path / "data", utts)
    return tmp_path / "data"


@pytest.fixture
def small_shards(monkeypatch):
    """Two of the recordings fill a shard."""
    monkeypatch.setattr("asr_kd.features.extract.SHARD_BYTES", 40_000)


def same(a: Path, b: Path) -> None:
    """Two files hold the same, bit for bit, and say so."""
    with FeatsReader(a) as first, FeatsReader(b) as second:
        # Tables name a file's shards, which lie in a folder of its own name.
        assert {**first.attrs, SEAL: ""} == {**second.attrs, SEAL: ""}
        assert first.layout.utt_ids == second.layout.utt_ids
        assert first.skipped == second.skipped
        assert first.noted == second.noted
        np.testing.assert_array_equal(first.read_all(), second.read_all())
        np.testing.assert_array_equal(first.cmvn_stats, second.cmvn_stats)


def test_extraction_is_the_front_end_of_each_recording(data, tmp_path):
    utts = read_data_dir(data, need_text=False)
    mfcc = MfccOptions(sample_frequency=8000, delta_order=2)
    assert extract(utts, tmp_path / "fbank.h5", OPTIONS)
    assert extract(utts, tmp_path / "mfcc.h5", mfcc)
    fbanks, mfccs = FeatsReader(tmp_path / "fbank.h5"), FeatsReader(tmp_path / "mfcc.h5")
    assert fbanks.layout.digest == mfccs.layout.digest
    assert fbanks.content_digest != mfccs.content_digest
    assert mfccs.attrs["kind"] == "mfcc"
    assert mfccs.feat_dim == 39
    for utt in utts:
        samples = soundfile.read(wav_of(utt), dtype="int16")[0]
        np.testing.assert_array_equal(fbanks[utt.utt_id], compute_fbank(samples, OPTIONS))
        static = compute_mfcc(samples, dataclasses.replace(mfcc, delta_order=0))
        np.testing.assert_array_equal(mfccs[utt.utt_id], add_deltas(static))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data_=st.data())
def test_any_portions_give_the_same_bits(data, tmp_path, small_shards, data_):
    """Made at once, in shards, or by appending any runs of utterances."""
    utts = read_data_dir(data)
    dtype = data_.draw(st.sampled_from(["float32", "float16"]))
    cuts = sorted(data_.draw(st.sets(st.integers(1, 6), max_size=3)))
    for name in ("once.h5", "parts.h5"):
        (tmp_path / name).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / f"{name}.shards", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asr_kd.features.extract.SHARD_BYTES", 1 << 30)
        extract(utts, tmp_path / "once.h5", OPTIONS, dtype=dtype)
    for start, stop in zip([0, *cuts], [*cuts, 7], strict=True):
        assert extract(utts[start:stop], tmp_path / "parts.h5", OPTIONS, dtype=dtype, append=True)
        assert not extract(utts[start:stop], tmp_path / "parts.h5", OPTIONS, dtype=dtype, append=True)
    same(tmp_path / "once.h5", tmp_path / "parts.h5")
    assert not extract(utts, tmp_path / "parts.h5", OPTIONS, dtype=dtype)  # all of them together are up to date


def test_appending_refuses_what_does_not_fit(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    extract(utts[:3], out, OPTIONS)
    for options, dtype, message in (
        (FbankOptions(sample_frequency=8000, num_mel_bins=4), "float32", r"differently: its num_mel_bins is 3, not 4$"),
        (OPTIONS, "float16", "its dtype is float32"),
        (MfccOptions(sample_frequency=8000), "float32", "its kind is fbank"),
    ):
        with pytest.raises(AsrKdError, match=f"cannot be extended .*{message}"):
            extract(utts[3:], out, options, dtype=dtype, append=True)
    with pytest.raises(AsrKdError, match="has utterance 's0-u2' already"):
        extract(utts[2:], out, OPTIONS, append=True)
    assert FeatsReader(out).layout.num_utts == 3


def test_extraction_again_only_if_something_changed(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    assert extract(utts, out, OPTIONS)
    lines: list[str] = []
    assert not extract(utts, out, OPTIONS, log=lines.append)
    assert lines == [f"{out}: up to date"]
    assert extract(utts, out, dataclasses.replace(OPTIONS, low_freq=30))
    assert extract(utts, out, OPTIONS, dtype="float16")
    assert extract(utts[:-1], out, OPTIONS)
    samples = soundfile.read(wav_of(utts[0]), dtype="int16")[0]
    soundfile.write(wav_of(utts[0]), samples[::-1], 8000)  # of the same size
    assert extract(utts[:-1], out, OPTIONS)
    out.write_bytes(out.read_bytes()[:1000])
    assert extract(utts[:-1], out, OPTIONS)
    assert not extract(utts[:-1], out, OPTIONS)


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_moved_corpus_is_up_to_date(data, tmp_path, keep_times):
    out = tmp_path / "feats.h5"
    extract(read_data_dir(data), out, OPTIONS)
    shutil.copytree(data, tmp_path / "elsewhere", copy_function=shutil.copy2 if keep_times else shutil.copyfile)
    shutil.rmtree(data)
    moved = read_data_dir(tmp_path / "elsewhere")
    assert {wav_of(utt).parent.parent.name for utt in moved} == {"elsewhere"}
    if not keep_times:
        os.utime(wav_of(moved[3]), ns=(1, 1))
    assert not extract(moved, out, OPTIONS)


def test_inputs_are_ids_speakers_parts_recordings_and_options(data):
    utts = read_data_dir(data)
    first, *rest = utts
    changed = [
        (utts, Recipe(OPTIONS)),
        (rest, Recipe(OPTIONS)),
        ([dataclasses.replace(first, utt_id="x"), *rest], Recipe(OPTIONS)),
        ([dataclasses.replace(first, spk_id="x"), *rest], Recipe(OPTIONS)),
        ([dataclasses.replace(first, recording=rest[0].recording), *rest], Recipe(OPTIONS)),
        ([dataclasses.replace(first, start_s=0.05, end_s=0.1), *rest], Recipe(OPTIONS)),
        (utts, Recipe(OPTIONS, "float16")),
        (utts, Recipe(OPTIONS, resample=True)),
        (utts, Recipe(MfccOptions(sample_frequency=8000, num_mel_bins=13))),
    ]
    assert len({total(s.number for s in stamps(*arguments)) for arguments in changed}) == len(changed)
    assert len({contents_digest(*arguments) for arguments in changed}) == len(changed)
    recipe = Recipe(OPTIONS)
    assert contents_digest(utts, recipe) == add(contents_digest(utts[:2], recipe), contents_digest(utts[2:], recipe))


def test_bad_recordings_are_listed_and_skipped_up_to_a_share(data, tmp_path, small_shards):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    soundfile.write(wav_of(utts[2]), np.zeros(100, dtype=np.int16), 8000)
    lines: list[str] = []
    with pytest.raises(AsrKdError, match=r"1 of 7 utterances could not be used, .* s0-u2: .*100 samples are shorter"):
        extract(utts, out, OPTIONS, log=lines.append)
    assert lines[-1].startswith("skipped s0-u2: ")
    assert not out.exists()
    lines.clear()
    assert extract(utts, out, OPTIONS, max_bad_share=0.2, log=lines.append)
    assert lines[0] == "4 of 4 shards are there from before"
    assert "1 of 7 utterances are left out, a share of 0.2 was allowed" in lines
    reader = FeatsReader(out)
    assert reader.layout.num_utts == 6
    assert reader.attrs["max_bad_share"] == 0.2
    assert [utt_id for utt_id, _ in reader.skipped] == ["s0-u2"]
    assert not extract(utts, out, OPTIONS, max_bad_share=0.2)
    with pytest.raises(AsrKdError, match="1 of 7"):  # up to date, but no longer acceptable
        extract(utts, out, OPTIONS)
    soundfile.write(wav_of(utts[2]), np.arange(1000, dtype=np.int16), 8000)
    lines.clear()
    assert extract(utts, out, OPTIONS, log=lines.append)
    assert lines[0] == "3 of 4 shards are there from before"
    assert FeatsReader(out).layout.num_utts == 7


def test_a_failed_extraction_leaves_an_older_file_its_shards(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    extract(utts[:4], out, OPTIONS)
    extract(utts[4:], out, OPTIONS, append=True)
    frames = FeatsReader(out).read_all()
    for more in ({}, {"append": True}):
        with pytest.raises(AsrKdError):
            extract(utts, out, FbankOptions(), **more)  # of 16 kHz
    np.testing.assert_array_equal(FeatsReader(out).read_all(), frames)


def test_a_file_of_another_kind_is_refused_before_the_work(data, tmp_path):
    out = tmp_path / "notes.h5"
    out.write_text("hello\n")
    with pytest.raises(AsrKdError, match=r"notes\.h5: exists and is no HDF5 file, not asr_kd\.feats"):
        extract(read_data_dir(data), out, OPTIONS)
    assert out.read_text() == "hello\n"
    assert not (tmp_path / "notes.h5.shards").exists()


def write_float(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples.astype(np.float32), 8000, subtype="FLOAT")


def test_each_kind_of_bad_recording_is_named(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    whole = wav_of(utts[0]).read_bytes()
    wav_of(utts[0]).write_bytes(whole[:1000])
    wav_of(utts[1]).write_bytes(b"")
    wav_of(utts[2]).unlink()
    write_float(wav_of(utts[3]), np.array([0.1] * 500 + [np.nan]))
    soundfile.write(wav_of(utts[4]), np.zeros(2000, dtype=np.int16), 16000)
    extract(utts, out, OPTIONS, max_bad_share=0.8)
    reasons = dict(FeatsReader(out).skipped)
    messages = ("truncated", "empty", "no such", "NaN", "expected 8000 Hz, found 16000")
    for utt, message in zip(utts[:5], messages, strict=True):
        assert message in reasons[utt.utt_id]
        assert str(wav_of(utt)) in reasons[utt.utt_id]


def test_silence_and_clipping_are_reported_and_kept(data, tmp_path):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    soundfile.write(wav_of(utts[1]), np.zeros(2000, dtype=np.int16), 8000)
    square = np.where(np.arange(2000) % 40 < 20, 32767, -32768).astype(np.int16)
    soundfile.write(wav_of(utts[4]), square, 8000)
    lines: list[str] = []
    extract(utts, out, OPTIONS, log=lines.append)
    assert lines[:2] == ["kept s0-u1: silent: its samples do not vary",
                         "kept s1-u4: clipped: 100.0 % of its samples are at full scale"]  # fmt: skip
    reader = FeatsReader(out)
    assert reader.layout.num_utts == 7
    assert [utt_id for utt_id, _ in reader.noted] == ["s0-u1", "s1-u4"]
    np.testing.assert_allclose(reader["s0-u1"], np.log(np.finfo(np.float32).eps), atol=1e-3)


def test_a_single_peak_is_no_clipping():
    assert remark_on(np.array([0, 32767] + [5] * 2000, dtype=np.float32)) is None


def test_nothing_usable_is_an_error_at_any_share(data, tmp_path):
    with pytest.raises(AsrKdError, match=r"none of 7.*expected 16000 Hz, found 8000"):
        extract(read_data_dir(data), tmp_path / "feats.h5", FbankOptions(), max_bad_share=1.0)
    assert not (tmp_path / "feats.h5.shards").exists()
    with pytest.raises(AsrKdError, match="no utterances"):
        extract([], tmp_path / "feats.h5", OPTIONS)
    with pytest.raises(AsrKdError, match="nj is 0"):
        extract(read_data_dir(data), tmp_path / "feats.h5", OPTIONS, nj=0)
    with pytest.raises(AsrKdError, match="'s0-u0' occurs twice"):
        extract(read_data_dir(data)[:1] * 2, tmp_path / "feats.h5", OPTIONS)


def test_processes_equal_one_process_and_shards_are_reused(data, tmp_path, small_shards):
    utts, out = read_data_dir(data), tmp_path / "feats.h5"
    wav_of(utts[5]).write_bytes(b"")
    extract(utts, tmp_path / "single.h5", OPTIONS, max_bad_share=0.2)
    extract(utts, out, OPTIONS, nj=2, max_bad_share=0.2)
    same(tmp_path / "single.h5", out)

    out.unlink()  # as if killed before the join
    (tmp_path / "feats.h5.shards" / ".x.h5.partial").touch()
    lines: list[str] = []
    extract(utts, out, OPTIONS, max_bad_share=0.2, log=lines.append)
    assert "4 of 4 shards are there from before" in lines
    same(tmp_path / "single.h5", out)
    assert len(list((tmp_path / "feats.h5.shards").iterdir())) == 4


def test_a_file_of_its_own_leaves_no_shards(data, tmp_path):
    extract(read_data_dir(data), tmp_path / "feats.h5", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "feats.h5"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_hold_what_one_file_holds(data, tmp_path, small_shards, monkeypatch, dtype):
    utts = read_data_dir(data)
    extract(utts, tmp_path / "joined.h5", OPTIONS, dtype=dtype)
    assert len(FeatsReader(tmp_path / "joined.h5").shards) == 4
    monkeypatch.setattr("asr_kd.features.extract.SHARD_BYTES", 1 << 30)
    extract(utts, tmp_path / "once.h5", OPTIONS, dtype=dtype)
    same(tmp_path / "once.h5", tmp_path / "joined.h5")
    assert not extract(utts, tmp_path / "once.h5", OPTIONS, dtype=dtype)


def test_other_rates_are_resampled_when_asked(data, tmp_path):
    pytest.importorskip("soxr")
    out, options = tmp_path / "feats.h5", FbankOptions(num_mel_bins=5)
    extract(read_data_dir(data), out, options, resample=True)
    assert FeatsReader(out).layout.lengths.tolist() == [1 + (2 * (1600 + 80 * i) - 400) // 160 for i in range(7)]


def test_two_runs_at_one_file(data, tmp_path):
    out = tmp_path / "feats.h5"
    with only_writer(out), pytest.raises(AsrKdError, match="another run is writing it"):
        extract(read_data_dir(data), out, OPTIONS)
    assert extract(read_data_dir(data), out, OPTIONS)


def run_script(*arguments: object, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, **more)


def test_command_line(data, tmp_path):
    out = tmp_path / "feats.h5"
    options = ["--sample-frequency=8000", "--num-mel-bins", "5", "--snip-edges=false"]
    done = run_script("--data", data, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("# extract_fbank.py --data ")
    reader = FeatsReader(out)
    assert reader.feat_dim == 5
    assert not reader.layout.snip_edges


@pytest.fixture
def script(monkeypatch):
    """The script as a function of its arguments: its exit status."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module("extract_fbank")
    return lambda *arguments: run_main(module.main, module.build_parser(), [str(a) for a in arguments])


def test_command_line_reports_an_error_in_one_line(script, data, tmp_path, capsys):
    soundfile.write(data / "wav" / "0.wav", np.zeros(100, dtype=np.int16), 8000)
    assert script("--data", data, "--out", tmp_path / "feats.h5", "--sample-frequency=8000") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'feats.h5'}: 1 of 7 utterances")


def test_files_lists_and_stdin_give_the_same(script, data, tmp_path, monkeypatch):
    files = sorted((data / "wav").glob("*.wav"))
    rate = "--sample-frequency=8000"
    assert script("--wav", *files, "--out", tmp_path / "files.h5", rate) == 0
    (tmp_path / "list").write_text("".join(f"{file.stem} {file}\n" for file in files))
    assert script("--wav-list", tmp_path / "list", "--out", tmp_path / "list.h5", rate) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, files)) + "\n"))
    assert script("--wav-list", "-", "--out", tmp_path / "stdin.h5", rate) == 0
    assert FeatsReader(tmp_path / "files.h5").layout.utt_ids == tuple("0123456")
    same(tmp_path / "files.h5", tmp_path / "list.h5")
    same(tmp_path / "files.h5", tmp_path / "stdin.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1.wav\nb 2.wav\na 3.wav\n", "list:3: .*'a'.*line 1"),
        ("\n", "no recordings"),
        ("a\t1.wav\nx sox 1.wav -t wav - |\n", "list:2: .*--allow-pipes"),
    ],
)
def test_lists_that_are_refused(script, tmp_path, capsys, content, message):
    (tmp_path / "list").write_text(content)
    assert script("--wav-list", tmp_path / "list", "--out", tmp_path / "feats.h5") == 1
    assert pytest.approx(1) == len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error")])


def test_a_line_that_is_a_file_is_that_file(script, data, tmp_path, capsys):
    (data / "wav" / "0.wav").rename(data / "wav" / "my own.wav")
    lines = [f"{data}/wav/my own.wav", f"x {data}/wav/1.wav"]
    (tmp_path / "list").write_text("\n".join(lines))
    common = ["--wav-list", tmp_path / "list", "--out", tmp_path / "feats.h5", "--sample-frequency=8000"]
    assert script(*common) == 0
    assert FeatsReader(tmp_path / "feats.h5").layout.utt_ids == ("my_own", "x")
    (tmp_path / "my own.wav").touch()
    (tmp_path / "list").write_text("\n".join([*lines, f"{tmp_path}/my own.wav"]))
    assert script(*common) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert all(part in said for part in (f"{data}/wav/my own.wav", f"{tmp_path}/my own.wav", "list:3", "ID PATH"))


def test_a_channel_that_is_not_there_is_asked_for(script, data, tmp_path, capsys):
    out = tmp_path / "feats.h5"
    assert script("--data", data, "--out", out, "--sample-frequency=8000", "--channel=3") == 1
    assert "has 1 channel, but channel 3" in capsys.readouterr().err
    (data / "reco2file_and_channel").write_text("".join(f"s{i // 4}-u{i} f{i} B\n" for i in range(7)))
    assert script("--data", data, "--out", out, "--sample-frequency=8000") == 0  # of a conversation, and separated


def test_a_channel_of_several(script, tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, (2000, 2), dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    common = ["--wav", tmp_path / "a.wav", "--sample-frequency=8000", "--num-mel-bins=3"]
    assert script(*common, "--out", tmp_path / "none.h5") == 1
    assert script(*common, "--out", tmp_path / "feats.h5", "--channel=1") == 0
    np.testing.assert_array_equal(FeatsReader(tmp_path / "feats.h5")["a"], compute_fbank(samples[:, 1].copy(), OPTIONS))


def test_several_sets_in_one_process(script, data, tmp_path, capsys):
    write_data_dir(tmp_path / "other", read_data_dir(data)[:3])
    common = ["--data", data, tmp_path / "other", "--sample-frequency=8000", "--num-mel-bins=3"]
    outs = [tmp_path / "feats.h5", tmp_path / "other.h5"]
    assert script(*common, "--out", *outs) == 0
    whole, other = (FeatsReader(out) for out in outs)
    assert (whole.layout.num_utts, other.layout.num_utts) == (7, 3)
    for utt_id in other.layout.utt_ids:
        np.testing.assert_array_equal(other[utt_id], whole[utt_id])
    for wrong in (outs[:1], [outs[0], outs[0]]):
        capsys.readouterr()
        assert script(*common, "--out", *wrong) == 1
        assert "name one for each" in capsys.readouterr().err.splitlines()[-1]


def shown(folder: Path) -> list[str]:
    """The names in a folder, but for stamps."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".stamp.json"))


def test_kaldi_archive_out(script, data, tmp_path):
    common = ["--data", data, "--sample-frequency=8000", "--kind=mfcc", "--add-deltas"]
    assert script(*common, "--out", tmp_path / "feats.h5") == 0
    assert script(*common, "--out", f"ark,scp:{tmp_path}/feats.ark,{tmp_path}/feats.scp") == 0
    reader = FeatsReader(tmp_path / "feats.h5")
    matrices = dict(read_matrices(f"scp:{tmp_path}/feats.scp"))
    assert tuple(matrices) == reader.layout.utt_ids
    for utt_id, matrix in matrices.items():
        np.testing.assert_array_equal(matrix, reader[utt_id])
    assert shown(tmp_path) == ["data", "feats.ark", "feats.h5", "feats.scp"]


def test_a_bare_archive_is_an_archive_and_other_names_are_refused(script, data, tmp_path, capsys):
    common = ["--data", data, "--sample-frequency=8000", "--num-mel-bins=3"]
    assert script(*common, "--out", tmp_path / "feats.ark") == 0
    assert len(dict(read_matrices(f"ark:{tmp_path}/feats.ark"))) == 7
    for name in ("feats.txt", "feats.scp"):
        assert script(*common, "--out", tmp_path / name) == 1
        assert "ark,scp:FILE.ark,FILE.scp" in capsys.readouterr().err.splitlines()[-1]
    assert shown(tmp_path) == ["data", "feats.ark"]


def test_command_line_options(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module("extract_fbank")
    parser = module.build_parser()
    text = parser.format_help()
    for field in (*dataclasses.fields(FbankOptions), *dataclasses.fields(MfccOptions)):
        assert "--" + field.name.replace("_", "-") + " " in text
    assert "Kaldi's default is 1" in text

    def options_of(*arguments):
        return module.front_end_options(parser.parse_args(["--data", "d", "--out", "o", *arguments]))

    assert options_of() == FbankOptions()
    assert options_of("--kind=mfcc") == MfccOptions()
    assert options_of("--use-energy=true", "--low-freq=64") == FbankOptions(use_energy=True, low_freq=64)
    assert options_of("--add-deltas") == FbankOptions(delta_order=2)
    assert options_of("--add-deltas", "--delta-order=1", "--delta-window=3") == FbankOptions(
        delta_order=1, delta_window=3
    )
    with pytest.raises(AsrKdError, match="--num-ceps is not an option of fbank"):
        options_of("--num-ceps=5")
    for refused in ("--dither=1", "--snip-edges=yes", "--unknown=1", "--wav=a.wav"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--data", "d", "--out", "o", refused])
    assert "features do not depend on chance" in capsys.readouterr().err


KILLED = """
import sys, time
from asr_kd.features import extract as e, shard
from asr_kd.corpus.datadir import read_data_dir
from asr_kd.features.options import FbankOptions
e.SHARD_BYTES = int(sys.argv[3])
real = shard.read_samples
def slow(utterance, rate, **more):
    if utterance.recording.source.endswith("5.wav"):
        print("there", flush=True); time.sleep(60)
    return real(utterance, rate, **more)
shard.read_samples = slow
e.extract(read_data_dir(sys.argv[1]), sys.argv[2], FbankOptions(sample_frequency=8000, num_mel_bins=3))
"""


@pytest.mark.parametrize("shard_bytes", [40_000, 1 << 30])
def test_killed_extraction_continues_and_equals_an_unbroken_one(data, tmp_path, monkeypatch, shard_bytes):
    """kill -9 while a file is being written: nothing is at its place, and the same command makes it whole."""
    monkeypatch.setattr("asr_kd.features.extract.SHARD_BYTES", shard_bytes)
    out = tmp_path / "feats.h5"
    command = [sys.executable, "-c", KILLED, str(data), str(out), str(shard_bytes)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    utts, lines = read_data_dir(data), []
    assert extract(utts, out, OPTIONS, log=lines.append)
    assert ("3 of 4 shards are there from before" in lines) == (shard_bytes == 40_000)
    assert extract(utts, tmp_path / "unbroken.h5", OPTIONS)
    same(out, tmp_path / "unbroken.h5")
    assert not [path for path in tmp_path.rglob(".*") if not path.name.startswith(".coverage")]


@pytest.mark.parametrize("kib", [64, 600])
def test_a_full_disk_is_one_sentence(data, tmp_path, kib):
    """A small tmpfs of our own: too small to begin with, or for the tables of the file alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("a tmpfs is mounted by root only")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs may not be mounted here: {mounted.stderr.decode().strip()}")
    try:
        (disk / "other").write_bytes(bytes((kib - 64) << 10))
        done = run_script("--data", data, "--out", disk / "feats.h5", "--sample-frequency=8000")
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not (disk / "feats.h5").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert run_script("--data", data, "--out", disk / "feats.h5", "--sample-frequency=8000").returncode == 0
        extract(read_data_dir(data), tmp_path / "elsewhere.h5", FbankOptions(sample_frequency=8000))
        same(disk / "feats.h5", tmp_path / "elsewhere.h5")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_plain_h5py_reads_it(data, tmp_path):
    extract(read_data_dir(data), tmp_path / "feats.h5", OPTIONS)
    with h5py.File(tmp_path / "feats.h5") as file:
        offset = file["utt/offset"][:]
        np.testing.assert_array_equal(
            file["feats"][offset[2] : offset[3]], FeatsReader(tmp_path / "feats.h5")[file["utt/id"].asstr()[2]]
        )
