"""Lexicon, HMM-GMM training, alignment, graph, decoder and its exact oracle."""

import dataclasses
import importlib.metadata
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaldi_wheels import LEXICON, REASON, needs_kaldi, wheels_present

from asr_kd import cli
from asr_kd.config import HmmConfig, resolve
from asr_kd.corpus.datadir import Recording, Utterance, read_data_dir, write_data_dir
from asr_kd.corpus.lexicon import Lexicon, write_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.features.options import MfccOptions
from asr_kd.hmm import boundaries, steps, wheels
from asr_kd.hmm.align import GraphCompiler, align_graph, align_in_processes, align_utterances
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.flat_start import flat_start, spectral_change
from asr_kd.hmm.forward_backward import TrainingPaths, write_occupancies
from asr_kd.hmm.gaussians import Gmm, GmmStack, split_targets
from asr_kd.hmm.gmm import MonoOptions, initial_model, select_subset, train_mono
from asr_kd.hmm.graph import Graph, GraphArcs, make_graph
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.viterbi import check_search, exact_best_path
from asr_kd.store.ali import AliReader
from asr_kd.store.feats_writer import FeatsWriter

PLAIN = Lexicon({"one": [("W", "AH", "N")], "nine": [("N", "AY", "N")], "five": [("F", "AY", "V")]})
DIM = 6


def synthesize(lexicon: Lexicon, num_utts: int, seed: int) -> list[tuple[str, np.ndarray, tuple[str, ...], np.ndarray]]:
    """(utt_id, feats, words, phone) with frames around a mean per phone, a little different in each third of it."""
    lang = Lang(lexicon)
    lasting = np.random.default_rng(0)
    means = lasting.normal(0, 4, (len(lang.phones), 1, DIM)) + lasting.normal(0, 1, (len(lang.phones), 3, DIM))
    means[0, :, 0] = -12  # silence is quiet: column 0 stands for energy
    generator = np.random.default_rng(seed)
    utterances = []
    for index in range(num_utts):
        words = tuple(generator.choice(lang.words, size=generator.integers(1, 5)).tolist())
        phones = ["SIL"] if generator.random() < 0.5 else []
        for word in words:
            phones += lexicon.entries[word][0]
            if generator.random() < 0.4:
                phones.append("SIL")
        feats, truth = [], []
        for phone in (lang.phones.index(p) for p in phones):
            for third in range(3):
                length = generator.integers(2, 6)
                feats.append(means[phone, third] + generator.normal(0, 1, (length, DIM)))
                truth.append(np.full(length, phone))
        utterances.append((f"utt{index:03d}", np.concatenate(feats).astype(np.float32), words, np.concatenate(truth)))
    return utterances


OPTIONS = MonoOptions(num_iters=10, total_gauss=40, max_train_utts=0)


@pytest.fixture(scope="module")
def plain() -> tuple[HmmModel, list]:
    if not wheels_present():
        pytest.skip(REASON)
    utterances = synthesize(PLAIN, 40, seed=1)
    return train_mono(Lang(PLAIN), [u[:3] for u in utterances], options=OPTIONS, seed=3), utterances


def exact_logliks(model: HmmModel, feats: np.ndarray) -> np.ndarray:
    return GmmStack(model.gmms).logliks(feats)


# --- wheels


