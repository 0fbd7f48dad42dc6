#!/usr/bin/env python3
"""How long forced alignment takes with as many tied states as the paper has, per hour of generated speech.

The tree asks random questions; GMMs have random means; features are drawn from them along random paths through words
of a generated lexicon, so that the alignment can be told right or wrong. Set OMP_NUM_THREADS=1 to measure one core.
"""

import argparse
import sys
import time
from itertools import count

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import numpy as np
from graph import make_lexicon
from tree import FRAMES_PER_HOUR, NUM_STATES

from asr_kd.cli_common import run_main
from asr_kd.hmm.align import AlignOptions, GraphCompiler, align_graph
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.tree import ContextTree, Leaf, Split, phone_table

FEAT_DIM = 39


def make_model(lang: Lang, num_leaves: int, num_gauss: int, spread: float, rng: np.random.Generator) -> HmmModel:
    """Triphones whose states have as many leaves, but for silence; the means of their GMMs deviate by `spread`."""
    phones = np.arange(1, len(lang.phones) + 1)
    per_state, fresh = round((num_leaves - NUM_STATES) / (NUM_STATES * (len(phones) - 1))), count()

    def grow(leaves: int) -> Leaf | Split:
        if leaves <= 1:
            return Leaf(next(fresh))
        asked = tuple(sorted(rng.choice(phones, len(phones) // 2, replace=False).tolist()))
        return Split(int(rng.choice([0, 2])), asked, grow(leaves // 2), grow(leaves - leaves // 2))

    table = phone_table({int(p): [grow(per_state if p > 1 else 1) for _ in range(NUM_STATES)] for p in phones})
    one = Gmm.from_moments(np.ones(1), np.zeros((1, FEAT_DIM)), np.ones((1, FEAT_DIM)))
    topology = topology_text(len(phones), "3state")
    model = HmmModel.untrained(lang, topology, ContextTree(table).to_bytes(), one, {})
    weights, ones = np.full(num_gauss, 1 / num_gauss), np.ones((num_gauss, FEAT_DIM))
    gmms = [Gmm.from_moments(weights, rng.normal(0, spread, ones.shape), ones) for _ in range(model.num_pdfs)]
    return model.with_parameters(model.log_probs, gmms)


def speak(model: HmmModel, graph: object, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (num_frames, FEAT_DIM) float32 of a random path through an utterance's graph, and its pdfs."""
    arcs = GraphArcs.from_fst(graph)
    state, pdfs = arcs.start, []
    while not np.isfinite(arcs.final[state]):
        arc = rng.choice(np.flatnonzero(arcs.source == state))
        pdfs += [model.t2pdf[arcs.ilabel[arc]]] if arcs.ilabel[arc] else []
        state = arcs.target[arc]
    means = [model.gmms[pdf].means_invvars[rng.integers(len(model.gmms[pdf].weights))] for pdf in pdfs]
    return (np.array(means) + rng.normal(0, 1, (len(pdfs), FEAT_DIM))).astype(np.float32), np.array(pdfs)


def main(args: argparse.Namespace) -> None:
    """Print one line."""
    rng = np.random.default_rng(0)
    lang = Lang(make_lexicon(args.num_words, rng))
    model = make_model(lang, args.num_leaves, args.num_gauss, args.spread, rng)
    begin = time.process_time()
    compiler = GraphCompiler(model, lang)
    _ = model.acoustic_model, model.t2pdf
    prepared, compiled, aligned, frames, right = time.process_time() - begin, 0.0, 0.0, 0, 0
    for number in range(args.num_utts):
        words = rng.choice(lang.words, 20).tolist()
        begin = time.process_time()
        graph = compiler.compile(f"utt{number}", words)
        compiled += time.process_time() - begin
        feats, pdfs = speak(model, graph, rng)
        begin = time.process_time()
        tids = align_graph(model, graph, f"utt{number}", feats, AlignOptions())
        aligned += time.process_time() - begin
        frames, right = frames + len(feats), right + np.count_nonzero(model.t2pdf[tids] == pdfs)
    hours = frames / FRAMES_PER_HOUR
    print(
        f"{model.num_pdfs} pdfs of {args.num_gauss} Gaussians, {frames} frames, {100 * right / frames:.1f} % right: "
        f"{prepared:.1f} s to begin, then per hour of speech {compiled / hours:.0f} s of CPU for graphs and "
        f"{aligned / hours:.0f} s to align"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-leaves", type=int, default=14_000)
    parser.add_argument("--num-gauss", type=int, default=4, help="of a pdf (default 4)")
    parser.add_argument("--spread", type=float, default=0.3, help="of means, in standard deviations (default 0.3)")
    parser.add_argument("--num-words", type=int, default=20_000, help="of the lexicon (default 20000)")
    parser.add_argument("--num-utts", type=int, default=10, help="of 20 words (default 10)")
    sys.exit(run_main(main, parser))
