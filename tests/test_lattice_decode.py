"""Lattices: against the best path, the lattices of Kaldi's decoder, an exact search, and decoding anew."""

import numpy as np
import pytest
from command_line import error_of
from hypothesis import given, settings
from hypothesis import strategies as st
from kaldi_wheels import kaldis_decoder
from made_up_lattices import word_graph
from test_ngram_graph import random_case

from asr_kd.config import DecodeConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import Decoder, scaled_logliks
from asr_kd.hmm.graph import Graph, make_graph
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_decode import LatticeDecoder
from asr_kd.hmm.search_errors import compare_beams
from asr_kd.hmm.word_search import determinize, nbest
from asr_kd.scoring.decoding import SetDecoder
from asr_kd.scoring.set_posteriors import KeptMatrices
from asr_kd.store.hdf5 import Layout

pytest.importorskip("kaldi_hmm_gmm", reason="the decoders need the Kaldi wheels: pip install '.[hmm]'")
ACWT = 0.25


@pytest.fixture(scope="module")
def graph():
    return word_graph()


def random_logliks(num: int = 4, num_frames: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.normal(0, 6, (num_frames + n, 2)).astype(np.float32) for n in range(num)]


def raw_by_the_wheels(graph: Graph, loglik: np.ndarray, beam: float, lattice_beam: float) -> Lattice:
    """What LatticeDecoder.raw makes, by the C++ decoder, which knows no limit but the beam."""
    decoder, arcs_of = kaldis_decoder()
    fst = graph.arcs.to_fst()  # held: the decoder keeps plain pointers to it and to its options
    options = decoder.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)
    search = decoder.LatticeSimpleDecoder(fst, options)
    assert search.decode(
        decoder.DecodableCtc(np.ascontiguousarray(scaled_logliks(graph, loglik, ACWT)[:, graph.t2pdf[1:]]))
    )
    found, raw = search.get_raw_lattice()
    assert found
    rows = [
        (state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value1, arc.weight.value2)
        for state in range(raw.num_states)
        for arc in arcs_of(raw, state)
    ]
    finals = [raw.final(state).value1 for state in range(raw.num_states)]
    rows += [(state, len(finals), 0, 0, cost, 0.0) for state, cost in enumerate(finals) if np.isfinite(cost)]
    source, target, tid, word, graph_cost, acoustic = np.array(rows).T
    tids = [int(one).to_bytes(4, "little") if one else b"" for one in tid]
    return Lattice.from_arcs(raw.start, len(finals), source, target, word, graph_cost, acoustic / ACWT, tids)


def names(graph, path) -> list[str]:
    return [graph.words[word - 1] for word in path.words]


@pytest.mark.parametrize("penalty", [0.0, 1.5, -0.5])
def test_the_best_path_of_a_lattice_is_the_decoders(graph, penalty):
    decoder = Decoder(graph, 60.0, acwt=ACWT, insertion_penalty=penalty)
    lattice_decoder = LatticeDecoder(graph, 60.0, 6.0, ACWT, penalty)
    for loglik in random_logliks():
        decoded, raw = decoder.decode(loglik), lattice_decoder.raw(loglik)
        compact = lattice_decoder.decode(loglik)
        for lattice in (raw, compact):
            best = nbest(lattice, 1, ACWT, penalty)[0]
            assert names(graph, best) == decoded.words
            assert best.cost == pytest.approx(-decoded.score, abs=1e-4)
            np.testing.assert_array_equal(best.transition_ids, decoded.transition_ids)
            assert lattice.num_frames == len(loglik)
        # Costs are kept without scale and penalty: the acoustic cost is minus the path's own log-likelihood.
        acoustic = -loglik[np.arange(len(loglik)), decoded.pdfs].sum()
        assert best.acoustic == pytest.approx(acoustic, abs=1e-3)
        # Rescoring at the same scales changes nothing, down the whole list.
        all_raw, all_compact = nbest(raw, 50, ACWT, penalty), nbest(compact, 50, ACWT, penalty)
        near = [path for path in all_raw if path.cost <= all_raw[0].cost + 6.0 - 1e-6]
        assert [path.words for path in all_compact][: len(near)] == [path.words for path in near]
        np.testing.assert_allclose([p.cost for p in all_compact][: len(near)], [p.cost for p in near], atol=1e-4)


