"""Words: alignment, formats, counts and tables, against compute-wer, sclite and brute force."""

import csv
import json
import random
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import KALDI, SCLITE, Alternatives, Optional, align_times, align_words, map_words
from asr_kd.scoring.transcripts import (
    CtmWord,
    StmSegment,
    parse_reference,
    read_ctm,
    read_stm,
    read_transcripts,
    read_trn,
    segment_words,
)
from asr_kd.scoring.wer import count_errors, kaldi_lines, score_words, select_utterances
from asr_kd.scoring.word_sets import read_hypotheses, read_references
from asr_kd.scoring.word_tables import alignment_text, confusion_table, group_table, group_text, utterance_table

KALDI_SYSTEM = Path(__file__).parents[2] / "shared" / "reference" / "kaldi_system"
GOLDEN = Path(__file__).parent / "golden" / "sctk"  # made by its make.sh

words = st.lists(st.sampled_from("abc"), max_size=8)


# --- alignment


def kaldi_counts(ref, hyp):
    """(ins, del, sub) by the recursion of Kaldi's LevenshteinEditDistance, carrying counts instead of a traceback."""
    row = [(r, 0, r, 0) for r in range(len(ref) + 1)]  # cost, ins, del, sub
    for h in hyp:
        new = [(row[0][0] + 1, row[0][1] + 1, row[0][2], row[0][3])]
        for r, word in enumerate(ref, start=1):
            (ic, ii, di, si), (dc, idl, dd, sd), (sc, isub, ds, ss) = row[r], new[r - 1], row[r - 1]
            wrong = h != word
            if sc + wrong < ic + 1 and sc + wrong < dc + 1:
                new.append((sc + wrong, isub, ds, ss + wrong))
            elif dc + 1 < ic + 1:
                new.append((dc + 1, idl, dd + 1, sd))
            else:
                new.append((ic + 1, ii + 1, di, si))
        row = new
    return row[-1][1:]


def least_cost(ref, hyp, weights):
    @lru_cache(None)
    def cost(r, h):
        if not r or not h:
            return r * weights.deletion + h * weights.insertion
        pair = cost(r - 1, h - 1) + weights.substitution * (ref[r - 1] != hyp[h - 1])
        return min(cost(r - 1, h) + weights.deletion, cost(r, h - 1) + weights.insertion, pair)

    return cost(len(ref), len(hyp))


@settings(deadline=None)
@given(words, words, st.sampled_from([KALDI, SCLITE]))
def test_alignment_is_the_cheapest(ref, hyp, weights):
    alignment = align_words(ref, hyp, weights)
    cost = np.dot(alignment[:3], weights[:3])
    assert cost == least_cost(tuple(ref), tuple(hyp), weights)
    assert alignment.num_ref == len(ref) == alignment.num_correct + alignment.num_del + alignment.num_sub
    assert [r for op, r, _ in alignment.ops if op != "I"] == ref
    assert [h for op, _, h in alignment.ops if op != "D"] == hyp
    assert all((r == h) == (op == "C") for op, r, h in alignment.ops)


@settings(deadline=None)
@given(words, words)
def test_split_of_errors_is_kaldis(ref, hyp):
    assert align_words(ref, hyp)[:3] == kaldi_counts(ref, hyp)


def paths(ref):
    """All word sequences of a reference, an optional word once there and once not."""
    if not ref:
        return [()]
    first, rest = ref[0], paths(ref[1:])
    if isinstance(first, Alternatives):
        starts = [path for option in first.options for path in paths(option)]
    else:
        starts = [(first.word,), ()] if isinstance(first, Optional) else [(first,)]
    return [start + end for start in starts for end in rest]


