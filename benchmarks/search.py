#!/usr/bin/env python3
"""The beam search against Kaldi's own (FasterDecoder, in the wheel kaldi-decoder), on the output of a recipe.

Both decode the same utterances with the same limits, in turn, on one core. A row for each pair of beam and max_active:
times real time of both, their ratio (above 1 where ours is faster), of lattices too, and how many utterances either
finds a better path for.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import numpy as np
import torch

from asr_kd.cli_common import run_main
from asr_kd.errors import AsrKdError, install_hint
from asr_kd.hmm.decode import Decoder, scaled_logliks
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice_decode import LatticeDecoder
from asr_kd.hmm.wheels import kaldi
from asr_kd.nnet.priors import read_decoding_priors
from asr_kd.scoring.decoding import load_nets
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.store.feats import FeatsReader

ROUNDING = 1e-3


def kaldis_search(graph: Graph, beam: float, min_active: int, max_active: int, acwt: float) -> Callable:
    """What takes log-likelihoods and returns the score of the best path."""
    kaldi()  # registers the types of FSTs
    try:
        decoder = importlib.import_module("kaldi_decoder")
    except ImportError as error:
        raise AsrKdError(f"{error}; {install_hint('test')}") from error
    arcs_of = importlib.import_module("_kaldifst")._ArcIteratorLattice
    fst = graph.arcs.to_fst()
    search = decoder.FasterDecoder(
        fst, decoder.FasterDecoderOptions(beam=beam, max_active=max_active, min_active=min_active)
    )

    def score(loglik: np.ndarray, kept_alive: object = fst) -> float:  # the search has only a pointer to it
        columns = np.ascontiguousarray(scaled_logliks(graph, loglik, acwt)[:, graph.t2pdf[1:]])
        search.decode(decoder.DecodableCtc(columns))
        complete = search.reached_final()
        _, path = search.get_best_path()
        cost, state = 0.0, path.start
        while not (arcs := arcs_of(path, state)).done:
            cost += arcs.value.weight.value1 + arcs.value.weight.value2
            state = arcs.value.nextstate
        final = path.final(state)
        return -cost - (final.value1 + final.value2 if complete else 0.0)

    return score


def timed(decode: Callable, logliks: list[np.ndarray]) -> tuple[list, float]:
    """What each gives, and the seconds of processor time of all."""
    decode(logliks[0])  # whatever is made or compiled at first
    begin = time.process_time()
    found = [decode(loglik) for loglik in logliks]
    return found, time.process_time() - begin


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, required=True, help="where a recipe wrote: graph, ali, feats, nnet")
    parser.add_argument("--net", default="nnet/student/seed1", help="folder in it; default: %(default)s")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max-utts", type=int, default=50)
    parser.add_argument("--acwt", type=float, default=0.1)
    parser.add_argument("--min-active", type=int, default=200)
    parser.add_argument("--lattice-beam", type=float, default=8.0)
    parser.add_argument("--limits", nargs="+", default=["11,2000", "13,7000"], metavar="BEAM,MAX_ACTIVE")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    graph, reader = Graph.load(args.exp / "graph"), FeatsReader(args.exp / f"feats/{args.split}.fbank.h5")
    cpu = torch.device("cpu")
    posteriors = SetPosteriors(load_nets([args.exp / args.net], cpu), reader, "arithmetic", cpu)
    log_priors = read_decoding_priors(args.exp / "ali/ali_train_pdf.counts", 1e-5, graph.num_pdfs)
    logliks = [log_post - log_priors for _, log_post in posteriors.of(reader.layout.utt_ids[: args.max_utts])]
    seconds = sum(map(len, logliks)) * reader.layout.frame_shift_ms / 1000
    print(f"{len(logliks)} utterances, {seconds:.0f} s of speech; graph of {graph.arcs.num_states} states")
    print("| beam | max_active | × real time | Kaldi's search | ratio | raw lattices | ours better | Kaldi's better |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for limits in args.limits:
        beam, max_active = float(limits.split(",")[0]), int(limits.split(",")[1])
        bounds = {"min_active": args.min_active, "max_active": max_active}
        ours, our_s = timed(Decoder(graph, beam, acwt=args.acwt, **bounds).decode, logliks)
        theirs, their_s = timed(kaldis_search(graph, beam, acwt=args.acwt, **bounds), logliks)
        lattices = LatticeDecoder(graph, beam, min(args.lattice_beam, beam), args.acwt, **bounds)
        _, lattice_s = timed(lattices.raw, logliks)
        gained = np.array([our.score for our in ours]) - np.array(theirs)
        cells = [f"{beam:g}", max_active, *(f"{s / seconds:.4f}" for s in (our_s, their_s)), f"{their_s / our_s:.2f}"]
        cells += [f"{lattice_s / seconds:.4f}", (gained > ROUNDING).sum(), (gained < -ROUNDING).sum()]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
