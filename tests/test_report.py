"""The report: tables, figures and pages that people read."""

import copy
import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_up_systems import HEADLINE, PHONES, make_labels, make_systems, noisy_outputs

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.scoring.plots import curve_group, systems_plot
from asr_kd.scoring.report import RESULTS_HEADER, ReportContext, headline_sentences, results_row, write_report
from asr_kd.scoring.results import build_results
from asr_kd.scoring.tables import Column, Row, Table, escape_latex, format_number, format_p_value, format_points
from asr_kd.scoring.utterance_plot import Tier, UtteranceView, audio_picture, differing, mel_picture, utterance_plot
from asr_kd.scoring.utterance_view import choose_utterance, view_utterance
from asr_kd.scoring.word_times import Span, runs, word_spans
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import write_matrices


def curve(num_epochs):
    return [
        {"epoch": e, "train_loss": 3 / e, "dev_xent": 2 / e, "dev_frame_acc": 60 - 9 / e, "learning_rate": 1e-3}
        for e in range(1, num_epochs + 1)
    ]


def make_view():
    """An utterance of four phones, of which the second was taken for another word."""
    phone = np.repeat([0, 1, 2, 0], [10, 8, 12, 10])
    heard = np.repeat([0, 2, 0], [12, 18, 10])
    names = ["SIL", "AH", "N"]
    tiers = [
        Tier("words", [Span(10, 18, "a"), Span(18, 30, "en")]),
        Tier("recognised", [Span(12, 30, "en")], [False]),
        Tier("phones", runs(phone, names)),
        Tier("recognised", runs(heard, names), differing(runs(heard, names), phone, names)),
    ]
    picture = mel_picture(np.random.default_rng(8).normal(size=(40, 23)), 0.01)
    return UtteranceView("utt007", "student", 0.01, 40, picture, tiers, ("recognised: oops (times not known)",))


REPORT = ReportContext(
    **{
        "curves": {"baseline seed 1": curve(4), "baseline seed 2": curve(4), "student seed 1": curve(1), "odd one": []},
        "sweep": [
            {
                "temperature": t,
                "soft_weight": w,
                "mean": "arithmetic",
                "dev_frame_acc": 60 + w - t / 9,
                "dev_xent": 1.2 + t,
            }
            for t in (1.0, 2.0, 5.0)
            for w in (0.5, 1.0)
        ],
        "config": {"dnn": {"hidden_dim": 512, "out": Path("exp")}},
        "run_info": {"version": "0.1.0", "host": "somewhere", "command": None},
        "commands": ["recipes/mini/run.sh --seed 1 && echo <done>"],
        "utterance": make_view(),
    }
)


@pytest.fixture(scope="module")
def systems():
    return make_systems()


@pytest.fixture(scope="module")
def results(systems):
    return build_results("mini", "quick", "test", systems, HEADLINE, "utterance", num_resamples=1000)


