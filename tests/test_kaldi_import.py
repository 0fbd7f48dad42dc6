"""Kaldi systems taken over: what Kaldi itself made is read alike, and experiments go on from what was imported."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import error_of, run

from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import accumulate, apply_cmvn, pool
from asr_kd.features.deltas import add_deltas
from asr_kd.features.options import FbankOptions
from asr_kd.hmm import wheels
from asr_kd.hmm.const_fst import read_graph_fst
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.graph import Graph, GraphArcs, make_graph
from asr_kd.hmm.imported import ImportedHmm, load_hmm
from asr_kd.hmm.kaldi_model import parse_model, read_mdl
from asr_kd.hmm.tree import ContextTree
from asr_kd.hmm.viterbi import exact_best_path
from asr_kd.hmm.word_times import PhoneTable, word_frames
from asr_kd.model_dir import load_model
from asr_kd.nnet.frames import front_end
from asr_kd.store.ali import AliReader
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.kaldi_ark import read_int_vectors, read_matrices, write_int_vectors, write_matrices

pytest.importorskip("kaldi_hmm_gmm", reason="the HMM side needs the Kaldi wheels: pip install '.[hmm]'")
from made_up_kaldi import binary_gmms, binary_transitions, random_walk, untrained_model, write_kaldi_system

from asr_kd.hmm.mdl import format_mdl

KALDI = Path(__file__).parents[2] / "shared/reference/kaldi_system"
needs_reference = pytest.mark.skipif(not KALDI.is_dir(), reason="../shared/reference (made by Kaldi) is not there")
SHAPE = ["--device", "cpu", "--hidden-dim", 24, "--num-hidden-layers", 1, "--left-context", 1, "--right-context", 1]
SHAPE += ["--learning-rate", 0.02, "--batch-size", 64, "--warmup-steps", 10]
SYSTEMS = """\
- {name: baseline, role: baseline, nets: [[nnet/member/seed1]]}
- {name: ensemble, role: ensemble, combination: arithmetic, nets: [[nnet/member/seed1, nnet/member/seed2]]}
- {name: student, role: student, nets: [[nnet/student/seed1]]}
"""


def table_of_lines(path: Path) -> dict[str, list[int]]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {utt_id: [int(value) for value in values] for utt_id, *values in rows}


# --- what Kaldi made


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The reference system imported; its data directory is made of the features beside it."""
    folder = tmp_path_factory.mktemp("reference")
    data = folder / "data/train"
    data.mkdir(parents=True)
    write_matrices(f"ark,scp:{data}/feats.ark,{data}/feats.scp", read_matrices(f"ark:{KALDI}/mfcc.ark"))
    write_matrices(f"ark,scp:{data}/cmvn.ark,{data}/cmvn.scp", read_matrices(f"ark:{KALDI}/cmvn.ark", np.float64))
    argv = ("--data", data, "--ali", KALDI, "--graph", KALDI, "--lexicon", KALDI / "lexicon.txt")
    front_end = ("--kind", "mfcc", "--sample-frequency", 8000)
    assert run("import-kaldi", *argv, *front_end, "--out", folder / "exp") == 0
    assert run("import-kaldi", *argv[:4], *front_end, "--apply", "cmvn", "--cmvn-opts", _opts(folder, "--norm-vars"),
               "--set", "normalised", "--out", folder / "exp") == 0  # fmt: skip
    return folder / "exp"


def _opts(folder: Path, line: str) -> Path:
    (folder / "opts").write_text(line + "\n")
    return folder / "opts"


@needs_reference
def test_transition_ids_mean_what_kaldi_says():
    binary, text = read_mdl(KALDI / "final.mdl"), read_mdl(KALDI / "final.mdl.txt")
    for found in (binary.transitions, text.transitions):
        state, lines = None, iter((KALDI / "transitions.txt").read_text().splitlines())
        names = dict(line.split()[::-1] for line in (KALDI / "phones.txt").read_text().splitlines())
        num_ids = 0
        for line in lines:
            fields = line.split()
            if fields[0] == "Transition-state":
                state = (fields[4], int(fields[7]), int(fields[10]))
                continue
            tid, probability, arc = int(fields[2]), float(fields[5]), line[line.index("[") :]
            assert (names[str(found.t2phone_id[tid])], found.t2hmm_state[tid], found.t2pdf[tid]) == state
            assert np.exp(found.log_probs[tid]) == pytest.approx(probability, rel=1e-5)
            assert found.is_self_loop[tid] == (arc == "[self-loop]")
            assert arc in ("[self-loop]", f"[{found.t2hmm_state[tid]} -> {found.t2target[tid]}]")
            num_ids += 1
        assert num_ids == found.num_transition_ids
    assert len(binary.gmms) == len(text.gmms) == binary.transitions.num_pdfs == 60
    for ours, theirs in zip(binary.gmms, text.gmms, strict=True):
        np.testing.assert_allclose(ours.inv_vars, theirs.inv_vars, rtol=1e-6)
        np.testing.assert_allclose(ours.means_invvars, theirs.means_invvars, rtol=1e-5)
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-6)


