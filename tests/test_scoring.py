"""Scoring: frames, calibration, posteriors, systems and results.json."""

import copy
import dataclasses
import json
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_systems import HEADLINE, make_labels, make_systems, noisy_outputs

from asr_kd.errors import AsrKdError
from asr_kd.scoring.calibration import NUM_BINS, NUM_CELLS, ConfidenceHistogram
from asr_kd.scoring.confusions import PairCounts
from asr_kd.scoring.frame_results import FrameSystem, build_frame_results, score_posteriors
from asr_kd.scoring.frames import FrameLabels, FrameScorer, per_utterance_frame_scores
from asr_kd.scoring.labels import join_positions, read_labels
from asr_kd.scoring.posteriors import open_posteriors
from asr_kd.scoring.report_tables import comparisons_table, summary_table
from asr_kd.scoring.results import build_results, check_results
from asr_kd.scoring.systems import SystemScores, mean_over_seeds
from asr_kd.scoring.wer import as_letters, count_errors
from asr_kd.store.ali import write_ali
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import write_int_vectors, write_matrices

# --- frames


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 7))
def test_frame_scores_equal_a_loop_over_frames(seed, dtype, block):
    rng = np.random.default_rng(seed)
    lengths, num_pdfs, sil = [4, 0, 7, 1], 5, [0, 3]
    offset = np.concatenate([[0], np.cumsum(lengths)])
    logits = rng.normal(size=(offset[-1], num_pdfs)) * 3
    pdf = rng.integers(-1, num_pdfs, size=offset[-1])
    scores = per_utterance_frame_scores(
        torch.as_tensor(logits, dtype=dtype).split(block), FrameLabels(pdf, offset, sil)
    )
    for u in range(len(lengths)):
        frames = [t for t in range(offset[u], offset[u + 1]) if pdf[t] >= 0]
        speech = [t for t in frames if pdf[t] not in sil]
        nll = [np.log(np.exp(logits[t]).sum()) - logits[t, pdf[t]] for t in frames]
        assert scores.num_frames[u] == len(frames)
        assert scores.num_nonsil[u] == len(speech)
        assert scores.correct[u] == sum(logits[t].argmax() == pdf[t] for t in frames)
        assert scores.correct_nonsil[u] == sum(logits[t].argmax() == pdf[t] for t in speech)
        assert scores.xent_sum[u] == pytest.approx(sum(nll), rel=1e-5, abs=1e-6)


def test_frame_scores_take_log_posteriors_as_they_are():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    pdf, offset = np.array([0, 1, 2, 3, -1, 0]), np.array([0, 3, 6])
    log_post = torch.as_tensor(logits).log_softmax(1).numpy()
    from_logits, from_log_post = (per_utterance_frame_scores(x, FrameLabels(pdf, offset)) for x in (logits, log_post))
    np.testing.assert_allclose(from_logits.xent_sum, from_log_post.xent_sum, rtol=1e-6)
    np.testing.assert_array_equal(from_logits.correct, from_log_post.correct)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, pdf: (z[:-1], pdf), "lacks 1 of the 5 labelled frames"),
        (lambda z, pdf: (np.vstack([z, z]), pdf), "more frames than the 6 labels"),
        (lambda z, pdf: (z, pdf + 2), "the net has the outputs 0..3"),
        (lambda z, pdf: (np.where(np.arange(6)[:, None] == 2, np.nan, z), pdf), "NaN"),
    ],
)
def test_frames_that_do_not_fit_are_refused(change, message):
    blocks, pdf = change(np.zeros((6, 4)), np.array([0, 1, 2, 3, -1, 0]))
    with pytest.raises(AsrKdError, match=message):
        per_utterance_frame_scores(blocks, FrameLabels(pdf, np.array([0, 3, 6])))