@pytest.fixture(scope="module")
def report_dir(systems, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(out, results, dataclasses.replace(REPORT, details={s.name: s.detail for s in systems[:3]}))
    assert json.loads((out / "results.json").read_text()) == results
    return out


@pytest.fixture(scope="module")
def page(report_dir):
    return (report_dir / "index.html").read_text()


def test_page_loads_nothing_and_its_ids_are_unique(page):
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<link|<img|@import|src=", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r"url\(#([^)]*)\)", page)) | set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    assert not re.search(r"#0[123]0[0-9]0[0-9]\b", page), "a placeholder colour was left in"


def test_page_says_what_the_results_say(page, results, systems):
    for scores, system in zip(systems, results["systems"], strict=True):
        assert f"{system['frame_accuracy']['value']:.2f}<span" in page
        assert [system["wer"][kind] for kind in ("ins", "del", "sub")] == scores.errors[0].sum(axis=0).tolist()
        mean = scores.errors.sum(axis=1).mean(axis=0)
        assert " / ".join(f"{count:.{0 if len(scores.seeds) == 1 else 1}f}" for count in mean) in page
    assert headline_sentences(results)[0] in page
    assert page.count("<svg") == 7
    assert "recipes/mini/run.sh --seed 1 &amp;&amp; echo &lt;done&gt;" in page
    assert "hidden_dim: 512" in page


def test_page_has_every_section_and_copies_of_every_table(page):
    sections = re.findall(r'<section id="(\w+)">', page)
    assert " ".join(sections) == "systems gain tests curves sweep phones confusions calibration utterance made"
    assert set(re.findall(r'<a href="#(\w+)">', page)) == set(sections)
    assert page.count("\\toprule") == page.count("as CSV (tables/") == 10
    assert "utt007, as student recognised it" in page
    assert "Recognised: oops (times not known)." in page
    assert 'href="data:image/png;base64,' in page


def test_tables_beside_the_page_hold_the_results(results, report_dir):
    tables = report_dir / "tables"
    names = {path.name for path in tables.iterdir()}
    assert {
        "summary.tex",
        "systems.csv",
        "systems.tex",
        "phones.csv",
        "states.csv",
        "confusions-states-student.tex",
    } <= names
    rows = list(csv.DictReader((tables / "systems.csv").open()))
    for row, system in zip(rows, results["systems"], strict=True):
        assert row["name"] == system["name"]
        assert float(row["wer_high"]) == system["wer"]["ci95"][1]
        assert float(row["ece"]) == system["calibration"]["ece"]
    summary = list(csv.DictReader((tables / "summary.csv").open()))
    assert {row["role"]: row["name"] for row in summary} == results["headline"]
    cost = {row["name"]: row for row in csv.DictReader((tables / "cost.csv").open())}
    assert (cost["student"]["num_seeds"], cost["ensemble"]["num_members"]) == ("3", "4")
    gains = {row["phone"]: row for row in csv.DictReader((tables / "phones.csv").open())}
    assert set(gains) == set(PHONES)
    for phone in results["per_phone"]:
        assert float(gains[phone["phone"]]["gain student_low"]) == phone["gain"]["student"]["ci95"][0]
    states = list(csv.DictReader((tables / "states.csv").open()))
    assert sum(int(row["num_frames"]) for row in states) == results["num_frames"]


def test_same_results_give_the_same_figures(results):
    for draw in (lambda: systems_plot(results["systems"]), lambda: utterance_plot(make_view())):
        assert draw() == draw()


def test_names_are_escaped_everywhere(results, tmp_path):
    renamed = json.loads(json.dumps(results).replace('"member1"', '"<b>&m"'))
    write_report(tmp_path, renamed, dataclasses.replace(REPORT, curves={"<b>&m seed 1": curve(2)}))
    page = (tmp_path / "index.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;m" in page
    assert "&lt;b&gt;&amp;m" in systems_plot(renamed["systems"])


def test_report_without_curves_sweep_or_share(results, tmp_path):
    lost = copy.deepcopy({k: v for k, v in results.items() if k not in ("per_phone", "confusions")})
    for system in lost["systems"]:
        del system["calibration"]
    lost["gain_recovered"]["wer"].update(value=None, ci95=None, p_at_least_086=None, reason="there is no gain")
    write_report(tmp_path, lost, ReportContext())
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 1  # of the systems; there are no frames by phone either
    assert "gain in word error rate is undefined: there is no gain" in page


def test_broken_results_are_not_published(results, tmp_path):
    with pytest.raises(AsrKdError, match="results: recipe is missing"):
        write_report(tmp_path, {k: v for k, v in results.items() if k != "recipe"}, ReportContext())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("p", "wording"), [(0.01, "is rejected"), (0.5, "neither shown nor"), (0.99, "is shown")])
def test_headline_does_not_claim_more_than_the_test(results, p, wording):
    changed = copy.deepcopy(results)
    changed["gain_recovered"]["frame_accuracy"]["p_at_least_086"] = p
    assert wording in headline_sentences(changed)[1]


def test_page_says_what_its_intervals_hold_for(systems, results, page, tmp_path):
    tested, shared = "other utterances and these seeds", "other utterances and other seeds"
    assert page.count(f"for {tested}") >= 4
    assert f"for {shared})." in headline_sentences(results)[0]
    test = next(c for c in results["comparisons"] if c["metric"] == "wer")
    gain = results["gain_recovered"]["wer"]["ensemble_minus_baseline"]
    assert gain["difference"] == pytest.approx(test["difference"])
    assert gain["ci95"][0] < test["ci95"][0] < test["ci95"][1] < gain["ci95"][1]
    # An ensemble that is worse: the same sign in the sentence as in the table of tests, which is surer of it.
    lost = copy.deepcopy(results)
    lost["gain_recovered"]["wer"].update(
        value=None,
        ci95=None,
        p_at_least_086=None,
        reason="no gain",
        ensemble_minus_baseline={"difference": 12.33, "ci95": [-33.0, 57.0]},
    )
    for system in lost["systems"]:
        system["seeds"] = system["seeds"][:2]
    assert headline_sentences(lost)[2].endswith(
        "undefined: no gain (ensemble minus baseline: +12.33 points, 95\u00a0% interval \u221233.00 to +57.00 "
        f"for {shared}, whose variance rests on 2 seeds; a gain is below 0)."
    )
    for system in lost["systems"]:
        system["seeds"] = system["seeds"][:1]
    write_report(tmp_path, lost, ReportContext())
    assert shared not in (tmp_path / "index.html").read_text(), "one seed says nothing of others"


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
    optional = ("kaldi_hmm_gmm", "kaldifst", "numba", "librosa", "torchaudio")
    code = f"import sys; sys.modules.update(dict.fromkeys({optional}));"
    code += "import asr_kd.scoring.report, asr_kd.scoring.frames, asr_kd.scoring.results"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- tables


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50 % & more_less #1 {a} $ ^ ~", r"50 \% \& more\_less \#1 \{a\} \$ \textasciicircum{} \textasciitilde{}"),
        ("a\\b\nc", r"a\textbackslash{}b c"),
        ("p < 0.0001, −1.5 ≥ 2", r"p $<$ 0.0001, $-$1.5 $\ge$ 2"),
    ],
)
def test_latex_is_escaped(text, latex):
    assert escape_latex(text) == latex