@needs_reference
def test_alignments_of_kaldi_become_its_states_and_phones(reference):
    pdfs, phones = table_of_lines(KALDI / "pdf.txt"), table_of_lines(KALDI / "phones_per_frame.txt")
    ali = AliReader(reference / "ali/train.h5")
    assert set(ali.layout.utt_ids) == set(pdfs) == set(phones)
    assert ali.failed_utt_ids == []
    for utt_id in ali.layout.utt_ids:
        rows = ali.layout.rows(utt_id)
        assert ali.pdf[rows].tolist() == pdfs[utt_id]
        assert (ali.phone[rows] + 1).tolist() == phones[utt_id]
    assert ali.phones[0] == "SIL"
    assert ali.sil_pdfs.tolist() == [0, 1, 2]
    counts = np.array((reference / "ali/ali_train_pdf.counts").read_text().strip(" []\n").split(), int)
    assert counts.tolist() == np.bincount(np.concatenate(list(map(np.array, pdfs.values()))), minlength=60).tolist()


@needs_reference
def test_features_of_kaldi_are_kept_raw_or_normalised_as_it_does(reference):
    for name, archive in (("train", "mfcc.ark"), ("normalised", "cmvnv.ark")):
        reader = FeatsReader(reference / f"feats/{name}.mfcc.h5")
        for utt_id, feats in read_matrices(f"ark:{KALDI}/{archive}"):
            np.testing.assert_allclose(reader[utt_id], feats, rtol=0, atol=1e-6)
    layouts = [FeatsReader(reference / f"feats/{name}.mfcc.h5").layout.digest for name in ("train", "normalised")]
    assert layouts[0] == layouts[1] == AliReader(reference / "ali/train.h5").layout.digest


@needs_reference
def test_strings_are_decoded_to_kaldis_words_and_scores(reference):
    graph = Graph.load(reference / "graph")
    hyps = {line.split()[0]: line.split()[1:] for line in (KALDI / "strings.hyp").read_text().splitlines()}
    scores = {line.split()[0]: line.split()[1:] for line in (KALDI / "strings.loglike").read_text().splitlines()}
    decoder, decoded = Decoder(graph, beam=100, acwt=0.1), 0
    for utt_id, loglik in read_matrices(f"ark:{KALDI}/strings_loglik.ark"):
        found = decoder.decode(loglik)
        per_frame, num_frames = scores[utt_id]
        assert found.words == exact_best_path(graph, loglik, 0.1)[1] == hyps[utt_id]
        assert len(loglik) == int(num_frames)
        assert found.score / len(loglik) == pytest.approx(float(per_frame), abs=1e-5)
        decoded += 1
    assert decoded == 12


# --- what the wheels know, which are Kaldi's own code


def test_transitions_are_those_of_kaldis_code():
    model = untrained_model()
    theirs = model.transition_model
    for data in (format_mdl(model).encode(), *forms_of(model)):
        ours = parse_model(data, "final.mdl").transitions
        assert ours.num_transition_ids == theirs.num_transition_ids
        assert ours.num_pdfs == theirs.num_pdfs
        np.testing.assert_array_equal(ours.t2pdf, model.t2pdf)
        np.testing.assert_array_equal(ours.t2phone_id - 1, np.where(model.t2phone < 0, -2, model.t2phone))
        np.testing.assert_array_equal(ours.enters_phone, model.enters_phone)
        np.testing.assert_array_equal(ours.log_probs, model.log_probs)
        tids = range(1, ours.num_transition_ids + 1)
        assert ours.is_self_loop[1:].tolist() == [theirs.is_self_loop(tid) for tid in tids]
        assert ours.leaves_phone[1:].tolist() == [theirs.is_final(tid) for tid in tids]


