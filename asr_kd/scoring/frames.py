"""Scores of a net's outputs, frame by frame: counts per utterance, so that they can be resampled, and per state.

Outputs stream through a `FrameScorer`; what it keeps does not grow with the product of frames and states, so that
14,000 states and any number of frames fit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.scoring.calibration import ConfidenceHistogram
from asr_kd.scoring.confusions import PairCounts
from asr_kd.scoring.frame_detail import FrameDetail

TOP_K = 5
# Outputs handled at once: a float32 copy of them takes 128 MB.
_OUTPUTS_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class FrameLabels:
    """What outputs are scored against.

    pdf: (num_frames,) states, -1 where there is no label; utt_offset: (num_utts + 1,) as in feats.h5; sil_pdfs: states
    of silence, None where they are not known: then nothing is said of frames without silence. phone: (num_frames,)
    index into `phones`, -1 where pdf is; without it nothing is said of phones.

    Raises AsrKdError where the offsets or phones do not fit the frames.
    """

    pdf: np.ndarray
    utt_offset: np.ndarray
    sil_pdfs: Sequence[int] | None = ()
    phone: np.ndarray | None = None
    phones: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("pdf", "utt_offset", "phone"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        offset, num_frames = self.utt_offset, len(self.pdf)
        if offset[0] != 0 or offset[-1] != num_frames or np.any(np.diff(offset) < 0):
            raise AsrKdError(f"utterance offsets do not divide the {num_frames} frames of the labels.")
        if self.phone is not None:
            fits = len(self.phone) == num_frames and np.array_equal(self.phone < 0, self.pdf < 0)
            if not fits or self.phone.max(initial=-1) >= len(self.phones):
                raise AsrKdError("phones do not fit the states of the labels: one is needed wherever there is a state.")

    def state_phones(self, num_pdfs: int) -> np.ndarray:
        """The phone that a state stands for most often in these labels, (num_pdfs,); -1 if the state does not occur.

        A state that several phones share (tied roots) goes to the most frequent.
        """
        state_phone = np.full(num_pdfs, -1, dtype=np.int64)
        if self.phone is None:
            return state_phone
        labelled = self.pdf >= 0
        pairs, counts = np.unique(self.pdf[labelled] * len(self.phones) + self.phone[labelled], return_counts=True)
        pairs = pairs[np.argsort(counts, kind="stable")]  # of the pairs of one state the last written wins
        state_phone[pairs // len(self.phones)] = pairs % len(self.phones)
        return state_phone


@dataclass(frozen=True)
class FrameScores:
    """Per-utterance counts of one net on one set, each (num_utts,): int64, and `xent_sum` float64 in nats.

    Only frames with a label count. `nonsil` are those whose label is not a silence pdf; `correct_top5` are those whose
    label is among the five largest outputs. `detail` says the rest: states, phones, confusions, calibration.
    """

    num_frames: np.ndarray
    correct: np.ndarray
    correct_top5: np.ndarray
    num_nonsil: np.ndarray
    correct_nonsil: np.ndarray
    xent_sum: np.ndarray
    detail: FrameDetail


class FrameScorer:
    """Scores outputs against labels as they come, in any order, each labelled frame once."""

    def __init__(self, labels: FrameLabels) -> None:
        self._labels = labels
        num_frames = len(labels.pdf)
        self._seen = np.zeros(num_frames, dtype=bool)
        self._rank = np.zeros(num_frames, dtype=np.uint8)
        self._nll = np.zeros(num_frames)
        self._by_width: _StateCounts | None = None

    def add(self, start: int, outputs: np.ndarray | torch.Tensor) -> None:
        """Score `outputs` (n, num_pdfs), of the frames from `start` on.

        Logits or log posteriors, on any device: each row is normalised with log-softmax, which leaves log posteriors
        as they are.

        Raises AsrKdError where there are more rows than frames, a frame comes twice, a label is no output of the net,
        or the output at a labelled frame is not finite.
        """
        outputs = torch.as_tensor(outputs)
        num_frames = len(self._labels.pdf)
        if start + len(outputs) > num_frames:
            raise AsrKdError(f"the net's output has more frames than the {num_frames} labels.")
        if self._by_width is None:
            low, high, num_pdfs = self._labels.pdf.min(initial=0), self._labels.pdf.max(initial=-1), outputs.shape[1]
            if low < -1 or high >= num_pdfs:
                raise AsrKdError(f"labels span {low}..{high}, the net has the outputs 0..{num_pdfs - 1}.")
            known = () if self._labels.sil_pdfs is None else self._labels.sil_pdfs
            if odd := [pdf for pdf in known if not 0 <= pdf < num_pdfs]:
                raise AsrKdError(f"silence is said to be state {odd[0]}, the net has the outputs 0..{num_pdfs - 1}.")
            self._by_width = _StateCounts(self._labels, num_pdfs)
        if outputs.shape[1] != self._by_width.num_pdfs:
            raise AsrKdError(f"the net's output has {outputs.shape[1]} columns after {self._by_width.num_pdfs}.")
        if self._seen[start : start + len(outputs)].any():
            raise AsrKdError("the net's output of a frame came twice.")
        for rows in outputs.split(max(1, _OUTPUTS_AT_ONCE // outputs.shape[1])):
            part = slice(start, start + len(rows))
            self._add_rows(rows, part)
            self._seen[part] = True
            start += len(rows)

    @torch.no_grad()
    def _add_rows(self, rows: torch.Tensor, part: slice) -> None:
        labels = self._labels.pdf[part]
        if rows.dtype not in (torch.float32, torch.float64):
            rows = rows.float()
        target = torch.as_tensor(labels, device=rows.device)
        log_total = rows.logsumexp(dim=1)
        highest, prediction = rows.max(dim=1)
        at_label = rows.gather(1, target.clamp(min=0)[:, None])
        labelled = labels >= 0
        nll = (log_total - at_label[:, 0]).cpu().numpy().astype(np.float64)
        # One NaN or +inf in a row makes its logsumexp NaN or +inf, so looking at the label's entry is enough.
        if not np.isfinite(nll[labelled]).all():
            raise AsrKdError("the net's output is NaN or infinite at a labelled frame.")
        # Rounding may put log-softmax of a sure label a hair above 0.
        self._nll[part] = np.where(labelled, np.maximum(nll, 0.0), 0.0)
        prediction = prediction.cpu().numpy()
        # The rank among the outputs, 0 being the prediction; of equal outputs the first leads, as for the prediction.
        index = torch.arange(rows.shape[1], device=rows.device)
        ahead = (rows > at_label) | ((rows == at_label) & (index < target[:, None]))
        rank = ahead.sum(dim=1).clamp(max=TOP_K).cpu().numpy()
        rank = np.where(prediction == labels, 0, np.maximum(rank, 1))
        self._rank[part] = np.where(labelled, rank, TOP_K)
        confidence = (highest - log_total).exp().cpu().numpy()
        self._by_width.add(part, labelled, prediction, confidence)

    def result(self) -> FrameScores:
        """The scores; raises AsrKdError where labelled frames were never given."""
        labels, num_utts = self._labels, len(self._labels.utt_offset) - 1
        labelled = labels.pdf >= 0
        missing = np.flatnonzero(labelled & ~self._seen)
        if len(missing) or self._by_width is None:
            raise AsrKdError(f"the net's output lacks {len(missing)} of the {labelled.sum()} labelled frames.")
        silence = labels.sil_pdfs if labels.sil_pdfs is not None else np.arange(self._by_width.num_pdfs)
        nonsil = labelled & ~np.isin(labels.pdf, np.asarray(silence, dtype=np.int64))
        utt = np.repeat(np.arange(num_utts), np.diff(labels.utt_offset))

        def count(which: np.ndarray) -> np.ndarray:
            return np.bincount(utt[which], minlength=num_utts)

        hit = labelled & (self._rank == 0)
        return FrameScores(
            num_frames=count(labelled),
            correct=count(hit),
            correct_top5=count(labelled & (self._rank < TOP_K)),
            num_nonsil=count(nonsil),
            correct_nonsil=count(hit & nonsil),
            xent_sum=np.bincount(utt, weights=self._nll, minlength=num_utts),
            detail=self._by_width.detail(labels, hit, utt, num_utts),
        )


@dataclass
class _StateCounts:
    """What a scorer keeps by state, by phone and by confidence; its size depends on the width of the outputs."""

    labels: FrameLabels
    num_pdfs: int
    histogram: ConfidenceHistogram = field(default_factory=ConfidenceHistogram)

    def __post_init__(self) -> None:
        self.states = PairCounts(self.num_pdfs)
        self.state_phone = self.labels.state_phones(self.num_pdfs)
        # One phone more, for predicted states of which the labels do not say which phone they are.
        self.phones = None if self.labels.phone is None else PairCounts(len(self.labels.phones) + 1)

    def add(self, part: slice, labelled: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> None:
        label, prediction = self.labels.pdf[part][labelled], prediction[labelled]
        self.histogram.add(confidence[labelled], prediction == label)
        wrong = prediction != label
        self.states.add(label[wrong], prediction[wrong])
        if self.phones is not None:
            predicted = self.state_phone[prediction]
            unknown = len(self.labels.phones)
            self.phones.add(self.labels.phone[part][labelled], np.where(predicted < 0, unknown, predicted))

    def detail(self, labels: FrameLabels, hit: np.ndarray, utt: np.ndarray, num_utts: int) -> FrameDetail:
        labelled = labels.pdf >= 0
        num_phones = 0 if labels.phone is None else len(labels.phones)

        def by_phone(which: np.ndarray) -> np.ndarray:
            if labels.phone is None:
                return np.zeros((num_utts, 0), dtype=np.int64)
            cells = utt[which] * num_phones + labels.phone[which]
            return np.bincount(cells, minlength=num_utts * num_phones).reshape(num_utts, num_phones)

        return FrameDetail(
            num_seeds=1,
            state_frames=np.bincount(labels.pdf[labelled], minlength=self.num_pdfs),
            state_correct=np.bincount(labels.pdf[hit], minlength=self.num_pdfs),
            state_phone=self.state_phone,
            phones=list(labels.phones) if num_phones else [],
            phone_frames=by_phone(labelled),
            phone_correct=by_phone(hit),
            state_confusions=self.states.top(),
            phone_confusions=np.zeros((0, 3), np.int64) if self.phones is None else self.phones.top(),
            max_undercount=self.states.max_undercount,
            calibration=[self.histogram.summary()],
        )


def per_utterance_frame_scores(
    blocks: np.ndarray | torch.Tensor | Iterable[np.ndarray | torch.Tensor], labels: FrameLabels
) -> FrameScores:
    """Score outputs that come in frame order: one array (num_frames, num_pdfs), or blocks of it, cut anywhere.

    Raises AsrKdError as `FrameScorer` does.
    """
    if isinstance(blocks, np.ndarray | torch.Tensor):
        blocks = [blocks]
    scorer, start = FrameScorer(labels), 0
    for block in blocks:
        scorer.add(start, block)
        start += len(block)
    return scorer.result()