def brute_force(logits, labels, num_phones):
    """Counts of a FrameScores by loops over frames."""
    counts = {"top5": [], "by_phone": Counter(), "states": Counter(), "phones": Counter(), "state": Counter()}
    state_phone = labels.state_phones(logits.shape[1])
    for u in range(len(labels.utt_offset) - 1):
        frames = [t for t in range(*labels.utt_offset[u : u + 2]) if labels.pdf[t] >= 0]
        top5 = 0
        for t in frames:
            label, best = labels.pdf[t], logits[t].argmax()
            top5 += label in np.argsort(-logits[t], kind="stable")[:5]
            counts["by_phone"][u, labels.phone[t]] += label == best
            counts["state"][label] += label == best
            if label != best:
                counts["states"][label, best] += 1
            predicted = state_phone[best]
            counts["phones"][labels.phone[t], num_phones if predicted < 0 else predicted] += 1
        counts["top5"].append(top5)
    return counts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_details_equal_a_loop_over_frames(seed, ties):
    rng = np.random.default_rng(seed)
    offset, num_pdfs, phones = np.array([0, 9, 9, 30]), 11, ["SIL", "AH", "N"]
    logits = rng.normal(size=(30, num_pdfs)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    pdf = rng.integers(-1, num_pdfs, size=30)
    labels = FrameLabels(pdf, offset, [0], np.where(pdf < 0, -1, rng.integers(0, 3, size=30)), phones)
    scores, expected = per_utterance_frame_scores(logits, labels), brute_force(logits, labels, len(phones))
    detail = scores.detail
    assert scores.correct_top5.tolist() == expected["top5"]
    assert {(u, p): n for (u, p), n in np.ndenumerate(detail.phone_correct) if n} == +expected["by_phone"]
    assert {s: n for s, n in enumerate(detail.state_correct) if n} == +expected["state"]
    assert {(a, b): n for a, b, n in detail.state_confusions.tolist()} == expected["states"]
    assert {(a, b): n for a, b, n in detail.phone_confusions.tolist()} == expected["phones"]
    assert detail.phone_frames.sum(axis=1).tolist() == scores.num_frames.tolist()
    assert detail.state_confusions[:, 2].tolist() == sorted(detail.state_confusions[:, 2], reverse=True)


def test_a_shared_state_goes_to_its_most_frequent_phone():
    labels = FrameLabels([0, 0, 0, 1, -1, 1], [0, 6], (), [1, 2, 2, 0, -1, 0], ["SIL", "AH_B", "AH_E"])
    assert labels.state_phones(4).tolist() == [2, 0, -1, -1]


def test_frames_in_any_order_once_each():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(30, 6)), FrameLabels(rng.integers(0, 6, size=30), [0, 10, 30])
    scorer = FrameScorer(labels)
    scorer.add(10, logits[10:])
    scorer.add(0, logits[:10])
    whole = per_utterance_frame_scores(logits, labels)
    assert np.array_equal(scorer.result().xent_sum, whole.xent_sum)
    with pytest.raises(AsrKdError, match="came twice"):
        scorer.add(5, logits[:2])
    with pytest.raises(AsrKdError, match="4 columns after 6"):
        scorer.add(0, logits[:, :4])


# --- confusions in bounded memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 35), max_size=40), max_size=6), st.integers(1, 40))
def test_pruned_counts_are_never_too_large_and_too_small_by_a_bounded_amount(blocks, max_pairs):
    pairs, truth = PairCounts(6, max_pairs), Counter()
    for block in blocks:
        labels, predictions = np.divmod(np.array(block, dtype=np.int64), 6)
        pairs.add(labels, predictions)
        pairs.top()  # merges what waits
        truth.update(block)
    found = {6 * a + b: n for a, b, n in pairs.top().tolist()}
    assert len(found) <= max_pairs
    assert all(truth[k] - pairs.max_undercount <= found.get(k, 0) <= truth[k] for k in truth)
    assert pairs.max_undercount <= sum(truth.values()) / (max_pairs + 1)
    if len(truth) <= max_pairs:
        assert found == truth


# --- calibration


def test_a_calibrated_net_has_no_calibration_error_and_a_sure_one_has_its_error_rate():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.1, 1.0, size=200_000)
    calibrated = ConfidenceHistogram()
    for part in np.array_split(np.arange(200_000), 7):
        calibrated.add(confidence[part], rng.random(len(part)) < confidence[part])
    summary = calibrated.summary()
    assert summary["ece"] < 0.5
    assert summary["ece_equal_mass"] < 0.5
    sure = ConfidenceHistogram()
    sure.add(np.ones(1000), np.arange(1000) < 700)
    assert sure.summary()["ece"] == pytest.approx(30.0)
    assert sure.summary()["max_error"] == pytest.approx(30.0)
    assert sure.summary()["mean_confidence"] == pytest.approx(100.0)


