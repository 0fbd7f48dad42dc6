"""What people read of an alignment of words: the aligned lines, tables per speaker and utterance, confusions.

The layouts follow sclite's reports pralign, sum and dtl, so that whoever reads those reads these.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from asr_kd.scoring.alignment import CORRECT, Alignment, Times
from asr_kd.scoring.wer import WordScores

_COLUMNS = ("words", "corr", "sub", "del", "ins", "err", "s_err")
_SPREAD: dict[str, Callable[[Sequence[float]], float]] = {
    "Mean": np.mean,
    "S.D.": lambda values: np.std(values, ddof=1),
    "Median": np.median,
}


def alignment_text(scores: WordScores, times: Mapping[str, Times] | None = None, width: int = 120) -> str:
    """Each utterance's reference above its hypothesis, and under each error its letter, S, D or I.

    `times`, where given, adds a line with the start of each recognised word. Long utterances continue on further lines.
    """
    blocks = []
    for utt_id, alignment in zip(scores.utt_ids, scores.alignments, strict=True):
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


def group_rows(scores: WordScores, groups_of: Mapping[str, Sequence[str]]) -> list[dict[str, object]]:
    """One row per speaker, or label of segments: utterances, words, percentages of words (s_err: of utterances).

    `groups_of` names the groups of each utterance; rows come in the order in which groups appear.
    """
    members: dict[str, list[int]] = {}
    for u, utt_id in enumerate(scores.utt_ids):
        for group in groups_of[utt_id]:
            members.setdefault(group, []).append(u)
    return [{"group": group, "utts": len(utts), **_rates(scores, utts)} for group, utts in members.items()]


def _rates(scores: WordScores, utts: Sequence[int]) -> dict[str, object]:
    ins, dels, sub = scores.errors[utts].sum(axis=0).tolist()
    words = int(scores.num_ref[utts].sum())
    wrong = int(np.count_nonzero(scores.errors[utts].sum(axis=1)))

    def percent(count: int, of: int) -> float | None:
        return 100.0 * count / of if of else None

    counts = {"corr": words - dels - sub, "sub": sub, "del": dels, "ins": ins, "err": ins + dels + sub}
    rates = {name: percent(count, words) for name, count in counts.items()}
    return {"words": words, **rates, "s_err": percent(wrong, len(utts))}


def group_table(scores: WordScores, groups_of: Mapping[str, Sequence[str]]) -> str:
    """The rows of `group_rows` as text, with the sum and, over groups, mean, standard deviation and median."""
    rows = group_rows(scores, groups_of)
    total = {"group": "Sum/Avg", "utts": len(scores.utt_ids), **_rates(scores, range(len(scores.utt_ids)))}
    width = max(len("Sum/Avg"), *(len(str(row["group"])) for row in rows))
    lines = [f"{'':{width}}  # utts # words   Corr    Sub    Del    Ins    Err  S.Err"]

    def line(name: object, values: Sequence[float | None], digits: int = 0) -> str:
        cells = [f"{value:7.{digits}f}" for value in values[:2]]
        cells += ["      -" if value is None else f"{value:7.1f}" for value in values[2:]]
        return f"{name:{width}} {cells[0]} {cells[1]}{''.join(cells[2:])}"

    lines += [line(row["group"], [row[name] for name in ("utts", *_COLUMNS)]) for row in (*rows, total)]
    if len(rows) > 1:
        columns = [[row[name] for row in rows if row[name] is not None] for name in ("utts", *_COLUMNS)]
        for name, over in _SPREAD.items():
            lines.append(line(name, [float(over(column)) if len(column) > 1 else None for column in columns], 1))
    return "\n".join(lines) + "\n"


def group_csv(scores: WordScores, groups_of: Mapping[str, Sequence[str]]) -> str:
    """The rows of `group_rows`, one a line."""
    return _csv(["group", "utts", *_COLUMNS], group_rows(scores, groups_of))


def utterance_csv(scores: WordScores, spk_of: Mapping[str, str] | None) -> str:
    """Counts of each utterance, and its word error rate in percent (empty where its reference is)."""
    rows = []
    for utt_id, alignment in zip(scores.utt_ids, scores.alignments, strict=True):
        err = 100.0 * alignment.num_errors / alignment.num_ref if alignment.num_ref else None
        counts = (alignment.num_correct, alignment.num_sub, alignment.num_del, alignment.num_ins)
        row = dict(zip(("corr", "sub", "del", "ins"), counts, strict=True))
        rows.append({"utterance": utt_id, "speaker": spk_of and spk_of[utt_id], "words": alignment.num_ref, **row})
        rows[-1]["err"] = err
    return _csv(["utterance", "speaker", *_COLUMNS[:-1]], rows)


_KIND = {"S": "substitution", "D": "deletion", "I": "insertion"}


def confusion_csv(scores: WordScores) -> str:
    """Every error with its number, the most frequent first."""
    ordered = sorted(scores.confusions().items(), key=lambda item: (-item[1], str(item[0])))
    rows = [
        {"count": count, "error": _KIND[op], "reference": ref, "hypothesis": hyp} for (op, ref, hyp), count in ordered
    ]
    return _csv(["count", "error", "reference", "hypothesis"], rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})
    return out.getvalue()