def forms_of(model) -> list[bytes]:
    """final.mdl in each of its binary forms: with GMMs, with something else behind, without tree-tied loops told."""
    transitions = parse_model(format_mdl(model).encode(), "final.mdl").transitions
    plain = binary_transitions(transitions)
    return [plain, plain + binary_gmms(model.gmms), binary_transitions(transitions, with_tuples=True) + b"<Nnet3> \x04"]


def test_chain_models_are_refused(tmp_path):
    text = format_mdl(untrained_model())
    chain = text.replace("<PdfClass> 0", "<ForwardPdfClass> 0 <SelfLoopPdfClass> 1")
    with pytest.raises(AsrKdError, match=r"x\.mdl: is of a chain model"):
        parse_model(chain.encode(), "x.mdl")
    with pytest.raises(AsrKdError, match="a net without its transition model"):
        parse_model(b"\0B<Nnet3> ", "x.mdl")


# --- an experiment on an imported system


@pytest.fixture(scope="module")
def kaldi_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kaldi")
    write_kaldi_system(folder, {"train": 24, "dev": 8, "test": 8})
    return folder


def argv_of(folder: Path, name: str, out: Path) -> list[object]:
    graph = ["--graph", folder / "exp/tri3/graph", "--lang", folder / "data/lang"] if name == "train" else []
    return [
        *("import-kaldi", "--data", folder / "data" / name, "--ali", folder / f"exp/tri3_ali_{name}"),
        *(*graph, "--sample-frequency", 16000, "--out", out),
    ]


