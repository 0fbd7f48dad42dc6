"""When words were said: a sequence of timed phones matched with the pronunciations of known words."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Frames from `start` up to `stop` and what they are."""

    start: int
    stop: int
    label: str


def runs(values: np.ndarray, names: Sequence[str]) -> list[Span]:
    """Stretches of equal values, (num_frames,) indexes into `names`, as spans; frames below 0 are left out."""
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [Span(a, b, names[values[a]]) for a, b in pairwise(cuts) if b > a and values[a] >= 0]


def word_spans(
    phones: Sequence[Span], words: Sequence[str], pronunciations: Mapping[str, Sequence[Sequence[str]]]
) -> list[Span] | None:
    """The spans of `words`, given the phones of the path that they were decoded or aligned with.

    pronunciations: as in Lexicon.entries. Between words any phone may stand (silence, noise). Two equal phones in a
    row are one span in `phones`; if one ends a word and the next begins with the other, the span is halved.
    None where the words do not account for the phones: the path is that of other words.
    """
    # The words so far, by the index after their last phone.
    reached: dict[int, list[Span]] = {0: []}
    for word in words:
        extended: dict[int, list[Span]] = {}
        for end, spans in sorted(reached.items()):
            for first, pronunciation in product(_starts(phones, end, bool(spans)), pronunciations.get(word, ())):
                stop = _match(phones, first, pronunciation)
                if stop is not None and stop not in extended:
                    extended[stop] = _append(spans, phones, first, stop, word)
        reached = extended
    # After the last word there may be silence, one span of it.
    stop = max(reached, default=-2)
    return reached[stop] if stop >= len(phones) - 1 else None


def _starts(phones: Sequence[Span], end: int, inside: bool) -> range:
    """Where the next word may begin: at the last phone itself (a shared one), after it, or past one phone between."""
    return range(end - 1 if inside else end, min(end + 2, len(phones)))


def _match(phones: Sequence[Span], first: int, pronunciation: Sequence[str]) -> int | None:
    """The index after a pronunciation that begins at `first`, None if it is not there; equal neighbours count once."""
    merged = [p for i, p in enumerate(pronunciation) if not i or pronunciation[i - 1] != p]
    stop = first + len(merged)
    return stop if [span.label for span in phones[first:stop]] == merged else None


def _append(spans: list[Span], phones: Sequence[Span], first: int, stop: int, word: str) -> list[Span]:
    start = phones[first].start
    if spans and spans[-1].stop > start:
        start = (phones[first].start + phones[first].stop) // 2
        spans = [*spans[:-1], spans[-1]._replace(stop=start)]
    return [*spans, Span(start, phones[stop - 1].stop, word)]