def test_calibration_error_of_known_bins():
    # Guo et al. 2017, equation 3, by hand: 6 frames at 0.9 of which 3 are right, 2 frames at 0.3 of which both are.
    histogram = ConfidenceHistogram()
    histogram.add(np.array([0.9] * 6 + [0.3] * 2), np.array([1, 1, 1, 0, 0, 0, 1, 1], dtype=bool))
    assert histogram.equal_width().expected_error == pytest.approx((6 * 0.4 + 2 * 0.7) / 8)
    assert histogram.equal_width().max_error == pytest.approx(0.7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([0.2, 1.0, 5.0]))
def test_calibration_errors_equal_those_of_the_frames_themselves(seed, num_frames, spread):
    rng = np.random.default_rng(seed)
    confidence = rng.random(num_frames) ** spread
    correct = rng.random(num_frames) < 0.6
    histogram = ConfidenceHistogram()
    histogram.add(confidence, correct)
    bins = np.ceil(confidence * NUM_BINS).astype(int).clip(1) - 1
    gaps = [abs(np.sum(correct[bins == b] - confidence[bins == b])) for b in range(NUM_BINS)]
    assert histogram.equal_width().expected_error == pytest.approx(sum(gaps) / num_frames)
    mass = histogram.equal_mass()
    assert mass.num_frames.sum() == num_frames
    assert len(mass.num_frames) <= NUM_BINS
    # A bin holds more than its share only by the frames of one cell.
    cells = np.bincount(np.ceil(confidence * NUM_CELLS).astype(int))
    assert mass.num_frames.max() <= num_frames / NUM_BINS + cells.max()


# --- labels and posteriors from anywhere


def test_positions_in_the_word_are_joined_only_where_all_four_are_there():
    phones = ["SIL", "SIL_B", "SIL_E", "SIL_I", "SIL_S", "T_S", "AH_B", "AH_E", "AH_I", "AH_S"]
    names, index = join_positions(phones)
    assert names == ["SIL", "T_S", "AH"]
    assert index.tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2]


UTTS = ["ann-1", "bob-1", "bob-2"]
LENGTHS = [30, 1, 25]


@pytest.fixture
def foreign(tmp_path):
    """An alignment (ali.h5 and Kaldi's) and log posteriors (utt_id → (num_frames, 7)) that fit it."""
    rng = np.random.default_rng(5)
    layout = Layout.from_lengths(UTTS, LENGTHS)
    pdf = rng.integers(0, 7, size=layout.num_frames)
    write_ali(
        tmp_path / "ali.h5",
        layout,
        pdf,
        num_pdfs=7,
        model_digest="x",
        sil_pdfs=[0],
        phone=pdf // 2,
        phones=list("SABC"),
    )
    write_int_vectors(f"ark:{tmp_path}/ali.ark", ((u, pdf[layout.rows(u)].astype(np.int32)) for u in UTTS))
    logits = rng.normal(size=(layout.num_frames, 7)) * 2
    log_post = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return {u: log_post[layout.rows(u)].astype(np.float32) for u in UTTS}


def write_flat(path, name, posts, dtype=np.float32):
    with h5py.File(path, "w") as file:
        file[name] = np.concatenate(list(posts.values())).astype(dtype)
        file.create_dataset("utt/id", data=list(posts), dtype=h5py.string_dtype())
        file["utt/offset"] = np.concatenate([[0], np.cumsum([len(p) for p in posts.values()])])


def write_each(path, posts):
    with h5py.File(path, "w") as file:
        for utt_id, post in posts.items():
            file[utt_id] = post


