#!/usr/bin/env python3
"""How long the decoding graph over an n-gram takes, stage by stage, and how much memory: generated text and lexicon.

Words have Zipf's frequencies; half of the time a word is drawn from a few that its predecessors fix, so that the text
has n-grams to learn. Pronunciations are syllables, with homophones and shared beginnings. The tree of tied triphones is
grown by asr_kd.hmm from generated statistics. Set OMP_NUM_THREADS=1 to measure one core.
"""

import argparse
import resource
import sys
import tempfile
import time

import numpy as np
from tree import NUM_STATES, generate

from asr_kd.cli_common import run_main
from asr_kd.corpus.lexicon import Lexicon
from asr_kd.hmm.build_tree import Root, TreeOptions, build_tree
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.graph import Graph, make_graph
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.questions import clustered_questions
from asr_kd.hmm.topology import topology_text
from asr_kd.lm.kneser_ney import estimate
from asr_kd.lm.perplexity import measure
from asr_kd.lm.prune import prune

NUM_VOWELS, NUM_CONSONANTS = 14, 25
WORDS_PER_SENTENCE = 20


def make_lexicon(num_words: int, rng: np.random.Generator) -> Lexicon:
    """Words w0, w1, …, the frequent ones shorter; a tenth has a second pronunciation."""
    vowels = [f"v{i:02d}" for i in range(NUM_VOWELS)]
    consonants = [f"c{i:02d}" for i in range(NUM_CONSONANTS)]

    def draw(kind: list[str]) -> str:
        return kind[int(len(kind) * rng.random() ** 1.5)]

    def syllable() -> list[str]:
        return [draw(consonants), draw(vowels)] + ([draw(consonants)] if rng.random() < 0.4 else [])

    entries = {}
    for rank in range(num_words):
        phones = [p for _ in range(1 + rng.binomial(4, min(0.6, 0.08 * np.log1p(rank)))) for p in syllable()]
        pronunciations = [tuple(phones)]
        if rng.random() < 0.1:
            other = list(phones)
            other[int(rng.integers(len(phones)))] = draw(vowels)
            pronunciations += [tuple(other)] if tuple(other) != pronunciations[0] else []
        entries[f"w{rank}"] = pronunciations
    return Lexicon(entries)


def make_text(num_words: int, num_tokens: int, rng: np.random.Generator) -> list[list[str]]:
    """Sentences of WORDS_PER_SENTENCE words."""
    cumulated = np.cumsum(1.0 / (np.arange(num_words) + 2.7))
    cumulated /= cumulated[-1]
    num_sentences = num_tokens // WORDS_PER_SENTENCE
    before = [np.full(num_sentences, num_words), np.full(num_sentences, num_words)]
    columns = []
    for _ in range(WORDS_PER_SENTENCE):
        # The followers of two words, and those of one, are fixed by a hash of the words and of the follower's number.
        number = rng.geometric(0.08, num_sentences)
        of_two = rng.random(num_sentences) < 0.3
        mixed = (before[-1] * 1_000_003 + number * 8_191 + np.where(of_two, before[-2] * 15_485_863, 0)) % 2_147_483_647
        fixed = (mixed * 48_271 % 2_147_483_647) / 2_147_483_647
        uniform = np.where(rng.random(num_sentences) < 0.5, fixed, rng.random(num_sentences))
        word = np.searchsorted(cumulated, uniform)
        before = [before[-1], word]
        columns.append(word)
    return [[f"w{w}" for w in row] for row in np.stack(columns, axis=1).tolist()]


def make_model(lang: Lang, num_leaves: int, hours: float) -> HmmModel:
    """Tied triphones of as many leaves, with the topology's own transition probabilities."""
    num_phones = len(lang.phones)
    stats = generate(num_phones, max(30_000, 4 * num_leaves), 39, hours, seed=0)
    roots = [Root((phone,), NUM_STATES, split=phone > 1) for phone in range(1, num_phones + 1)]
    asked = clustered_questions(stats, [root.phones for root in roots])
    tree = build_tree(stats, roots, asked, TreeOptions(num_leaves=num_leaves, merge=False)).tree
    gmm = Gmm(np.ones(1), np.zeros((1, 39)), np.ones((1, 39)))
    return HmmModel.untrained(lang, topology_text(num_phones, "3state"), tree.to_bytes(), gmm, {})


class Clock:
    """Prints seconds of CPU since the last line, and the largest memory so far."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def __call__(self, line: str) -> None:
        now = time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{now - self.last:7.1f} s  {peak:6.0f} MiB  {line}", flush=True)
        self.last = time.process_time()


def main(args: argparse.Namespace) -> None:
    """Print a line a stage."""
    rng, clock = np.random.default_rng(0), Clock()
    lang = Lang(make_lexicon(args.num_words, rng))
    text, unseen = make_text(args.num_words, args.num_tokens, rng), make_text(args.num_words, 20_000, rng)
    clock(f"{sum(map(len, text))} words of text, {len(lang.words)} in the lexicon, {len(lang.phones)} phones")
    full = estimate(text, args.order, lang.words, print)
    clock(f"estimated: {' '.join(str(len(level)) for level in full.levels)} n-grams")
    model = prune(full, args.prune)
    clock(f"pruned: {' '.join(str(len(level)) for level in model.levels)} n-grams")
    perplexities = [measure(each, unseen).perplexity for each in (full, model)]
    clock("perplexity of unseen text {:.1f}, pruned {:.1f}".format(*perplexities))
    hmm = make_model(lang, args.num_leaves, args.hours)
    clock(f"tree of {hmm.num_pdfs} leaves")
    started, cpu = time.perf_counter(), time.process_time()
    graph = make_graph(hmm, lang, None, lm=model, progress=clock)
    cpu = time.process_time() - cpu
    clock(f"graph of {graph.arcs.num_states} states, {len(graph.arcs.source)} arcs")
    with tempfile.TemporaryDirectory() as folder:
        path = args.out or f"{folder}/graph"
        graph.save(path)
        clock("saved")
        Graph.load(path)
        clock("read again")
    print(f"the graph took {cpu:.1f} s of CPU ({time.perf_counter() - started:.1f} s with files)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-words", type=int, default=10_000, help="of the lexicon (default 10000)")
    parser.add_argument("--num-tokens", type=int, default=1_000_000, help="of the text (default 1000000)")
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--prune", type=float, default=1e-7, help="threshold of entropy pruning (default 1e-7)")
    parser.add_argument("--num-leaves", type=int, default=2000, help="of the tree (default 2000)")
    parser.add_argument("--hours", type=float, default=10.0, help="of speech, that the tree is grown of (default 10)")
    parser.add_argument("--out", help="keep the graph in this folder, as benchmarks/lattices.py wants it")
    sys.exit(run_main(main, parser))
