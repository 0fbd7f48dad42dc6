"""Mean and variance normalisation: Kaldi's values to the bit, its windows by their definition, and the command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import accumulate, apply_cmvn, mean_and_istd, pool, sliding_window_cmvn
from asr_kd.store.exchange import FeatureSource, ForeignFrontEnd, write_feats
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_ark import read_matrices, write_matrices

ROOT = Path(__file__).parent.parent
SYSTEM = ROOT.parent / "shared" / "reference" / "kaldi_system"
with_system = pytest.mark.skipif(not SYSTEM.is_dir(), reason=f"needs archives made by Kaldi in {SYSTEM}")


def archive(name: str, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return dict(read_matrices(f"ark:{SYSTEM / name}", dtype))


@with_system
def test_statistics_and_normalised_features_are_kaldis():
    stats, expected = archive("cmvn.ark", np.float64), archive("cmvnv.ark")
    for utt_id, feats in archive("mfcc.ark").items():
        np.testing.assert_allclose(accumulate(feats), stats[utt_id], rtol=1e-6, atol=1e-3)
        np.testing.assert_array_equal(apply_cmvn(feats, stats[utt_id], norm_vars=True), expected[utt_id])


@with_system
def test_sliding_window_is_kaldis():
    expected = archive("sliding.ark")
    for utt_id, feats in archive("mfcc.ark").items():
        found = sliding_window_cmvn(feats, cmn_window=60, min_cmn_window=30, center=True, norm_vars=True)
        np.testing.assert_array_equal(found, expected[utt_id])


def window_by_definition(t: int, num_frames: int, cmn_window: int, min_cmn_window: int, center: bool) -> slice:
    """The window of frame t, step by step as Kaldi's SlidingWindowCmnInternal finds it."""
    start = t - cmn_window // 2 if center else t - cmn_window
    end = start + cmn_window if center else t + 1
    if start < 0:
        end -= start
        start = 0
    if not center and end > t:
        end = max(t + 1, min_cmn_window)
    if end > num_frames:
        start = max(start - (end - num_frames), 0)
        end = num_frames
    return slice(start, end)


@settings(max_examples=100, deadline=None)
@given(
    num_frames=st.integers(1, 60),
    windows=st.tuples(st.integers(1, 70), st.integers(1, 70)).map(sorted),
    center=st.booleans(),
    norm_vars=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_sliding_window_by_its_definition(num_frames, windows, center, norm_vars, seed):
    min_cmn_window, cmn_window = windows
    feats = np.random.default_rng(seed).normal(20, 5, size=(num_frames, 3)).astype(np.float32)
    found = sliding_window_cmvn(
        feats, cmn_window=cmn_window, min_cmn_window=min_cmn_window, center=center, norm_vars=norm_vars
    )
    assert found.dtype == np.float32
    for t in range(num_frames):
        around = feats[window_by_definition(t, num_frames, cmn_window, min_cmn_window, center)].astype(np.float64)
        expected = feats[t] - around.mean(axis=0)
        if norm_vars:
            expected = expected / np.maximum(around.std(axis=0), 1e-5) if len(around) > 1 else 0 * expected
        np.testing.assert_allclose(found[t], expected, rtol=1e-4, atol=1e-4)


def test_a_long_recording_far_from_zero_stays_exact():
    feats = (1e4 + np.random.default_rng(0).normal(size=(20000, 2))).astype(np.float32)
    found = sliding_window_cmvn(feats, cmn_window=300, center=True, norm_vars=True)
    around = feats[15000 - 150 : 15000 + 150].astype(np.float64)
    np.testing.assert_allclose(found[15000], (feats[15000] - around.mean(axis=0)) / around.std(axis=0), rtol=1e-4)


def test_pooled_statistics_are_those_of_all_frames_together():
    rng = np.random.default_rng(1)
    utts = [rng.normal(i, i + 1, size=(20 + i, 4)).astype(np.float32) for i in range(5)]
    pooled = pool(np.array([accumulate(utt) for utt in utts]), ["a", "b", "a", "a", "b"])
    assert list(pooled) == ["a", "b"]
    np.testing.assert_allclose(pooled["a"], accumulate(np.concatenate([utts[0], utts[2], utts[3]])))
    together = apply_cmvn(np.concatenate([utts[1], utts[4]]), pooled["b"], norm_vars=True)
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(together.std(axis=0), 1, atol=1e-5)


def test_a_dimension_that_does_not_vary_is_centred_and_not_blown_up():
    feats = np.full((50, 2), 0.1, dtype=np.float32)
    feats[:, 1] = np.arange(50)
    found = apply_cmvn(feats, accumulate(feats), norm_vars=True)
    assert abs(found[:, 0]).max() < 1e-6
    mean, istd = mean_and_istd(accumulate(feats))
    np.testing.assert_allclose((feats - mean) * istd, found, atol=1e-5)


@pytest.mark.parametrize(
    "stats", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.ones((2, 5)), np.ones((1, 4)), np.full((2, 4), 0.5)]
)
def test_statistics_that_do_not_fit_are_refused(stats):
    with pytest.raises(AsrKdError, match="CMVN statistics"):
        apply_cmvn(np.ones((3, 3), dtype=np.float32), stats)


