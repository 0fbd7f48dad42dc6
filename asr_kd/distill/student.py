"""A student to train: the distillation loss, and a schedule of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asr_kd.config import CompressConfig, DistillConfig, DnnConfig
from asr_kd.distill.losses import distillation_loss
from asr_kd.distill.soft_targets import SoftTargets
from asr_kd.distill.transfer import TransferSet
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.training.cross_entropy import SoftBatch
from asr_kd.training.data import LabelledSet
from asr_kd.training.data_parallel import sum_over
from asr_kd.training.run import Loss, Run
from asr_kd.world import ALONE, World


def student_schedule(dnn: DnnConfig, distill: DistillConfig) -> DnnConfig:
    """The members' configuration with the student's epochs, views, learning rates, averaging and patience.

    Its labels are not smoothed: soft targets are spread as its teachers are.
    """
    return replace(
        as_long_as_students(dnn, distill),
        label_smoothing=0.0,
        learning_rate=distill.student_learning_rate,
        schedule=distill.student_schedule or dnn.schedule,
        average_share=distill.student_average_share,
    )


def as_long_as_students(dnn: DnnConfig, distill: DistillConfig) -> DnnConfig:
    """The members' configuration with the student's epochs, views and patience: the long baseline.

    Its learning rates are the members': those that are good for soft targets are not for labels.
    """
    patience = distill.student_patience or dnn.patience
    view_share = dnn.view_share if distill.student_view_share is None else distill.student_view_share
    return replace(dnn, num_epochs=distill.student_epochs, patience=patience, view_share=view_share)


def student_loss(train: LabelledSet, targets: SoftTargets, distill: DistillConfig, unlike_parts: World = ALONE) -> Loss:
    """The distillation loss at the targets' own temperature; soft_weight and hard_weight from `distill`.

    unlike_parts: processes whose parts of a batch differ in their share of labelled frames.
    """

    def loss(logits: torch.Tensor, index: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        labels = train.labels_of(index)
        return distillation_loss(
            logits,
            labels,
            _targets_of(targets, index, windows),
            temperature=targets.temperature,
            soft_weight=distill.soft_weight,
            hard_weight=distill.hard_weight,
            matching=distill.matching,
            label_use=distill.label_use,
            num_labelled=_num_labelled(labels, unlike_parts) if unlike_parts.size > 1 else None,
        )

    return loss


def _targets_of(targets: SoftTargets, index: torch.Tensor, windows: torch.Tensor) -> SoftBatch:
    """Targets of a batch, or of nets trained together: each net's as if it were alone, one after another."""
    if index.ndim == 1:
        return targets.batch(index, windows)
    each = [targets.batch(*batch) for batch in zip(index, windows, strict=True)]
    parts = ([getattr(batch, name) for batch in each] for name in ("prob", "pdf", "tail"))
    return SoftBatch(*(None if part[0] is None else torch.cat(part) for part in parts))


def _num_labelled(labels: torch.Tensor, world: World) -> torch.Tensor:
    """As many as this part of a batch had if all parts had the whole's share: losses of parts are averaged by size."""
    here = torch.stack([(labels >= 0).sum(), torch.tensor(len(labels), device=labels.device)])
    num_labelled, num_frames = sum_over(world, here)
    return num_labelled.clamp(min=1) * len(labels) / num_frames


def student_run(
    out: Path,
    seed: int,
    dnn: DnnConfig,
    distill: DistillConfig,
    transfer: TransferSet,
    dev: LabelledSet,
    targets: SoftTargets,
    targets_key: dict[str, Any],
    dtype: torch.dtype,
    start: TrainedNet | None = None,
    compress: CompressConfig | None = None,
    world: World = ALONE,
) -> Run:
    """To distil on the frames of the transfer set, by default those that the baseline sees.

    start: a net whose weights the student begins with; else they are random. compress: how the student is pruned and
    quantized meanwhile; the teachers are as they are. world: the processes that train it together.

    targets_key: what identifies the targets (members' digests, combination, values), for the fingerprint.
    """
    loss_key = {
        "kind": "distillation",
        "temperature": targets.temperature,
        "soft_weight": distill.soft_weight,
        "hard_weight": distill.hard_weight,
        "matching": distill.matching,
        "label_use": distill.label_use,
        **targets_key,
    }
    return Run(
        out=out,
        seed=seed,
        config=student_schedule(dnn, distill),
        train=transfer.train,
        dev=dev,
        transfer_index=transfer.index,
        loss=student_loss(transfer.train, targets, distill, world if transfer.has_unlabelled else ALONE),
        loss_key=loss_key,
        dtype=dtype,
        transfer=transfer.record,
        start=start,
        looked_up=lambda: targets.looked_up,
        is_recordable=targets.is_recordable,
        compress=compress,
        world=world,
    )
