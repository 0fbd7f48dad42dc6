"""How far the boundaries between phones of an alignment lie from the truth.

The truth comes as a CTM, `utt_id 1 start_s duration_s phone` for each phone, silence included. A frame f stands for its
window's centre, so that the boundary before it is half a frame shift earlier: at f · shift + (length − shift) / 2.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError

# (start in ms, phone)
Segment = tuple[float, str]


@dataclass(frozen=True)
class BoundaryReport:
    """errors_ms: (num_boundaries,) signed, ours minus truth, of utterances whose phone sequences agree;
    num_utts: compared; num_agreeing: of these, how many have the true sequence of phones.
    """

    errors_ms: np.ndarray
    num_utts: int
    num_agreeing: int

    @property
    def agreeing_share(self) -> float:
        return self.num_agreeing / self.num_utts if self.num_utts else float("nan")

    @property
    def median_ms(self) -> float:
        """Median of the absolute error."""
        return float(np.median(np.abs(self.errors_ms))) if len(self.errors_ms) else float("nan")

    def share_within(self, limit_ms: float = 20.0) -> float:
        """Share of boundaries at most `limit_ms` from the truth."""
        # A femtosecond of slack, for 20 ms in binary.
        return float((np.abs(self.errors_ms) <= limit_ms + 1e-9).mean()) if len(self.errors_ms) else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.num_agreeing} of {self.num_utts} utterances agree in phones, {len(self.errors_ms)} boundaries: "
            f"{100 * self.share_within(20.0):.1f} % within 20 ms, median {self.median_ms:.1f} ms, "
            f"mean shift {self.errors_ms.mean() if len(self.errors_ms) else float('nan'):+.1f} ms"
        )


def read_truth(path: str | Path) -> dict[str, list[Segment]]:
    """Phones of each utterance from a truth.ctm, in order of time.

    Raises AsrKdError, naming file and line, for what is not a CTM line or goes back in time.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read as a CTM ({error})") from error
    truth: dict[str, list[Segment]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        fields = line.split()
        try:
            utt_id, _, start, _, phone = fields
            start_ms = 1000.0 * float(start)
        except ValueError:
            raise AsrKdError(f"{path}:{number}: not of the form `utt_id 1 start_s duration_s phone`") from None
        if truth[utt_id] and start_ms < truth[utt_id][-1][0]:
            raise AsrKdError(f"{path}:{number}: starts before the phone above it")
        truth[utt_id].append((start_ms, phone))
    return dict(truth)


def merge_runs(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours of the same phone: frames do not tell where one of two equal phones ends."""
    return [s for i, s in enumerate(segments) if i == 0 or s[1] != segments[i - 1][1]]


def segments_of_frames(
    phone: np.ndarray, phones: Sequence[str], frame_shift_ms: float = 10.0, frame_length_ms: float = 25.0
) -> list[Segment]:
    """Runs of phone (num_frames,), indexes into `phones`, as (start_ms, phone); the first starts at 0."""
    starts = np.flatnonzero(np.diff(phone, prepend=-1))
    offset = (frame_length_ms - frame_shift_ms) / 2
    return [(float(f) * frame_shift_ms + offset if f else 0.0, phones[phone[f]]) for f in starts]


def compare(
    aligned: Mapping[str, np.ndarray],
    phones: Sequence[str],
    truth: Mapping[str, Sequence[Segment]],
    frame_shift_ms: float = 10.0,
    frame_length_ms: float = 25.0,
) -> BoundaryReport:
    """Compare alignments with the truth, over the utterances in both.

    aligned: utt_id → phone index of each frame, (num_frames,); failed utterances (−1) count as not agreeing.
    Boundaries are the starts of all phones but the first of an utterance. Raises AsrKdError if no utterance is in both.
    """
    if not aligned.keys() & truth.keys():
        raise AsrKdError("the true phone times are of none of the utterances that are aligned")
    errors, num_utts, num_agreeing = [], 0, 0
    for utt_id, phone in aligned.items():
        if utt_id not in truth:
            continue
        num_utts += 1
        if len(phone) == 0 or phone[0] < 0:
            continue
        ours = merge_runs(segments_of_frames(phone, phones, frame_shift_ms, frame_length_ms))
        true = merge_runs(truth[utt_id])
        if [p for _, p in ours] != [p for _, p in true]:
            continue
        num_agreeing += 1
        errors += [a - b for (a, _), (b, _) in zip(ours[1:], true[1:], strict=True)]
    return BoundaryReport(np.array(errors, dtype=np.float64), num_utts, num_agreeing)
