"""One net to train: what it is made of, and the digest of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from asr_kd.config import CompressConfig, DnnConfig
from asr_kd.nnet.model import Architecture, FrameClassifier
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.nnet.quantized import Quantization
from asr_kd.runinfo import fingerprint
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets
from asr_kd.training.data import LabelledSet, digest_of
from asr_kd.training.pruning import Pruning
from asr_kd.training.stream import StreamedIndex
from asr_kd.world import ALONE, World

# (logits (batch, num_pdfs), frame numbers (batch,), windows (batch, window * feat_dim)) → scalar loss in nats, the mean
# over these frames. The windows are those that the net saw, shifts, masks and noise included. Of nets trained together
# all three begin with (num_nets, …), and the losses are (num_nets,).
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Keys that the weights do not depend on but for their last bits, and the values at which a key changes nothing: neither
# counts in the fingerprint, so that a new key does not make complete nets be trained again. Of resident_frames, what is
# streamed has the sizes of its groups in its digest.
NOT_IN_WEIGHTS = {"checkpoint_minutes", "tensorboard", "compile", "cuda_graphs", "resident_frames"}
WITHOUT_EFFECT = {
    "dropout_schedule": None,
    "input_dropout": 0.0,
    "average_share": 0.0,
    "max_norm": 0.0,
    "label_smoothing": 0.0,
    "feature_noise": 0.0,
    "time_warp": 0.0,
    "freq_warp": 0.0,
    "time_masks": 0,
    "time_mask_width": 5,
    "freq_masks": 0,
    "freq_mask_width": 8,
    "image_affine": 0.0,
    "image_elastic": 0.0,
    "image_jitter": 0,
    "view_share": 1.0,
    "schedule": "linear",
    "start_halving_impr": 0.01,
    "end_halving_impr": 0.001,
    "halving_factor": 0.5,
    "keep_lr_iters": 0,
    "min_iters": 0,
    "max_steps": None,
    "steps_per_epoch": None,
    "keep_best": "frame_acc",
    "patience": 0,
    "eight_bit_frames": False,
}
# Keys of the views, none of which has an effect where no window is seen so.
OF_VIEWS = {
    "feature_noise",
    "time_warp",
    "freq_warp",
    "time_masks",
    "time_mask_width",
    "freq_masks",
    "freq_mask_width",
    "image_affine",
    "image_elastic",
    "image_jitter",
    "view_share",
}


def hard_loss(train: LabelledSet, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy with the alignment's states, of which label_smoothing is spread over all states."""

    def loss(logits: torch.Tensor, index: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        labels = train.labels_of(index).flatten()
        weight = torch.ones(labels.shape, device=logits.device) / index.shape[-1]
        terms = [Term(hard_targets(labels), (1 - label_smoothing) * weight)]
        if label_smoothing:
            evenly = weight.new_full((), 1 / logits.shape[-1]).expand(len(labels), logits.shape[-1])
            terms.append(Term(SoftBatch(evenly), label_smoothing * weight))
        return cross_entropy(logits, terms)

    return loss


@dataclass
class Run:
    """One net to train.

    transfer_index: frames to train on, (n,) int32. loss_key: whatever loss, draw and initialise depend on, for the
    fingerprint. draw: the (n,) frames of a pass, where they are others in every pass, of a generator seeded by run and
    pass. initialise: what gives the net, on the CPU, other weights than random ones. start: a net of the same shape
    whose weights it begins with. looked_up: gives tensors of all frames, beside train.pdf, in which the loss looks up
    those of a batch. is_recordable: whether the loss does the same with whatever batch, and waits for nothing, so that
    a GPU may record it. compress: how it is pruned and quantized while it is trained, if at all.
    transfer: how these frames were chosen, for net.json; empty where they are all that have a label.
    world: the processes that train it together, each on its part of every batch.
    """

    out: Path
    seed: int
    config: DnnConfig
    train: LabelledSet
    dev: LabelledSet
    transfer_index: torch.Tensor | StreamedIndex
    loss: Loss
    loss_key: dict[str, Any]
    dtype: torch.dtype
    transfer: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[torch.Generator], torch.Tensor] | None = None
    initialise: Callable[[FrameClassifier], None] | None = None
    start: TrainedNet | None = None
    looked_up: Callable[[], Sequence[torch.Tensor]] = tuple
    is_recordable: bool = True
    compress: CompressConfig | None = None
    world: World = ALONE

    @property
    def fingerprint(self) -> str:
        """Digest of what the weights depend on, but for what changes their last bits alone, which is recorded."""
        left_out = NOT_IN_WEIGHTS if self.config.view_share else NOT_IN_WEIGHTS | OF_VIEWS
        config = {
            key: value
            for key, value in asdict(self.config).items()
            if key not in left_out and not (key in WITHOUT_EFFECT and value == WITHOUT_EFFECT[key])
        }
        return fingerprint(
            seed=self.seed,
            config=config,
            train=[self.train.content_digest, self.train.ali_digest, self.train.frames.layout.digest],
            dev=[self.dev.content_digest, self.dev.ali_digest, self.dev.frames.layout.digest],
            labels=self.train.labels,
            loss=self.loss_key,
            dtype=str(self.dtype),
            device=self.train.frames.device.type,
            **self._chosen_frames,
            **({"start": self.start.digest} if self.start else {}),
            **({"compress": self.compressed_by} if self.compressed_by else {}),
        )

    @property
    def compressed_by(self) -> dict[str, Any]:
        """The keys of compress that are in effect."""
        return self.compress.in_effect if self.compress else {}

    @property
    def pruning(self) -> Pruning | None:
        """How the net is pruned."""
        return Pruning(self.compress, self.config, self.num_steps) if "prune_sparsity" in self.compressed_by else None

    @property
    def quantization(self) -> Quantization | None:
        """To what the net's numbers are rounded."""
        keys = self.compressed_by
        return Quantization(keys["quantize"], keys.get("quantize_group", 0)) if "quantize" in keys else None

    @property
    def _chosen_frames(self) -> dict[str, str]:
        """A digest of transfer_index, unless it is every labelled frame of a set that is resident."""
        if isinstance(self.transfer_index, StreamedIndex):
            return {"transfer": self.transfer_index.digest}
        if torch.equal(self.transfer_index, self.train.labelled):
            return {}
        return {"transfer": digest_of(self.transfer_index.cpu().numpy())}

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
            dropout=max(config.dropout_schedule or [config.dropout]),
            input_dropout=config.input_dropout,
        )

    @property
    def steps_per_pass(self) -> int:
        """Of one pass over the frames to train on; its last batch may be smaller."""
        return -(-len(self.transfer_index) // self.config.batch_size)

    @property
    def num_steps(self) -> int:
        """Of the whole run: the budget, or num_epochs passes."""
        return self.config.max_steps or self.config.num_epochs * self.steps_per_pass

    @property
    def num_steps_before_average(self) -> int:
        """After these the weights are averaged; all, where they never are."""
        share = self.config.average_share
        return min(round((1.0 - share) * self.num_steps), self.num_steps - 1) if share else self.num_steps
