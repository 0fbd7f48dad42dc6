"""What specialists change for frames of a state, by the number of specialists that have this state among theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asr_kd.distill.soft_targets import joint_log_posteriors
from asr_kd.distill.specialist_inference import SPECIALISTS
from asr_kd.distill.specialists import Specialist
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.training.data import LabelledSet


@dataclass(frozen=True)
class StateCounts:
    """Of one generalist and its specialists on a set, each (N,) int64.

    covering: specialists that have a state; frames: with that label; before, after: of these, right by the generalist
    alone and by all together.
    """

    covering: np.ndarray
    frames: np.ndarray
    before: np.ndarray
    after: np.ndarray


def count_by_state(members: Sequence[TrainedNet], data: LabelledSet, top_n: int, dtype: torch.dtype) -> StateCounts:
    """Let the generalist, `members[0]`, and then all `members` answer for the labelled frames of `data`."""
    labels = data.pdf.cpu().numpy()

    def right(nets: Sequence[TrainedNet], combination: str) -> np.ndarray:
        blocks = joint_log_posteriors(nets, data.frames, combination=combination, dtype=dtype, top_n=top_n)
        best = np.concatenate([log_post.argmax(dim=1).cpu().numpy() for _, log_post in blocks])
        return np.bincount(labels[best == labels], minlength=data.num_pdfs)

    special = [Specialist.of(member).membership(torch.device("cpu")).numpy() for member in members[1:]]
    frames = np.bincount(labels[labels >= 0], minlength=data.num_pdfs)
    return StateCounts(np.sum(special, axis=0), frames, right(members[:1], "arithmetic"), right(members, SPECIALISTS))


def coverage_rows(seeds: Sequence[StateCounts]) -> list[dict[str, Any]]:
    """A row for every number of specialists that cover some state (Hinton, Vinyals & Dean 2015, table 4), and the sum.

    Counts are summed over seeds. Rows: num_specialists (None in the last, of all frames), num_states, num_frames,
    delta_correct (frames), generalist_accuracy and accuracy (percent, None without frames), and relative_change
    (percent of the generalist's correct frames, None where it has none).
    """
    covering, frames, before, after = (
        np.concatenate([getattr(seed, name) for seed in seeds]) for name in ("covering", "frames", "before", "after")
    )
    groups = [(int(number), covering == number) for number in np.unique(covering)]
    groups.append((None, np.ones(len(covering), dtype=bool)))
    return [_row(number, *(int(each[mask].sum()) for each in (mask, frames, before, after))) for number, mask in groups]


def _row(number: int | None, num_states: int, num_frames: int, before: int, after: int) -> dict[str, Any]:
    return {
        "num_specialists": number,
        "num_states": num_states,
        "num_frames": num_frames,
        "delta_correct": after - before,
        "generalist_accuracy": 100.0 * before / num_frames if num_frames else None,
        "accuracy": 100.0 * after / num_frames if num_frames else None,
        "relative_change": 100.0 * (after - before) / before if before else None,
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
        cells = [number, row["num_states"], f"{row['num_frames']:,}", f"{row['delta_correct']:+,d}"]
        for key, form in (("generalist_accuracy", ".2f"), ("accuracy", ".2f"), ("relative_change", "+.2f")):
            cells.append("–" if row[key] is None else f"{row[key]:{form}} %")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
