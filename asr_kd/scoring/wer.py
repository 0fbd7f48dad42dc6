"""Word error rate as Kaldi counts it; over phones instead of words the same functions give the phone error rate."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from asr_kd.errors import AsrKdError

CORRECT, INSERTION, DELETION, SUBSTITUTION = "C", "I", "D", "S"


class Alignment(NamedTuple):
    """The errors of one hypothesis and the alignment that they were counted on.

    `ops` is a list of (op, ref_word, hyp_word) from left to right; op is one of "C", "I", "D", "S", and the word that
    an insertion or a deletion lacks is None.
    """

    num_ins: int
    num_del: int
    num_sub: int
    num_ref: int
    ops: list[tuple[str, str | None, str | None]]


def align_words(ref: Sequence[str], hyp: Sequence[str]) -> Alignment:
    """Align `hyp` to `ref` with the fewest errors, ties broken as Kaldi's compute-wer breaks them.

    Where several alignments have the same number of errors, LevenshteinEditDistance (Kaldi, util/edit-distance-inl.h)
    takes a match or substitution only if it is strictly cheaper, then a deletion only if it is strictly cheaper than
    an insertion. The split into insertions, deletions and substitutions depends on it, the word error rate does not.
    """
    cost = _prefix_costs(ref, hyp).tolist()
    ops: list[tuple[str, str | None, str | None]] = []
    h, r = len(hyp), len(ref)
    while h or r:
        op = _last_op(cost, h, r, same=bool(h and r) and hyp[h - 1] == ref[r - 1])
        h -= op != DELETION
        r -= op != INSERTION
        ops.append((op, None if op == INSERTION else ref[r], None if op == DELETION else hyp[h]))
    ops.reverse()
    counts = [sum(op == kind for op, _, _ in ops) for kind in (INSERTION, DELETION, SUBSTITUTION)]
    return Alignment(*counts, len(ref), ops)


def _prefix_costs(ref: Sequence[str], hyp: Sequence[str]) -> np.ndarray:
    """Edit distances between all prefixes, (len(hyp)+1, len(ref)+1), a row at a time."""
    index = {word: i for i, word in enumerate(dict.fromkeys([*ref, *hyp]))}
    ref_ids = np.array([index[word] for word in ref], dtype=np.int64)
    position = np.arange(len(ref) + 1)
    cost = np.empty((len(hyp) + 1, len(ref) + 1), dtype=np.int64)
    cost[0] = position
    for h, word in enumerate(hyp, start=1):
        row = cost[h - 1] + 1
        row[1:] = np.minimum(row[1:], cost[h - 1, :-1] + (ref_ids != index[word]))
        # A deletion costs 1 per reference word passed: the running minimum of (row - position) carries all of them.
        cost[h] = np.minimum.accumulate(row - position) + position
    return cost


def _last_op(cost: list[list[int]], h: int, r: int, same: bool) -> str:
    if h == 0:
        return DELETION
    if r == 0:
        return INSERTION
    insertion, deletion = cost[h - 1][r] + 1, cost[h][r - 1] + 1
    diagonal = cost[h - 1][r - 1] + (not same)
    if diagonal < insertion and diagonal < deletion:
        return CORRECT if same else SUBSTITUTION
    return DELETION if deletion < insertion else INSERTION


def count_errors(
    refs: Mapping[str, str], hyps: Mapping[str, str], utt_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (num_utts, 3: ins, del, sub) and reference words (num_utts,) of `utt_ids`, both int64.

    Every utterance must be decoded, as in compute-wer --mode=strict: one that is missing is a bug upstream, and
    leaving it out would flatter the system. Where decoding failed, give the empty string. Words are split at blanks.

    Raises AsrKdError where an utterance has no reference or no hypothesis.
    """
    errors = np.zeros((len(utt_ids), 3), dtype=np.int64)
    num_ref = np.zeros(len(utt_ids), dtype=np.int64)
    for u, utt_id in enumerate(utt_ids):
        for texts, what in ((refs, "reference"), (hyps, "hypothesis")):
            if utt_id not in texts:
                raise AsrKdError(f"utterance {utt_id} has no {what} to score.")
        alignment = align_words(refs[utt_id].split(), hyps[utt_id].split())
        errors[u] = alignment[:3]
        num_ref[u] = alignment.num_ref
    return errors, num_ref
