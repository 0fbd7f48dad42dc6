#!/usr/bin/env python3
"""How long a tree of tied triphone states takes to grow, from generated statistics of the size of 10 h of speech.

Contexts have frequencies as in speech (Zipf), and means that depend on both neighbours through a few features that
phones share. Set OMP_NUM_THREADS=1 to measure one core.
"""

import argparse
import sys
import time

import numpy as np

from asr_kd.choices import Questions, words
from asr_kd.cli_common import run_main
from asr_kd.hmm.build_tree import Root, TreeOptions, build_tree
from asr_kd.hmm.questions import clustered_questions
from asr_kd.hmm.tree_stats import Moments, TreeStats

NUM_STATES = 3
FRAMES_PER_HOUR = 360_000


def generate(num_phones: int, num_triphones: int, feat_dim: int, hours: float, seed: int) -> TreeStats:
    """Statistics of num_triphones contexts × 3 states; phone 1 is silence and has no context of its own."""
    rng = np.random.default_rng(seed)
    articulation = rng.normal(size=(num_phones + 1, 6)) > 0.3
    pushes = (
        rng.normal(size=(2, NUM_STATES, 6, feat_dim)) * np.array([[1.0, 0.5, 0.2], [0.2, 0.5, 1.0]])[..., None, None]
    )
    means = rng.normal(scale=3.0, size=(num_phones + 1, NUM_STATES, feat_dim))
    windows = np.unique(rng.integers(1, num_phones + 1, size=(2 * num_triphones, 3)), axis=0)
    windows = rng.permutation(windows[windows[:, 1] > 1])[:num_triphones]
    share = 1.0 / (1.0 + np.arange(len(windows))) ** 0.8
    counts = np.maximum(3, hours * FRAMES_PER_HOUR / NUM_STATES * share / share.sum()).round()
    events, moments = [], []
    for state in range(NUM_STATES):
        mean = means[windows[:, 1], state]
        mean = mean + articulation[windows[:, 0]] @ pushes[0, state] + articulation[windows[:, 2]] @ pushes[1, state]
        mean = mean + rng.normal(size=mean.shape) / np.sqrt(counts)[:, None]
        events.append(np.column_stack([windows, np.full(len(windows), state)]))
        moments.append((counts, mean * counts[:, None], (mean**2 + 1.0) * counts[:, None]))
    return TreeStats(np.concatenate(events), Moments(*(np.concatenate(c) for c in zip(*moments, strict=True))))


def main(args: argparse.Namespace) -> None:
    """Print one line for each kind of questions."""
    stats = generate(args.num_phones, args.num_triphones, args.feat_dim, args.hours, seed=0)
    phones = range(1, args.num_phones + 1)
    roots = [Root((phone,), NUM_STATES, split=phone > 1) for phone in phones]
    frames = stats.moments.count.sum()
    print(f"{len(stats.events)} contexts of {frames:.0f} frames ({frames / FRAMES_PER_HOUR:.1f} h)")
    for questions in words(Questions):
        options = TreeOptions(num_leaves=args.num_leaves, questions=questions, merge=False)
        start, cpu = time.perf_counter(), time.process_time()
        asked = clustered_questions(stats, [root.phones for root in roots])
        grown = build_tree(stats, roots, asked, options)
        data = grown.tree.to_bytes()
        print(
            f"{questions}: {grown.tree.num_pdfs} leaves in {time.process_time() - cpu:.1f} s of CPU "
            f"({time.perf_counter() - start:.1f} s), gain {grown.gain / frames:.3f} a frame, {len(data)} bytes"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0, help="of speech (default 10)")
    parser.add_argument("--num-phones", type=int, default=40)
    parser.add_argument("--num-triphones", type=int, default=30_000)
    parser.add_argument("--feat-dim", type=int, default=39)
    parser.add_argument("--num-leaves", type=int, default=2000)
    sys.exit(run_main(main, parser))