tokens = st.recursive(
    st.one_of(st.sampled_from("abc"), st.sampled_from("abc").map(Optional)),
    lambda token: st.lists(st.lists(token, max_size=2).map(tuple), min_size=2, max_size=3).map(
        lambda options: Alternatives(tuple(options))
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.lists(tokens, max_size=4), words)
def test_the_best_of_all_alternatives_is_found(ref, hyp):
    """What is left out costs next to nothing without being an error, so compare errors over all that could be meant."""
    alignment = align_words(ref, hyp)
    fewest = min(align_words(path, hyp).num_errors for path in paths(ref))
    # An optional word costs two thirds of a deletion, so its word may be substituted where leaving it out is dearer.
    num_optional = str(ref).count("Optional")
    assert fewest <= alignment.num_errors <= fewest + num_optional
    assert [h for op, _, h in alignment.ops if h is not None] == hyp


@settings(deadline=None)
@given(st.lists(tokens, max_size=4))
def test_marks_survive_being_written(ref):
    def written(tokens):
        for token in tokens:
            if isinstance(token, Alternatives):
                parts = [" ".join(written(option)) or "@" for option in token.options]
                yield "{ " + " / ".join(parts) + " }"
            else:
                yield f"({token.word})" if isinstance(token, Optional) else token

    assert parse_reference(" ".join(written(ref)).split(), "here") == ref


def test_words_become_characters_inside_alternatives_too():
    ref = ["ab", Optional("cd"), Alternatives((("ef",), ()))]
    expected = ["a", "b", Optional("c"), Optional("d"), Alternatives((("e", "f"), ()))]
    assert map_words(ref, list) == expected


def test_times_pair_what_was_spoken_together():
    ref_times = [(0.0, 0.5), (1.0, 0.5)]
    alignment = align_times(["a", "b"], ["b"], ref_times, [(0.0, 0.5)])
    assert alignment.ops == [("S", "a", "b"), ("D", "b", None)]
    assert align_words(["a", "b"], ["b"]).ops == [("D", "a", None), ("C", "b", "b")]


# --- other people's scorers


@pytest.mark.skipif(not KALDI_SYSTEM.is_dir(), reason="values made by Kaldi are not beside this checkout")
def test_what_compute_wer_prints():
    refs, hyps = read_transcripts(KALDI_SYSTEM / "wer.ref"), read_transcripts(KALDI_SYSTEM / "wer.hyp")
    printed = (KALDI_SYSTEM / "wer.txt").read_text()
    assert printed.startswith(kaldi_lines(score_words(refs, hyps)))


def read_counts(text):
    """utterance → (correct, sub, del, ins), in sclite's order."""
    return {line.split()[0]: tuple(map(int, line.split()[1:])) for line in text.splitlines()}


def counts_of(scores):
    return [(a.num_correct, a.num_sub, a.num_del, a.num_ins) for a in scores.alignments]


@pytest.mark.parametrize("name", ["plain", "marked"])
def test_counts_are_those_of_sclite(name):
    refs, hyps = read_trn(GOLDEN / f"{name}.ref.trn"), read_trn(GOLDEN / f"{name}.a.trn", reference=False)
    scores = score_words(refs, hyps, weights=SCLITE)
    assert dict(zip(scores.utt_ids, counts_of(scores), strict=True)) == read_counts(
        (GOLDEN / f"{name}.counts").read_text()
    )


def test_counts_of_characters_are_those_of_sclite():
    refs, hyps = read_trn(GOLDEN / "plain.ref.trn"), read_trn(GOLDEN / "plain.a.trn", reference=False)
    refs, hyps = ({u: map_words(text, list) for u, text in texts.items()} for texts in (refs, hyps))
    scores = score_words(refs, hyps, weights=SCLITE)
    assert dict(zip(scores.utt_ids, counts_of(scores), strict=True)) == read_counts(
        (GOLDEN / "chars.counts").read_text()
    )


def test_a_ctm_is_cut_at_segments_as_by_sclite():
    references = read_references(GOLDEN / "times.ref.stm")
    hyps = read_hypotheses(GOLDEN / "times.a.ctm", references)
    scores = score_words(references.texts, hyps.texts, weights=SCLITE)
    number, ours = {}, {}
    for utt_id, counts in zip(scores.utt_ids, counts_of(scores), strict=True):
        spk_id = references.spk_of[utt_id]
        number[spk_id] = number.get(spk_id, -1) + 1
        ours[f"{spk_id}-{number[spk_id]:03d}"] = counts
    assert ours == read_counts((GOLDEN / "stm.counts").read_text())
    assert sum(segment.words is None for segment in read_stm(GOLDEN / "times.ref.stm")) > 0


@pytest.mark.parametrize(("end", "sizes"), [(2.9, [1, 0]), (0.7, [0, 1]), (0.5, [0, 1])])
def test_a_middle_on_a_segments_end_falls_as_in_sclite(end, sizes):
    """Found with sclite 2.10: its ends are single precision, 2.9 above and 0.7 below the double."""
    segments = [StmSegment("r", "A", "s", *span, (), [], 1) for span in ((0.0, end), (end, 9.0))]
    cut = segment_words([CtmWord("r", "A", end - 0.1, 0.2, "w")], segments)
    assert list(map(len, cut)) == sizes


@pytest.mark.parametrize("by_times", [False, True])
def test_a_ctm_is_aligned_with_a_ctm_as_by_sclite(by_times):
    references = read_references(GOLDEN / "times.ref.ctm")
    hyps = read_hypotheses(GOLDEN / "times.a.ctm", references)
    times = (references.times, hyps.times) if by_times else None
    scores = score_words(references.texts, hyps.texts, weights=SCLITE, times=times)
    golden = GOLDEN / ("ctm_by_times.counts" if by_times else "ctm.counts")
    assert counts_of(scores) == list(read_counts(golden.read_text()).values())


@pytest.mark.skipif(shutil.which("sctk") is None, reason="sclite (Debian's sctk) is not installed")
def test_sclite_itself_counts_the_same(tmp_path):
    rng = random.Random()
    refs = {f"s-{i:03d}": rng.choices("abcd", k=rng.randint(0, 15)) for i in range(300)}
    hyps = {
        u: [w for w in ref if rng.random() > 0.2] + rng.choices("abcd", k=rng.randint(0, 2)) for u, ref in refs.items()
    }
    for name, texts in (("ref", refs), ("hyp", hyps)):
        (tmp_path / name).write_text("".join(f"{' '.join(text)} ({u})\n" for u, text in texts.items()))
    command = "sctk sclite -s -i spu_id -r ref trn -h hyp trn -o pralign -O ."
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    found = re.findall(r"id: \((\S+)\)\nScores: \(#C #S #D #I\) (.*)", (tmp_path / "hyp.pra").read_text())
    scores = score_words(refs, hyps, weights=SCLITE)
    assert dict(zip(scores.utt_ids, counts_of(scores), strict=True)) == read_counts("\n".join(map(" ".join, found)))


# --- which utterances


REFS, HYPS = {"u1": ["a"], "u2": ["b", "c"]}, {"u1": ["a"]}


def test_modes_are_those_of_compute_wer():
    with pytest.raises(AsrKdError, match="u2 has no hypothesis"):
        select_utterances(REFS, [HYPS])
    everything = score_words(REFS, HYPS, select_utterances(REFS, [HYPS], "all"))
    assert kaldi_lines(everything) == (
        "%WER 66.67 [ 2 / 3, 0 ins, 2 del, 0 sub ] [PARTIAL]\n%SER 50.00 [ 1 / 2 ]\n"
        "Scored 2 sentences, 1 not present in hyp.\n"
    )
    assert select_utterances(REFS, [HYPS, REFS], "present") == ["u1"]
    with pytest.raises(AsrKdError, match="u9 has no reference"):
        select_utterances(REFS, [{**REFS, "u9": []}], "present")
    with pytest.raises(AsrKdError, match="no utterance"):
        select_utterances(REFS, [{}], "present")


def test_utterance_that_was_not_decoded_is_refused():
    with pytest.raises(AsrKdError, match="u2 has no hypothesis"):
        count_errors({"u1": "a", "u2": "b"}, {"u1": "a"}, ["u1", "u2"])


def test_nothing_to_score_is_refused():
    with pytest.raises(AsrKdError, match="no reference has words"):
        score_words({"u": []}, {"u": ["a"]})


# --- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text:1: the file is empty"),
        (b"\n \n", "text:1: the file is empty"),
        (b"u1 a\n\nu2 b\n", "text:2: the line is empty"),
        (b"u1 a\n b\n", "text:2: .*starts with a blank"),
        (b"u1 a\nu2 b\nu1 c\n", r"text:3: u1 is there twice \(first in line 1\)"),
        (b"u1 a\r\nu2 b\r\n", "text:1: the line ends in CR LF"),
        (b"\xef\xbb\xbfu1 a\n", "text:1: the file starts with a byte order mark"),
        (b"u1 a\nu2 \xff\n", "text:2: the line is not UTF-8"),
        ("u1 a\nu2 a\u00a0b\n".encode(), "text:2: .*blank other than space and tab"),
        (b"u1 a\nu2 a\x00b\n", "text:2: .*control character"),
    ],
)
def test_bad_text_is_named_by_line(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(AsrKdError, match=message):
        read_transcripts(tmp_path / "text")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AsrKdError, match="nowhere: cannot be read"):
        read_transcripts(tmp_path / "nowhere")


