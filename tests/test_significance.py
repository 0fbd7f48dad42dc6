"""Intervals and tests: the bootstrap, MAPSSWE as sc_stats has it, the share of the gain."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import SCLITE, Alternatives, align_words
from asr_kd.scoring.significance import (
    MIN_SPEAKERS,
    ClusterBootstrap,
    mapsswe,
    matched_pairs,
    place_errors,
    resampling_unit,
    segment_differences,
    share_of_gain,
)
from asr_kd.scoring.transcripts import read_transcripts, read_trn
from asr_kd.scoring.wer import count_errors, score_words
from asr_kd.scoring.word_comparison import WordSystem, compare_systems, results_text

KALDI_SYSTEM = Path(__file__).parents[2] / "shared" / "reference" / "kaldi_system"
GOLDEN = Path(__file__).parent / "golden" / "sctk"  # made by its make.sh

# --- resampling


def clustered_frames(rng, num_utts, mean=0.6):
    """Frames and correct frames of utterances that differ in difficulty."""
    frames = rng.integers(50, 400, size=num_utts)
    return frames, rng.binomial(frames, rng.beta(12 * mean, 12 * (1 - mean), size=num_utts))


def test_bootstrap_agrees_with_scipy():
    frames, correct = clustered_frames(np.random.default_rng(1), 80)
    bootstrap = ClusterBootstrap(range(80), {"correct": correct, "frames": frames}, 4000)
    ours = bootstrap.interval("correct", "frames")
    theirs = stats.bootstrap(
        (correct, frames),
        lambda c, f, axis: c.sum(axis) / f.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(2),
    )
    width = ours[1] - ours[0]
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.06 * width)
    assert bootstrap.covariance(["correct"], "frames") == pytest.approx(theirs.standard_error**2, rel=0.1)


def test_bootstrap_of_speakers_keeps_their_utterances_together():
    """With two utterances per speaker that are copies, resampling speakers must see half as many independent units."""
    frames, correct = clustered_frames(np.random.default_rng(3), 40)
    speakers = [f"s{i}" for i in range(40)]
    once = ClusterBootstrap(speakers, {"c": correct, "f": frames}, 500)
    twice = ClusterBootstrap(speakers * 2, {"c": np.tile(correct, 2), "f": np.tile(frames, 2)}, 500)
    assert twice.num_units == 40
    assert twice.interval("c", "f") == pytest.approx(once.interval("c", "f"))


def test_coverage_of_the_bootstrap_interval_and_size_of_its_test():
    rng = np.random.default_rng(4)
    covered = rejected = 0
    trials, truth = 300, 0.6
    for _ in range(trials):
        frames, correct_a = clustered_frames(rng, 60)
        correct_b = rng.binomial(frames, rng.beta(7.2, 4.8, size=60))
        bootstrap = ClusterBootstrap(range(60), {"a": correct_a, "b": correct_b, "f": frames}, 300)
        low, high = bootstrap.interval("a", "f")
        covered += low <= truth <= high
        rejected += bootstrap.compare("a", "b", "f").p_value < 0.05
    assert 0.91 <= covered / trials <= 0.98
    assert 0.02 <= rejected / trials <= 0.09


counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(9, 20)), min_size=2, max_size=12)


@settings(max_examples=40, deadline=None)
@given(counts)
def test_swapping_systems_flips_the_sign_and_identical_systems_do_not_differ(rows):
    a, b, total = np.array(rows).T
    bootstrap = ClusterBootstrap(range(len(rows)), {"a": a, "b": b, "total": total}, 200)
    ab, ba, aa = (bootstrap.compare(x, y, "total") for x, y in ("ab", "ba", "aa"))
    assert ab.difference == -ba.difference
    assert ab.ci95 == pytest.approx((-ba.ci95[1], -ba.ci95[0]))
    assert ab.p_value == ba.p_value
    assert (aa.difference, aa.ci95, aa.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_differences_that_are_only_rounding_are_none():
    rng = np.random.default_rng(21)
    frames, xent = rng.integers(50, 500, size=40).astype(float), rng.uniform(50, 500, size=40)
    noise = frames * rng.uniform(2e-7, 9e-7, size=40)  # all on one side, so that any test would find it
    names = [str(u) for u in range(40)]
    columns = {"a": xent, "b": xent + noise, "c": xent + 100 * noise, "frames": frames}
    bootstrap = ClusterBootstrap(names, columns, num_resamples=500)
    assert bootstrap.compare("b", "a", "frames").p_value == 1.0
    assert bootstrap.compare("c", "a", "frames").p_value < 0.01


def test_p_value_is_never_zero_and_detects_a_clear_difference():
    frames = np.full(50, 100)
    rng = np.random.default_rng(5)
    a, b = rng.binomial(frames, 0.7), rng.binomial(frames, 0.5)
    result = ClusterBootstrap(range(50), {"a": a, "b": b, "f": frames}, 999).compare("a", "b", "f")
    assert result.p_value == pytest.approx(1 / 1000)
    assert result.ci95[0] < result.difference < result.ci95[1]


@pytest.mark.skipif(not KALDI_SYSTEM.is_dir(), reason="values made by Kaldi are not beside this checkout")
def test_bootstrap_is_that_of_compute_wer_bootci():
    """It prints the mean of the resampled error rates, and 1.96 of their standard deviations around it."""
    printed = re.search(r"%WER ([\d.]+) 95% Conf Interval \[ ([\d.]+), ", (KALDI_SYSTEM / "wer.txt").read_text())
    mean, low = (float(x) / 100 for x in printed.groups())
    scores = score_words(*(read_transcripts(KALDI_SYSTEM / f"wer.{name}") for name in ("ref", "hyp")))
    columns = {"errors": scores.errors.sum(axis=1), "words": scores.num_ref}
    resampled = ClusterBootstrap(scores.utt_ids, columns, 20_000).resampled_ratios("errors", "words")
    assert resampled.mean() == pytest.approx(mean, abs=0.005)
    assert 1.96 * resampled.std() == pytest.approx(mean - low, rel=0.03)


def test_speakers_are_resampled_where_there_are_enough():
    speakers = [f"s{i % MIN_SPEAKERS}" for i in range(100)]
    assert resampling_unit(speakers) == ("speaker", "20 speakers are resampled, each with all of their utterances")
    unit, why = resampling_unit(speakers[: MIN_SPEAKERS - 1])
    assert (unit, why[:42]) == ("utterance", "19 speakers are fewer than the 20 that res")
    assert resampling_unit(None)[0] == "utterance"
    assert resampling_unit(speakers, "utterance")[0] == "utterance"
    with pytest.raises(AsrKdError, match="one of auto, utterance, speaker, not word"):
        resampling_unit(speakers, "word")
    with pytest.raises(AsrKdError, match="not known"):
        resampling_unit(None, "speaker")


def test_resampling_speakers_covers_other_speakers_and_utterances_do_not():
    """Speakers whose error rates vary by 60 % of their mean, 12 utterances of each."""
    rng = np.random.default_rng(10)
    trials, covered = 200, {"speaker": 0, "utterance": 0}
    for _ in range(trials):
        rate = np.repeat(rng.gamma(1 / 0.36, 0.036, size=MIN_SPEAKERS), 12)
        words = rng.integers(4, 17, size=len(rate))
        columns = {"errors": rng.poisson(words * rate * rng.gamma(2, 0.5, size=len(rate))), "words": words}
        for unit, units in (("speaker", np.repeat(np.arange(MIN_SPEAKERS), 12)), ("utterance", np.arange(len(rate)))):
            low, high = ClusterBootstrap(units, columns, 300).interval("errors", "words")
            covered[unit] += low <= 0.1 <= high
    assert covered["speaker"] / trials >= 0.86
    assert covered["utterance"] / trials <= 0.8


def test_one_unit_cannot_be_resampled():
    with pytest.raises(AsrKdError, match="at least two"):
        ClusterBootstrap(["s1", "s1"], {"a": np.ones(2)})


# --- MAPSSWE


def test_mapsswe_cuts_segments_at_two_good_words():
    """One utterance by hand: errors of a at words 1 and 3 (one good word between), of b at word 7 and after word 9."""
    ref = "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9"
    a = "w0 x w2 x w4 w5 w6 w7 w8 w9"
    b = "w0 w1 w2 w3 w4 w5 w6 w8 w9 y"
    result = mapsswe({"u": ref}, [{"u": a}], [{"u": b}], min_segments=2)
    # {w1, w3}: 2 − 0; {w7}: 0 − 1; {inserted after w9}: two good words (w8, w9) lie between, 0 − 1.
    differences = [2, -1, -1]
    assert result.n == 3
    assert result.difference == pytest.approx(sum(differences) / 10)
    assert mapsswe({"u": ref}, [{"u": a}], [{"u": b}], min_good_words=3, min_segments=2).n == 2
    assert mapsswe({"u": ref}, [{"u": a}], [{"u": b}], min_good_words=1, min_segments=2).n == 4


def trn(name):
    return read_trn(GOLDEN / f"plain.{name}.trn")


def test_mapsswe_is_that_of_sc_stats():
    printed = dict(re.findall(r"\((# segs|mean|std dev|Z Stat): +([\d.-]+)\)", (GOLDEN / "mapsswe").read_text()))
    refs = trn("ref")
    a, b = (score_words(refs, trn(name), weights=SCLITE) for name in ("a", "b"))
    result = matched_pairs(*(place_errors([scores.alignments]) for scores in (a, b)), a.num_ref)
    assert result.n == int(printed["# segs"])
    figures = [f"{value:.3f}" for value in (result.mean, result.std_dev, result.z)]
    assert figures == [printed[name] for name in ("mean", "std dev", "Z Stat")]
    texts = [{u: " ".join(words) for u, words in trn(name).items()} for name in ("ref", "a", "b")]
    assert mapsswe(texts[0], [texts[1]], [texts[2]], weights=SCLITE) == result


def segments_by_walking(ref, aligned):
    """As test_comp_sents of sc_stats walks: a segment is open from an error until two good words follow."""
    a, b = (place_errors([[alignment]]) for alignment in aligned)
    segments, good, is_open = [], 0, False
    for place in range(2 * len(ref) + 1):
        if a[place] + b[place]:
            segments += [] if is_open else [0]
            segments[-1] += a[place] - b[place]
            good, is_open = 0, True
        elif place % 2:
            good += 1
            is_open = is_open and good < 2
    return segments


some_words = st.lists(st.sampled_from("ab"), max_size=10)


@settings(deadline=None)
@given(st.lists(st.tuples(some_words, some_words, some_words), min_size=1, max_size=4))
def test_segments_are_those_of_a_walk(utterances):
    aligned = [[align_words(ref, hyp, SCLITE) for hyp in hyps] for ref, *hyps in utterances]
    placed = [place_errors([of_system]) for of_system in zip(*aligned, strict=True)]
    num_ref = np.array([len(ref) for ref, _, _ in utterances])
    expected = [
        segment
        for (ref, *_), pair in zip(utterances, aligned, strict=True)
        for segment in segments_by_walking(ref, pair)
    ]
    assert segment_differences(*placed, num_ref).tolist() == expected


def noisy_hyps(rng, refs, error_rate):
    return {u: " ".join(w if rng.random() > error_rate else "oops" for w in ref.split()) for u, ref in refs.items()}


def test_mapsswe_is_the_z_test_on_segments():
    """With four utterances' errors far apart, segments are single words: then scipy can say what z is."""
    rng = np.random.default_rng(6)
    refs = {f"u{i}": f"a{i} b{i} c{i}" for i in range(200)}
    # Only the middle word can be wrong, so each utterance with an error is one segment.
    a = {u: r if rng.random() > 0.5 else r.replace("b", "x") for u, r in refs.items()}
    b = {u: r if rng.random() > 0.35 else r.replace("b", "x") for u, r in refs.items()}
    d = np.array([(a[u] != r) - (b[u] != r) for u, r in refs.items() if a[u] != r or b[u] != r], dtype=float)
    result = mapsswe(refs, [a], [b])
    z = d.mean() / (d.std(ddof=1) / np.sqrt(len(d)))
    assert result.n == len(d)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert result.difference == pytest.approx(d.sum() / 600)
    swapped = mapsswe(refs, [b], [a])
    assert (swapped.difference, swapped.p_value) == (-result.difference, pytest.approx(result.p_value))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_mapsswe_difference_is_the_difference_of_seed_averaged_wers(seed, num_seeds):
    rng = np.random.default_rng(seed)
    refs = {f"u{i}": " ".join(rng.choice(list("abcdef"), size=rng.integers(1, 9))) for i in range(12)}
    a, b = ([noisy_hyps(rng, refs, rate) for _ in range(num_seeds)] for rate in (0.4, 0.2))
    wer = [
        np.mean([np.divide(*(x.sum() for x in count_errors(refs, hyp, list(refs)))) for hyp in hyps]) for hyps in (a, b)
    ]
    assert mapsswe(refs, a, b).difference == pytest.approx(wer[0] - wer[1])