def test_package_imports_without_wheels_and_says_what_to_install():
    program = (
        "import sys\n"
        "for name in ('kaldi_hmm_gmm', 'kaldifst'): sys.modules[name] = None\n"
        "import asr_kd.hmm.steps, asr_kd.hmm.viterbi, asr_kd.hmm.boundaries\n"
        "from asr_kd.errors import AsrKdError\n"
        "from asr_kd.hmm.wheels import kaldi\n"
        "try: kaldi()\n"
        "except AsrKdError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install '.[hmm]'" in run.stdout


def test_another_version_of_a_wheel_is_refused(monkeypatch):
    versions = {**wheels.PINNED, "kaldifst": "1.8.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(AsrKdError, match=r"kaldifst is at 1\.8\.0 but 1\.7\.17 is needed"):
        wheels.kaldi.__wrapped__()


# --- Gaussians


def test_em_step_raises_the_likelihood_and_splitting_hardly_changes_it():
    generator = np.random.default_rng(0)
    feats = np.concatenate([generator.normal(-3, 1, (200, 4)), generator.normal(3, 2, (300, 4))])
    gmm = Gmm.from_moments(np.ones(1), feats.mean(0)[None], feats.var(0)[None])

    def loglik(model: Gmm) -> float:
        return float(np.logaddexp.reduce(model.component_logliks(feats), axis=1).mean())

    split = gmm.split(4, np.random.default_rng(1))
    assert len(split.weights) == 4
    assert split.weights.sum() == pytest.approx(1.0)
    assert loglik(split) == pytest.approx(loglik(gmm), abs=0.01)
    values = [loglik(split)]
    for _ in range(15):
        split = split.reestimate(feats)
        values.append(loglik(split))
    assert all(b > a - 1e-4 for a, b in itertools.pairwise(values))
    assert values[-1] > values[0] + 0.5


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_split_targets_keep_to_their_limits(counts, total):
    occupancy = np.array(counts)
    targets = split_targets(occupancy, total)
    assert (targets >= 1).all()
    assert targets.sum() <= max(total, len(counts))
    assert (occupancy[targets > 1] >= 20 * targets[targets > 1]).all()


@needs_kaldi
def test_likelihood_is_that_of_kaldi(plain):
    model, utterances = plain
    feats = utterances[0][1][:20]
    ours = exact_logliks(model, feats)
    theirs = [[model.acoustic_model.log_likelihood(pdf, frame) for pdf in range(model.num_pdfs)] for frame in feats]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


# --- training and alignment


def test_subset_is_seeded_and_has_every_phone():
    phones = {f"u{i}": {"AH"} for i in range(50)} | {"z": {"ZH", "AH"}}
    chosen = select_subset(phones, 5, seed=0)
    assert "z" in chosen, "every phone is needed in training"
    assert 5 <= len(chosen) <= 6
    assert chosen == select_subset(phones, 5, seed=0) != select_subset(phones, 5, seed=1)


@needs_kaldi
def test_flat_start_occupancies_are_those_of_all_paths():
    """Forward-backward against the sum over every path, on an utterance of two phones."""
    lexicon = Lexicon({"no": [("N", "OW")]})
    lang = Lang(lexicon)
    generator = np.random.default_rng(0)
    data = generator.normal(0, 1, (9, 2))
    model = initial_model(lang, data, MonoOptions(), 0)
    graph = GraphCompiler(model, lang).compile("u", ("no",))
    paths = TrainingPaths.of(model, [graph] * 3)
    likelihoods, change = generator.uniform(0.1, 1, (9, model.num_pdfs)), generator.uniform(0.5, 2, 9)
    occupancies = np.ones((18, model.num_pdfs))
    twice = np.concatenate([likelihoods] * 2), np.concatenate([change] * 2)
    write_occupancies(paths, 1, np.array([0, 9, 18]), *twice, occupancies)  # of the last two utterances
    expected = np.zeros((9, model.num_pdfs))

    def walk(state: int, path: list[int], weight: float) -> None:
        if len(path) == 9:
            for frame, pdf in enumerate(path):
                expected[frame, pdf] += weight * paths.final[state]
            return
        for arc in range(paths.first_arc[state], paths.first_arc[state + 1]):
            step = paths.prob[arc] * (change[len(path)] if paths.enters[arc] else 1.0)
            pdf = int(paths.pdf[paths.target[arc]])
            walk(int(paths.target[arc]), [*path, pdf], weight * step * likelihoods[len(path), pdf])

    walk(int(paths.start[0]), [], 1.0)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(occupancies, np.concatenate([expected] * 2), atol=1e-9)
    assert 0 < expected[0, model.sil_pdfs[0]] < 1, "silence is optional, before and after"


@needs_kaldi
def test_an_utterance_without_a_path_has_no_occupancies():
    lang = Lang(Lexicon({"no": [("N", "OW")]}))
    model = initial_model(lang, np.random.default_rng(0).normal(0, 1, (9, 2)), MonoOptions(), 0)
    paths = TrainingPaths.of(model, [GraphCompiler(model, lang).compile("u", ("no",))] * 3)
    occupancies = np.ones((10, model.num_pdfs))
    # One frame is too short for two phones, and an utterance may have no frame at all.
    likelihoods, change = np.ones((10, model.num_pdfs)), np.ones(10)
    write_occupancies(paths, 0, np.array([0, 1, 1, 10]), likelihoods, change, occupancies)
    assert (occupancies[0] == 0).all()
    np.testing.assert_allclose(occupancies[1:].sum(1), 1.0)


@needs_kaldi
def test_a_flat_start_in_parts_is_that_of_the_whole(monkeypatch):
    lang = Lang(Lexicon({"no": [("N", "OW")], "on": [("OW", "N")]}))
    generator = np.random.default_rng(0)
    lengths = np.array([20, 30, 25])
    data = generator.normal(0, 1, (75, 3)) + np.repeat(generator.normal(0, 2, (15, 3)), 5, axis=0)
    model = initial_model(lang, data, MonoOptions(), 0)
    graphs = [GraphCompiler(model, lang).compile("u", words) for words in (("no",), ("no", "on"), ("on",))]
    whole = flat_start(model, data, lengths, graphs)
    monkeypatch.setattr("asr_kd.hmm.flat_start.MAX_OCCUPANCIES", 30 * model.num_pdfs)
    parts = flat_start(model, data, lengths, graphs)
    for one, other, first in zip(whole.gmms, parts.gmms, model.gmms, strict=True):
        np.testing.assert_allclose(one.means_invvars, other.means_invvars, rtol=1e-4)
        assert not np.array_equal(one.means_invvars, first.means_invvars)


def test_spectral_change_peaks_where_the_sound_changes():
    data = np.repeat(np.eye(3), [6, 5, 7], axis=0)
    change = spectral_change(np.concatenate([data, data[:3]]), np.array([18, 3]))
    assert set(np.argsort(change)[-2:]) == {6, 11}
    assert (change[18:] == 0).all()


@needs_kaldi
def test_alignment_finds_the_phones(plain):
    model, utterances = plain
    hits = total = 0
    for (utt_id, pdf, phone, _), (expected_id, feats, _, truth) in zip(
        align_utterances(model, model.lang, [u[:3] for u in utterances]), utterances, strict=True
    ):
        assert utt_id == expected_id
        assert len(pdf) == len(feats)
        hits += (phone == truth).sum()
        total += len(truth)
    assert hits / total > 0.97
    assert model.sil_pdfs == [0, 1, 2]
    assert model.num_pdfs == 3 * len(model.phones)


@needs_kaldi
def test_same_seed_same_alignment(plain):
    model, utterances = plain
    items = [u[:3] for u in utterances]
    again = train_mono(Lang(PLAIN), items, options=OPTIONS, seed=3)
    other = train_mono(Lang(PLAIN), items, options=OPTIONS, seed=4)
    assert again.digest == model.digest != other.digest
    for a, b in zip(
        align_utterances(model, model.lang, items), align_utterances(again, again.lang, items), strict=True
    ):
        np.testing.assert_array_equal(a[1], b[1])


@needs_kaldi
def test_saved_model_aligns_alike_in_other_processes(plain, tmp_path):
    model, utterances = plain
    items = [u[:3] for u in utterances]
    model.save(tmp_path / "hmm")
    loaded = HmmModel.load(tmp_path / "hmm")
    assert loaded.digest == model.digest
    ours = list(align_utterances(model, model.lang, items))
    theirs = list(align_in_processes(loaded, loaded.lang, items, nj=2, chunk_size=13))
    for a, b in zip(ours, theirs, strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


@needs_kaldi
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("final.mdl", "<WEIGHTS>  [ ", "<WEIGHTS>  [ -", "not positive"),
        ("final.mdl", "<NUMPDFS> 2", "<NUMPDFS> 9", "announces"),
        ("final.mdl", "<LogProbs>", "<Gone>", "LogProbs"),
        ("final.mdl", "<PdfClass> 0", "<ForwardPdfClass> 0 <SelfLoopPdfClass> 1", "is of a chain model"),
        ("lexicon.txt", "five F", "five V", "digest"),
        ("hmm.json", "{", "", "not a readable HMM"),
    ],
)
def test_changed_model_is_refused(plain, tmp_path, name, old, new, message):
    plain[0].save(tmp_path / "hmm")
    file = tmp_path / "hmm" / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(AsrKdError, match=message):
        HmmModel.load(tmp_path / "hmm")


@needs_kaldi
def test_what_cannot_be_aligned_fails_alone(plain):
    model, utterances = plain
    good = utterances[0][:3]
    items = [("short", good[1][:5], ("one", "nine")), ("none", good[1][:0], ("one",)), good]
    results = list(align_utterances(model, model.lang, items))
    assert [r[1] is None for r in results] == [True, True, False]
    with pytest.raises(AsrKdError, match="'x' has the word 'ten'"):
        list(align_utterances(model, model.lang, [("x", good[1], ("ten",))]))
    with pytest.raises(AsrKdError, match="'x': its features hold NaN"):
        list(align_utterances(model, model.lang, [("x", good[1] * np.float32("nan"), ("one",))]))
    with pytest.raises(AsrKdError, match="6 columns"):
        list(align_utterances(model, model.lang, [("x", good[1][:, :3], ("one",))]))


@needs_kaldi
def test_training_on_wrong_transcripts_of_impossible_length_is_an_error():
    items = [(f"u{i}", np.zeros((4, DIM), np.float32), ("one", "nine")) for i in range(4)]
    with pytest.raises(AsrKdError, match="4 of 4 utterances could not be aligned"):
        train_mono(Lang(PLAIN), items, options=OPTIONS, seed=0)


@needs_kaldi
def test_skips_fit_phones_of_one_frame():
    utterances = synthesize(PLAIN, 30, seed=2)
    options = MonoOptions(num_iters=8, total_gauss=30, topology="bakis", max_train_utts=0)
    model = train_mono(Lang(PLAIN), [u[:3] for u in utterances], options=options, seed=0)
    probabilities = np.exp(model.log_probs[1:])
    state = np.array(model.transition_model.id2state)[1:]
    np.testing.assert_allclose(np.bincount(state, probabilities)[1:], 1.0, rtol=1e-5)
    graph = GraphCompiler(model, model.lang).compile("u", ("one",))
    tids = align_graph(model, graph, "u", utterances[0][1][:3], options.align)
    assert model.t2phone[tids].tolist() == [model.phones.index(p) for p in ("W", "AH", "N")]


# --- graph and decoder


def _graph_of(lexicon: Lexicon, topology: str, transcripts: list | None) -> Graph:
    utterances = synthesize(lexicon, 20, seed=5)
    options = MonoOptions(num_iters=3, total_gauss=1, topology=topology, max_train_utts=0)
    model = train_mono(Lang(lexicon), [u[:3] for u in utterances], options=options, seed=0)
    return make_graph(model, model.lang, transcripts)


@pytest.fixture(scope="module")
def ambiguous_graph() -> Graph:
    if not wheels_present():
        pytest.skip(REASON)
    return _graph_of(LEXICON, "bakis", [["two", "two", "tool"], ["eel"]])


@needs_kaldi
def test_graph_decodes_what_was_said(plain):
    model, _ = plain
    graph = make_graph(model, model.lang, None)
    decoder = Decoder(graph, acwt=0.3)
    for _, feats, words, _ in synthesize(PLAIN, 10, seed=9):
        decoded = decoder.decode(exact_logliks(model, feats))
        assert decoded.words == list(words)
        assert decoded.complete
        np.testing.assert_array_equal(decoded.pdfs, graph.t2pdf[decoded.transition_ids])


@needs_kaldi
def test_unigram_and_labels(ambiguous_graph):
    # Counts plus one of eel, too, tool, two: 2, 1, 2, 3; two utterance ends plus one.
    expected = {"eel": 2 / 11, "too": 1 / 11, "tool": 2 / 11, "two": 3 / 11}
    assert ambiguous_graph.unigram == pytest.approx(expected)
    assert set(ambiguous_graph.arcs.olabel) == {0, 1, 2, 3, 4}, "homophones keep their words"
    assert ambiguous_graph.arcs.ilabel.max() < len(ambiguous_graph.t2pdf)


@needs_kaldi
@pytest.mark.parametrize(("acwt", "penalty"), [(0.1, 0.0), (1.0, 0.0), (0.1, 4.0), (0.3, -2.0)])
def test_no_search_errors_on_random_scores(ambiguous_graph, plain, acwt, penalty):
    generator = np.random.default_rng(7)
    for graph in (ambiguous_graph, make_graph(plain[0], plain[0].lang, None)):
        logliks = [
            generator.normal(0, 8, (length, graph.num_pdfs)).astype(np.float32) for length in (1, 2, 5, 30, 90, 150)
        ]
        assert check_search(graph, logliks, acwt=acwt, insertion_penalty=penalty) < 1e-3
        for loglik in logliks:
            decoded = Decoder(graph, acwt=acwt, insertion_penalty=penalty).decode(loglik)
            score, words = exact_best_path(graph, loglik, acwt, penalty)
            assert decoded.score == pytest.approx(score, abs=1e-3)
            assert decoded.words == words


@needs_kaldi
def test_a_narrow_beam_is_caught(ambiguous_graph):
    generator = np.random.default_rng(3)
    logliks = [generator.normal(0, 8, (100, ambiguous_graph.num_pdfs)).astype(np.float32) for _ in range(5)]
    assert check_search(ambiguous_graph, logliks, acwt=1.0, beam=1.0, min_active=0) > 1.0


@needs_kaldi
def test_too_few_frames_give_an_unfinished_path(ambiguous_graph):
    graph = ambiguous_graph
    decoded = Decoder(graph).decode(np.zeros((1, graph.num_pdfs), np.float32))
    assert len(decoded.pdfs) == 1
    assert not decoded.complete


@needs_kaldi
def test_insertion_penalty_lowers_the_score_by_itself_per_word(ambiguous_graph):
    loglik = np.random.default_rng(2).normal(0, 8, (120, ambiguous_graph.num_pdfs)).astype(np.float32)
    free = Decoder(ambiguous_graph, insertion_penalty=0.0).decode(loglik)
    slight = Decoder(ambiguous_graph, insertion_penalty=1e-3).decode(loglik)
    dear = Decoder(ambiguous_graph, insertion_penalty=50.0).decode(loglik)
    assert len(free.words) > 3
    assert slight.score == pytest.approx(free.score - 1e-3 * len(free.words), abs=1e-3)
    assert len(dear.words) < len(free.words)


@needs_kaldi
def test_decoder_guards(ambiguous_graph):
    decoder = Decoder(ambiguous_graph)
    good = np.zeros((10, ambiguous_graph.num_pdfs), np.float32)
    for bad, message in [
        (good[:, :-1], "do not fit"),
        (np.zeros((10, ambiguous_graph.num_pdfs + 1)), "do not fit"),
        (good[0], "do not fit"),
        (good[:0], "without a frame"),
        (np.where(np.arange(10)[:, None] == 4, np.nan, good), "NaN"),
        (np.where(np.arange(10)[:, None] == 4, -np.inf, good), "NaN or infinity"),
        (np.full(good.shape, 1e41), "infinity"),
    ]:
        with pytest.raises(AsrKdError, match=message):
            decoder.decode(bad)
    assert len(decoder.decode(good).pdfs) == 10, "still usable after a refusal"
    for bad in ({"beam": 0}, {"acwt": math.nan}, {"acwt": -1}, {"min_active": 200, "max_active": 200}):
        with pytest.raises(AsrKdError, match="bad decoder"):
            Decoder(ambiguous_graph, **bad)


@needs_kaldi
def test_graph_survives_its_folder_and_refuses_changes(ambiguous_graph, tmp_path):
    ambiguous_graph.save(tmp_path / "graph")
    loaded = Graph.load(tmp_path / "graph")
    assert loaded.digest == ambiguous_graph.digest
    record = tmp_path / "graph" / "graph.json"
    content = json.loads(record.read_text())
    old = {**content, "version": 1, "digest": ambiguous_graph._digest(1)}
    record.write_text(json.dumps(old))
    assert Graph.load(tmp_path / "graph").digest == ambiguous_graph.digest, "graphs of version 1 are read too"
    record.write_text(json.dumps({**old, "digest": content["digest"]}))
    with pytest.raises(AsrKdError, match="digest"):
        Graph.load(tmp_path / "graph")
    record.write_text(json.dumps(content))
    fst = tmp_path / "graph" / "HCLG.fst"
    whole = fst.read_bytes()
    fst.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AsrKdError, match=r"HCLG.fst: is damaged|digest"):
        Graph.load(tmp_path / "graph")
    fst.write_bytes(b"no graph at all")
    with pytest.raises(AsrKdError, match="no OpenFst binary"):
        Graph.load(tmp_path / "graph")


