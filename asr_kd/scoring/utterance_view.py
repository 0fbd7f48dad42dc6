"""One utterance of an experiment made ready to be drawn: reference and hypothesis as words, phones and states."""

from collections.abc import Mapping, Sequence

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import CORRECT, DELETION, INSERTION, SUBSTITUTION, align_words
from asr_kd.scoring.labels import ali_labels
from asr_kd.scoring.utterance_plot import Picture, Tier, UtteranceView, differing
from asr_kd.scoring.word_times import Span, runs, word_spans
from asr_kd.store.ali import AliReader

# About what fills a page without shrinking the letters.
_WANTED_SECONDS = 3.5


def choose_utterance(ali: AliReader, path: AliReader, refs: Mapping[str, str], hyps: Mapping[str, str]) -> str | None:
    """The utterance to show: of handy length, both paths complete, some words wrong but most of them right.

    Where there is none, one without errors, then any.
    """
    shift_s = ali.layout.frame_shift_ms / 1000.0
    candidates = []
    for utt_id, length in zip(ali.layout.utt_ids, ali.layout.lengths, strict=True):
        complete = length and min(ali.pdf[ali.layout.rows(utt_id)][0], path.pdf[path.layout.rows(utt_id)][0]) >= 0
        if complete and utt_id in refs:
            candidates.append((abs(length * shift_s - _WANTED_SECONDS), utt_id))
    for wanted in (lambda share: 0 < share <= 0.5, lambda share: share == 0, lambda share: True):
        for _, utt_id in sorted(candidates):
            ref, hyp = refs[utt_id].split(), hyps[utt_id].split()
            if wanted(sum(op != CORRECT for op, _, _ in align_words(ref, hyp).ops) / max(len(ref), 1)):
                return utt_id
    return None


def view_utterance(
    utt_id: str,
    system: str,
    ali: AliReader,
    path: AliReader,
    ref: str,
    hyp: str,
    pronunciations: Mapping[str, Sequence[Sequence[str]]],
    picture: Picture,
) -> UtteranceView:
    """What to draw of an utterance.

    ali, path: states of reference and decoding; ref, hyp: their words, joined by blanks; pronunciations: as in
    Lexicon.entries, for the words' times. Phones are those that ali's states stand for; without phones in ali there
    are no rows of phones and words.

    Raises AsrKdError where the two have different frames or the utterance is not there.
    """
    rows = ali.layout.rows(utt_id)
    if path.layout.digest != ali.layout.digest:
        raise AsrKdError(f"{path.path}: its frames are not those of {ali.path}")
    labels = ali_labels(ali)
    true_pdf, found_pdf = ali.pdf[rows], path.pdf[rows]
    tiers: list[Tier] = []
    notes: list[str] = []
    if labels.phone is not None:
        names, state_phone = labels.phones, labels.state_phones(ali.num_pdfs)
        true_phones, found_phones = runs(labels.phone[rows], names), runs(state_phone[found_pdf], names)
        tiers += _word_tiers(ref.split(), hyp.split(), true_phones, found_phones, pronunciations, notes)
        tiers += [
            Tier("phones", true_phones),
            Tier("recognised", found_phones, differing(found_phones, labels.phone[rows], names)),
        ]
    tiers += [Tier("states", _states(true_pdf)), _compared_states(true_pdf, found_pdf)]
    shift_s = ali.layout.frame_shift_ms / 1000.0
    return UtteranceView(utt_id, system, shift_s, len(true_pdf), picture, tiers, notes)


def _word_tiers(
    ref: Sequence[str],
    hyp: Sequence[str],
    true_phones: Sequence[Span],
    found_phones: Sequence[Span],
    pronunciations: Mapping[str, Sequence[Sequence[str]]],
    notes: list[str],
) -> list[Tier]:
    operations = [op for op, _, _ in align_words(ref, hyp).ops if op != DELETION]
    tiers = []
    for name, words, phones in (("words", ref, true_phones), ("recognised", hyp, found_phones)):
        spans = word_spans(phones, words, pronunciations)
        if spans is None:
            notes.append(f"{name}: {' '.join(words) or '(none)'} (times not known)")
            continue
        wrong = None if name == "words" else [op in (INSERTION, SUBSTITUTION) for op in operations]
        tiers.append(Tier(name, spans, wrong))
    return tiers


def _states(pdf: np.ndarray) -> list[Span]:
    return runs(pdf, [str(state) for state in range(int(pdf.max(initial=-1)) + 1)])


def _compared_states(true_pdf: np.ndarray, found_pdf: np.ndarray) -> Tier:
    """Spans of states that are cut where they begin or cease to be right."""
    spans, wrong = [], []
    for span in _states(found_pdf):
        right = true_pdf[span.start : span.stop] == found_pdf[span.start]
        for part in runs(right.astype(np.int64), ["wrong", "right"]):
            spans.append(Span(span.start + part.start, span.start + part.stop, span.label))
            wrong.append(part.label == "wrong")
    return Tier("recognised", spans, wrong)