@pytest.mark.parametrize(("acwt", "penalty"), [(0.1, 0.0), (0.6, 1.0), (0.25, -1.0)])
def test_a_wide_lattice_rescored_is_decoded_anew(graph, acwt, penalty):
    anew = Decoder(graph, 500.0, acwt=acwt, insertion_penalty=penalty)
    wide = LatticeDecoder(graph, 500.0, 400.0, ACWT)
    for loglik in random_logliks(3, 5):
        rescored, decoded = nbest(wide.raw(loglik), 1, acwt, penalty)[0], anew.decode(loglik)
        assert names(graph, rescored) == decoded.words
        assert rescored.cost == pytest.approx(-decoded.score, abs=1e-4)


def test_the_lattice_is_the_wheels(graph):
    """Arc by arc."""
    for loglik in random_logliks(2, 130):
        ours = LatticeDecoder(graph, 60.0, 7.0, ACWT, min_active=0).raw(loglik)
        theirs = raw_by_the_wheels(graph, loglik, 60.0, 7.0)
        assert ours.num_frames == len(loglik)
        tables = []
        for lattice in (ours, theirs):
            tid = [int.from_bytes(one, "little") for one in lattice.tids]
            table = np.column_stack(
                [lattice.times[lattice.source], tid, lattice.word, lattice.graph.round(3), lattice.acoustic.round(3)]
            )
            tables.append(table[np.lexsort(table.T)])
        np.testing.assert_allclose(*tables, atol=2e-3)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_lattice_is_the_wheels_on_graphs_with_back_off(seed):
    rng, lang, model, lm = random_case(seed)
    graph = make_graph(model, lang, None, lm=lm)
    loglik = rng.normal(0, 6, (int(rng.integers(12, 30)), model.num_pdfs)).astype(np.float32)
    ours = LatticeDecoder(graph, 40.0, 5.0, ACWT, min_active=0).decode(loglik)
    theirs = determinize(raw_by_the_wheels(graph, loglik, 40.0, 5.0), 5.0, ACWT)
    found, expected = ({p.words: p.cost for p in nbest(one, 1000, ACWT)} for one in (ours, theirs))
    edge = min(expected.values()) + 5.0 - 1e-3  # rounding decides what lies at the beam
    assert {words for words, cost in found.items() if cost < edge} <= expected.keys()
    assert {words for words, cost in expected.items() if cost < edge} <= found.keys()
    for words in found.keys() & expected.keys():
        assert found[words] == pytest.approx(expected[words], abs=1e-3)


def test_the_states_kept_are_bounded(graph):
    """Two of the graph's states: then the best path is lost now and then, and the lattice is of what is left."""
    bounded = LatticeDecoder(graph, 60.0, 6.0, ACWT, min_active=0, max_active=2)
    exact, lost = Decoder(graph, 500.0, acwt=ACWT), []
    for loglik in random_logliks(4, 40):
        raw = bounded.raw(loglik)
        lost.append(raw.costs_to_end(raw.costs(ACWT))[0] + exact.decode(loglik).score)
    assert min(lost) > -1e-3
    assert max(lost) > 1e-3


def test_lattices_that_would_grow_too_large_keep_what_is_best(graph):
    raw = LatticeDecoder(graph, 60.0, 20.0, ACWT).raw(random_logliks(1, 12)[0])
    whole, small = determinize(raw, 20.0, ACWT), determinize(raw, 20.0, ACWT, max_arcs=40)
    assert len(small.source) < len(whole.source)
    found, kept = nbest(whole, 5, ACWT), nbest(small, 5, ACWT)
    assert [path.words for path in kept[:2]] == [path.words for path in found[:2]]


