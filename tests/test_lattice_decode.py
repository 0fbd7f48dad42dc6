"""Lattices of the decoder: against its best path, an exact search, and decoding anew at other scales."""

import numpy as np
import pytest
from command_line import error_of
from made_up_lattices import word_graph

from asr_kd.config import DecodeConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.lattice_decode import LatticeDecoder
from asr_kd.hmm.search_errors import compare_beams
from asr_kd.hmm.word_search import determinize, nbest
from asr_kd.scoring.decoding import SetDecoder
from asr_kd.store.hdf5 import Layout

pytest.importorskip("kaldi_hmm_gmm", reason="the decoders need the Kaldi wheels: pip install 'asr_kd[hmm]'")
ACWT = 0.25


@pytest.fixture(scope="module")
def graph():
    return word_graph()


def random_logliks(num: int = 4, num_frames: int = 9) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.normal(0, 6, (num_frames + n, 2)).astype(np.float32) for n in range(num)]


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
    decoder = LatticeDecoder(graph, 10.0, 5.0, ACWT)
    with pytest.raises(AsrKdError, match="do not fit"):
        decoder.decode(np.zeros((3, 7)))
    with pytest.raises(AsrKdError, match="NaN"):
        decoder.decode(np.full((3, 2), np.nan))
    assert decoder.decode(np.zeros((3, 2))).num_frames == 3


def test_processes_find_what_one_does(graph):
    class Reader:
        layout = Layout.from_lengths(["u1", "u2", "u3"], [9, 10, 11])

    log_post = np.concatenate(random_logliks(3))
    config = resolve(DecodeConfig, {})
    results = []
    for nj in (1, 2):
        with SetDecoder(graph, np.zeros(2, np.float32), config, nj) as decoder:
            paths = np.full(len(log_post), -1)
            hyps = decoder.decode(log_post, Reader, ACWT, 0.0, paths)
            assert decoder.seconds > 0
            found = list(decoder.lattices(log_post, Reader, ACWT, 0.0))
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
    files = [f"--{which}-{what}" for which in ("dev", "test") for what in ("feats", "data")]
    files = [word for name in ("--systems", "--graph", "--counts", *files) for word in (name, tmp_path / "none")]
    command = ("decode", *files, "--device", "cpu", "--out", tmp_path / "out", "--beam", 4)
    assert "lattice_beam 8: must be at most the beam, 4" in error_of(capsys, *command, "--lattices")
    assert "lattice_beam" not in error_of(capsys, *command)
