"""What specialists change for frames of a state, by the number of specialists that have this state among theirs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.systems import SystemScores


def coverage_rows(
    classes: Sequence[Sequence[int]], num_pdfs: int, generalist: SystemScores, together: SystemScores
) -> list[dict[str, Any]]:
    """A row for every number of specialists that cover some state (Hinton, Vinyals & Dean 2015, table 4), and the sum.

    classes: states of each specialist. Rows: num_specialists (None in the last, of all frames), num_states, num_frames,
    delta_correct (frames, mean over seeds), generalist_accuracy and accuracy (percent, None without frames), and
    relative_change (percent of the generalist's correct frames, None where it has none).
    Raises AsrKdError where a system was not scored by state, or on other frames than the other.
    """
    details = [system.detail for system in (generalist, together)]
    for system, detail in zip((generalist, together), details, strict=True):
        if detail is None or len(detail.state_frames) != num_pdfs:
            raise AsrKdError(f"scores of system {system.name}: not by state over {num_pdfs} states; score it again")
    if not np.array_equal(details[0].state_frames, details[1].state_frames):
        raise AsrKdError(f"systems {generalist.name} and {together.name} were scored on different labels")
    covering = np.zeros(num_pdfs, dtype=np.int64)
    for each in classes:
        covering[list(each)] += 1
    before, after = (detail.state_correct / detail.num_seeds for detail in details)
    groups = [(int(number), covering == number) for number in np.unique(covering)]
    groups.append((None, np.ones(num_pdfs, dtype=bool)))
    return [_row(number, mask, details[0].state_frames, before, after) for number, mask in groups]


def _row(number: int | None, mask: np.ndarray, frames: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict:
    num_frames, old, new = int(frames[mask].sum()), float(before[mask].sum()), float(after[mask].sum())
    return {
        "num_specialists": number,
        "num_states": int(mask.sum()),
        "num_frames": num_frames,
        "delta_correct": new - old,
        "generalist_accuracy": 100.0 * old / num_frames if num_frames else None,
        "accuracy": 100.0 * new / num_frames if num_frames else None,
        "relative_change": 100.0 * (new - old) / old if old else None,
    }


def coverage_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of coverage_rows."""
    lines = [
        "| specialists covering | states | frames | delta in frames correct | generalist | with specialists "
        "| relative change |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        number = "all" if row["num_specialists"] is None else row["num_specialists"]
        cells = [number, row["num_states"], f"{row['num_frames']:,}", f"{row['delta_correct']:+,.0f}"]
        for key, form in (("generalist_accuracy", ".2f"), ("accuracy", ".2f"), ("relative_change", "+.2f")):
            cells.append("–" if row[key] is None else f"{row[key]:{form}} %")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
