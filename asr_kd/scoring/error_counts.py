"""Frames that a net gets wrong, in all and state by state: what a set of independent frames is reported by."""

from dataclasses import dataclass

import torch

from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.training.data import LabelledSet


@dataclass(frozen=True)
class ErrorCounts:
    """Of the labelled frames of a set: errors by state and frames by state, (num_pdfs,) each; xent: nats a frame."""

    errors_by_pdf: list[int]
    frames_by_pdf: list[int]
    xent: float

    @property
    def errors(self) -> int:
        return sum(self.errors_by_pdf)


def count_errors(trained: TrainedNet, labelled: LabelledSet, dtype: torch.dtype) -> ErrorCounts:
    """Score a net, which is on the device of `labelled`, on its labelled frames."""
    wrong, seen = torch.zeros(2, labelled.num_pdfs, dtype=torch.int64)
    xent = 0.0
    for rows, log_post in mean_log_posteriors([trained.net.eval()], labelled.frames, dtype=dtype):
        pdf = labelled.labels_of(rows)
        keep = pdf >= 0
        pdf, log_post = pdf[keep], log_post[keep]
        missed = pdf[log_post.argmax(dim=1) != pdf]
        wrong += torch.bincount(missed, minlength=labelled.num_pdfs).cpu()
        seen += torch.bincount(pdf, minlength=labelled.num_pdfs).cpu()
        xent -= float(log_post.double().gather(1, pdf[:, None]).sum())
    return ErrorCounts(wrong.tolist(), seen.tolist(), xent / int(seen.sum()))