def test_lattice_decoder_guards(graph):
    for beam, lattice_beam in ((0.0, 1.0), (5.0, 0.0), (5.0, 6.0), (5.0, np.nan)):
        with pytest.raises(AsrKdError, match="beam"):
            LatticeDecoder(graph, beam, lattice_beam, ACWT)
    with pytest.raises(AsrKdError, match="max_active 200"):
        LatticeDecoder(graph, 10.0, 5.0, ACWT, max_active=200)
    decoder = LatticeDecoder(graph, 10.0, 5.0, ACWT)
    with pytest.raises(AsrKdError, match="do not fit"):
        decoder.decode(np.zeros((3, 7)))
    with pytest.raises(AsrKdError, match="NaN"):
        decoder.decode(np.full((3, 2), np.nan))
    assert decoder.decode(np.zeros((3, 2))).num_frames == 3


def test_processes_find_what_one_does(graph):
    utt_ids, logliks = ["u1", "u2", "u3"], random_logliks(3)
    log_post = KeptMatrices(
        Layout.from_lengths(utt_ids, list(map(len, logliks))), dict(zip(utt_ids, logliks, strict=True))
    )
    config = resolve(DecodeConfig, {})
    results = []
    for nj in (1, 2):
        with SetDecoder(graph, np.zeros(2, np.float32), config, nj) as decoder:
            paths = np.full(log_post.layout.num_frames, -1)
            hyps = decoder.decode(log_post, ACWT, 0.0, paths)
            assert decoder.seconds > 0
            found = list(decoder.lattices(log_post, ACWT, 0.0))
            results.append((hyps, paths.tolist(), [(utt_id, lattice.tids) for utt_id, lattice in found]))
    assert results[0] == results[1]
    assert list(results[0][0]) == [utt_id for utt_id, _ in results[0][2]] == ["u1", "u2", "u3"]


def test_search_errors_are_counted(graph):
    logliks = [(str(n), loglik) for n, loglik in enumerate(random_logliks(6, 60))]
    wide = Decoder(graph, 500.0, acwt=ACWT)
    same = compare_beams(Decoder(graph, 100.0, acwt=ACWT), wide, logliks, 0.01)
    assert (same.num_errors, same.share, len(same.lost)) == (0, 0.0, 6)
    assert same.audio_s == pytest.approx(sum(len(loglik) for _, loglik in logliks) / 100)
    narrow = compare_beams(Decoder(graph, 0.1, min_active=0, acwt=ACWT), wide, logliks, 0.01)
    assert narrow.num_errors > 0
    assert f"{narrow.num_errors} search errors" in str(narrow)
    with pytest.raises(AsrKdError, match="worse path"):
        compare_beams(wide, Decoder(graph, 0.1, min_active=0, acwt=ACWT), logliks, 0.01)


def test_beams_that_do_not_fit_are_refused_before_anything_is_read(tmp_path, capsys):
    files = [word for name in ("--net", "--feats", "--graph", "--counts") for word in (name, tmp_path / "none")]
    for beam in (5, 20, "nan"):
        assert "must be above the beam, 20" in error_of(capsys, "check-search", *files, "--wide-beam", beam)
    assert "must be above the beam" not in error_of(capsys, "check-search", *files, "--beam", 4, "--wide-beam", 5)
    assert "must be 0, for all, or more" in error_of(capsys, "check-search", *files, "--max-utts", -1)
    files = [f"--{which}-{what}" for which in ("dev", "test") for what in ("feats", "data")]
    files = [word for name in ("--systems", "--graph", "--counts", *files) for word in (name, tmp_path / "none")]
    command = ("decode", *files, "--device", "cpu", "--out", tmp_path / "out", "--beam", 4)
    assert "lattice_beam 8: must be at most the beam, 4" in error_of(capsys, *command, "--lattices")
    assert "lattice_beam" not in error_of(capsys, *command)
