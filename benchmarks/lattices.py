#!/usr/bin/env python3
"""How fast lattices are made on a large graph, and what is in them, beside the lattice decoder of Kaldi's wheels.

--graph is a folder that benchmarks/graph.py --out or asr-kd make-graph wrote. Log-likelihoods are noise, in which the
states of a random walk through the graph stand out by --margin standard deviations. The wheels' decoder is bounded by
the beam alone. Times are of the processor, per second of speech at 100 frames a second; set OMP_NUM_THREADS=1.
"""

import argparse
import sys
import time

import numpy as np

from asr_kd.cli_common import run_main
from asr_kd.hmm.decode import Decoder, scaled_columns
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice_decode import LatticeDecoder
from asr_kd.hmm.wheels import kaldi
from asr_kd.hmm.word_search import determinize, nbest

FRAMES_PER_SECOND = 100


def random_walk(graph: Graph, num_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """pdf-id of each frame up to where a path can end after so many, or has to before; and the words."""
    arcs = graph.arcs
    first = np.searchsorted(arcs.source, np.arange(arcs.num_states + 1))
    state, pdfs, words = arcs.start, [], []
    while first[state] < first[state + 1] and (len(pdfs) < num_frames or not np.isfinite(arcs.final[state])):
        begin, end = first[state], first[state + 1]
        probs = np.exp(arcs.weight[begin:end].min() - arcs.weight[begin:end])
        arc = begin + rng.choice(end - begin, p=probs / probs.sum())
        if arcs.ilabel[arc]:
            pdfs.append(graph.t2pdf[arcs.ilabel[arc]])
        if arcs.olabel[arc]:
            words.append(int(arcs.olabel[arc]))
        state = arcs.target[arc]
    return np.array(pdfs), words


class Meter:
    """Seconds of processor time by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: object, *args: object) -> object:
        begin = time.process_time()
        result = work(*args)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return result


def main(args: argparse.Namespace) -> None:
    """Print a line for each kind of work, and what the lattices hold."""
    graph, meter = Graph.load(args.graph), Meter()
    print(f"{graph.arcs.num_states} states, {len(graph.arcs.source)} arcs, {graph.num_pdfs} pdfs")
    limits = {"acwt": args.acwt, "min_active": args.min_active, "max_active": args.max_active}
    best, lattices = Decoder(graph, args.beam, **limits), LatticeDecoder(graph, args.beam, args.lattice_beam, **limits)
    fst, wheel = graph.arcs.to_fst(), None
    if args.wheels:
        options = kaldi().decoder.LatticeSimpleDecoderConfig(beam=args.beam, lattice_beam=args.lattice_beam)
        wheel = kaldi().decoder.LatticeSimpleDecoder(fst, options)
    rng, frames, depths, same_best, found = np.random.default_rng(args.seed), 0, [], 0, 0
    for _ in range(args.num_utts):
        pdfs, words = random_walk(graph, args.num_frames, rng)
        loglik = rng.normal(0, 1, (len(pdfs), graph.num_pdfs)).astype(np.float32)
        loglik[np.arange(len(pdfs)), pdfs] += args.margin
        loglik /= args.acwt
        frames += len(pdfs)
        decoded = meter("best path", best.decode, loglik)
        raw = meter("raw lattice", lattices.raw, loglik)
        lattice = meter("determinisation", determinize, raw, args.lattice_beam, args.acwt)
        path = nbest(lattice, 1, args.acwt)[0]
        same_best += abs(path.cost + decoded.score) < 1e-2
        found += lattice.oracle_errors(words) == 0
        depths.append(len(raw.source) / len(pdfs))
        if wheel is not None:
            columns = scaled_columns(graph, loglik, args.acwt)
            meter("the wheels' raw lattice", wheel.decode, kaldi().decoder.DecodableCtc(columns))
    for name, seconds in meter.seconds.items():
        print(f"{name}: {seconds * FRAMES_PER_SECOND / frames:.3f} x real time")
    print(f"{args.num_utts} utterances of {frames} frames: {np.mean(depths):.1f} arcs a frame of raw lattices")
    print(f"the best path is the decoder's in {same_best}, what was said is in {found}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", required=True, help="folder of the graph")
    parser.add_argument("--num-utts", type=int, default=3)
    parser.add_argument("--num-frames", type=int, default=300, help="of an utterance, about (default 300)")
    parser.add_argument(
        "--margin", type=float, default=4.0, help="of the true state, in standard deviations (default 4)"
    )
    parser.add_argument("--acwt", type=float, default=0.1)
    parser.add_argument("--beam", type=float, default=13.0)
    parser.add_argument("--lattice-beam", type=float, default=8.0)
    parser.add_argument("--min-active", type=int, default=200)
    parser.add_argument("--max-active", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wheels", action="store_true", help="time the wheels' lattice decoder too")
    sys.exit(run_main(main, parser))