def test_text_may_have_tabs_joiners_and_utterances_without_words(tmp_path):
    (tmp_path / "text").write_text("u1\ta  b\t\nu2\nu3 می\u200cخواهم\n")
    assert read_transcripts(tmp_path / "text") == {"u1": ["a", "b"], "u2": [], "u3": ["می\u200cخواهم"]}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("x.trn", "a b", r"no \(utterance_id\)"),
        ("x.trn", "a { b } (u)", "only one alternative"),
        ("x.trn", "a { b / c (u)", "without a closing"),
        ("x.trn", "a b } (u)", "without an opening"),
        ("x.ctm", "r A 0.1 0.2", "4 fields"),
        ("x.ctm", "r A 0.1 0.2 w 0.5 more", "7 fields"),
        ("x.ctm", "r A nan 0.2 w", "start is nan"),
        ("x.ctm", "r A 0.1 inf w", "duration is inf"),
        ("x.ctm", "r A 0.1 -0.2 w", "negative"),
        ("x.ctm", "r A 0.1 0.2 w sure", "confidence is sure"),
        ("x.ctm", "r A * * <ALT_BEGIN>", "alternatives"),
        ("x.stm", "r A s 0.1", "was expected"),
        ("x.stm", "r A s 2 1 w", "before its start"),
        ("x.stm", "r A s nan 1 w", "start is nan"),
        ("x.stm", "r A s 0 1 { a / b", "without a closing"),
    ],
)
def test_bad_lines_of_nists_formats_are_named(tmp_path, name, line, message):
    (tmp_path / name).write_text(f";; comment\n\n{line}\n")
    read = {"x.trn": read_trn, "x.ctm": read_ctm, "x.stm": read_stm}[name]
    with pytest.raises(AsrKdError, match=f"{name}:3: .*{message}"):
        read(tmp_path / name)