@pytest.fixture(scope="module")
def imported(kaldi_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "exp"
    for name in ("train", "dev", "test"):
        assert run(*argv_of(kaldi_folder, name, out)) == 0
    return out


@pytest.fixture(scope="module")
def finished(kaldi_folder, imported) -> Path:
    """The experiment from there to scores."""
    exp, data = imported, kaldi_folder / "data"
    (exp / "systems.yaml").write_text(SYSTEMS)
    sets = ["--feats", exp / "feats/train.fbank.h5", "--ali", exp / "ali/train.h5"]
    dev = ["--dev-feats", exp / "feats/dev.fbank.h5", "--dev-ali", exp / "ali/dev.h5"]
    ensemble = ("--seeds", "1-2", "--num-epochs", 8, "--out", exp / "nnet/member")
    assert run("train", *sets, *dev, *SHAPE, *ensemble) == 0
    teachers = [exp / f"nnet/member/seed{seed}" for seed in (1, 2)]
    assert run("soft-targets", "--teachers", *teachers, *sets[:2], "--device", "cpu", "--out", exp / "targets.h5") == 0
    student = ("--targets", exp / "targets.h5", "--student-epochs", 8)
    student += ("--student-learning-rate", 0.02, "--out", exp / "nnet/student")
    assert run("distill", *sets, *dev, *SHAPE, *student) == 0
    decoding = [f"--{s}-{what}" for s in ("dev", "test") for what in ("feats", "data")]
    places = [exp / "feats/dev.fbank.h5", data / "dev", exp / "feats/test.fbank.h5", data / "test"]
    counts = ("--graph", exp / "graph", "--counts", exp / "ali/ali_train_pdf.counts", "--device", "cpu")
    scales = ("--acwts", "0.2,0.5", "--insertion-penalties", 0, "--out", exp / "decode")
    named = [each for pair in zip(decoding, places, strict=True) for each in pair]
    assert run("decode", "--systems", exp / "systems.yaml", *counts, *named, *scales) == 0
    for s in ("dev", "test"):
        of_set = (
            "--split",
            s,
            "--feats",
            exp / f"feats/{s}.fbank.h5",
            "--ali",
            exp / f"ali/{s}.h5",
            "--data",
            data / s,
        )
        scored = ("--decoded", exp / "decode", "--device", "cpu", "--out", exp / f"scores/{s}")
        assert run("score", "--systems", exp / "systems.yaml", *of_set, *scored) == 0
    return exp


def test_an_imported_system_is_trained_distilled_decoded_and_reported(finished, kaldi_folder):
    test = ("--feats", finished / "feats/test.fbank.h5", "--ali", finished / "ali/test.h5")
    drawn = ("--decoded", finished / "decode", *test, "--hmm", finished / "hmm")
    names = ("--recipe", "imported", "--preset", "tiny", "--out", finished / "report")
    scores = ("--scores", finished / "scores/test", "--dev-scores", finished / "scores/dev")
    assert run("report", "--systems", finished / "systems.yaml", *scores, *drawn, *names) == 0
    results = json.loads((finished / "report/results.json").read_text())
    student = next(system for system in results["systems"] if system["name"] == "student")
    assert student["frame_accuracy"]["value"] > 60
    assert student["wer"]["value"] < 30
    assert "times not known" not in (finished / "report/index.html").read_text()


def test_an_exported_imported_system_tells_when_words_were_said(finished, tmp_path, capsys):
    nets = ("--nets", finished / "nnet/student/seed1", "--hmm", finished / "hmm", "--graph", finished / "graph")
    counts = ("--counts", finished / "ali/ali_train_pdf.counts", "--acwt", 0.2)
    assert run("export", *nets, *counts, "--out", tmp_path / "model") == 0
    model = load_model(tmp_path / "model")
    hmm = load_hmm(finished / "hmm")
    tids = next(tids for _, tids in read_int_vectors(f"ark:{_one_path(hmm, tmp_path)}"))
    spans = word_frames(["ab", "a"], tids, model.lang, PhoneTable.of_model(hmm))
    assert [span.word for span in spans] == ["ab", "a"]
    assert spans[0].end == spans[1].begin
    heard = error_of(capsys, "recognize", "--model", tmp_path / "model", tmp_path / "x.wav")
    assert "features that are not made from audio here (foreign)" in heard


def test_words_of_unfinished_paths_are_told(finished, kaldi_folder, tmp_path, capsys):
    data = tmp_path / "cut"
    shutil.copytree(kaldi_folder / "data/test", data)
    feats = dict(read_matrices(f"scp:{data}/feats.scp"))
    cut = {utt_id: rows[:2] if utt_id == min(feats) else rows for utt_id, rows in feats.items()}
    write_matrices(f"ark,scp:{data}/feats.ark,{data}/feats.scp", cut.items())
    assert run("import-kaldi", "--data", data, "--sample-frequency", 16000, "--out", tmp_path / "exp") == 0
    sets = ("--dev-feats", finished / "feats/dev.fbank.h5", "--dev-data", kaldi_folder / "data/dev")
    sets += ("--test-feats", tmp_path / "exp/feats/cut.fbank.h5", "--test-data", data)
    how = ("--graph", finished / "graph", "--counts", finished / "ali/ali_train_pdf.counts", "--device", "cpu")
    one = tmp_path / "systems.yaml"
    one.write_text(f"- {{name: a, role: baseline, nets: [[{finished / 'nnet/member/seed1'}]]}}\n")
    scales = ("--acwts", 0.2, "--insertion-penalties", 0, "--out", tmp_path / "decode")
    assert run("decode", "--systems", one, *how, *sets, *scales) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1
    assert told[0].startswith(f"warning: a, test: 1 of 8 utterances, such as {min(feats)}, come to no end of the graph")


def test_a_search_is_checked_in_a_graph_of_the_nets_states(finished, tmp_path, capsys):
    model = untrained_model()
    make_graph(model, model.lang, None).save(tmp_path / "graph")
    files = ("--net", finished / "nnet/student/seed1", "--feats", finished / "feats/dev.fbank.h5", "--device", "cpu")
    counts = ("--counts", finished / "ali/ali_train_pdf.counts")
    assert run("check-search", *files, *counts, "--graph", finished / "graph") == 0
    assert "of another HMM than" in error_of(capsys, "check-search", *files, *counts, "--graph", tmp_path / "graph")


def _one_path(hmm: ImportedHmm, folder: Path) -> Path:
    """An archive of one path through `ab a`, without pauses."""
    rng = np.random.default_rng(1)
    phones = [phone for word in (("AH", "B"), ("AH",)) for phone in hmm.lang.positioned(word)]
    tids = [tid for phone in phones for tid in random_walk(hmm.transitions, hmm.phones.index(phone) + 1, rng)]
    write_int_vectors(f"ark:{folder}/x.ark", [("x", np.array(tids))])
    return folder / "x.ark"


def test_a_second_import_makes_nothing_again(kaldi_folder, imported, capsys):
    made = {path: path.stat().st_mtime_ns for path in imported.rglob("*") if path.suffix in (".h5", ".fst", ".mdl")}
    for name in ("train", "dev"):
        assert run(*argv_of(kaldi_folder, name, imported)) == 0
    assert capsys.readouterr().err.count("up to date") == 7
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_text_and_binary_are_the_same_model(kaldi_folder, imported, tmp_path):
    write_kaldi_system(tmp_path / "text", {"train": 2}, text_model=True)
    hmm = load_hmm(imported / "hmm")
    assert read_mdl(tmp_path / "text/exp/tri3/final.mdl").transitions.digest == hmm.digest
    assert hmm.lang.silence_phones[0] == "SIL"
    assert hmm.lang.position_dependent
    assert sorted(hmm.lang.lexicon.entries) == ["a", "ab", "bod", "dib"]
    assert AliReader(imported / "ali/dev.h5").model_digest == Graph.load(imported / "graph").model_digest == hmm.digest


def test_const_graphs_are_read_as_vector_graphs_are(kaldi_folder, tmp_path):
    const = kaldi_folder / "exp/tri3/graph/HCLG.fst"
    assert b"const" in const.read_bytes()[:20]
    k = wheels.kaldi()
    ours = read_graph_fst(const)
    vector = GraphArcs(*ours).to_fst()
    assert vector.write(str(tmp_path / "vector.fst"))
    for a, b in zip(ours, read_graph_fst(tmp_path / "vector.fst"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert k.fst.StdVectorFst.read(str(tmp_path / "vector.fst")).num_states == len(ours[-1])


# --- what does not fit


@pytest.fixture
def broken(kaldi_folder, tmp_path) -> Path:
    """A copy to spoil; scripts name archives of the original."""
    shutil.copytree(kaldi_folder, tmp_path / "kaldi")
    return tmp_path / "kaldi"


def rewrite_ali(folder: Path, change) -> None:
    tables = {file: list(read_int_vectors(f"ark:{file}")) for file in sorted(folder.glob("ali.*.gz"))}
    for file, items in tables.items():
        write_int_vectors(f"ark:{file}", [(utt_id, change(utt_id, tids)) for utt_id, tids in items])


def test_utterances_that_do_not_fit_are_listed_and_have_no_label(broken, tmp_path, capsys):
    ali = broken / "exp/tri3_ali_train"
    rewrite_ali(ali, lambda utt_id, tids: np.append(tids, tids[-1]) if utt_id == "s0-train04" else tids)
    argv = argv_of(broken, "train", tmp_path / "exp")
    assert run(*argv) == 0
    assert "warning: s0-train04 has" in capsys.readouterr().err
    assert AliReader(tmp_path / "exp/ali/train.h5").failed_utt_ids == ["s0-train04"]
    assert "1 of 24 utterances" in error_of(capsys, *argv[:-1], tmp_path / "other", "--max-bad-share", 0)
    assert not (tmp_path / "other/ali/train.h5").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: rewrite_ali(a, lambda _, tids: tids[::3]), "chain models|no alignment that fits"),
        (lambda a: (a / "frame_subsampling_factor").write_text("3\n"), "is '3', so that"),
        (lambda a: (a / "ali.2.gz").unlink(), "has 1 of the 2 files"),
        (lambda a: (a / "num_jobs").write_text("many"), "num_jobs: is not a number"),
        (lambda a: rewrite_ali(a, lambda _, tids: tids + 1), "no alignment that fits"),
        (lambda a: rewrite_ali(a, lambda _, tids: tids * 1000), "no alignment that fits"),
        (lambda a: (a / "ali.1.gz").write_bytes((a / "ali.1.gz").read_bytes()[:90]), r"ali\.1\.gz.*(early|damaged)"),
        (lambda a: shutil.copy(a / "ali.1.gz", a / "ali.2.gz"), "comes twice"),
        (lambda a: (a / "final.mdl").unlink(), "no final.mdl"),
        (lambda a: (a / "tree").write_bytes(b"\0BContextDependency "), "tree"),
        (lambda a: (a / "final.mdl").write_bytes((a / "final.mdl").read_bytes()[:-9]), "final.mdl"),
    ],
)
def test_alignments_that_do_not_fit_are_refused(broken, tmp_path, capsys, spoil, message):
    spoil(broken / "exp/tri3_ali_dev")
    found = error_of(capsys, *argv_of(broken, "dev", tmp_path / "exp"))
    assert re.search(message, found), found