def _tiny_graph(arcs: list[tuple[int, int, int, int, float]], final: list[float]) -> Graph:
    columns = list(zip(*sorted(arcs), strict=True))
    labels = [np.array(column, dtype=np.int64) for column in columns[:4]]
    graph_arcs = GraphArcs(0, *labels, np.array(columns[4]), np.array(final))
    return Graph(graph_arcs, np.array([-1, 0, 1, 2]), 3, ["a", "b"], "", {})


def test_empty_or_foreign_graphs_are_refused():
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(AsrKdError, match="empty"):
        Graph(GraphArcs(-1, none, none, none, none, none * 0.0, none * 0.0), np.array([-1, 0]), 1, ["a"], "", {})
    with pytest.raises(AsrKdError, match="no final state"):
        _tiny_graph([(0, 1, 1, 0, 0.0)], [np.inf, np.inf])
    for ilabel, weight, final in ((9, 0.0, np.inf), (1, np.nan, np.inf), (1, 0.0, np.nan)):
        with pytest.raises(AsrKdError, match="does not know"):
            _tiny_graph([(0, 1, ilabel, 0, weight)], [final, 0.0])
    cycle = _tiny_graph([(0, 1, 0, 0, 0.0), (1, 0, 0, 0, 0.0), (1, 1, 1, 0, 0.0)], [np.inf, 0.0])
    with pytest.raises(AsrKdError, match="cycle"):
        exact_best_path(cycle, np.zeros((2, 3)), 1.0)


