#!/usr/bin/env python3
"""How well words are pronounced from their letters: every tenth word of the CMU dictionary, learned from the others.

A held-out word's errors are counted against the nearest of its pronunciations. Below the whole model stand the same
model with narrower contexts: the letter alone, and with one and two letters on either side.
"""

import argparse
import sys
import time
from dataclasses import replace

from asr_kd.cli_common import Parser, boolean, run_main
from asr_kd.corpus.english import cmu_dictionary, is_spelled
from asr_kd.corpus.letter_to_sound import PLACES, LetterToSound, learn
from asr_kd.scoring.alignment import align_words


def score(letters: LetterToSound, held_out: dict) -> tuple[float, float]:
    """Phone error rate and share of words with an error, in percent."""
    errors = phones = wrong = 0
    for word, pronunciations in held_out.items():
        guess = letters.pronounce(word)
        found = [align_words(pronunciation, guess) for pronunciation in pronunciations]
        best = min(found, key=lambda a: (a.num_ins + a.num_del + a.num_sub) / a.num_ref)
        num_errors = best.num_ins + best.num_del + best.num_sub
        errors, phones, wrong = errors + num_errors, phones + best.num_ref, wrong + (num_errors > 0)
    return 100 * errors / phones, 100 * wrong / len(held_out)


def main(args: argparse.Namespace) -> None:
    """Print one line for the learning and one for each width of context."""
    dictionary = {word: several for word, several in cmu_dictionary(args.stress).items() if is_spelled(word)}
    held_out = {word: dictionary.pop(word) for word in sorted(dictionary)[::10]}
    cpu = time.process_time()
    letters = learn((word, several[0]) for word, several in dictionary.items())
    size = sum(map(len, letters.answers))
    print(f"{len(dictionary)} words learned in {time.process_time() - cpu:.1f} s of CPU: {size} contexts")
    for width in (len(PLACES), 5, 3, 1):
        narrow = replace(letters, answers=letters.answers[:width] + [{}] * (len(PLACES) - width))
        phones, words = score(narrow, held_out)
        print(f"{width} letters: {phones:.2f} % of phones, {words:.1f} % of {len(held_out)} words wrong")


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stress", type=boolean, default=False, help="true: AH0 for AH1 is an error")
    sys.exit(run_main(main, parser))
