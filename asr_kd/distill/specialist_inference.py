"""Answers of a generalist and its specialists: the distribution q that is nearest to all of them.

Hinton, Vinyals & Dean 2015, section 5.4: q minimises KL(p_g, q) + Σ_{m∈A} KL(p_m, q), where A are the specialists for a
state that is among the generalist's top_n, and the states outside of a specialist's set count as one, its dustbin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asr_kd.distill.specialists import Specialist
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.nnet.net_dir import TrainedNet

# In place of arithmetic or geometric, of the nets [generalist, specialist, …].
SPECIALISTS = "specialists"
_SMALLEST = 1e-30


@dataclass(frozen=True)
class SpecialistAnswers:
    """Of M specialists for a batch of frames; those that were not called on answer 0 everywhere.

    special: (batch, N), the sum over called specialists of what they give to their states. dustbin: (batch, M), what
    each gives to all others. called: (batch, M) bool. membership: (M, N) bool, the states of each.
    """

    special: torch.Tensor
    dustbin: torch.Tensor
    called: torch.Tensor
    membership: torch.Tensor

    def of(self, rows: torch.Tensor) -> "SpecialistAnswers":
        """Those for some of the frames."""
        return SpecialistAnswers(self.special[rows], self.dustbin[rows], self.called[rows], self.membership)


def objective(q: torch.Tensor, p_g: torch.Tensor, answers: SpecialistAnswers) -> torch.Tensor:
    """KL(p_g, q) + Σ KL(p_m, q) of every frame, (batch,), up to the entropies of p_g and p_m, which q does not change.

    −Σ_j (p_g + special)_j log q_j − Σ_m dustbin_m log Σ_{j∉S_m} q_j: convex in q, as a sum of −log of linear functions.
    """
    outside = q @ (~answers.membership).to(q.dtype).T
    return -torch.xlogy(p_g + answers.special, q).sum(dim=1) - torch.xlogy(answers.dustbin, outside).sum(dim=1)


def em_step(q: torch.Tensor, p_g: torch.Tensor, answers: SpecialistAnswers) -> torch.Tensor:
    """One step of expectation-maximisation, (batch, N); it never raises the objective.

    The objective is the likelihood of grouped observations (Dempster, Laird & Rubin 1977, section 4.1): a dustbin is an
    observation of which only the group is known. E: it is shared out over the group in proportion to q. M: q is the
    mean of the 1 + |A| completed distributions. No array (batch, M, N) is made.
    """
    others = (~answers.membership).to(q.dtype)
    share = answers.dustbin / (q @ others.T).clamp(min=_SMALLEST)
    total = 1 + answers.called.sum(dim=1, keepdim=True)
    return (p_g + answers.special + q * (share @ others)) / total


def nearest_to_all(
    p_g: torch.Tensor, answers: SpecialistAnswers, *, tolerance: float = 1e-9, max_steps: int = 1000
) -> torch.Tensor:
    """The q above for every frame, (batch, N), by EM; a frame for which no specialist is called keeps p_g.

    A frame is done when a step lowers its objective by less than `tolerance` nats, so p_g is best float64. EM begins
    next to p_g, which is the answer outside of the sets where one specialist is called, but gives every state
    something: what begins at 0 would stay there.
    """
    q = p_g.clone()
    rows = torch.nonzero(answers.called.any(dim=1)).squeeze(1)
    q[rows] = 0.999 * q[rows] + 0.001 / q.shape[1]
    before = objective(q[rows], p_g[rows], answers.of(rows))
    for _ in range(max_steps):
        if not len(rows):
            break
        here = answers.of(rows)
        q[rows] = em_step(q[rows], p_g[rows], here)
        now = objective(q[rows], p_g[rows], here)
        going_on = before - now > tolerance
        rows, before = rows[going_on], now[going_on]
    return q


class SpecialistEnsemble:
    """A generalist and its specialists on one device, answering batches of windows."""

    def __init__(self, members: Sequence[TrainedNet], top_n: int, dtype: torch.dtype):
        """members: the generalist first. Raises AsrKdError for members that do not belong together."""
        check_specialists(members)
        if top_n < 1:
            raise AsrKdError(f"top_n {top_n}: must be at least 1")
        self._generalist, *self._nets = [member.net for member in members]
        self._specialists = [Specialist.of(member) for member in members[1:]]
        device = next(self._generalist.parameters()).device
        self._membership = torch.stack([specialist.membership(device) for specialist in self._specialists])
        self._top_n = min(top_n, self._membership.shape[1])
        self._dtype = dtype

    @torch.no_grad()
    def log_posteriors(self, windows: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """log softmax(log q / temperature), (batch, N) float32: q softened as a net with the logits log q would be."""
        with autocast(windows.device, self._dtype):
            logits = self._generalist(windows)
        p_g = logits.double().softmax(dim=1)
        q = nearest_to_all(p_g, self._answers(windows, p_g))
        return (q.clamp(min=_SMALLEST).log() / temperature).log_softmax(dim=1).float()

    def _answers(self, windows: torch.Tensor, p_g: torch.Tensor) -> SpecialistAnswers:
        """Each specialist is run on the frames that call it, and on no other."""
        top = p_g.topk(self._top_n, dim=1).indices
        called = self._membership.T[top].any(dim=1)
        special, dustbin = torch.zeros_like(p_g), torch.zeros_like(called, dtype=p_g.dtype)
        for number, (net, specialist) in enumerate(zip(self._nets, self._specialists, strict=True)):
            rows = torch.nonzero(called[:, number]).squeeze(1)
            if not len(rows):
                continue
            with autocast(windows.device, self._dtype):
                logits = net(windows[rows])
            p_m = specialist.log_posteriors(logits).exp().to(p_g.dtype)
            classes = torch.tensor(specialist.classes, device=rows.device)
            special[rows[:, None], classes] += p_m[:, :-1]
            dustbin[rows, number] = p_m[:, -1]
        return SpecialistAnswers(special, dustbin, called, self._membership)


def check_specialists(members: Sequence[TrainedNet]) -> None:
    """Raise AsrKdError unless `members` are a generalist and specialists that started from it, on the same inputs."""
    generalist, *others = members
    if Specialist.of(generalist) is not None:
        raise AsrKdError("combination specialists: the generalist must come first, but the first net is a specialist")
    if not others:
        raise AsrKdError("combination specialists: needs a generalist and at least one specialist")
    digest, a = generalist.digest, generalist.net.architecture
    for member in others:
        specialist, b = Specialist.of(member), member.net.architecture
        if specialist is None:
            raise AsrKdError("combination specialists: all nets but the first must be made by asr-kd train-specialists")
        if specialist.generalist != digest or specialist.model_digest != generalist.labels["model_digest"]:
            raise AsrKdError("combination specialists: a specialist was trained beside another generalist")
        if (a.left_context, a.right_context, generalist.cmvn.mode, generalist.front_end) != (
            b.left_context,
            b.right_context,
            member.cmvn.mode,
            member.front_end,
        ):
            raise AsrKdError("combination specialists: a specialist hears other features than the generalist")