def test_mapsswe_refuses_few_segments_and_sees_no_difference_between_equals():
    refs = {f"u{i}": "a b c" for i in range(60)}
    wrong = dict.fromkeys(refs, "a x c")
    same = mapsswe(refs, [wrong], [wrong])
    assert (same.difference, same.p_value, same.n) == (0.0, 1.0, 60)
    few = mapsswe(refs, [refs], [{u: "a x c" if u < "u4" else r for u, r in refs.items()}])
    assert few.p_value is None
    assert "fewer than the 50" in few.reason
    constant = mapsswe(refs, [wrong], [refs])
    assert constant.p_value is None
    assert "same number of errors" in constant.reason


# --- several systems


def system(name, refs, *hyps):
    return WordSystem(name, [score_words(refs, hyp) for hyp in hyps])


def test_seeds_are_averaged_before_systems_are_paired():
    refs = trn("ref")
    both, b = system("both", refs, trn("a"), trn("b")), system("b", refs, trn("b"))
    results = compare_systems([both, b], list(refs), num_resamples=500)
    wer = [entry["wer"]["value"] for entry in results["systems"]]
    assert wer[0] == pytest.approx(100 * np.mean([scores.wer for scores in both.seeds]))
    bootstrap, segments = results["comparisons"]
    assert (bootstrap["test"], bootstrap["n"], segments["test"]) == ("paired bootstrap", len(refs), "MAPSSWE")
    for test in (bootstrap, segments):
        assert test["difference"] == pytest.approx(wer[0] - wer[1])
    assert "both − b: +" in results_text({**results, "unit": "word"})