def test_a_segment_given_twice_is_named(tmp_path):
    (tmp_path / "x.stm").write_text("r A s 0 1 a\nr A s 1 2 b\nr A t 0 1 a\n")
    with pytest.raises(AsrKdError, match=r"x.stm:3: .*twice \(first in line 1\)"):
        read_stm(tmp_path / "x.stm")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            CtmWord,
            st.sampled_from(["r1", "r2"]),
            st.sampled_from("AB"),
            st.integers(0, 10**6).map(lambda ms: ms / 1000),
            st.integers(0, 5000).map(lambda ms: ms / 1000),
            st.sampled_from(["a", "bé"]),
            st.one_of(st.none(), st.integers(0, 10**4).map(lambda n: n / 10**4)),
        ),
        min_size=1,
    )
)
def test_a_ctm_survives_being_written(tmp_path_factory, spoken):
    path = tmp_path_factory.mktemp("ctm") / "x.ctm"
    path.write_text("".join(f"{word}\n" for word in spoken))
    read = [CtmWord(*(getattr(w, f) for f in CtmWord.__dataclass_fields__ if f != "line")) for w in read_ctm(path)]
    assert read == sorted(spoken, key=lambda word: (word.rec_id, word.channel, word.start_s))


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)


@pytest.mark.parametrize(
    ("ref", "hyp", "message"),
    [
        ("x.stm", "h.txt", "must be a CTM"),
        ("x.stm", "other.ctm", r"other.ctm:2: .*no segment of r9, channel A"),
        ("ref.txt", "two.ctm", r"two.ctm:2: r has words on the channels A and B"),
        ("ref.txt", "x.stm", "an STM holds references"),
        ("ref.txt", "marked.trn", "alternatives in a hypothesis"),
    ],
)
def test_formats_that_do_not_go_together_are_refused(tmp_path, ref, hyp, message):
    write(
        tmp_path,
        x_stm="r A s 0 1 a\n",
        h_txt="r a\n",
        other_ctm="r A 0 1 a\nr9 A 0 1 a\n",
        ref_txt="r a\n",
        two_ctm="r A 0 1 a\nr B 0 1 a\n",
        marked_trn="{ a / b } (r)\n",
    )
    references = read_references(tmp_path / ref)
    with pytest.raises(AsrKdError, match=message):
        read_hypotheses(tmp_path / hyp, references)


