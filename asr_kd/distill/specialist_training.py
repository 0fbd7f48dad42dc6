"""Training specialists through the one loop: from the generalist's weights, on frames of which half are special.

Hinton, Vinyals & Dean 2015, sections 5.2 and 6.1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from asr_kd.cli_common import log
from asr_kd.config import DnnConfig, SpecialistsConfig
from asr_kd.corpus.processes import end_with_parent, run_apart
from asr_kd.distill.soft_targets import OnlineTargets, SoftTargets
from asr_kd.distill.specialists import Specialist
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets
from asr_kd.training.data import LabelledSet
from asr_kd.training.loop import train_net
from asr_kd.training.run import Loss, Run, hard_loss

# Frames on which the bias of a new dustbin is fitted.
_BIAS_FRAMES = 4096


class HalfSpecial:
    """Draws the frames of a pass: every special one, and as many others, drawn anew for every pass."""

    def __init__(self, train: LabelledSet, special: torch.Tensor):
        """special: (N,) bool. Raises AsrKdError where no frame, or every one, is special."""
        is_special = special[train.labels_of(train.labelled)]
        self._special, self._others = train.labelled[is_special], train.labelled[~is_special]
        if not len(self._special) or not len(self._others):
            raise AsrKdError("a specialist needs frames of its states and of others; take other num_specialists")

    @property
    def prior(self) -> float:
        """Share of the special frames."""
        return len(self._special) / (len(self._special) + len(self._others))

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """Frame numbers (2 n,) int32 of n special frames and n others, of which none comes twice before all came."""
        num = len(self._special)
        rounds = -(-num // len(self._others))
        drawn = torch.cat([torch.randperm(len(self._others), generator=generator) for _ in range(rounds)])[:num]
        return torch.cat([self._special, self._others[drawn.to(self._others.device)]])


def balanced(dev: LabelledSet, specialist: Specialist, seed: int) -> LabelledSet:
    """`dev` as training sees its set: equally many special frames and others keep their label, turned local.

    All keep it where one of the two kinds is missing.
    """
    frames = dev.labelled
    is_special = specialist.membership(dev.pdf.device)[dev.labels_of(frames)]
    num = min(int(is_special.sum()), int((~is_special).sum())) or len(frames)
    generator = torch.Generator().manual_seed(seed)
    pdf = torch.full_like(dev.pdf, -1)
    for kind in (frames[is_special], frames[~is_special]):
        kept = kind[torch.randperm(len(kind), generator=generator)[:num].to(kind.device)].long()
        pdf[kept] = dev.pdf[kept]
    return _localised(replace(dev, pdf=pdf), specialist)


def _localised(data: LabelledSet, specialist: Specialist) -> LabelledSet:
    pdf = specialist.local_labels(data.pdf)
    return replace(data, pdf=pdf, num_pdfs=specialist.num_outputs, labels=specialist.labels)


def initialise_from(
    generalist: FrameClassifier, specialist: Specialist, log_sum_gap: float
) -> Callable[[FrameClassifier], None]:
    """What gives a specialist's net the generalist's weights, so that it begins with nearly the same answers.

    The dustbin's logit should be log Σ_j exp(z_j) over the others. Its row is the mean of theirs, whose logit is
    mean_j z_j; the bias adds log_sum_gap, what log Σ_j exp(z_j) exceeds mean_j z_j by on the mean over frames. Beside,
    the correction for the sampling is taken off what is not special, so that it comes to nothing before training.
    """
    special = specialist.membership(torch.device("cpu"))

    @torch.no_grad()
    def initialise(net: FrameClassifier) -> None:
        for ours, theirs in zip(net.linear[:-1], generalist.linear[:-1], strict=True):
            ours.load_state_dict(theirs.state_dict())
        weight, bias = (tensor.detach().cpu() for tensor in (generalist.linear[-1].weight, generalist.linear[-1].bias))
        if specialist.outputs == "full":
            bias = bias - specialist.correction * ~special
        else:
            weight = torch.cat([weight[special], weight[~special].mean(dim=0, keepdim=True)])
            dustbin = bias[~special].mean() + log_sum_gap - specialist.correction
            bias = torch.cat([bias[special], dustbin[None]])
        net.linear[-1].load_state_dict({"weight": weight, "bias": bias})

    return initialise


@torch.inference_mode()
def log_sum_gap(
    generalist: FrameClassifier, specialist: Specialist, train: LabelledSet, index: torch.Tensor, dtype: torch.dtype
) -> float:
    """Mean over frames `index` of log Σ exp(z_j) − mean z_j over the generalist's logits of what is not special."""
    windows = train.frames.windows(index[:: max(1, len(index) // _BIAS_FRAMES)].long())
    with autocast(windows.device, dtype):
        logits = generalist(windows)
    logits = logits.float()[:, ~specialist.membership(logits.device)]
    return float((logits.logsumexp(dim=1) - logits.mean(dim=1)).mean())


def specialist_loss(local: LabelledSet, specialist: Specialist, teacher: SoftTargets | None) -> Loss:
    """Cross-entropy with the local labels; with a teacher, its soft targets take the place of labels not special.

    Soft targets on the other states keep a specialist from overfitting to its own (section 6.1); they weigh T².
    """
    if teacher is None:
        return hard_loss(local)
    special = torch.zeros(specialist.num_outputs, dtype=torch.bool, device=local.pdf.device)
    special[specialist.local_labels(torch.tensor(specialist.classes, device=special.device))] = True

    def loss(logits: torch.Tensor, index: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        labels = local.labels_of(index)
        others = ~special[labels]
        prob = teacher.batch(index[others], windows[others]).prob
        targets = SoftBatch(specialist.local_targets(prob))
        weight = torch.ones(labels.shape, device=labels.device) / len(index)
        soft = Term(targets, weight[others] * teacher.temperature**2, teacher.temperature)
        hard = Term(hard_targets(labels[~others]), weight[~others])
        return cross_entropy(logits[others], [soft]) + cross_entropy(logits[~others], [hard])

    return loss


@dataclass(frozen=True)
class SpecialistTraining:
    """All that the specialists of one generalist have in common; `dnn` has the generalist's shape and context."""

    generalist: TrainedNet
    config: SpecialistsConfig
    dnn: DnnConfig
    temperature: float
    train: LabelledSet
    dev: LabelledSet
    dtype: torch.dtype

    def specialist(self, classes: Sequence[int]) -> Specialist:
        """The one for `classes`."""
        special = torch.zeros(self.train.num_pdfs, dtype=torch.bool, device=self.train.pdf.device)
        special[torch.as_tensor(np.asarray(classes), device=special.device)] = True
        return Specialist(
            classes=tuple(int(pdf) for pdf in classes),
            num_pdfs=self.train.num_pdfs,
            prior=HalfSpecial(self.train, special).prior,
            outputs=self.config.specialist_outputs,
            generalist=self.generalist.digest,
            model_digest=self.train.labels["model_digest"],
        )

    def run(self, out: Path, specialist: Specialist, seed: int) -> Run:
        """The specialist as the one training loop takes it."""
        draw = HalfSpecial(self.train, specialist.membership(self.train.pdf.device))
        first_draw = draw(torch.Generator().manual_seed(seed))
        local = _localised(self.train, specialist)
        net, teacher = self.generalist.net, None
        if self.config.specialist_soft_targets:
            teacher = OnlineTargets([self.generalist], self.temperature, "arithmetic", self.dtype)
        return Run(
            out=out,
            seed=seed,
            config=replace(
                self.dnn,
                num_epochs=self.config.specialist_epochs,
                learning_rate=self.config.specialist_learning_rate,
                label_smoothing=0.0,  # a recipe's configuration has it for the members
                max_steps=None,
                steps_per_epoch=None,
            ),
            train=local,
            dev=balanced(self.dev, specialist, seed),
            transfer_index=first_draw,
            loss=specialist_loss(local, specialist, teacher),
            loss_key={"kind": "specialist", "soft_targets": None if teacher is None else teacher.temperature},
            dtype=self.dtype,
            draw=draw,
            is_recordable=teacher is None,  # which frames it labels is another number in every batch
            initialise=initialise_from(
                net, specialist, log_sum_gap(net, specialist, self.train, first_draw, self.dtype)
            ),
        )


def train_specialists(training: SpecialistTraining, jobs: Mapping[Path, Sequence[int]], seed: int, nj: int) -> None:
    """Train a specialist for the classes of every folder in `jobs`: in turn, or `nj` at a time, each in a process.

    Processes share the frames of a CPU; on a GPU, which one net keeps busy, the specialists are trained in turn. A
    process has the nj-th part of the threads, on whose number the weights depend in their last bits.
    """
    numbered = [
        (out, training.specialist(classes), seed + number) for number, (out, classes) in enumerate(jobs.items())
    ]
    if nj == 1 or training.train.pdf.device.type != "cpu":
        for job in numbered:
            train_net(training.run(*job))
        return
    num_threads = max(1, torch.get_num_threads() // nj)
    tasks = [(training, num_threads, *job) for job in numbered]
    run_apart(_train_apart, tasks, nj, [__name__], lambda done: log(f"{done} of {len(tasks)} specialists"))


def _train_apart(training: SpecialistTraining, num_threads: int, out: Path, specialist: Specialist, seed: int) -> None:
    end_with_parent()
    torch.set_num_threads(num_threads)
    train_net(training.run(out, specialist, seed))