def test_alternatives_leave_no_words_to_bound_segments():
    refs = {f"u{i}": ["a", Alternatives((("b", "c"), ("d",)))] for i in range(60)}
    hyps = ({u: ["a", "b", "c"] for u in refs}, {u: ["x", "d"] for u in refs})
    results = compare_systems(
        [system(name, refs, hyp) for name, hyp in zip("ab", hyps, strict=True)], list(refs), has_alternatives=True
    )
    assert [entry["wer"]["value"] for entry in results["systems"]] == [0.0, 50.0]
    assert [entry["num_words"] for entry in results["systems"]] == [180, 120]
    assert [test["difference"] for test in results["comparisons"]] == [-50.0]
    assert "alternatives" in results["refused_tests"][0]["reason"]


def test_one_utterance_has_no_interval():
    refs = {"u": ["a", "b"]}
    results = compare_systems([system("x", refs, {"u": ["a"]})], ["u"])
    assert (results["systems"][0]["wer"]["value"], results["systems"][0]["wer"]["ci95"]) == (50.0, None)
    assert " - " in results_text({**results, "unit": "word"})


def test_systems_must_be_told_apart_and_scored_alike():
    x, y = system("x", {"u": ["a"]}, {"u": []}), system("y", {"v": ["a"]}, {"v": []})
    with pytest.raises(AsrKdError, match="distinct names"):
        compare_systems([x, x], ["u"])
    with pytest.raises(AsrKdError, match="same utterances"):
        compare_systems([x, y], ["u"])