def put_another_model(mdl: Path) -> None:
    """The same states, with other transition probabilities."""
    transitions = read_mdl(mdl).transitions
    other = np.where(transitions.is_self_loop, np.log(0.5), np.log(0.5)).astype(np.float32)
    three = (transitions.t2phone_id > 5) | (transitions.t2state < 0)
    transitions.log_probs[three] = other[three]
    mdl.write_bytes(binary_transitions(transitions))


def test_words_that_are_silence_do_not_stop_an_import(broken, tmp_path):
    aligned = broken / "data/lang/phones/align_lexicon.txt"
    aligned.write_text(aligned.read_text() + "_SIL_ _SIL_ SIL_S\n!SIL !SIL SIL_S\n")
    argv = ("import-kaldi", "--graph", broken / "exp/tri3/graph", "--lang", broken / "data/lang")
    assert run(*argv, "--out", tmp_path / "exp") == 0
    assert load_hmm(tmp_path / "exp/hmm").lang.words == ["!SIL", "a", "ab", "bod", "dib"]


def test_a_tree_of_another_model_is_refused(broken, tmp_path, capsys):
    """With as many pdfs, so that only their phones tell."""
    file = broken / "exp/tri3_ali_dev/tree"
    tree = ContextTree.from_bytes(file.read_bytes(), "tree")
    phones = tree.root.no  # a question for the phone, its answer, and another question
    swapped = replace(phones, yes=phones.no.yes, no=replace(phones.no, yes=phones.yes))
    file.write_bytes(replace(tree, root=replace(tree.root, no=swapped)).to_bytes())
    argv = argv_of(broken, "dev", tmp_path / "exp")
    assert re.search(r"final\.mdl: its phone \d+ has other pdfs than in the tree", error_of(capsys, *argv))