def test_speakers_come_from_the_file_or_from_the_references(tmp_path):
    write(
        tmp_path,
        ref_txt="u1 a\nu2 b\n",
        ref_trn="a (s1-u1)\nb (s2_u2)\n",
        spk_txt="u1 s1\n",
        two_txt="u1 s1 s2\nu2 s\n",
    )
    assert read_references(tmp_path / "ref.txt").spk_of is None
    assert read_references(tmp_path / "ref.trn").spk_of == {"s1-u1": "s1", "s2_u2": "s2"}
    with pytest.raises(AsrKdError, match="no speaker of u2, line 2 of"):
        read_references(tmp_path / "ref.txt", utt2spk=tmp_path / "spk.txt")
    with pytest.raises(AsrKdError, match=r"two.txt:1: `utterance speaker`"):
        read_references(tmp_path / "ref.txt", utt2spk=tmp_path / "two.txt")


# --- tables


@pytest.fixture(scope="module")
def scores():
    refs = {"s1-a": ["i", "am", "a", "cat"], "s1-b": ["yes"], "s2-a": []}
    return score_words(refs, {"s1-a": ["i", "was", "a", "fat", "cat"], "s1-b": ["yes"], "s2-a": ["oh"]})


SPEAKERS = {"s1-a": "s1", "s1-b": "s1", "s2-a": "s2"}


def test_alignment_to_read(scores):
    times = {"s1-a": [(0, 0.1), (0.5, 0.1), (0.75, 0.1), (1, 0.1), (2, 0.1)]}
    assert alignment_text(scores, times).split("\n\n")[0].splitlines() == [
        "id: (s1-a)",
        "Scores: (#C #S #D #I) 3 1 0 1",
        "REF:  i    am   a    ***  cat",
        "HYP:  i    was  a    fat  cat",
        "Eval:      S         I",
        "Time: 0.00 0.50 0.75 1.00 2.00",
    ]


def test_long_alignments_continue_on_further_lines(scores):
    lines = alignment_text(scores, width=12).splitlines()
    assert lines[2:8] == ["REF:  i am", "HYP:  i was", "Eval:   S", "REF:  a ***", "HYP:  a fat", "Eval:   I"]


def test_tables(scores):
    speakers = {utt_id: [spk_id] for utt_id, spk_id in SPEAKERS.items()}
    table = group_table("speakers", scores, speakers)
    rows = [row.cells for row in table.rows]
    assert [row["group"] for row in rows] == ["s1", "s2"]
    assert (rows[0]["words"], rows[0]["corr"], rows[0]["err"], rows[0]["s_err"]) == (5, 80.0, 40.0, 50.0)
    assert (rows[1]["words"], rows[1]["err"], rows[1]["s_err"]) == (0, None, 100.0)
    assert re.search(r"Sum/Avg +3 +5 +80.0 +20.0 +0.0 +40.0 +60.0 +66.7\n", group_text(table, scores))
    assert utterance_table(scores, SPEAKERS).csv().splitlines()[1:] == [
        "s1-a,s1,4,3,1,0,1,50.0",
        "s1-b,s1,1,1,0,0,0,0.0",
        "s2-a,s2,0,0,0,0,1,",
    ]
    assert confusion_table(scores).csv().splitlines()[1:] == [
        "1,insertion,,fat",
        "1,insertion,,oh",
        "1,substitution,am,was",
    ]


# --- the command


def score_words_of(tmp_path, *options):
    return main(["score-words", "--out", str(tmp_path / "out"), *map(str, options)])


def seed_counts(path):
    """Errors of a wer.txt by kind."""
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (ins|del|sub)", path.read_text())}