PRIORS = np.log(np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=np.float32))
FORMS = {
    "flat log": (lambda p, f: write_flat(f, "log_post", p), "x.h5", {}),
    "flat half": (lambda p, f: write_flat(f, "post", {u: np.exp(x) for u, x in p.items()}, np.float16), "x.h5", {}),
    "each": (lambda p, f: write_each(f, {u: np.exp(x.astype(np.float64)) for u, x in p.items()}), "x.h5", {}),
    "ark": (lambda p, f: write_matrices(f"ark:{f}", p.items()), "x.ark", {}),
    "text": (lambda p, f: write_matrices(f"ark,t:{f}", ((u, np.exp(x)) for u, x in p.items())), "x.ark", {}),
    "logits": (lambda p, f: write_flat(f, "logits", {u: x + 3 for u, x in p.items()}), "x.h5", {"logits": True}),
    "loglik": (lambda p, f: write_each(f, {u: x - PRIORS for u, x in p.items()}), "x.h5", {"log_priors": PRIORS}),
    "shifted loglik": (
        lambda p, f: write_each(f, {u: x - PRIORS - 9 for u, x in p.items()}),
        "x.h5",
        {"log_priors": PRIORS, "logits": True},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_posteriors_of_every_form_score_alike(foreign, tmp_path, form):
    write, name, how = FORMS[form]
    write(foreign, tmp_path / name)
    labelled = read_labels(tmp_path / "ali.h5")
    scores, passed_over = score_posteriors(open_posteriors(tmp_path / name, **how), labelled, "x")
    expected = per_utterance_frame_scores(np.concatenate(list(foreign.values())), labelled.labels)
    assert passed_over == 0
    np.testing.assert_array_equal(scores.correct, expected.correct)
    np.testing.assert_allclose(scores.xent_sum, expected.xent_sum, rtol=2e-3)


def test_kaldis_alignment_is_the_same_alignment(foreign, tmp_path):
    ours, kaldis = read_labels(tmp_path / "ali.h5"), read_labels(tmp_path / "ali.ark", sil_pdfs=[0])
    assert kaldis.utt_ids == ours.utt_ids
    assert np.array_equal(kaldis.labels.pdf, ours.labels.pdf)
    posts = foreign | {"zoe-9": foreign["bob-1"]}
    by_ours, by_kaldis = (score_posteriors(posts.items(), labelled, "x") for labelled in (ours, kaldis))
    assert by_ours[1] == by_kaldis[1] == 1
    assert np.array_equal(by_ours[0].correct_nonsil, by_kaldis[0].correct_nonsil)
    assert by_kaldis[0].detail.phones == []


BAD_POSTERIORS = {
    "missing": (lambda p: p.pop("bob-2"), "lacks 1 of the 3 utterances of the alignment, the first is 'bob-2'"),
    "short": (lambda p: p.update({"ann-1": p["ann-1"][:-1]}), "'ann-1' has 29 frames, but its alignment has 30"),
    "nan": (lambda p: p["bob-2"].__setitem__((3, 2), np.nan), "'bob-2' holds NaN"),
    "logits": (lambda p: p.update({u: x + 0.1 for u, x in p.items()}), "give --logits"),
    "one row": (lambda p: p["bob-2"].__setitem__(7, p["bob-2"][7] - 1), "'bob-2', frame 7: .* sum to 0.36"),
    "width": (lambda p: p.update({"bob-1": np.zeros((1, 1))}), "'bob-1' has 1 columns, but 7"),
    "narrow": (lambda p: p.update({u: np.log(np.full((len(x), 3), 1 / 3)) for u, x in p.items()}), "the outputs 0..2"),
    "integers": (lambda p: p.update({"bob-1": np.zeros((1, 7), dtype=int)}), "bob-1 is no matrix .* of floats"),
    "vector": (lambda p: p.update({"bob-1": np.zeros(7)}), "bob-1 is no matrix"),
}


@pytest.mark.parametrize("case", BAD_POSTERIORS)
def test_posteriors_that_do_not_fit_are_refused_in_one_sentence(foreign, tmp_path, case):
    damage, message = BAD_POSTERIORS[case]
    damage(foreign)
    write_each(tmp_path / "x.h5", foreign)
    with pytest.raises(AsrKdError, match=message) as error:
        score_posteriors(open_posteriors(tmp_path / "x.h5"), read_labels(tmp_path / "ali.h5"), str(tmp_path / "x.h5"))
    assert str(tmp_path / "x.h5") in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_the_project_that_hold_no_posteriors_are_told_apart(foreign, tmp_path):
    with pytest.raises(AsrKdError, match=r"ali\.h5: has a table of utterances but no posteriors"):
        list(open_posteriors(tmp_path / "ali.h5"))
    write_flat(tmp_path / "x.h5", "prob", {u: np.exp(p) for u, p in foreign.items()})
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["tail"] = np.zeros(len(file["prob"]))
    with pytest.raises(AsrKdError, match="only the largest posteriors"):
        list(open_posteriors(tmp_path / "x.h5"))


def test_links_out_of_a_posteriors_file_are_not_followed(foreign, tmp_path):
    write_each(tmp_path / "secret.h5", foreign)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["ann-1"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/ann-1")
    with pytest.raises(AsrKdError, match="link to elsewhere"):
        list(open_posteriors(tmp_path / "x.h5"))
    (tmp_path / "y.h5").write_bytes((tmp_path / "secret.h5").read_bytes()[:900])
    with pytest.raises(AsrKdError, match=r"y\.h5: not a readable HDF5"):
        list(open_posteriors(tmp_path / "y.h5"))


def test_a_posterior_of_zero_costs_no_more_than_kaldis_floor(tmp_path):
    write_each(tmp_path / "x.h5", {"u": np.array([[0.0, 1.0]])})
    ((_, log_post),) = open_posteriors(tmp_path / "x.h5")
    np.testing.assert_allclose(log_post, [[np.log(1e-20), 0.0]], atol=1e-5)


def test_frame_results_compare_all_pairs(foreign):
    labels = FrameLabels(make_labels(40).pdf, make_labels(40).utt_offset, [0, 1, 2])
    rng = np.random.default_rng(6)
    utt_ids = [f"u{u}" for u in range(40)]
    systems = [
        FrameSystem.of_seeds(
            name,
            utt_ids,
            utt_ids,
            [per_utterance_frame_scores(noisy_outputs(labels, margin, rng), labels) for _ in range(num_seeds)],
        )
        for name, margin, num_seeds in (("a", 1.0, 2), ("b", 2.0, 1), ("c", 2.0, 1))
    ]
    results = build_frame_results(systems, num_resamples=500, about={"ali": "x"})
    json.dumps(results, allow_nan=False)
    pairs = {(c["a"], c["b"]) for c in results["comparisons"]}
    assert pairs == {("b", "a"), ("c", "a"), ("c", "b")}
    values = {s["name"]: s for s in results["systems"]}
    for test in results["comparisons"]:
        a, b = (values[test[side]][test["metric"]]["value"] for side in "ab")
        assert test["difference"] == pytest.approx(a - b)
    p = {(c["a"], c["b"]): c["p_value"] for c in results["comparisons"] if c["metric"] == "frame_accuracy"}
    assert p["b", "a"] < 0.01 < p["c", "b"]
    assert len(values["a"]["frame_accuracy"]["per_seed"]) == 2
    single = build_frame_results([dataclasses.replace(s, utt_ids=["u"] * 40) for s in systems], "utterance")
    assert single["comparisons"] == []
    assert single["systems"][0]["frame_accuracy"]["ci95"] is None


# --- systems, results.json


@pytest.fixture(scope="module")
def systems():
    return make_systems()


@pytest.fixture(scope="module")
def results(systems):
    return build_results("mini", "quick", "test", systems, HEADLINE, "utterance", num_resamples=1000)


def test_system_scores_survive_a_file(systems, tmp_path):
    systems[0].save(tmp_path / "baseline.json")
    loaded = SystemScores.load(tmp_path / "baseline.json")
    for ours, theirs in ((loaded, systems[0]), (loaded.detail, systems[0].detail)):
        for field in {f.name for f in dataclasses.fields(ours)} - {"detail"}:
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["correct"].pop(), r"correct must have shape \(3, 90\)"),
        (lambda c: c.update(role="teacher"), "role must be one of"),
        (lambda c: c["hyps"][1].pop("utt000"), "hyps must have exactly the utterances"),
        (lambda c: c.update(num_frames=[0.5] * 90), "num_frames is no array of int64"),
        (lambda c: c["num_nonsil"].__setitem__(3, 10**6), "num_nonsil exceeds num_frames"),
        (lambda c: c.pop("refs"), "refs"),
        (lambda c: c["correct_top5"][0].__setitem__(3, 0), "correct_top5 must lie between"),
        (lambda c: c["detail"]["phone_frames"].pop(), "phone_frames has shape"),
        (lambda c: c["detail"].pop("calibration"), "by state and phone are not complete"),
        (lambda c: c.update(version=1), "is not a asr_kd.system_scores file"),
    ],
)
def test_system_scores_that_do_not_agree_are_refused(systems, tmp_path, change, message):
    path = tmp_path / "scores.json"
    systems[0].save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(AsrKdError, match=message) as error:
        SystemScores.load(path)
    assert str(path) in str(error.value)