def test_another_model_does_not_enter_an_experiment(imported, broken, capsys):
    put_another_model(broken / "exp/tri3_ali_dev/final.mdl")
    assert "is of another model" in error_of(capsys, *argv_of(broken, "dev", imported))


def test_a_failed_import_claims_no_model(kaldi_folder, broken, tmp_path, capsys):
    put_another_model(broken / "exp/tri3_ali_dev/final.mdl")
    rewrite_ali(broken / "exp/tri3_ali_dev", lambda _, tids: tids * 1000)
    assert "no alignment that fits" in error_of(capsys, *argv_of(broken, "dev", tmp_path / "exp"))
    assert not (tmp_path / "exp/hmm").exists()
    assert run(*argv_of(kaldi_folder, "dev", tmp_path / "exp")) == 0


def test_a_missing_tree_is_said_where_it_is_missed(finished, broken, tmp_path, capsys):
    ali, out = broken / "exp/tri3_ali_dev", tmp_path / "exp"
    (ali / "tree").unlink()
    assert run(*argv_of(broken, "dev", out)) == 0
    assert "warning: no tree beside" in capsys.readouterr().err
    nnet1 = ("export", "--format", "nnet1", "--nets", finished / "nnet/student/seed1", "--out", tmp_path / "nnet1")
    assert run(*nnet1, "--hmm", out / "hmm") == 0
    assert f"warning: {out}/hmm has no tree" in capsys.readouterr().err
    assert (tmp_path / "nnet1/final.mdl").is_file()


def test_what_needs_our_own_hmm_says_so(imported, tmp_path, capsys):
    argv = ("make-graph", "--hmm", imported / "hmm", "--grammar", "uniform", "--out", tmp_path / "graph")
    assert "hmm: was imported from Kaldi" in error_of(capsys, *argv)


@pytest.mark.parametrize("name", ["../x", "a/../b", "/x", "..", ""])
@pytest.mark.parametrize("key", ["--set", "--kind"])
def test_names_are_no_paths(kaldi_folder, tmp_path, capsys, key, name):
    assert f"{key} {name}: becomes a part" in error_of(capsys, *argv_of(kaldi_folder, "dev", tmp_path / "e"), key, name)
    assert not list(tmp_path.iterdir())


def test_features_are_found_from_the_current_directory(broken, tmp_path, capsys, monkeypatch):
    data = broken / "data/dev"
    (data / "feats.scp").write_text((data / "feats.scp").read_text().replace(" /", " "))
    argv = ("import-kaldi", "--data", data, "--sample-frequency", 16000, "--out", tmp_path / "exp")
    monkeypatch.chdir(data)
    assert "is from the current directory" in error_of(capsys, *argv)
    monkeypatch.chdir("/")
    assert run(*argv) == 0