def _brute_force(graph: Graph, loglik: np.ndarray) -> float:
    """Best complete score by walking every path."""
    arcs = graph.arcs

    def walk(state: int, frame: int) -> float:
        best = -arcs.final[state] if frame == len(loglik) else -math.inf
        for row in np.flatnonzero(arcs.source == state):
            tid = arcs.ilabel[row]
            if tid == 0:
                best = max(best, walk(arcs.target[row], frame) - arcs.weight[row])
            elif frame < len(loglik):
                gain = float(loglik[frame, graph.t2pdf[tid]])
                best = max(best, walk(arcs.target[row], frame + 1) - arcs.weight[row] + gain)
        return best

    return walk(arcs.start, 0)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_exact_search_is_exact(seed):
    """Random graphs; epsilon arcs lead to higher states only, so that they form no cycle."""
    generator = np.random.default_rng(seed)
    arcs = [(0, 1, 1, 1, 0.0)]
    for source in range(5):
        for _ in range(generator.integers(1, 4)):
            tid = int(generator.integers(0, 4)) if source < 4 else int(generator.integers(1, 4))
            target = int(generator.integers(source + 1, 5)) if tid == 0 else int(generator.integers(0, 5))
            weight = float(np.float32(generator.exponential()))
            arcs.append((source, target, tid, int(generator.integers(0, 3)), weight))
    final = [math.inf, *(float(np.float32(f)) for f in generator.exponential(size=4))]
    graph = _tiny_graph(arcs, final)
    loglik = generator.normal(0, 2, (int(generator.integers(1, 6)), 3)).astype(np.float32)
    expected = _brute_force(graph, loglik)
    if math.isfinite(expected):
        assert exact_best_path(graph, loglik, 1.0)[0] == pytest.approx(expected, abs=1e-6)
        if wheels_present():
            assert Decoder(graph, acwt=1.0).decode(loglik).score == pytest.approx(expected, abs=1e-4)