def test_results_are_the_scores_in_percent(systems, results):
    baseline = systems[0]
    entry = results["systems"][0]
    accuracy = 100 * baseline.correct.sum(axis=1) / baseline.num_frames.sum()
    assert entry["frame_accuracy"]["per_seed"] == pytest.approx(accuracy)
    assert entry["frame_accuracy"]["value"] == pytest.approx(accuracy.mean())
    assert [entry["wer"][k] for k in ("ins", "del", "sub")] == baseline.errors[0].sum(axis=0).tolist()
    assert entry["cross_entropy"] == pytest.approx(mean_over_seeds(baseline.xent_sum).sum() / baseline.num_frames.sum())
    assert results["num_words"] == 5 * 90
    value = {s["name"]: {m: s[m]["value"] for m in ("frame_accuracy", "wer")} for s in results["systems"]}
    for metric, sign in (("frame_accuracy", 1), ("wer", -1)):
        b, e, s = (sign * value[name][metric] for name in ("baseline", "ensemble", "student"))
        gain = results["gain_recovered"][metric]
        assert gain["value"] == pytest.approx((s - b) / (e - b))
        assert gain["shortfall_points"] == pytest.approx(e - s)
    for comparison in results["comparisons"]:
        a, b, metric = (comparison[k] for k in ("a", "b", "metric"))
        assert comparison["difference"] == pytest.approx(value[a][metric] - value[b][metric])
    tests = {(c["metric"], c["test"]) for c in results["comparisons"]}
    assert tests == {("frame_accuracy", "paired bootstrap"), ("wer", "paired bootstrap"), ("wer", "MAPSSWE")}