# --- share of the gain


def test_fieller_without_seed_variance_is_the_textbook_interval():
    """One seed each: the ends solve (x − ρy)² = t² (Vxx − 2ρVxy + ρ²Vyy), x = s − b, y = e − b."""
    cov = np.array([[0.04, 0.03, 0.03], [0.03, 0.05, 0.035], [0.03, 0.035, 0.045]])
    share = share_of_gain([58.0], [60.0], [59.4], cov, num_units=10**9)
    difference = np.array([[-1, 0, 1], [-1, 1, 0]])
    (vxx, vxy), (_, vyy) = difference @ cov @ difference.T
    x, y, t = 1.4, 2.0, stats.norm.ppf(0.975)
    for rho in share.ci95:
        assert (x - rho * y) ** 2 == pytest.approx(t**2 * (vxx - 2 * rho * vxy + rho**2 * vyy))
    assert share.value == pytest.approx(0.7)
    assert share.shortfall == pytest.approx(0.6)
    contrast = x - 0.86 * y
    z = contrast / np.sqrt(vxx - 2 * 0.86 * vxy + 0.86**2 * vyy)
    assert share.p_at_least == pytest.approx(stats.norm.cdf(z))


def test_share_of_gain_without_a_covariance_is_none():
    assert share_of_gain([50.0], [52.0], [51.0], np.full((3, 3), np.nan), 1).value is None