def test_one_table_as_csv_and_as_latex():
    columns = (Column("name", "System & kind", text=True), Column("wer", "WER %", format_number(1), interval=True))
    rows = [
        Row({"name": 'a, "b"_1', "wer": {"value": -1.25, "ci95": [-2.0, 0.5]}}),
        Row({"name": "c\nd", "wer": {"difference": 3.0, "ci95": None}}),
        Row({"name": "e"}),
    ]
    table = Table("my table", "100 % sure", columns, rows)
    assert list(csv.reader(io.StringIO(table.csv()))) == [
        ["name", "wer", "wer_low", "wer_high"],
        ['a, "b"_1', "-1.25", "-2.0", "0.5"],
        ["c\nd", "3.0", "", ""],
        ["e", "", "", ""],
    ]
    lines = table.latex().splitlines()
    assert r"\caption{100 \% sure}" in lines
    assert r"\label{tab:my-table}" in lines
    assert r"System \& kind & WER \% \\" in lines
    assert 'a, "b"\\_1 & $-$1.2 {\\footnotesize [$-$2.0, 0.5]} \\\\' in lines
    assert r"e & -- \\" in lines
    assert table.latex().count("{") == table.latex().count("}")


def test_differences_have_one_minus_sign_and_zero_has_none():
    assert [format_points(value) for value in (1.5, -1.5, 1e-9, -1e-9)] == ["+1.50", "−1.50", "0.00", "0.00"]


def test_small_p_values_are_not_printed_as_zero():
    assert [format_p_value(p) for p in (0.04999, 0.00005, 0.00004)] == ["0.0500", "0.0001", "< 0.0001"]


# --- words in time, one utterance


LEXICON = {"six": [("S", "IH", "K", "S")], "a": [("AH",)], "an": [("AE", "N"), ("AH", "N")], "no": [("N", "OW")]}


def spans_of(text):
    """Spans of ten frames from phones separated by blanks."""
    return [Span(10 * i, 10 * i + 10, phone) for i, phone in enumerate(text.split())]


@pytest.mark.parametrize(
    ("phones", "words", "expected"),
    [
        ("SIL AH SIL AH N SIL", "a an", [(10, 20), (30, 50)]),
        ("AH N OW", "an no", [(0, 15), (15, 30)]),  # they share the N, as one run of equal states
        ("S IH K S IH K S", "six six", [(0, 35), (35, 70)]),
        ("SIL", "", []),
        ("AH N", "no", None),
        ("AH N AE N", "an", None),  # words must account for all but silence
    ],
)
def test_words_get_the_times_of_their_phones(phones, words, expected):
    found = word_spans(spans_of(phones), words.split(), LEXICON)
    assert (found and [(s.start, s.stop) for s in found]) == expected
    assert [s.label for s in found or []] == (words.split() if expected else [])


