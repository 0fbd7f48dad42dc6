"""Output biases of classes that the transfer set lacked or had too many of.

Hinton, Vinyals & Dean 2015, section 3: a student that never saw a 3 has learned from the soft targets what one looks
like, and errs over its bias alone. The paper raises that bias "to optimize overall performance on the test set"
(`common_bias_for_accuracy` here, which needs labels). `bias_for_shares` needs none: it asks that over unlabelled
frames the classes have, on average, the posteriors that the teacher (or what is known of the corpus) gives them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import TrainedNet

# Newton's steps are held to this many nats, since posteriors near 0 and 1 leave it hardly any curvature to go by.
_LONGEST_STEP = 4.0
_MAX_STEPS = 500


def bias_for_shares(
    log_post: torch.Tensor, classes: Sequence[int], shares: Sequence[float] | torch.Tensor, tolerance: float = 1e-6
) -> torch.Tensor:
    """Biases to add to the logits of `classes`, so that the mean posterior of each is its share.

    log_post: (n, num_pdfs), in nats, of any frames like those to come, unlabelled; shares: (len(classes),), all above
    0. Returns (len(classes),) float64. All classes are solved for together: the biases are the minimum of the convex
    mean_n log Σ_j p_nj exp(b_j) − Σ_c share_c b_c, found by damped Newton steps to a relative `tolerance` of every
    share. Where `classes` are all there are, biases are determined up to a constant; then their sum is 0.

    Raises AsrKdError for shares that no biases give.
    """
    return bias_for_reduced(reduce_classes(log_post, classes), shares, tolerance)


def reduce_classes(log_post: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """What bias_for_shares needs to know of a frame: log posteriors of `classes`, and of all others together.

    (n, num_pdfs) → (n, len(classes) + 1) float64; the last column is −inf where there are no others.
    """
    num_pdfs = log_post.shape[1]
    if not classes or len(set(classes)) != len(classes) or not all(0 <= c < num_pdfs for c in classes):
        raise AsrKdError(f"classes {list(classes)}: expected different ones from 0 to {num_pdfs - 1}")
    others = torch.ones(num_pdfs, dtype=torch.bool, device=log_post.device)
    others[list(classes)] = False
    log_post = log_post.double()
    rest = log_post[:, others].logsumexp(dim=1) if others.any() else log_post.new_full((len(log_post),), -torch.inf)
    return torch.cat([log_post[:, list(classes)], rest[:, None]], dim=1)


def bias_for_reduced(
    reduced: torch.Tensor, shares: Sequence[float] | torch.Tensor, tolerance: float = 1e-6
) -> torch.Tensor:
    """bias_for_shares of what reduce_classes gives."""
    shares = torch.as_tensor(shares, dtype=torch.float64, device=reduced.device)
    _check_shares(reduced, shares)
    # Of all classes, only differences matter: the sum of the biases is kept at 0.
    all_classes = bool(torch.isinf(reduced[:, -1]).all())
    shares = shares / shares.sum() if all_classes else shares
    mean = reduced[:, :-1].exp().mean(dim=0)
    bias = torch.zeros_like(shares) if all_classes else shares.log() - mean.clamp(min=1e-300).log()

    def posteriors(bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.cat([reduced[:, :-1] + bias, reduced[:, -1:]], dim=1)
        log_sum = scores.logsumexp(dim=1, keepdim=True)
        return (scores - log_sum).exp()[:, :-1], log_sum.mean() - shares @ bias

    post, value = posteriors(bias)
    for _ in range(_MAX_STEPS):
        gradient = post.mean(dim=0) - shares
        if (gradient.abs() <= tolerance * shares).all():
            return bias
        hessian = torch.diag(post.mean(dim=0)) - post.T @ post / len(post)
        step = torch.linalg.lstsq(hessian.cpu(), -gradient.cpu(), driver="gelsd").solution.to(bias.device)
        step = step * min(1.0, _LONGEST_STEP / float(step.abs().max().clamp(min=1e-12)))
        # A step that went uphill, as it may where the curvature is all rounding, is replaced by one of scaling.
        if not float(step @ gradient) < 0:
            step = (shares.log() - post.mean(dim=0).clamp(min=1e-300).log()).clamp(-_LONGEST_STEP, _LONGEST_STEP)
        step = step - step.mean() if all_classes else step
        post, value, bias = _step_downhill(posteriors, bias, step, value, float(step @ gradient))
    raise AsrKdError(f"no biases were found that give the shares {[round(float(s), 6) for s in shares]}")


def _step_downhill(
    posteriors: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor,
    step: torch.Tensor,
    value: torch.Tensor,
    slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posteriors, objective and biases after the longest of step, step/2, step/4, … that lowers the objective enough.

    Enough is Armijo's rule; slope is that of the objective along `step`.
    """
    for halvings in range(40):
        candidate = bias + step / 2**halvings
        post, new_value = posteriors(candidate)
        # Close to the minimum the objective's own rounding is all that is left to compare.
        if float(new_value) <= float(value) + 1e-4 * slope / 2**halvings + 1e-12:
            return post, new_value, candidate
    raise AsrKdError("the biases cannot be determined: the posteriors are not numbers, or are all 0 or 1")