def test_graphs_that_do_not_fit_are_refused(broken, tmp_path, capsys):
    graph = broken / "exp/tri3/graph"
    argv = ("import-kaldi", "--graph", graph, "--lang", broken / "data/lang", "--out", tmp_path / "exp")
    (graph / "num_pdfs").write_text("7\n")
    assert "is 7, but the model has" in error_of(capsys, *argv)
    (graph / "num_pdfs").unlink()
    (graph / "words.txt").write_text("<eps> 0\na 1\n")
    assert "words.txt: names words up to 1, but" in error_of(capsys, *argv)
    (graph / "words.txt").write_text("<eps> 0\na 2\n")
    assert "has no name for 1" in error_of(capsys, *argv)


def test_a_graph_of_another_model_with_the_same_numbers_is_refused(broken, tmp_path, capsys):
    graph = broken / "exp/tri3/graph"
    (graph / "num_pdfs").unlink()
    start, *columns, final = read_graph_fst(graph / "HCLG.fst")
    highest = int(columns[2].max())
    columns[2] = np.where(columns[2] > 0, columns[2] % highest + 1, 0)
    GraphArcs(start, *columns, final).write(graph / "HCLG.fst")
    argv = ("import-kaldi", "--graph", graph, "--lang", broken / "data/lang", "--out", tmp_path / "exp")
    assert "HCLG.fst: its self-loops are not those of the model" in error_of(capsys, *argv)
    assert not (tmp_path / "exp/graph").exists()


def test_kaldis_own_graph_is_not_replaced(broken, capsys):
    """Where the system itself is named as the place to import it to."""
    system = broken / "exp/tri3"
    before = sorted(path.name for path in (system / "graph").iterdir())
    argv = ("import-kaldi", "--graph", system / "graph", "--lang", broken / "data/lang", "--out", system)
    assert "graph: exists and holds something else" in error_of(capsys, *argv)
    assert sorted(path.name for path in (system / "graph").iterdir()) == before


def test_an_utterance_without_frames_may_come_first(broken, tmp_path, capsys):
    data = broken / "data/dev"
    feats = dict(read_matrices(f"scp:{data}/feats.scp"))
    feats[min(feats)] = np.zeros((0, 0), np.float32)
    write_matrices(f"ark,scp:{data}/feats.ark,{data}/feats.scp", feats.items())
    argv = argv_of(broken, "dev", tmp_path / "exp")
    assert run(*argv, "--max-bad-share", 0.2) == 0
    assert f"left out {min(feats)}: " in capsys.readouterr().err
    assert FeatsReader(tmp_path / "exp/feats/dev.fbank.h5").layout.num_utts == len(feats) - 1
    nothing = [(utt_id, np.zeros((0, 0), np.float32)) for utt_id in feats]
    write_matrices(f"ark,scp:{data}/feats.ark,{data}/feats.scp", nothing)
    assert "holds no matrix with a frame" in error_of(capsys, *argv)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("cmvn_opts", "--skip-dims=2:-1", "cmvn_opts: --skip-dims is not a list such as 13:14:15"),
        ("cmvn_opts", "--norm-vars=perhaps", "--norm-vars is 'perhaps', neither true nor false"),
        ("delta_opts", "--delta-order=-1", "delta_opts: asks for derivatives up to order -1"),
        ("delta_opts", "--delta-window=0", "over a window of 0"),
    ],
)
def test_options_that_kaldi_would_refuse(broken, tmp_path, capsys, name, line, message):
    (broken / "exp/tri3_ali_dev" / name).write_text(line)
    argv = argv_of(broken, "dev", tmp_path / "exp")
    assert message in error_of(capsys, *argv, "--apply", "cmvn,deltas")


def test_kaldis_other_words_for_true_are_known(broken, tmp_path):
    for name, line in (("t", "--norm-vars=T"), ("true", "--norm_vars=true"), ("bare", "--norm-vars")):
        (broken / "exp/tri3_ali_dev/cmvn_opts").write_text(line)
        assert run(*argv_of(broken, "dev", tmp_path / "exp"), "--apply", "cmvn", "--set", name) == 0
    digests = [FeatsReader(tmp_path / f"exp/feats/{name}.fbank.h5").content_digest for name in ("t", "true", "bare")]
    assert len(set(digests)) == 1