def test_runs_cover_all_labelled_frames():
    values = np.array([-1, 2, 2, 0, 0, 0, -1, 1])
    assert runs(values, "abc") == [Span(1, 3, "c"), Span(3, 6, "a"), Span(7, 8, "b")]
    assert runs(np.array([], dtype=int), "abc") == []


@pytest.fixture
def paths(tmp_path):
    """A reference alignment and a decoded path of three utterances; words `a an`, `no` and `a`."""
    names, lengths = ["SIL", "AH", "N", "OW"], [6, 300, 4]
    layout = Layout.from_lengths(["u1", "u2", "u3"], lengths)
    true = np.concatenate([[0, 1, 0, 1, 2, 0], np.repeat([2, 3], 150), [1, 1, 1, 1]])
    found = true.copy()
    found[layout.rows("u2")][:30] = 0
    for name, pdf, phone in (("ali", true, {"phone": true, "phones": names}), ("path", found, {})):
        write_ali(tmp_path / f"{name}.h5", layout, pdf, num_pdfs=4, model_digest="x", sil_pdfs=[0], **phone)
    return AliReader(tmp_path / "ali.h5"), AliReader(tmp_path / "path.h5")


def test_the_utterance_to_show_is_partly_wrong_and_of_handy_length(paths):
    refs = {"u1": "a an", "u2": "no", "u3": "a"}
    assert choose_utterance(*paths, refs, refs) == "u2"
    assert choose_utterance(*paths, refs, refs | {"u1": "a no"}) == "u1"
    assert choose_utterance(*paths, {}, {}) is None


def test_view_tells_right_from_wrong(paths):
    picture = mel_picture(np.zeros((6, 3)), 0.01)
    view = view_utterance("u1", "student", *paths, "a an", "a an", LEXICON, picture)
    assert [tier.name for tier in view.tiers] == ["words", "recognised", "phones", "recognised", "states", "recognised"]
    assert not any(any(tier.wrong) for tier in view.tiers if tier.wrong is not None)
    view = view_utterance("u2", "student", *paths, "no", "a", LEXICON, picture)
    assert view.notes == ["recognised: a (times not known)"]
    states = view.tiers[-1]
    wrong = sum(span.stop - span.start for span, bad in zip(states.spans, states.wrong, strict=True) if bad)
    assert wrong == 30


def test_spectrogram_shows_a_tone_where_it_is():
    pytest.importorskip("librosa")
    tone = 3000 * np.sin(2 * np.pi * 2000 * np.arange(8000) / 8000)
    picture = audio_picture(tone.astype(np.float32), 8000)
    loudest = picture.values.mean(axis=1).argmax() / (len(picture.values) - 1)
    assert loudest * picture.edges[1] == pytest.approx(2.0, abs=0.05)
    assert picture.values.shape[1] * picture.step_s == pytest.approx(1.0, abs=0.01)


# --- the page of score-frames