def _check_shares(reduced: torch.Tensor, shares: torch.Tensor) -> None:
    num_classes = reduced.shape[1] - 1
    if not len(reduced) or shares.shape != (num_classes,):
        raise AsrKdError(f"{len(shares)} shares and {len(reduced)} frames were given for {num_classes} classes")
    total = float(shares.sum())
    complete = bool(torch.isinf(reduced[:, -1]).all())
    if not ((shares > 0).all() and (abs(total - 1) < 1e-3 if complete else total < 1)):
        what = "sum to 1, as these are all classes" if complete else "sum to less than 1"
        raise AsrKdError(f"shares {[round(float(s), 6) for s in shares]}: each must be above 0, and all must {what}")
    if torch.isinf(reduced[:, :-1]).all(dim=0).any() or torch.isnan(reduced).any():
        raise AsrKdError("a class has the posterior 0 (or none) on every frame; no bias changes that")


def common_bias_for_accuracy(log_post: torch.Tensor, labels: torch.Tensor, classes: Sequence[int]) -> float:
    """The one bias, added to all of `classes`, with which most labelled frames are right: the paper's, test-tuned.

    log_post: (n, num_pdfs); labels: (n,) int64, frames below 0 are passed over. The optimum is exact: accuracy changes
    only where a frame's best of `classes` overtakes its best of the others. Of the interval of best biases the middle
    is returned, or a nat beyond its end where it has but one. Whoever reports what it does on the same frames says so.
    """
    labelled = labels >= 0
    if not labelled.any():
        raise AsrKdError("not one frame has a label; a test-tuned bias needs them")
    overtakes, gain = overtaking(log_post[labelled], labels[labelled], classes)
    return bias_at_maximum(overtakes, gain)


def overtaking(
    log_post: torch.Tensor, labels: torch.Tensor, classes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """At which bias of `classes` each frame's answer becomes one of them, and by how much it is then righter.

    Returns (n,) float64 and (n,) int64: 1 where the wrong answer becomes right, −1 where the right one becomes wrong.
    """
    inside = torch.zeros(log_post.shape[1], dtype=torch.bool, device=log_post.device)
    inside[list(classes)] = True
    if inside.all() or not inside.any():
        raise AsrKdError("a common bias of all classes, or of none, changes nothing")
    own = log_post.double().masked_fill(~inside, -torch.inf).max(dim=1)
    other = log_post.double().masked_fill(inside, -torch.inf).max(dim=1)
    gain = (own.indices == labels).long() - (other.indices == labels).long()
    return other.values - own.values, gain


def bias_at_maximum(overtakes: torch.Tensor, gain: torch.Tensor) -> float:
    """The bias with the largest sum of `gain` over the frames that it overtakes; see common_bias_for_accuracy."""
    order = overtakes.argsort()
    at, gain = overtakes[order], gain[order]
    total = torch.cat([gain.new_zeros(1), gain.cumsum(0)])
    # Between equal thresholds no bias lies.
    possible = torch.ones_like(total, dtype=torch.bool)
    possible[1:-1] = at[1:] > at[:-1]
    total = total.masked_fill(~possible, torch.iinfo(total.dtype).min)
    # Of equally good intervals the one whose middle is nearest to no bias.
    low = torch.cat([at.new_full((1,), -torch.inf), at])
    high = torch.cat([at, at.new_full((1,), torch.inf)])
    candidates = torch.nonzero(total == total.max()).flatten().tolist()
    middles = [_middle(float(low[c]), float(high[c])) for c in candidates]
    return min(middles, key=abs)


def _middle(low: float, high: float) -> float:
    """Of an interval; of one without an end the number nearest to 0 that lies a nat inside."""
    if low == -torch.inf:
        return min(0.0, high - 1.0)
    if high == torch.inf:
        return max(0.0, low + 1.0)
    return (low + high) / 2


def corrected(trained: TrainedNet, classes: Sequence[int], biases: torch.Tensor, record: dict[str, Any]) -> TrainedNet:
    """`trained` with `biases` (len(classes),) added to its output biases of `classes`; `record` joins its description.

    The net is changed in place.
    """
    output = trained.net.layers[-1].bias
    with torch.no_grad():
        output[list(classes)] += biases.to(output)
    record = {"pdfs": list(classes), "biases": [float(b) for b in biases], **record}
    return replace(trained, training={**trained.training, "bias_correction": record})