# --- boundaries


def test_boundaries_against_truth(tmp_path):
    (tmp_path / "truth.ctm").write_text(
        "u1 1 0.0 0.03 SIL\nu1 1 0.03 0.05 N\nu1 1 0.08 0.02 AY\nu1 1 0.1 0.02 AY\nu2 1 0.0 0.1 N\n"
    )
    truth = boundaries.read_truth(tmp_path / "truth.ctm")
    phones = ["SIL", "AY", "N"]
    aligned = {"u1": np.array([0, 0, 0, 2, 2, 2, 1, 1]), "u2": np.array([0, 2, 2]), "u3": np.array([0])}
    report = boundaries.compare(aligned, phones, truth)
    # Frame 3 begins at 37.5 ms and frame 6 at 67.5 ms; the truth says 30 and 80.
    np.testing.assert_allclose(report.errors_ms, [7.5, -12.5])
    assert (report.num_utts, report.num_agreeing) == (2, 1)
    assert report.median_ms == pytest.approx(10.0)
    assert report.share_within(10.0) == 0.5
    assert report.share_within(20.0) == 1.0
    with pytest.raises(AsrKdError, match="none of the utterances"):
        boundaries.compare(aligned, phones, {"u9": truth["u1"]})
    (tmp_path / "bad.ctm").write_text("u1 1 0.0 0.03 SIL\nu1 1 N\n")
    with pytest.raises(AsrKdError, match=r"bad.ctm:2: not of the form"):
        boundaries.read_truth(tmp_path / "bad.ctm")