@pytest.fixture
def frame_files(tmp_path):
    """An alignment, posteriors of two systems, one of them with two seeds, and speakers; paths by name."""
    rng, labels = np.random.default_rng(9), make_labels(30)
    layout = Layout.from_lengths([f"u{u:02d}" for u in range(30)], np.diff(labels.utt_offset))
    phones = {"phone": labels.phone, "phones": PHONES}
    write_ali(tmp_path / "ali.h5", layout, labels.pdf, num_pdfs=12, model_digest="x", sil_pdfs=[0, 1, 2], **phones)
    for name, margin in (("one1", 1.5), ("one2", 1.5), ("two", 2.5)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for utt_id in layout.utt_ids:
                logits = noisy_outputs(labels, margin, rng)[layout.rows(utt_id)]
                file[utt_id] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    (tmp_path / "utt2spk").write_text("".join(f"{u} s{i % 25}\n" for i, u in enumerate(layout.utt_ids)))
    return tmp_path


def test_score_frames_compares_posteriors_and_writes_a_page(frame_files, capsys):
    seeds = [f"--posteriors=one={frame_files}/one{seed}.h5" for seed in (1, 2)]
    given = [*seeds, "--posteriors", f"{frame_files}/two.h5", "--ali", f"{frame_files}/ali.h5"]
    out = frame_files / "out"
    assert main(["score-frames", *given, "--utt2spk", f"{frame_files}/utt2spk", "--out", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert [system["name"] for system in scores["systems"]] == ["one", "two"]
    assert [system["num_seeds"] for system in scores["systems"]] == [2, 1]
    assert (scores["resampling_unit"], scores["bootstrap"]["num_units"]) == ("speaker", 25)
    assert len(scores["comparisons"]) == 4
    page = (out / "index.html").read_text()
    assert not re.search(r"<script|<link|<img|@import|src=|https?://(?!www.w3.org/2000/svg)", page)
    assert re.findall(r'<section id="(\w+)">', page) == [
        "systems",
        "tests",
        "phones",
        "confusions",
        "calibration",
        "made",
    ]
    assert "<b>" not in page
    two = scores["systems"][1]["frame_accuracy"]["value"]
    assert page.count("for other speakers and these seeds") >= 2
    assert f"two classifies {two:.2f}\u00a0% of the frames correctly" in page
    assert f"{two:.2f} [" in capsys.readouterr().out
    assert {"systems.csv", "comparisons.tex", "phones.csv", "states.csv"} <= {
        p.name for p in (out / "tables").iterdir()
    }


def test_score_frames_of_equal_systems_finds_no_difference(frame_files, capsys):
    same = (frame_files / "two.h5", frame_files / "prob.ark")
    with h5py.File(same[0]) as file:
        write_matrices(f"ark:{same[1]}", ((utt_id, values[:]) for utt_id, values in file.items()))
    given = [f"--posteriors={same[0]}", f"--posteriors=ark:{same[1]}", "--ali", f"{frame_files}/ali.h5"]
    out = frame_files / "out"
    assert main(["score-frames", *given, "--num-resamples", "200", "--out", str(out)]) == 0
    assert {test["p_value"] for test in json.loads((out / "scores.json").read_text())["comparisons"]} == {1.0}
    page = (out / "index.html").read_text()
    assert "two and prob classify" in page
    assert "there is no difference in accuracy" in page
    assert "+0.00" not in page
    one = f"--posteriors=one={frame_files}/one1.h5"
    assert main(["score-frames", *given, one, "--num-resamples", "200", "--out", str(out)]) == 0
    assert re.search("two and prob classify .* points more than one \\(paired", (out / "index.html").read_text())


def test_score_frames_without_states_of_silence_says_nothing_of_frames_without_it(frame_files, capsys):
    ali = AliReader(frame_files / "ali.h5")
    pdfs = [(utt_id, ali.pdf[ali.layout.rows(utt_id)]) for utt_id in ali.layout.utt_ids]
    (frame_files / "ali.ark").write_text("".join(f"{utt_id} {' '.join(map(str, pdf))}\n" for utt_id, pdf in pdfs))
    given = ["--posteriors", f"{frame_files}/two.h5", "--ali", f"ark:{frame_files}/ali.ark", "--num-resamples", "50"]
    by_silence = []
    for sil_pdfs in ([], ["--sil-pdfs", "0,1,2"]):
        assert main(["score-frames", *given, *sil_pdfs, "--out", str(frame_files / "out")]) == 0
        (system,) = json.loads((frame_files / "out" / "scores.json").read_text())["systems"]
        by_silence.append(system["frame_accuracy_nonsil"])
        (row,) = csv.DictReader((frame_files / "out" / "tables" / "systems.csv").open())
        assert bool(row["frame_accuracy_nonsil"]) == bool(sil_pdfs)
        assert (" –" in capsys.readouterr().out) == (not sil_pdfs)
    assert by_silence[0] is None
    assert by_silence[1]["value"] != system["frame_accuracy"]["value"]


def test_score_frames_of_one_system_and_of_bad_input(frame_files, capsys):
    one = ["--posteriors", f"{frame_files}/two.h5", "--out", str(frame_files / "out")]
    assert main(["score-frames", *one, "--ali", f"{frame_files}/ali.h5", "--sil-pdfs", "0,1"]) == 0
    assert not (frame_files / "out" / "tables" / "comparisons.csv").exists()
    for bad, message in (
        (["--ali", f"{frame_files}/ali.h5", "--sil-pdfs", "x"], "--sil-pdfs x: expected whole numbers"),
        (["--ali", f"{frame_files}/ali.h5", "--sil-pdfs", "0,12"], "silence is said to be state 12"),
        (["--ali", f"{frame_files}/two.h5"], "two.h5: is of format None"),
        (["--ali", f"ark:{frame_files}/none.ark"], "none.ark"),
    ):
        capsys.readouterr()
        assert main(["score-frames", *one, *bad]) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in error