@pytest.mark.parametrize("windows", [(0, 1, False), (5, 0, False), (5, 6, True)])
def test_windows_that_cannot_be(windows):
    with pytest.raises(AsrKdError, match="cmn_window"):
        sliding_window_cmvn(np.ones((3, 3)), cmn_window=windows[0], min_cmn_window=windows[1], center=windows[2])


@pytest.fixture
def feats_h5(tmp_path) -> FeatsReader:
    rng = np.random.default_rng(2)
    utts = [
        (f"s{i % 2}-u{i}", f"s{i % 2}", rng.normal(i % 2, 2 + i, size=(10 + i, 3)).astype(np.float32)) for i in range(4)
    ]
    front_end = ForeignFrontEnd("mfcc", 8000)
    write_feats(tmp_path / "x.h5", FeatureSource("test", "mfcc", front_end.options(3), utts))
    return FeatsReader(tmp_path / "x.h5")


def run(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "data_prep" / "apply_cmvn.py", *args]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_command_normalises_over_what_it_is_told(feats_h5, tmp_path):
    out = tmp_path / "out.h5"
    for mode, groups in (("global", [0, 0, 0, 0]), ("speaker", [0, 1, 0, 1]), ("utterance", [0, 1, 2, 3])):
        assert run(feats_h5.path, out, "--cmvn", mode, "--norm-vars", "true").returncode == 0
        reader = FeatsReader(out)
        assert f'"over": "{mode}"' in reader.attrs["options"]
        assert reader.layout.digest == feats_h5.layout.digest
        for group in set(groups):
            of_group = np.concatenate(
                [reader[u] for u, g in zip(reader.layout.utt_ids, groups, strict=True) if g == group]
            )
            np.testing.assert_allclose(of_group.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(of_group.std(axis=0), 1, atol=1e-5)
    assert "up to date" in run(feats_h5.path, out, "--cmvn", "utterance", "--norm-vars", "true").stderr
    again = run(out, tmp_path / "again.h5")
    assert again.returncode == 1
    assert "been through cmvn before" in again.stderr


def test_command_takes_and_gives_kaldis_statistics(feats_h5, tmp_path):
    stats, one, other = tmp_path / "stats.ark", tmp_path / "one.ark", tmp_path / "other.ark"
    speaker = ("--cmvn", "speaker", "--norm-vars", "true")
    assert run(feats_h5.path, f"ark:{one}", *speaker, "--write-stats", f"ark:{stats}").returncode == 0
    assert [key for key, _ in read_matrices(str(stats))] == ["s0", "s1"]
    for source in (stats, feats_h5.path):
        assert run(feats_h5.path, f"ark:{other}", *speaker, "--stats", source).returncode == 0
        assert other.read_bytes() == one.read_bytes()
    lacking = run(feats_h5.path, f"ark:{other}", "--stats", stats)
    assert lacking.returncode == 1
    assert "has no statistics of utterance 's0-u0'" in lacking.stderr
    write_matrices(f"ark:{stats}", [("s0", np.ones((2, 9))), ("s1", np.ones((2, 9)))])
    unfit = run(feats_h5.path, f"ark:{other}", *speaker, "--stats", stats)
    assert unfit.returncode == 1
    assert "do not fit s0-u0" in unfit.stderr


def test_command_refuses_to_replace_what_it_reads_and_archives(feats_h5, tmp_path):
    before = feats_h5.path.read_bytes()
    (tmp_path / "link.h5").symlink_to(feats_h5.path)
    for out in (feats_h5.path, tmp_path / "link.h5", f"ark:{feats_h5.path}", f"ark,scp:{tmp_path}/y,{feats_h5.path}"):
        done = run(feats_h5.path, out)
        assert done.returncode == 1
        assert "IN and OUT at once" in done.stderr
    assert feats_h5.path.read_bytes() == before
    for name in ("ark:x", "scp:x", "x.ark"):
        assert "copy_feats.py" in run(name, tmp_path / "y.h5").stderr


def test_command_slides_a_window(feats_h5, tmp_path):
    options = ("--cmvn", "sliding", "--cmn-window", 5, "--min-cmn-window", 3)
    assert run(feats_h5.path, f"ark:{tmp_path}/x.ark", *options).returncode == 0
    for utt_id, found in read_matrices(f"{tmp_path}/x.ark"):
        np.testing.assert_array_equal(found, sliding_window_cmvn(feats_h5[utt_id], cmn_window=5, min_cmn_window=3))
    assert run(feats_h5.path, f"ark:{tmp_path}/x.ark", *options, "--stats", feats_h5.path).returncode == 1