# --- files


def hmm_config(**values: object) -> HmmConfig:
    return resolve(HmmConfig, values)


@pytest.fixture
def corpus(tmp_path) -> tuple:
    """A data directory, mfcc.h5 and lexicon.txt of synthetic frames."""
    utterances = synthesize(PLAIN, 30, seed=6)
    (tmp_path / "a.wav").write_bytes(b"")
    write_data_dir(
        tmp_path / "data",
        [
            Utterance(f"s{i % 3}-{u[0]}", f"s{i % 3}", Recording("a", str(tmp_path / "a.wav")), words=u[2])
            for i, u in enumerate(utterances)
        ],
    )
    write_lexicon(tmp_path / "lexicon.txt", PLAIN)
    options = MfccOptions(sample_frequency=8000, num_ceps=DIM)
    with FeatsWriter(tmp_path / "mfcc.h5", kind="mfcc", options=options, sample_rate=8000) as writer:
        for i, (utt_id, feats, _, _) in enumerate(utterances):
            writer.append(f"s{i % 3}-{utt_id}", f"s{i % 3}", feats)
    return tmp_path, utterances


@needs_kaldi
@pytest.mark.parametrize("cmvn", ["utterance", "speaker"])
def test_steps_from_files_to_files(corpus, cmvn):
    folder, utterances = corpus
    (folder / "a.wav").unlink()  # nothing but features and text is read
    inputs = (folder / "mfcc.h5", folder / "data")
    lines: list[str] = []
    config = hmm_config(gmm_num_iters=6, gmm_total_gauss=30, gmm_cmvn=cmvn)
    model = steps.train_hmm(*inputs, folder / "lexicon.txt", folder / "hmm", config, progress=lines.append)
    assert any("pass 6/6" in line for line in lines)
    assert steps.align(*inputs, folder / "hmm", folder / "ali.h5") == []
    ali = AliReader(folder / "ali.h5")
    assert ali.model_digest == model.digest
    assert ali.sil_pdfs.tolist() == [0, 1, 2]
    hits = sum(int((ali.phone[ali.layout.rows(f"s{i % 3}-{u[0]}")] == u[3]).sum()) for i, u in enumerate(utterances))
    assert hits / ali.layout.num_frames > 0.8
    graph = steps.make_graph(folder / "hmm", folder / "data", folder / "graph")
    assert Graph.load(folder / "graph").model_digest == model.digest == graph.model_digest


