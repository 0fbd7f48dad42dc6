"""What people read of an alignment of words: the aligned lines, tables per speaker and utterance, confusions.

The layouts follow sclite's reports pralign, sum and dtl, so that whoever reads those reads these.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from asr_kd.scoring.alignment import CORRECT, Alignment, Times
from asr_kd.scoring.tables import Column, Row, Table, format_number
from asr_kd.scoring.wer import WordScores

_PERCENT = format_number(1)
_RATES = {"corr": "Corr", "sub": "Sub", "del": "Del", "ins": "Ins", "err": "Err", "s_err": "S.Err"}
_SPREAD: dict[str, Callable[[Sequence[float]], float]] = {
    "Mean": np.mean,
    "S.D.": lambda values: np.std(values, ddof=1),
    "Median": np.median,
}


def alignment_text(
    scores: WordScores,
    times: Mapping[str, Times] | None = None,
    width: int = 120,
    utts: Sequence[int] | None = None,
) -> str:
    """Each utterance's reference above its hypothesis, and under each error its letter, S, D or I.

    `times`, where given, adds a line with the start of each recognised word. Long utterances continue on further lines.
    `utts`, where given, are the indices of the only utterances to show.
    """
    blocks = []
    for u in range(len(scores.utt_ids)) if utts is None else utts:
        utt_id, alignment = scores.utt_ids[u], scores.alignments[u]
        counts = (alignment.num_correct, alignment.num_sub, alignment.num_del, alignment.num_ins)
        head = f"id: ({utt_id})\nScores: (#C #S #D #I) {' '.join(map(str, counts))}\n"
        blocks.append(head + _aligned_lines(alignment, times and times.get(utt_id), width))
    return "\n".join(blocks)


def _aligned_lines(alignment: Alignment, times: Times | None, width: int) -> str:
    starts = iter(f"{start:.2f}" for start, _ in times or ())
    columns = []
    for op, ref, hyp in alignment.ops:
        filler = "*" * len(ref or hyp or "")
        cells = [ref or filler, hyp or filler, "" if op == CORRECT else op]
        if times:
            cells.append("" if hyp is None else next(starts))
        size = max(map(len, cells))
        columns.append([cell.ljust(size) for cell in cells])
    names = ["REF: ", "HYP: ", "Eval:", "Time:"][: 4 if times else 3]
    lines, first = [], 0
    while first < len(columns) or first == 0:
        last, used = first, len(names[0])
        while last < len(columns) and (last == first or used + 1 + len(columns[last][0]) <= width):
            used += 1 + len(columns[last][0])
            last += 1
        for row, name in enumerate(names):
            lines.append(" ".join([name, *(column[row] for column in columns[first:last])]).rstrip())
        first = max(last, 1)
    return "\n".join(lines) + "\n"


def group_table(name: str, scores: WordScores, groups_of: Mapping[str, Sequence[str]]) -> Table:
    """One row per speaker, or label of segments: utterances, words, percentages of words (s_err: of utterances).

    `groups_of` names the groups of each utterance; rows come in the order in which groups appear.
    """
    members: dict[str, list[int]] = {}
    for u, utt_id in enumerate(scores.utt_ids):
        for group in groups_of[utt_id]:
            members.setdefault(group, []).append(u)
    columns = [Column("group", name.capitalize(), text=True), Column("utts", "Utterances"), Column("words", "Words")]
    columns += [Column(key, header, _PERCENT) for key, header in _RATES.items()]
    rows = [Row({"group": group, "utts": len(utts), **_rates(scores, utts)}) for group, utts in members.items()]
    return Table(name, f"Words of {name} in percent; S.Err of utterances.", columns, rows)


def _rates(scores: WordScores, utts: Sequence[int]) -> dict[str, object]:
    ins, dels, sub = scores.errors[utts].sum(axis=0).tolist()
    words = int(scores.num_ref[utts].sum())
    wrong = int(np.count_nonzero(scores.errors[utts].sum(axis=1)))

    def percent(count: int, of: int) -> float | None:
        return 100.0 * count / of if of else None

    counts = {"corr": words - dels - sub, "sub": sub, "del": dels, "ins": ins, "err": ins + dels + sub}
    rates = {name: percent(count, words) for name, count in counts.items()}
    return {"words": words, **rates, "s_err": percent(wrong, len(utts))}


def group_text(table: Table, scores: WordScores) -> str:
    """A `group_table` as text, with the sum and, over groups, mean, standard deviation and median."""
    keys = ("utts", "words", *_RATES)
    total = {"group": "Sum/Avg", "utts": len(scores.utt_ids), **_rates(scores, range(len(scores.utt_ids)))}
    rows = [row.cells for row in table.rows]
    width = max(len(str(row["group"])) for row in (*rows, total))
    lines = [f"{'':{width}}  # utts # words" + "".join(f"{header:>7}" for header in _RATES.values())]

    def line(name: object, values: Sequence[float | None], digits: int = 0) -> str:
        cells = [f"{value:7.{digits}f}" for value in values[:2]]
        cells += ["      -" if value is None else f"{value:7.1f}" for value in values[2:]]
        return f"{name:{width}} {cells[0]} {cells[1]}{''.join(cells[2:])}"

    lines += [line(row["group"], [row[key] for key in keys]) for row in (*rows, total)]
    if len(rows) > 1:
        columns = [[row[key] for row in rows if row[key] is not None] for key in keys]
        for name, over in _SPREAD.items():
            lines.append(line(name, [float(over(column)) if len(column) > 1 else None for column in columns], 1))
    return "\n".join(lines) + "\n"


def utterance_table(scores: WordScores, spk_of: Mapping[str, str] | None) -> Table:
    """Counts of each utterance, and its error rate in percent (None where its reference is empty)."""
    columns = [Column("utterance", "Utterance", text=True), Column("speaker", "Speaker", text=True)]
    columns += [Column(key, key.capitalize()) for key in ("words", "corr", "sub", "del", "ins")]
    rows = []
    for utt_id, alignment in zip(scores.utt_ids, scores.alignments, strict=True):
        counts = (alignment.num_ref, alignment.num_correct, alignment.num_sub, alignment.num_del, alignment.num_ins)
        cells = dict(zip(("words", "corr", "sub", "del", "ins"), counts, strict=True))
        err = 100.0 * alignment.num_errors / alignment.num_ref if alignment.num_ref else None
        rows.append(Row({"utterance": utt_id, "speaker": spk_of and spk_of[utt_id], **cells, "err": err}))
    return Table("utterances", "Words of each utterance.", [*columns, Column("err", "Err %", _PERCENT)], rows)


_KIND = {"S": "substitution", "D": "deletion", "I": "insertion"}


def confusion_table(scores: WordScores, at_most: int | None = None) -> Table:
    """Every error with its number, the most frequent first; or so many of them."""
    ordered = sorted(scores.confusions().items(), key=lambda item: (-item[1], str(item[0])))[:at_most]
    columns = [Column("count", "Count"), Column("error", "Error", text=True)]
    columns += [Column(key, key.capitalize(), text=True) for key in ("reference", "hypothesis")]
    rows = [
        Row({"count": count, "error": _KIND[op], "reference": ref, "hypothesis": hyp})
        for (op, ref, hyp), count in ordered
    ]
    return Table("confusions", "Errors, the most frequent first.", columns, rows)