def test_share_of_gain_points_the_right_way():
    cov = 0.0025 * np.eye(3)
    kept = share_of_gain([50.0, 50.1], [52.0], [51.95, 52.05], cov, 500)
    lost = share_of_gain([50.0, 50.1], [52.0], [50.4, 50.5], cov, 500)
    assert kept.p_at_least > 0.95 > 0.05 > lost.p_at_least
    assert kept.shortfall == pytest.approx(0.0)
    assert lost.shortfall == pytest.approx(1.55)


def test_coverage_of_fiellers_interval_and_size_of_the_086_test():
    """Three seeds of baseline and student, one ensemble; true share 0.86, seeds varying as much as the test set."""
    rng = np.random.default_rng(7)
    trials, sd_seed = 3000, 0.25
    cov = 0.02 * (0.5 * np.eye(3) + 0.5)
    truth = np.array([58.0, 60.0, 58.0 + 0.86 * 2.0])
    material = rng.multivariate_normal(truth, cov, size=trials)
    covered, rejected = [], []
    for b, e, s in material:
        seeds = rng.normal(scale=sd_seed, size=(2, 3))
        share = share_of_gain(b + seeds[0], [e], s + seeds[1], cov, num_units=300)
        if share.value is not None:
            covered.append(share.ci95[0] <= 0.86 <= share.ci95[1])
            rejected.append(share.p_at_least < 0.05)
    assert len(covered) > 0.98 * trials
    assert 0.93 <= np.mean(covered) <= 0.98
    assert 0.03 <= np.mean(rejected) <= 0.07


@pytest.mark.parametrize(("ensemble", "wording"), [(50.1, "no gain"), (48.0, "no gain")])
def test_share_is_undefined_without_a_gain(ensemble, wording):
    share = share_of_gain([50.0], [ensemble], [50.05], 0.04 * np.eye(3), 100)
    assert (share.value, share.ci95, share.p_at_least) == (None, None, None)
    assert wording in share.reason
    assert share.gain == pytest.approx(ensemble - 50.0)
    assert share.gain_ci95[0] < 0 < share.gain_ci95[1] or share.gain_ci95[1] < 0
    assert share.shortfall == pytest.approx(ensemble - 50.05)