@needs_kaldi
def test_a_graph_over_an_n_gram_from_files_to_files(corpus, capsys):
    folder, utterances = corpus
    config = hmm_config(gmm_num_iters=6, gmm_total_gauss=30)
    inputs = (folder / "mfcc.h5", folder / "data", folder / "lexicon.txt")
    model = steps.train_hmm(*inputs, folder / "hmm", config)
    lm, graph = str(folder / "lm.arpa.gz"), str(folder / "graph")
    data = ["--data", str(folder / "data")]
    assert cli.main(["train-lm", *data, "--vocabulary", str(folder / "lexicon.txt"), "--order", "2", "--out", lm]) == 0
    command = ["make-graph", "--hmm", str(folder / "hmm"), "--out", graph]
    assert cli.main([*command, "--lm", lm]) == 0
    decoder, stack = Decoder(Graph.load(graph), acwt=0.3), GmmStack(model.gmms)
    feats = steps.load_with_feats(folder / "hmm", folder / "mfcc.h5")[1]
    hits = 0
    for index, (utt_id, _, words, _) in enumerate(utterances):
        hits += decoder.decode(stack.logliks(feats[f"s{index % 3}-{utt_id}"])).words == list(words)
    assert hits >= 0.9 * len(utterances)
    assert cli.main([*command, "--grammar", "ngram"]) == 1
    assert "grammar ngram needs a language model: give --lm" in capsys.readouterr().err
    assert cli.main(command) == 1
    assert "grammar unigram needs transcripts" in capsys.readouterr().err


@needs_kaldi
def test_a_few_utterances_with_unknown_words_are_left_out(corpus, tmp_path):
    folder, _ = corpus
    tmp_path = tmp_path / "oov"
    utterances = read_data_dir(folder / "data")
    lacking = utterances[3].utt_id
    utterances[3] = dataclasses.replace(utterances[3], words=("one", "zebra"))
    write_data_dir(tmp_path / "data", utterances)
    inputs = (folder / "mfcc.h5", tmp_path / "data")
    complaint = rf"data/text:4: utterance '{lacking}' has the word 'zebra'"
    config = hmm_config(gmm_num_iters=2, gmm_total_gauss=30, max_oov_share=0.05)
    lines: list[str] = []
    model = steps.train_hmm(*inputs, folder / "lexicon.txt", tmp_path / "hmm", config, progress=lines.append)
    assert re.search("left out .*" + complaint, "\n".join(lines))
    assert "zebra" not in model.lang.words
    assert steps.align(*inputs, tmp_path / "hmm", tmp_path / "ali.h5", max_oov_share=0.05) == [lacking]
    ali = AliReader(tmp_path / "ali.h5")
    assert ali.failed_utt_ids == [lacking]
    assert (np.delete(ali.pdf, np.r_[ali.layout.rows(lacking)]) >= 0).all()
    steps.make_graph(tmp_path / "hmm", tmp_path / "data", tmp_path / "graph", max_oov_share=0.05)
    for refuse in (
        lambda: steps.align(*inputs, tmp_path / "hmm", tmp_path / "ali.h5"),
        lambda: steps.make_graph(tmp_path / "hmm", tmp_path / "data", tmp_path / "graph"),
    ):
        with pytest.raises(AsrKdError, match=complaint + ".*more than the share of 0.01"):
            refuse()