def test_tables_of_an_earlier_run_do_not_stay(tmp_path):
    ref, a, b = (GOLDEN / f"plain.{name}.trn" for name in ("ref", "a", "b"))
    assert score_words_of(tmp_path, "--ref", ref, "--hyp", a, "--hyp", b, "--num-resamples", "10") == 0
    assert (tmp_path / "out" / "comparisons.csv").exists()
    assert score_words_of(tmp_path, "--ref", ref, "--hyp", a, "--num-resamples", "10") == 0
    assert not list((tmp_path / "out").glob("comparisons.*"))


def test_command_scores_seeds_and_compares_systems(tmp_path, capsys):
    ref, a, b = (GOLDEN / f"plain.{name}.trn" for name in ("ref", "a", "b"))
    options = ("--weights", "sclite", "--num-resamples", "500")
    assert (
        score_words_of(tmp_path, "--ref", ref, "--hyp", f"both={a}", "--hyp", f"both={b}", "--hyp", f"b={b}", *options)
        == 0
    )
    results = json.loads((tmp_path / "out" / "scores.json").read_text())
    both, only_b = results["systems"]
    assert both["wer"]["value"] == pytest.approx(np.mean(both["wer"]["per_seed"]))
    assert both["wer"]["per_seed"][1] == pytest.approx(only_b["wer"]["value"])
    assert both["wer"]["ci95"][0] < both["wer"]["value"] < both["wer"]["ci95"][1]
    for test in results["comparisons"]:
        assert test["difference"] == pytest.approx(both["wer"]["value"] - only_b["wer"]["value"])
    assert {test["test"] for test in results["comparisons"]} == {"paired bootstrap", "MAPSSWE"}
    assert (results["resampling_unit"], results["num_speakers"]) == ("utterance", 6)
    assert "fewer than the 20" in results["resampling_note"]
    files = {"wer.txt", "alignment.txt", "speakers.txt"}
    files |= {f"{name}.{kind}" for name in ("utterances", "confusions", "speakers") for kind in ("csv", "tex")}
    for folder in ("both/seed1", "both/seed2", "b"):
        assert {path.name for path in (tmp_path / "out" / folder).iterdir()} == files
    assert {path.stem for path in (tmp_path / "out").glob("*.tex")} == {"systems", "comparisons"}
    assert (tmp_path / "out/systems.csv").read_text().splitlines()[
        0
    ] == "name,wer,wer_low,wer_high,ins,del,sub,ser,per_seed"
    page = (tmp_path / "out/index.html").read_text()
    assert not re.search(r"<script|<link|<img|@import|src=|https?://", page)
    assert re.findall(r'<section id="(\w+)">', page) == ["systems", "tests", "errors", "made"]
    best = min(both, only_b, key=lambda system: system["wer"]["value"])
    assert f"{best['name']} has a word error rate of {best['wer']['value']:.2f}" in page
    assert "for other utterances and these seeds" in page
    copies = re.findall(r"this table as CSV \(([^)]*)\)", page)
    assert copies == ["systems.csv", "comparisons.csv", "both/seed1/confusions.csv", "b/confusions.csv"]
    assert all((tmp_path / "out" / copy).exists() for copy in copies)
    worst = re.findall(r"Scores: \(#C #S #D #I\) \d+ (\d+) (\d+) (\d+)", page)
    errors = [sum(map(int, counts)) for counts in worst[: len(worst) // 2]]
    every = csv.DictReader((tmp_path / "out/both/seed1/utterances.csv").open())
    assert errors == sorted((sum(int(row[k]) for k in ("sub", "del", "ins")) for row in every), reverse=True)[:5]
    mean = np.mean([scores["sub"] for scores in (seed_counts(tmp_path / f"out/both/seed{k}/wer.txt") for k in (1, 2))])
    assert both["wer"]["mean"]["sub"] == mean
    assert both["wer"]["sub"] == seed_counts(tmp_path / "out/both/seed1/wer.txt")["sub"]
    assert f",{mean}," in (tmp_path / "out/systems.csv").read_text()
    printed = capsys.readouterr().out
    assert f"{both['wer']['value']:.2f} [" in printed
    assert "MAPSSWE, n = " in printed


def test_command_cuts_a_ctm_at_segments_and_tells_labels_apart(tmp_path, capsys):
    files = ("--ref", GOLDEN / "times.ref.stm", "--hyp", f"x={GOLDEN / 'times.a.ctm'}", "--weights", "sclite")
    assert score_words_of(tmp_path, *files) == 0
    total = np.sum(list(read_counts((GOLDEN / "stm.counts").read_text()).values()), axis=0)
    by_label = {
        line.split(",")[0]: line.split(",") for line in (tmp_path / "out/x/labels.csv").read_text().splitlines()
    }
    assert float(by_label["o"][3]) == pytest.approx(100 * total[0] / total[:3].sum(), abs=0.001)
    assert int(by_label["m"][2]) + int(by_label["f"][2]) == int(by_label["o"][2]) == total[:3].sum()
    assert "Time: " in (tmp_path / "out/x/alignment.txt").read_text()
    assert f"{total[3]} ins, {total[2]} del, {total[1]} sub ]" in capsys.readouterr().out


def test_command_prints_kaldis_lines_of_one_hypothesis(tmp_path, capsys):
    write(tmp_path, ref_txt="u1 One two\nu2 three\n", hyp_txt="u1 one two\n")
    files = ("--ref", tmp_path / "ref.txt", "--hyp", tmp_path / "hyp.txt")
    assert score_words_of(tmp_path, *files) == 1
    assert "ref.txt:2: utterance u2 has no hypothesis to score in" in capsys.readouterr().err
    assert score_words_of(tmp_path, *files, "--mode", "all", "--ignore-case") == 0
    assert "%WER 33.33 [ 1 / 3, 0 ins, 1 del, 0 sub ] [PARTIAL]\n" in capsys.readouterr().out


def test_command_counts_phones_and_characters(tmp_path, capsys):
    write(tmp_path, ref_txt="u1 two\nu2 four\n", hyp_txt="u1 too\nu2 for\n")
    write(tmp_path, lex_txt="two T UW\ntwo T AH\ntoo T UW\nfour F AO R\n")
    files = ("--ref", tmp_path / "ref.txt", "--hyp", tmp_path / "hyp.txt")
    assert score_words_of(tmp_path, *files, "--unit", "char") == 0
    assert "%WER 28.57 [ 2 / 7, 0 ins, 1 del, 1 sub ]" in capsys.readouterr().out
    assert score_words_of(tmp_path, *files, "--hyp", f"same={tmp_path / 'hyp.txt'}", "--unit", "char") == 0
    assert "CER %" in capsys.readouterr().out
    assert "CER" in (tmp_path / "out/systems.tex").read_text()
    page = (tmp_path / "out/index.html").read_text()
    assert "hyp and same have a character error rate of 28.57\u00a0%: there is no difference." in page
    assert "word error rate" not in page
    assert score_words_of(tmp_path, *files, "--unit", "phone", "--lexicon", tmp_path / "lex.txt") == 1
    assert "hyp.txt:2: " in capsys.readouterr().err
    with open(tmp_path / "lex.txt", "a") as lexicon:
        lexicon.write("for F ER\n")
    assert score_words_of(tmp_path, *files, "--unit", "phone", "--lexicon", tmp_path / "lex.txt") == 0
    assert "%WER 40.00 [ 2 / 5, 0 ins, 1 del, 1 sub ]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hyp", "a/x.txt", "--hyp", "b/x.txt"], "another file is named x, too"),
        (["--hyp", "x.txt", "--hyp", "x=y.txt"], "name both"),
        (["--hyp", "=x.txt"], "cannot name a folder"),
        (["--hyp", "x.txt", "--unit", "phone"], "go together"),
        (["--hyp", "x.txt", "--time-mediated"], "reference CTM"),
        (["--hyp", "x.txt", "--resampling-unit", "speaker"], "name them with utt2spk"),
        (["--hyp", "x.txt", "--num-resamples", "0"], "at least one"),
    ],
)
def test_options_that_do_not_fit_are_explained(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, x_txt="u1 a\nu2 b\n", y_txt="u1 a\nu2 b\n")
    assert score_words_of(tmp_path, "--ref", "x.txt", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
