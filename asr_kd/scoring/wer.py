"""Word error rate of one decoding; over characters or phones instead of words it is their error rate."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asr_kd.corpus.letters import letters_of
from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import KALDI, Alignment, Reference, Times, Weights, align_times, align_words


@dataclass(frozen=True)
class WordScores:
    """The alignments of one decoding with its references, and what is counted on them.

    `num_absent` references had no hypothesis: left out, or aligned with nothing, as they were selected.
    Raises AsrKdError where no reference has words.
    """

    utt_ids: list[str]
    alignments: list[Alignment]
    num_absent: int = 0

    def __post_init__(self) -> None:
        if not any(alignment.num_ref for alignment in self.alignments):
            raise AsrKdError("nothing to score: no reference has words.")

    @cached_property
    def errors(self) -> np.ndarray:
        """Insertions, deletions and substitutions of each utterance, (num_utts, 3) int64."""
        return np.array([alignment[:3] for alignment in self.alignments], dtype=np.int64).reshape(-1, 3)

    @cached_property
    def num_ref(self) -> np.ndarray:
        """Reference words of each utterance, (num_utts,) int64; with alternatives, those of the path that was taken."""
        return np.array([alignment.num_ref for alignment in self.alignments], dtype=np.int64)

    @property
    def wer(self) -> float:
        """Word error rate as a fraction."""
        return float(self.errors.sum() / self.num_ref.sum())

    @property
    def num_wrong_utts(self) -> int:
        return int(np.count_nonzero(self.errors.sum(axis=1)))

    def confusions(self) -> Counter[tuple[str, str | None, str | None]]:
        """How often each error was made: (op, ref_word, hyp_word), None for the word that there is not."""
        return Counter(op for alignment in self.alignments for op in alignment.ops if op[0] != "C")


def score_words(
    refs: Mapping[str, Reference],
    hyps: Mapping[str, Sequence[str]],
    utt_ids: Sequence[str] | None = None,
    weights: Weights = KALDI,
    times: tuple[Mapping[str, Times], Mapping[str, Times]] | None = None,
) -> WordScores:
    """Align the hypotheses of `utt_ids`, all references if None; an utterance that has none is aligned with nothing.

    With `times`, those of the references and of the hypotheses, words are aligned by them instead of by `weights`.
    Whether utterances may be absent is decided before, by `select_utterances`.
    """
    utt_ids = list(refs if utt_ids is None else utt_ids)
    if times is None:
        alignments = [align_words(refs[utt_id], hyps.get(utt_id, ()), weights) for utt_id in utt_ids]
    else:
        of_ref, of_hyp = times
        alignments = [align_times(refs[u], hyps.get(u, ()), of_ref[u], of_hyp.get(u, ())) for u in utt_ids]
    return WordScores(utt_ids, alignments, sum(utt_id not in hyps for utt_id in refs))


MODES = ("strict", "all", "present")


def select_utterances(
    refs: Mapping[str, Reference], hyps: Sequence[Mapping[str, Sequence[str]]], mode: str = "strict"
) -> list[str]:
    """The references to score all of `hyps` on, by the rule of compute-wer's --mode.

    strict: every one, and each must have been decoded; all: every one, absent ones count as deletions; present: those
    that every decoding has. Raises AsrKdError where a reference is absent in strict mode, a hypothesis has no
    reference (in any mode), or nothing is left; with file and line where they come from files.
    """
    for hyp in hyps:
        for utt_id in hyp:
            if utt_id not in refs:
                raise AsrKdError(f"{_place(hyp, utt_id)}{utt_id} has no reference{_in_file(refs)}")
        if mode == "strict":
            for utt_id in refs:
                if utt_id not in hyp:
                    raise AsrKdError(
                        f"{_place(refs, utt_id)}utterance {utt_id} has no hypothesis to score{_in_file(hyp)}; "
                        "--mode all counts its words as deleted, --mode present leaves it out"
                    )
    selected = [utt_id for utt_id in refs if mode != "present" or all(utt_id in hyp for hyp in hyps)]
    if not selected:
        raise AsrKdError(f"no utterance{_in_file(refs)} was decoded by all")
    return selected


def _place(texts: Mapping, utt_id: str) -> str:
    return f"{texts.path}:{texts.line_of[utt_id]}: " if hasattr(texts, "line_of") else ""


def _in_file(texts: Mapping) -> str:
    return f" in {texts.path}" if hasattr(texts, "path") else ""


def kaldi_lines(scores: WordScores) -> str:
    """The three lines that compute-wer prints: %WER, %SER and what was scored."""
    ins, dels, sub = scores.errors.sum(axis=0)
    total, words, utts = ins + dels + sub, scores.num_ref.sum(), len(scores.utt_ids)
    partial = " [PARTIAL]" if scores.num_absent else ""
    return (
        f"%WER {100 * total / words:.2f} [ {total} / {words}, {ins} ins, {dels} del, {sub} sub ]{partial}\n"
        f"%SER {100 * scores.num_wrong_utts / utts:.2f} [ {scores.num_wrong_utts} / {utts} ]\n"
        f"Scored {utts} sentences, {scores.num_absent} not present in hyp.\n"
    )


def as_letters(texts: Mapping[str, str]) -> dict[str, str]:
    """Texts as letters joined by blanks, each with its tone mark; count_errors of these counts letters.

    Boundaries of words are left out: a recogniser of letters knows none.
    """
    return {utt_id: " ".join(letters_of(text)) for utt_id, text in texts.items()}


def count_errors(
    refs: Mapping[str, str], hyps: Mapping[str, str], utt_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (num_utts, 3: ins, del, sub) and reference words (num_utts,) of `utt_ids`, both int64, as Kaldi counts.

    Texts are words joined by blanks. Every utterance must be decoded, as in compute-wer --mode=strict: one that is
    missing is a bug upstream, and leaving it out would flatter the system; where decoding failed, give an empty string.

    Raises AsrKdError where an utterance has no reference or no hypothesis.
    """
    for utt_id in utt_ids:
        for texts, what in ((refs, "reference"), (hyps, "hypothesis")):
            if utt_id not in texts:
                raise AsrKdError(f"utterance {utt_id} has no {what} to score.")
    alignments = [align_words(refs[utt_id].split(), hyps[utt_id].split()) for utt_id in utt_ids]
    errors = np.array([alignment[:3] for alignment in alignments], dtype=np.int64).reshape(-1, 3)
    return errors, np.array([alignment.num_ref for alignment in alignments], dtype=np.int64)
