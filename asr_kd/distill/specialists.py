"""What a specialist is: a net that knows the states which a generalist confuses, and a dustbin for all others.

Hinton, Vinyals & Dean 2015, section 5.2. A specialist sees its own states in half of its training frames; its answers
are corrected for that here.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from asr_kd.nnet.net_dir import TrainedNet


@dataclass(frozen=True)
class Specialist:
    """What a specialist answers for; its net's card holds this as labels.specialist.

    classes: its K special states, in order; num_pdfs: N, of the HMM; prior: π, their share of the labelled training
    frames; outputs: dustbin (K + 1 logits: the classes, then the dustbin) or full (N); generalist: digest of the net
    that it starts from and answers beside; model_digest: of the HMM.
    """

    classes: tuple[int, ...]
    num_pdfs: int
    prior: float
    outputs: str
    generalist: str
    model_digest: str

    @classmethod
    def of(cls, trained: TrainedNet) -> "Specialist | None":
        """Read from a net's card; None where the net is no specialist."""
        about = trained.labels.get("specialist")
        return None if about is None else cls(**{**about, "classes": tuple(about["classes"])})

    @property
    def labels(self) -> dict[str, Any]:
        """For the card: by the model's digest whoever knows nothing of specialists refuses the net."""
        digest = f"specialist of {self.model_digest}"
        return {"num_pdfs": self.num_outputs, "model_digest": digest, "specialist": asdict(self)}

    @property
    def num_outputs(self) -> int:
        """Logits of its net."""
        return self.num_pdfs if self.outputs == "full" else len(self.classes) + 1

    @property
    def correction(self) -> float:
        """log((1 − π) / π), for the logits of all that is not special.

        Training saw special frames at a share of a half in place of π, so that the odds of the others against them
        came out too small by (1 − π) / π.
        """
        return math.log((1.0 - self.prior) / self.prior)

    def membership(self, device: torch.device) -> torch.Tensor:
        """Whether a state is special, (N,) bool."""
        mask = torch.zeros(self.num_pdfs, dtype=torch.bool, device=device)
        mask[list(self.classes)] = True
        return mask

    def local_labels(self, pdf: torch.Tensor) -> torch.Tensor:
        """The net's output for each state, of the dtype and shape of `pdf`; −1 stays."""
        if self.outputs == "full":
            return pdf
        local = torch.full((self.num_pdfs + 1,), len(self.classes), dtype=pdf.dtype, device=pdf.device)
        local[list(self.classes)] = torch.arange(len(self.classes), dtype=pdf.dtype, device=pdf.device)
        local[-1] = -1
        return local[pdf.long()]

    def local_targets(self, prob: torch.Tensor) -> torch.Tensor:
        """Probabilities (batch, N) of all states, summed to those of the net's outputs."""
        if self.outputs == "full":
            return prob
        special = prob[:, list(self.classes)]
        rest = (prob.sum(dim=1) - special.sum(dim=1)).clamp(min=0.0)
        return torch.cat([special, rest[:, None]], dim=1)

    def log_posteriors(self, logits: torch.Tensor) -> torch.Tensor:
        """Corrected log posteriors of the classes and the dustbin, (batch, K + 1) float32, of the net's logits."""
        others = ~self.membership(logits.device)
        if self.outputs == "dustbin":
            others = torch.arange(self.num_outputs, device=logits.device) == len(self.classes)
        log_post = (logits.float() + self.correction * others).log_softmax(dim=1)
        rest = log_post.masked_fill(~others, -math.inf).logsumexp(dim=1, keepdim=True)
        special = log_post[:, : len(self.classes)] if self.outputs == "dustbin" else log_post[:, list(self.classes)]
        return torch.cat([special, rest], dim=1)