def test_results_survive_json_and_repeat_exactly(systems, results):
    again = build_results("mini", "quick", "test", systems, HEADLINE, "utterance", num_resamples=1000)
    assert json.loads(json.dumps(results, allow_nan=False)) == again


def test_resampling_speakers_counts_speakers(systems):
    by_speaker = build_results("mini", "quick", "test", systems, HEADLINE, "speaker", num_resamples=200)
    assert {c["n"] for c in by_speaker["comparisons"] if c["test"] == "paired bootstrap"} == {15}
    assert by_speaker["resampling_unit"] == "speaker"


def test_phone_error_rate_is_reported_where_it_is_given(systems):
    with_phones = [dataclasses.replace(s, phone_errors=s.errors, num_ref_phones=s.num_ref_words) for s in systems]
    results = build_results("mini", "quick", "test", with_phones, HEADLINE, num_resamples=200)
    assert results["systems"][1]["per"] == results["systems"][1]["wer"]
    assert "per" in {c["metric"] for c in results["comparisons"]}


def test_letters_take_the_place_of_phones_and_unknown_words_are_counted(systems):
    by_letters = [
        dataclasses.replace(
            s,
            phone_errors=s.errors,
            num_ref_phones=s.num_ref_words,
            per_unit="letter",
            num_oov_words=np.minimum(s.num_ref_words, 1),
        )
        for s in systems
    ]
    results = build_results("mini", "quick", "test", by_letters, HEADLINE, num_resamples=200)
    assert results["per_unit"] == "letter"
    assert results["oov"] == {"num_words": 90, "share": 0.2}
    summary, tests = summary_table(results), comparisons_table(results)
    assert "LER %" in [column.header for column in summary.columns]
    assert summary.caption.endswith("20.0 % of the words are not in the recogniser’s vocabulary and can only be wrong.")
    assert "letter error rate" in {row.cells["metric"] for row in tests.rows}
    mixed = [*by_letters[:3], dataclasses.replace(by_letters[3], per_unit="phone")]
    with pytest.raises(AsrKdError, match="different per_unit"):
        build_results("mini", "quick", "test", mixed, HEADLINE)
    with pytest.raises(AsrKdError, match="num_oov_words exceeds"):
        dataclasses.replace(systems[0], num_oov_words=systems[0].num_ref_words + 1)