@needs_kaldi
def test_words_that_training_lacks_are_aligned_by_another_lexicon_of_the_same_phones(corpus, tmp_path):
    folder, _ = corpus
    utterances = read_data_dir(folder / "data")
    utterances[3] = dataclasses.replace(utterances[3], words=("fan",))
    write_data_dir(tmp_path / "test", utterances)
    hmm = folder / "hmm"
    config = hmm_config(gmm_num_iters=2, gmm_total_gauss=30)
    steps.train_hmm(folder / "mfcc.h5", folder / "data", folder / "lexicon.txt", hmm, config)
    write_lexicon(folder / "more.txt", Lexicon({**PLAIN.entries, "fan": [("F", "AH", "N")]}))
    for nj in (1, 2):
        aligned = (folder / "mfcc.h5", tmp_path / "test", hmm, tmp_path / f"{nj}.h5", nj)
        assert steps.align(*aligned, lexicon_path=folder / "more.txt") == []
    ali = AliReader(tmp_path / "1.h5")
    assert {ali.phones[phone] for phone in ali.phone[ali.layout.rows(utterances[3].utt_id)]} - {"SIL"} == {
        "F",
        "AH",
        "N",
    }
    assert np.array_equal(ali.pdf, AliReader(tmp_path / "2.h5").pdf)
    write_lexicon(folder / "phones.txt", Lexicon({f"<{p}>": [(p,)] for p in PLAIN.phones}))
    graph = steps.make_graph(hmm, None, folder / "graph", lexicon_path=folder / "phones.txt")
    assert Graph.load(folder / "graph").words == [f"<{phone}>" for phone in PLAIN.phones] == graph.words
    others = {"AE": {**PLAIN.entries, "fan": [("F", "AE", "N")]}, "V": {**PLAIN.entries, "five": [("F", "AY")]}}
    for phone, entries in others.items():
        write_lexicon(folder / "other.txt", Lexicon(entries))
        with pytest.raises(
            AsrKdError, match=rf"other.txt: its phones have to be those of the HMM; only .* has '{phone}'"
        ):
            steps.align(folder / "mfcc.h5", folder / "data", hmm, tmp_path / "3.h5", lexicon_path=folder / "other.txt")


@needs_kaldi
def test_steps_refuse_what_does_not_fit(corpus):
    folder, utterances = corpus
    inputs = (folder / "mfcc.h5", folder / "data", folder / "lexicon.txt")
    write_lexicon(folder / "small.txt", Lexicon({"one": [("W", "AH", "N")]}))
    with pytest.raises(AsrKdError, match=r"text:1: utterance 's0-\w+' has the word '(nine|five)'"):
        steps.train_hmm(folder / "mfcc.h5", folder / "data", folder / "small.txt", folder / "hmm", hmm_config())
    assert not (folder / "hmm").exists()
    with pytest.raises(AsrKdError, match="gmm_cmvn"):
        steps.train_hmm(*inputs, folder / "hmm", hmm_config(gmm_cmvn="none"))
    steps.train_hmm(*inputs, folder / "hmm", hmm_config(gmm_num_iters=4, gmm_total_gauss=1))
    for name, num_ceps, frames in (("other", DIM - 1, 500), ("cut", DIM, 4)):
        options = MfccOptions(sample_frequency=8000, num_ceps=num_ceps)
        with FeatsWriter(folder / f"{name}.h5", kind="mfcc", options=options, sample_rate=8000) as writer:
            for i, (utt_id, feats, _, _) in enumerate(utterances):
                writer.append(f"s{i % 3}-{utt_id}", f"s{i % 3}", feats[:frames, :num_ceps])
    with pytest.raises(AsrKdError, match="MFCC options"):
        steps.align(folder / "other.h5", folder / "data", folder / "hmm", folder / "ali.h5")
    with pytest.raises(AsrKdError, match="30 of 30 utterances cannot be aligned"):
        steps.align(folder / "cut.h5", folder / "data", folder / "hmm", folder / "ali.h5")
    assert not (folder / "ali.h5").exists()
    with pytest.raises(AsrKdError, match=r"small\.txt: exists and is no HDF5 file, not asr_kd\.ali"):
        steps.align(folder / "none.h5", folder / "data", folder / "hmm", folder / "small.txt")  # at once
