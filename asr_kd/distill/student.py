"""Training a student: the one loop, with the distillation loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asr_kd.config import CompressConfig, DistillConfig, DnnConfig
from asr_kd.distill.losses import distillation_loss
from asr_kd.distill.soft_targets import SoftTargets
from asr_kd.distill.transfer import TransferSet
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.training.data import LabelledSet
from asr_kd.training.loop import train_net
from asr_kd.training.run import Loss, Run


def student_schedule(dnn: DnnConfig, distill: DistillConfig) -> DnnConfig:
    """The members' configuration with the student's epochs, learning rate and patience."""
    return replace(
        dnn,
        num_epochs=distill.student_epochs,
        learning_rate=distill.student_learning_rate,
        patience=distill.student_patience or dnn.patience,
    )


def student_loss(train: LabelledSet, targets: SoftTargets, distill: DistillConfig) -> Loss:
    """The distillation loss at the targets' own temperature; soft_weight and hard_weight from `distill`."""

    def loss(logits: torch.Tensor, index: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        return distillation_loss(
            logits,
            train.labels_of(index),
            targets.batch(index, windows),
            temperature=targets.temperature,
            soft_weight=distill.soft_weight,
            hard_weight=distill.hard_weight,
            matching=distill.matching,
            label_use=distill.label_use,
        )

    return loss


def train_student(
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
) -> TrainedNet:
    """Distil on the frames of the transfer set, by default those that the baseline sees.

    start: a net whose weights the student begins with; else they are random. compress: how the student is pruned and
    quantized meanwhile; the teachers are as they are.

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
    return train_net(
        Run(
            out=out,
            seed=seed,
            config=student_schedule(dnn, distill),
            train=transfer.train,
            dev=dev,
            transfer_index=transfer.index,
            loss=student_loss(transfer.train, targets, distill),
            loss_key=loss_key,
            dtype=dtype,
            transfer=transfer.record,
            start=start,
            compress=compress,
        )
    )
