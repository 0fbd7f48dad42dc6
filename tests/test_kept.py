import numpy as np
import pytest
import torch
from cross_entropies import summed
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd import config
from asr_kd.distill.kept import drawn, fewest, kept, largest
from asr_kd.errors import AsrKdError
from asr_kd.store.log_codes import decoded, encoded, probabilities, ratios
from asr_kd.training.cross_entropy import SoftBatch


def distributions(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def spread(targets: SoftBatch, num_pdfs: int) -> torch.Tensor:
    """The targets of all states, (n, num_pdfs) float64."""
    prob = targets.prob.double()
    return torch.zeros(len(prob), num_pdfs, dtype=torch.float64).scatter_add(1, targets.pdf, prob)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 12), st.sampled_from([0.0, 1.0, 3.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_every_target_drawn_at_random_has_the_expectation_that_it_had(seed, num_pdfs, top_k, scale):
    """Over draws that are spread evenly, where float16 is rounded to with even chances: no statistics needed."""
    top_k, number, places = min(top_k, num_pdfs), 200, 5
    prob = distributions(seed, num_pdfs, scale=scale)
    draw = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    rounding = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    rows = prob.expand(number * places, -1)
    targets = drawn(rows, top_k, draw.repeat(places), rounding.repeat_interleave(number)[:, None].expand(-1, top_k))
    threshold = float(targets.prob.min())
    error = spread(targets, num_pdfs).mean(dim=0) - prob.double()
    rounded = 2.0**-10 * prob + 2.0**-24  # a step of float16
    assert (error.abs() <= threshold / number + rounded / places).all()


@given(st.integers(0, 1000), st.integers(1, 3000), st.integers(1, 40), st.sampled_from([0.0, 1.0, 3.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_in_eight_bits_targets_keep_their_sum_and_their_ratios(seed, num_pdfs, top_k, scale):
    targets = largest(distributions(seed, 50, num_pdfs, scale=scale), min(top_k, num_pdfs))
    codes = encoded(targets.prob)
    found = decoded(codes, targets.tail, ratios(codes.device))
    total = found.double().sum(dim=-1) + targets.tail.double()
    torch.testing.assert_close(total, torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-3)
    is_kept = targets.prob > 2.0**-16
    ratio = (found / targets.prob.float())[is_kept]
    assert (ratio.log2().abs() <= 16 / 254 + 0.03).all()  # half a step its own and half the sum's, and the tail's bits
    assert (found[~is_kept] <= 2.0**-15).all()
    stored = probabilities(codes.numpy(), targets.tail.numpy())
    np.testing.assert_array_equal(stored, found.half().numpy())
    assert probabilities(stored, None) is stored


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 12), st.sampled_from([0.1, 3.0, 10.0]))
@settings(max_examples=30, deadline=None)
def test_drawn_are_k_states_the_large_ones_as_they_are_and_the_others_at_one_threshold(seed, num_pdfs, top_k, scale):
    top_k = min(top_k, num_pdfs)
    prob = distributions(seed, 10, num_pdfs, scale=scale)
    targets = kept(prob, top_k, "random", 0)
    assert targets.tail is None
    for row, pdf, found in zip(prob, targets.pdf, targets.prob.float(), strict=True):
        assert len(pdf.unique()) == top_k
        # As they are, but for a step of float16 up or down.
        whole = (found - row[pdf]).abs() <= 2.0**-10 * found + 2.0**-24
        threshold = found[~whole]
        assert (threshold > row[pdf[~whole]]).all()
        if len(threshold):
            torch.testing.assert_close(threshold, threshold[:1].expand_as(threshold), rtol=2.0**-9, atol=2.0**-23)


def test_draws_depend_on_the_frame_and_not_on_the_block():
    prob = distributions(1, 30, 50)
    whole = kept(prob, 6, "random", 100)
    parts = [kept(prob[:13], 6, "random", 100), kept(prob[13:], 6, "random", 113)]
    for name in ("prob", "pdf"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert not torch.equal(whole.pdf, kept(prob, 6, "random", 101).pdf)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_on_drawn_targets_is_that_on_all_targets_in_the_mean(temperature):
    number, num_pdfs = 20_000, 40
    prob, z = distributions(2, num_pdfs), 2 * torch.randn(num_pdfs, generator=torch.Generator().manual_seed(3))
    gradients = []
    for targets in (kept(prob.expand(number, -1), 8, "random", 0), SoftBatch(prob[None])):
        logits = z.repeat(len(targets.prob), 1).requires_grad_()
        summed(logits, targets, temperature).backward()
        gradients.append(logits.grad.double())
    error = gradients[0].mean(dim=0) - gradients[1][0]
    assert (error.abs() <= 5 * gradients[0].std(dim=0) / number**0.5 + 1e-6).all()
    assert gradients[0].std(dim=0).max() > 0.01


def lost(prob: torch.Tensor, top_k: int) -> float:
    """KL(p ‖ p with its tail divided as the mean of all frames divides it), by the definition."""
    p, mean = prob.double(), prob.double().mean(dim=0)
    top = torch.zeros_like(p, dtype=torch.bool).scatter(1, p.topk(top_k, dim=1).indices, True)
    rest = torch.where(top, 0.0, mean.expand_as(p))
    tail = torch.where(top, 0.0, p).sum(dim=1, keepdim=True)
    stored = torch.where(top, p, tail * rest / rest.sum(dim=1, keepdim=True))
    return float((torch.xlogy(p, p) - torch.xlogy(p, stored)).sum(dim=1).mean())


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(1e-4, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_fewest_targets_are_those_that_lose_just_not_too_much(seed, num_pdfs, max_kl):
    prob = distributions(seed, 300, num_pdfs)
    top_k, found = fewest(prob, max_kl)
    assert found <= max_kl
    if top_k < num_pdfs:
        assert found == pytest.approx(lost(prob, top_k), abs=1e-6)
    if top_k > 1:
        assert lost(prob, top_k - 1) > max_kl - 1e-6


def test_where_all_frames_are_alike_one_target_is_enough():
    assert fewest(distributions(4, 10).expand(20, -1), 1e-9)[0] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top_k": 8, "top_k_kl": 0.01}, "top_k to null"),
        ({"top_k_kl": 0}, "above 0"),
        ({"target_pruning": "random"}, "needs top_k"),
        ({"target_pruning": "mass"}, "tail or random"),
        ({"target_bits": 4, "top_k": 3}, "16 or 8"),
        ({"target_bits": 8}, "set top_k or top_k_kl"),
        ({"target_bits": 8, "top_k": 3, "target_pruning": "random"}, "target_pruning to tail"),
    ],
)
def test_what_cannot_be_kept_is_refused(keys, message):
    with pytest.raises(AsrKdError, match=message):
        config.resolve(config.DistillConfig, keys)
