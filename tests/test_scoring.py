"""Scoring: frames, systems, results.json and the report."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.scoring.frames import FrameLabels, per_utterance_frame_scores
from asr_kd.scoring.plots import curve_group, systems_plot
from asr_kd.scoring.report import RESULTS_HEADER, headline_sentences, results_row, write_report
from asr_kd.scoring.results import build_results, check_results
from asr_kd.scoring.systems import SystemScores, mean_over_seeds
from asr_kd.scoring.wer import count_errors

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


# --- systems, results.json


def noisy_hyps(rng, refs, error_rate):
    return {u: " ".join(w if rng.random() > error_rate else "oops" for w in ref.split()) for u, ref in refs.items()}


def make_system(name, role, seeds, accuracy, word_error, rng, num_utts=90):
    utt_ids = [f"utt{u:03d}" for u in range(num_utts)]
    lengths = np.random.default_rng(11)  # the material is the same for all systems
    frames = lengths.integers(80, 300, size=num_utts)
    difficulty = lengths.normal(scale=0.05, size=num_utts)
    refs = {u: " ".join(lengths.choice(["one", "two", "six", "ten"], size=5)) for u in utt_ids}
    speech = frames - 30
    hyps = [noisy_hyps(rng, refs, word_error) for _ in seeds]
    per_seed = [count_errors(refs, hyp, utt_ids) for hyp in hyps]
    correct_nonsil = rng.binomial(speech, accuracy + difficulty, size=(len(seeds), num_utts))
    return SystemScores(
        name=name,
        role=role,
        num_members=4 if role == "ensemble" else 1,
        combination="arithmetic mean of posteriors" if role == "ensemble" else None,
        num_parameters=1_200_000 * (4 if role == "ensemble" else 1),
        seeds=list(seeds),
        utt_ids=utt_ids,
        spk_ids=[f"spk{u % 15}" for u in range(num_utts)],
        num_frames=frames,
        num_nonsil=speech,
        correct=correct_nonsil + 25,
        correct_nonsil=correct_nonsil,
        xent_sum=frames * rng.normal(2.2 * (1 - accuracy) + 0.4, 0.01, size=(len(seeds), num_utts)),
        errors=np.stack([errors for errors, _ in per_seed]),
        num_ref_words=per_seed[0][1],
        hyps=hyps,
        refs=refs,
        decode_rtf=0.012,
        train_frames_per_second=41_000.0,
        train_seconds=95.5,
    )


HEADLINE = {"baseline": "baseline", "ensemble": "ensemble", "student": "student"}


@pytest.fixture(scope="module")
def systems():
    rng = np.random.default_rng(12)
    return [
        make_system("baseline", "baseline", [1, 2, 3], 0.60, 0.30, rng),
        make_system("ensemble", "ensemble", [1], 0.66, 0.22, rng),
        make_system("student", "student", [1, 2, 3], 0.645, 0.24, rng),
        make_system("member1", "member", [1], 0.60, 0.31, rng),
    ]


@pytest.fixture(scope="module")
def results(systems):
    return build_results("mini", "quick", "test", systems, HEADLINE, "utterance", num_resamples=1000)


def test_system_scores_survive_a_file(systems, tmp_path):
    systems[0].save(tmp_path / "baseline.json")
    loaded = SystemScores.load(tmp_path / "baseline.json")
    for field in dataclasses.fields(SystemScores):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(systems[0], field.name), err_msg=field.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["correct"].pop(), r"correct must have shape \(3, 90\)"),
        (lambda c: c.update(role="teacher"), "role must be one of"),
        (lambda c: c["hyps"][1].pop("utt000"), "hyps must have exactly the utterances"),
        (lambda c: c.update(num_frames=[0.5] * 90), "num_frames is no array of int64"),
        (lambda c: c["num_nonsil"].__setitem__(3, 10**6), "num_nonsil exceeds num_frames"),
        (lambda c: c.pop("refs"), "refs"),
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


EXTRA = {"num_speakers", "bootstrap", "refused_tests", "frame_accuracy_nonsil", "frame_accuracy_top5", "calibration"}
EXTRA |= {"per_phone", "confusions"}


def test_each_missing_or_odd_key_is_named(results):
    places = [p for p in all_places(results) if not EXTRA & set(p) and p[-1] != "reason"]
    assert len(places) > 50
    for place in places:
        for damage in (lambda parent, key: parent.pop(key), lambda parent, key: parent.__setitem__(key, {"odd": True})):
            broken = copy.deepcopy(results)
            parent = broken
            for step in place[:-1]:
                parent = parent[step]
            damage(parent, place[-1])
            with pytest.raises(AsrKdError) as error:
                check_results(broken)
            assert place[-1] in str(error.value)


def test_extra_keys_are_allowed_and_nan_is_not(results):
    check_results({**results, "note": "more"})
    broken = copy.deepcopy(results)
    broken["systems"][0]["cross_entropy"] = float("nan")
    with pytest.raises(AsrKdError, match=r"systems\[0\].cross_entropy must be a finite number"):
        check_results(broken)


# --- report


def curve(num_epochs):
    return [
        {"epoch": e, "train_loss": 3 / e, "dev_xent": 2 / e, "dev_frame_acc": 60 - 9 / e, "learning_rate": 1e-3}
        for e in range(1, num_epochs + 1)
    ]


REPORT = {
    "curves": {"baseline seed 1": curve(4), "baseline seed 2": curve(4), "student seed 1": curve(1), "odd one": []},
    "sweep": [
        {"temperature": t, "soft_weight": w, "mean": "arithmetic", "dev_frame_acc": 60 + w - t / 9, "dev_xent": 1.2 + t}
        for t in (1.0, 2.0, 5.0)
        for w in (0.5, 1.0)
    ],
    "config": {"dnn": {"hidden_dim": 512, "out": Path("exp")}},
    "run_info": {"version": "0.1.0", "host": "somewhere", "command": None},
    "commands": ["recipes/mini/run.sh --seed 1 && echo <done>"],
}


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(out, results, **REPORT)
    assert json.loads((out / "results.json").read_text()) == results
    return (out / "index.html").read_text()


def test_page_loads_nothing_and_its_ids_are_unique(page):
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|@import|src=", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r"url\(#([^)]*)\)", page)) | set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    assert not re.search(r"#0[123]0[0-9]0[0-9]\b", page), "a placeholder colour was left in"


def test_page_says_what_the_results_say(page, results):
    for system in results["systems"]:
        assert f"{system['frame_accuracy']['value']:.2f}<span" in page
        assert f"{system['wer']['ins']} / {system['wer']['del']} / {system['wer']['sub']}" in page
    assert headline_sentences(results)[0] in page
    assert page.count("<svg") == 3
    assert "recipes/mini/run.sh --seed 1 &amp;&amp; echo &lt;done&gt;" in page
    assert "hidden_dim: 512" in page


def test_same_results_give_the_same_page(page, results, tmp_path):
    write_report(tmp_path, results, **REPORT)
    assert (tmp_path / "index.html").read_text() == page


def test_names_are_escaped_everywhere(results, tmp_path):
    renamed = json.loads(json.dumps(results).replace('"member1"', '"<b>&m"'))
    write_report(tmp_path, renamed, **(REPORT | {"curves": {"<b>&m seed 1": curve(2)}}))
    page = (tmp_path / "index.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;m" in page
    assert "&lt;b&gt;&amp;m" in systems_plot(renamed["systems"])


def test_report_without_curves_sweep_or_share(results, tmp_path):
    lost = copy.deepcopy(results)
    lost["gain_recovered"]["wer"].update(value=None, ci95=None, p_at_least_086=None, reason="there is no gain")
    write_report(tmp_path, lost, {}, [], {}, {}, [])
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 1
    assert "gain in word error rate is undefined: there is no gain" in page


def test_broken_results_are_not_published(results, tmp_path):
    with pytest.raises(AsrKdError, match="results: recipe is missing"):
        write_report(tmp_path, {k: v for k, v in results.items() if k != "recipe"}, {}, [], {}, {}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("p", "wording"), [(0.01, "is rejected"), (0.5, "neither shown nor"), (0.99, "is shown")])
def test_headline_does_not_claim_more_than_the_test(results, p, wording):
    changed = copy.deepcopy(results)
    changed["gain_recovered"]["frame_accuracy"]["p_at_least_086"] = p
    assert wording in headline_sentences(changed)[1]


def test_rows_for_results_md_fit_their_header(results):
    rows = results_row(results).splitlines()
    assert len(rows) == 3
    assert {row.count("|") for row in [*rows, *RESULTS_HEADER.splitlines()]} == {9}
    share = results["gain_recovered"]["frame_accuracy"]["value"]
    assert f"{100 * share:.0f}\u00a0% [" in rows[2]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("member-3", "member"),
        ("baseline seed 2", "baseline"),
        ("member1 seed 1", "member"),
        ("7", "7"),
    ],
)
def test_nets_that_differ_in_seed_share_a_curve_group(name, group):
    assert curve_group(name) == group


def test_scoring_imports_without_the_optional_packages():
    optional = ("kaldi_hmm_gmm", "kaldifst", "kaldi_decoder", "librosa", "torchaudio")
    code = f"import sys; sys.modules.update(dict.fromkeys({optional}));"
    code += "import asr_kd.scoring.report, asr_kd.scoring.frames, asr_kd.scoring.results"
    subprocess.run([sys.executable, "-c", code], check=True)