def test_letters_keep_their_tone_marks_and_lose_the_boundaries_of_words():
    refs, hyps = {"a": "kyéma wó"}, {"a": "kye\u0301 mawo"}
    errors, num_ref = count_errors(as_letters(refs), as_letters(hyps), ["a"])
    assert errors.tolist() == [[0, 0, 1]]
    assert num_ref.tolist() == [7]


def test_mapsswe_that_was_refused_is_listed_apart(systems):
    few = [
        dataclasses.replace(s, errors=systems[1].errors[[0] * len(s.seeds)], hyps=[systems[1].refs] * len(s.seeds))
        for s in systems
    ]
    results = build_results("mini", "quick", "test", few, HEADLINE, num_resamples=200)
    assert "MAPSSWE" not in {c["test"] for c in results["comparisons"]}
    assert {r["test"] for r in results["refused_tests"]} == {"MAPSSWE"}
    assert results["gain_recovered"]["wer"]["value"] is None


def test_systems_scored_on_different_material_are_refused(systems):
    other = dataclasses.replace(systems[2], num_frames=systems[2].num_frames + 1)
    with pytest.raises(AsrKdError, match="baseline and student were scored on different num_frames"):
        build_results("mini", "quick", "test", [*systems[:2], other], HEADLINE)
    with pytest.raises(AsrKdError, match="the headline's student, nobody"):
        build_results("mini", "quick", "test", systems, {**HEADLINE, "student": "nobody"})


def all_places(value, path=()):
    """Every key that the schema asks for, as a path into the results; of a list, its first item stands for all."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from all_places(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from all_places(value[0], (*path, 0))


# Not of the contract; the second may be missing, but are not odd where they are there.
UNCHECKED = {"num_speakers", "bootstrap", "refused_tests", "resampling_note"}
OPTIONAL = {"frame_accuracy_nonsil", "frame_accuracy_top5", "calibration", "per_unit", "oov", "per_phone", "confusions"}
FREE_NAMES = {"label_phone", "predicted_phone", "reason"}


def test_each_missing_or_odd_key_is_named(results):
    small = copy.deepcopy(results)
    small["systems"], small["per_phone"] = small["systems"][:3], small["per_phone"][:1]
    places = [p for p in all_places(small) if not UNCHECKED & set(p) and p[-1] not in FREE_NAMES]
    assert len(places) > 80
    for place in places:
        by_name = place[-1] in HEADLINE and place[0] != "headline"  # systems' own names as keys
        may_be_missing = place[-1] in OPTIONAL or by_name
        damages = [lambda parent, key: parent.__setitem__(key, {"odd": True})]
        damages += [] if may_be_missing else [lambda parent, key: parent.pop(key)]
        for damage in damages:
            broken = copy.deepcopy(small)
            parent = broken
            for step in place[:-1]:
                parent = parent[step]
            damage(parent, place[-1])
            with pytest.raises(AsrKdError) as error:
                check_results(broken)
            assert str(place[-1]) in str(error.value)


def test_extra_keys_are_allowed_and_nan_is_not(results):
    check_results({**results, "note": "more"})
    broken = copy.deepcopy(results)
    broken["systems"][0]["cross_entropy"] = float("nan")
    with pytest.raises(AsrKdError, match=r"systems\[0\].cross_entropy must be a finite number"):
        check_results(broken)


def test_an_alignment_in_text_is_told_its_name(tmp_path):
    (tmp_path / "ali.txt").write_text("u1 3 3 4\n")
    with pytest.raises(AsrKdError, match=f"name it ark:{tmp_path}/ali.txt"):
        read_labels(tmp_path / "ali.txt")
    assert read_labels(f"ark:{tmp_path}/ali.txt").utt_ids == ("u1",)
