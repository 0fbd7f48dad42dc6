"""The one training loop: single nets, members of an ensemble and students differ only in the loss they hand in."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from asr_kd import __version__
from asr_kd.cli_common import log
from asr_kd.config import DnnConfig
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.model import Architecture, FrameClassifier, new_net
from asr_kd.nnet.net_dir import CARD, TrainedNet, load_card, load_net, save_net
from asr_kd.runinfo import fingerprint, git_commit
from asr_kd.training.checkpoint import (
    NAME,
    Checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from asr_kd.training.data import LabelledSet
from asr_kd.training.optimizer import learning_rate, make_optimizer

# (logits (batch, num_pdfs), frame numbers (batch,), windows (batch, window * feat_dim)) → scalar loss in nats
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def hard_loss(train: LabelledSet) -> Loss:
    """Cross-entropy with the alignment's states."""
    return lambda logits, index, windows: functional.cross_entropy(logits.float(), train.pdf[index])


@dataclass
class Run:
    """One net to train.

    transfer_index: frames to train on, (n,) int64. loss_key: whatever the loss depends on, for the fingerprint.
    """

    out: Path
    seed: int
    config: DnnConfig
    train: LabelledSet
    dev: LabelledSet
    transfer_index: torch.Tensor
    loss: Loss
    loss_key: dict[str, Any]
    dtype: torch.dtype

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the weights depend on (but for the number of threads, which is recorded)."""
        return fingerprint(
            seed=self.seed,
            config=self.config,
            train=[self.train.content_digest, self.train.ali_digest, self.train.frames.layout.digest],
            dev=[self.dev.content_digest, self.dev.ali_digest, self.dev.frames.layout.digest],
            labels=self.train.labels,
            loss=self.loss_key,
            dtype=str(self.dtype),
            device=self.train.frames.device.type,
        )

    @property
    def architecture(self) -> Architecture:
        config = self.config
        return Architecture(
            left_context=config.left_context,
            right_context=config.right_context,
            feat_dim=self.train.frames.feat_dim,
            num_hidden_layers=config.num_hidden_layers,
            hidden_dim=config.hidden_dim,
            num_pdfs=self.train.num_pdfs,
            dropout=config.dropout,
        )

    @property
    def num_steps(self) -> int:
        """Of the whole run; the last batch of an epoch may be smaller."""
        return self.config.num_epochs * -(-len(self.transfer_index) // self.config.batch_size)


def train_net(run: Run) -> TrainedNet:
    """Train, resume, or just load: after any kill the same call ends with the same weights, bit for bit.

    Keeps the epoch with the best frame accuracy on dev. Raises AsrKdError if the loss stops being a number.
    """
    for key in ("num_epochs", "batch_size", "hidden_dim"):
        if getattr(run.config, key) < 1:
            raise AsrKdError(f"{key} {getattr(run.config, key)}: must be at least 1")
    made_from = run.fingerprint
    if (run.out / CARD).exists() and load_card(run.out)["training"].get("fingerprint") == made_from:
        log(f"{run.out}: up to date")
        return load_net(run.out)
    (run.out / CARD).unlink(missing_ok=True)
    net = new_net(run.architecture, run.seed).to(run.train.frames.device)
    optimizer = make_optimizer(net, run.config)
    history, best = _resume(run, net, optimizer, made_from)
    for epoch in range(len(history), run.config.num_epochs):
        row = _train_epoch(run, net, optimizer, epoch)
        row |= evaluate(net, run.dev, run.dtype)
        history.append(row)
        log(format_row(run, row))
        if row["dev_frame_acc"] >= max(r["dev_frame_acc"] for r in history):
            best = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
        progress = {"fingerprint": made_from, "history": history, "num_threads": torch.get_num_threads()}
        save_checkpoint(run.out, Checkpoint(net.state_dict(), best, optimizer_tensors(optimizer), progress))
    net.load_state_dict(best)
    trained = TrainedNet(
        net.eval(), run.train.cmvn, run.train.front_end, run.train.labels, _training_record(run, history, made_from)
    )
    save_net(run.out, trained)
    (run.out / NAME).unlink(missing_ok=True)
    return trained


def _resume(
    run: Run, net: FrameClassifier, optimizer: torch.optim.Optimizer, made_from: str
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    checkpoint = load_checkpoint(run.out)
    if checkpoint is None:
        return [], {}
    if checkpoint.progress["fingerprint"] != made_from:
        log(f"{run.out}: configuration or inputs changed since the last run here; training from the beginning")
        return [], {}
    if checkpoint.progress["num_threads"] != torch.get_num_threads():
        log(
            f"{run.out}: warning: begun with {checkpoint.progress['num_threads']} threads, continued with "
            f"{torch.get_num_threads()}; the weights will differ in their last bits"
        )
    net.load_state_dict(checkpoint.model)
    load_optimizer_tensors(optimizer, checkpoint.optimizer)
    log(f"{run.out}: continuing after epoch {len(checkpoint.progress['history'])}")
    return checkpoint.progress["history"], checkpoint.best


def _train_epoch(
    run: Run, net: FrameClassifier, optimizer: torch.optim.Optimizer, epoch: int
) -> dict[str, float | int]:
    config, frames = run.config, run.train.frames
    device = frames.device
    # A generator for each (seed, epoch): a resumed run draws what an unbroken one would have drawn.
    generator = torch.Generator().manual_seed(1_000_003 * run.seed + epoch)
    order = run.transfer_index[torch.randperm(len(run.transfer_index), generator=generator).to(device)]
    torch.manual_seed(1_000_003 * run.seed + epoch)  # dropout
    net.train()
    num_batches = -(-len(order) // config.batch_size)
    total = torch.zeros((), device=device)
    begin = time.perf_counter()
    for number, index in enumerate(order.split(config.batch_size)):
        step = epoch * num_batches + number
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run.num_steps, config)
        windows = frames.windows(index)
        with autocast(device, run.dtype):
            logits = net(windows)
        loss = run.loss(logits, index, windows)
        loss.backward()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach() * len(index)
    mean_loss = float(total) / len(order)
    if not mean_loss < float("inf"):
        raise AsrKdError(f"{run.out}: the loss is {mean_loss} in epoch {epoch + 1}; lower the learning rate")
    seconds = time.perf_counter() - begin
    return {
        "epoch": epoch + 1,
        "train_loss": mean_loss,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "frames_per_second": len(order) / seconds,
        "seconds": seconds,
    }


def evaluate(net: FrameClassifier, dev: LabelledSet, dtype: torch.dtype) -> dict[str, float]:
    """Frame accuracy (percent) and cross-entropy (nats) over the labelled frames of a set."""
    net.eval()
    correct, xent, count = 0, 0.0, 0
    for rows, log_post in mean_log_posteriors([net], dev.frames, dtype=dtype):
        pdf = dev.pdf[rows]
        keep = pdf >= 0
        pdf, log_post = pdf[keep], log_post[keep]
        correct += int((log_post.argmax(dim=-1) == pdf).sum())
        xent += float(functional.nll_loss(log_post, pdf, reduction="sum"))
        count += len(pdf)
    return {"dev_frame_acc": 100.0 * correct / count, "dev_xent": xent / count}


def format_row(run: Run, row: dict[str, Any]) -> str:
    """One line of the progress table."""
    return (
        f"{run.out}  epoch {row['epoch']:3d}/{run.config.num_epochs}  train loss {row['train_loss']:.4f}  "
        f"dev xent {row['dev_xent']:.4f}  dev frame acc {row['dev_frame_acc']:.2f} %  "
        f"lr {row['learning_rate']:.2e}  {row['frames_per_second']:,.0f} frames/s"
    )


def _training_record(run: Run, history: list[dict[str, Any]], made_from: str) -> dict[str, Any]:
    seconds = sum(row["seconds"] for row in history)
    return {
        "fingerprint": made_from,
        "seed": run.seed,
        "config": {field: getattr(run.config, field) for field in run.config.__dataclass_fields__},
        "loss": run.loss_key,
        "best_epoch": max(history, key=lambda row: (row["dev_frame_acc"], row["epoch"]))["epoch"],
        "history": history,
        "num_train_frames": len(run.transfer_index),
        "train_seconds": seconds,
        "frames_per_second": len(run.transfer_index) * len(history) / seconds,
        "num_threads": torch.get_num_threads(),
        "version": __version__,
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "device": str(run.train.frames.device),
        "precision": str(run.dtype).removeprefix("torch."),
    }