def test_whose_the_statistics_are_is_said(broken, tmp_path, capsys):
    data, argv = broken / "data/dev", (*argv_of(broken, "dev", tmp_path / "exp"), "--apply", "cmvn")
    per_utt = [(utt_id, accumulate(feats)) for utt_id, feats in read_matrices(f"scp:{data}/feats.scp")]
    write_matrices(f"ark,scp:{data}/by_utt.ark,{data}/by_utt.scp", per_utt)
    per_speaker = (data / "cmvn.scp").read_text()
    (data / "cmvn.scp").write_text((data / "by_utt.scp").read_text())
    assert "speaker 's0'; they are of utterances" in error_of(capsys, *argv)
    (data / "utt2spk").unlink()
    assert run(*argv) == 0
    (data / "cmvn.scp").write_text(per_speaker)
    assert "without utt2spk, each utterance is its own" in error_of(capsys, *argv)


def test_a_sample_frequency_is_a_number(kaldi_folder, tmp_path, capsys):
    argv = ("import-kaldi", "--data", kaldi_folder / "data/dev", "--out", tmp_path / "exp", "--sample-frequency")
    for hz in ("inf", "nan", "0"):
        assert "must be positive and finite" in error_of(capsys, *argv, hz)


def test_what_is_missing_is_said(kaldi_folder, tmp_path, capsys):
    data, ali = kaldi_folder / "data/dev", kaldi_folder / "exp/tri3_ali_dev"
    out = ("--out", tmp_path / "exp")
    assert "nothing to import" in error_of(capsys, "import-kaldi", *out)
    assert "give --feature-conf" in error_of(capsys, "import-kaldi", "--data", data, *out)
    assert "give the --data" in error_of(capsys, "import-kaldi", "--ali", ali, *out)
    only = ("import-kaldi", "--data", data, "--sample-frequency", 16000, *out)
    assert "--apply lda" in error_of(capsys, *only, "--apply", "lda")
    assert run(*only) == 0
    assert not (tmp_path / "exp/ali").exists()


def test_a_conf_makes_the_front_end_known(kaldi_folder, tmp_path, capsys):
    conf = tmp_path / "fbank.conf"
    conf.write_text("# as in Kaldi\n--num-mel-bins=12 --dither=1\n--sample-frequency=8000\n--use-energy=false\n")
    argv = ("import-kaldi", "--data", kaldi_folder / "data/dev", "--feature-conf", conf, "--out", tmp_path / "exp")
    assert run(*argv) == 0
    options = json.loads(FeatsReader(tmp_path / "exp/feats/dev.fbank.h5").attrs["options"])
    assert (options["num_mel_bins"], options["sample_frequency"]) == (12, 8000.0)
    assert "foreign" not in options
    # The features that asr-kd recognize makes are of the same front end.
    ours = FbankOptions(sample_frequency=8000, num_mel_bins=12)
    with FeatsWriter(tmp_path / "ours.h5", kind="fbank", options=ours, sample_rate=8000) as writer:
        writer.append("a", "a", np.zeros((3, 12), np.float32))
    assert front_end(FeatsReader(tmp_path / "ours.h5")) == front_end(FeatsReader(tmp_path / "exp/feats/dev.fbank.h5"))
    conf.write_text("--num-mel-bins=23\n")
    assert "12 columns" in error_of(capsys, *argv)
    conf.write_text("--num-mel-bins=12\n--no-such=1\n")
    assert "fbank.conf:2: --no-such" in error_of(capsys, *argv)


def test_normalised_features_with_deltas(kaldi_folder, tmp_path):
    argv = argv_of(kaldi_folder, "dev", tmp_path / "exp")
    assert run(*argv, "--apply", "cmvn,deltas") == 0
    assert run(*argv, "--set", "raw") == 0
    raw = FeatsReader(tmp_path / "exp/feats/raw.fbank.h5")
    stats = pool(raw.cmvn_stats, raw.spk_ids)
    found = FeatsReader(tmp_path / "exp/feats/dev.fbank.h5")
    for utt_id, spk_id in zip(raw.layout.utt_ids, raw.spk_ids, strict=True):
        wanted = add_deltas(apply_cmvn(raw[utt_id], stats[spk_id], norm_vars=True))
        np.testing.assert_allclose(found[utt_id], wanted, atol=1e-5)
