import pytest
import torch
from cross_entropies import plain, summed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from asr_kd.training import cross_entropy as module
from asr_kd.training import cross_entropy_cpu
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets

BATCH, NUM_PDFS = 7, 9
KINDS = ("hard", "dense", "top", "top of all", "named alone", "named twice")


def random(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(kind: str, seed: int) -> SoftBatch:
    """Targets of every form that a file or a batch of labels can have."""
    if kind == "hard":
        return hard_targets(torch.randint(-1, NUM_PDFS, (BATCH,), generator=torch.Generator().manual_seed(seed)))
    prob = random(seed, BATCH, NUM_PDFS).softmax(dim=-1)
    if kind == "dense":
        return SoftBatch(prob)
    top = prob.topk(NUM_PDFS if kind == "top of all" else 3, dim=-1)
    tail = (1 - top.values.sum(dim=-1)).clamp(min=0)
    if kind == "named twice":  # as the frames of foreign targets that have fewer entries than others
        no_mass = torch.zeros(BATCH, 1, dtype=torch.float64)
        return SoftBatch(torch.cat([top.values, no_mass], 1), torch.cat([top.indices, top.indices[:, :1]], 1), tail)
    return SoftBatch(top.values, top.indices, None if kind == "named alone" else tail)


def both(logits: torch.Tensor, terms: list[Term]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Loss and gradient of the one under test, and of the plain formula through autograd."""
    found = []
    for loss in (
        lambda z: cross_entropy(z, terms),
        lambda z: sum((plain(z, targets, temperature) * weight).sum() for targets, weight, temperature in terms),
    ):
        z = logits.clone().requires_grad_()
        value = loss(z)
        (2 * value).backward()
        found.append((value.detach(), z.grad))
    return found


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1.0, 2.0, 5.0])), min_size=1, max_size=3),
    st.sampled_from([1, 2, 100]),
)
@settings(max_examples=60, deadline=None)
def test_loss_and_gradient_are_those_of_the_plain_formula(seed, kinds, rows):
    terms = [
        Term(targets_of(kind, seed + n), random(seed + 10 + n, BATCH), temperature)
        for n, (kind, temperature) in enumerate(kinds)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "rows_at_once", lambda device, row_size: rows)
        found, expected = both(random(seed + 20, BATCH, NUM_PDFS), terms)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope_of_the_loss(kind):
    targets, z = targets_of(kind, 1), random(2, BATCH, NUM_PDFS).requires_grad_()
    summed(z, targets, 2.0).backward()
    step = 1e-6 * torch.eye(BATCH * NUM_PDFS, dtype=torch.float64).view(-1, BATCH, NUM_PDFS)
    slope = [float(summed(z.detach() + s, targets, 2.0) - summed(z.detach() - s, targets, 2.0)) / 2e-6 for s in step]
    torch.testing.assert_close(z.grad, torch.tensor(slope, dtype=torch.float64).view_as(z), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_are_not_reckoned_with_in_bfloat16(kind):
    targets, z = targets_of(kind, 3), random(4, BATCH, NUM_PDFS).bfloat16()
    weight = torch.ones(BATCH)
    (loss, grad), _ = both(z, [Term(targets, weight, 2.0)])
    (_, _), (exact, exact_grad) = both(z.double(), [Term(targets, weight, 2.0)])
    torch.testing.assert_close(loss, exact.float())
    torch.testing.assert_close(grad, exact_grad.bfloat16(), atol=1e-6, rtol=2**-7)


class LargestFloat32(TorchDispatchMode):
    """Notes how many numbers the largest float32 tensor had that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32:
                self.numel = max(self.numel, each.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_no_float32_tensor_is_larger_than_a_chunk(kind, dtype, monkeypatch):
    for each in (module, cross_entropy_cpu):
        monkeypatch.setattr(each, "rows_at_once", lambda device, row_size: 2)
    targets, z = targets_of(kind, 5), random(6, BATCH, NUM_PDFS).to(dtype).requires_grad_()
    parts = (targets.prob.half(), targets.pdf, None if targets.tail is None else targets.tail.half())
    terms = [Term(SoftBatch(*parts), torch.ones(BATCH), 2.0)]
    with LargestFloat32() as largest:
        cross_entropy(z, terms).backward()
    assert 0 < largest.numel <= 2 * NUM_PDFS


def float64_and_ours(logits: torch.Tensor, terms: list[Term], num_nets: int | None = None) -> list[tuple]:
    """Loss and gradient of bfloat16 logits, nets' losses weighing 1, 2, …, and those of the definition in float64."""
    found = []
    for z in (logits.double(), logits.clone()):
        z = (z if num_nets is None else z.view(num_nets, -1, z.shape[-1])).requires_grad_()
        loss = cross_entropy(z, terms)
        (loss * torch.arange(1, 1 + loss.numel()).view(loss.shape)).sum().backward()
        found.append((loss.detach(), z.grad))
    return found


def require_close(logits: torch.Tensor, terms: list[Term], num_nets: int | None = None) -> None:
    (exact, exact_grad), (loss, grad) = float64_and_ours(logits, terms, num_nets)
    assert loss.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    # Each term's gradient is rounded to bfloat16, and so is their sum: an error of 2⁻⁸ of the largest that was added.
    torch.testing.assert_close(grad.double(), exact_grad, rtol=2**-7, atol=2e-2 if len(terms) > 1 else 1e-5)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1.0, 2.0, 5.0])), min_size=1, max_size=3),
    st.sampled_from([1, 2, 100]),
    st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_rows_of_bfloat16_logits_are_done_at_once_as_defined(seed, kinds, rows, num_threads):
    terms = [
        Term(targets_of(kind, seed + n), random(seed + 10 + n, BATCH), temperature)
        for n, (kind, temperature) in enumerate(kinds)
    ]
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy_cpu, "rows_at_once", lambda device, row_size: rows)
        torch.set_num_threads(num_threads)
        try:
            require_close(random(seed + 20, BATCH, NUM_PDFS).bfloat16(), terms)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("num_pdfs", [1, 17, 300, 9001])
@pytest.mark.parametrize("num_nets", [None, 2])
def test_rows_of_any_length_of_several_nets(num_pdfs, num_nets):
    """Labels are smoothed by a tensor that holds one number."""
    logits, weight = random(4, 6, num_pdfs).bfloat16(), random(5, 6)
    top = random(6, 6, num_pdfs).softmax(dim=-1).topk(min(20, num_pdfs), dim=-1)
    tail = (1 - top.values.sum(dim=-1)).clamp(min=0)
    evenly = torch.full((), 1 / num_pdfs).expand(6, num_pdfs)
    for targets in (SoftBatch(top.values, top.indices, tail), SoftBatch(evenly)):
        require_close(logits, [Term(targets, weight, 2.0)], num_nets)


def test_far_away_bfloat16_logits_give_no_nan():
    """A state that takes all, or all but nothing: the rest has a logarithm all the same."""
    logits = torch.tensor(
        [[200.0, 0.0, 0.0, -200.0], [-1e4, 1e4, 0.0, 0.0], [-300.0, -300.0, -500.0, 300.0]]
    ).bfloat16()
    prob, pdf = torch.tensor([[0.9], [0.5], [0.5]]), torch.tensor([[0], [1], [3]])
    require_close(logits.bfloat16(), [Term(SoftBatch(prob, pdf, 1 - prob[:, 0]), torch.ones(3))])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
def test_logits_that_are_no_numbers_are_told_by_the_loss(value):
    logits = random(8, BATCH, NUM_PDFS).bfloat16()
    logits[3, 4] = value
    terms = [Term(targets_of("dense", 8), torch.ones(BATCH))]
    (exact, _), (loss, _) = float64_and_ours(logits, terms)
    assert not loss.isfinite()
    torch.testing.assert_close(loss.double(), exact, equal_nan=True)


def test_threads_change_no_bit():
    logits, terms = random(9, 64, 300).bfloat16(), [Term(SoftBatch(random(1, 64, 300).softmax(-1)), torch.ones(64))]
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(float64_and_ours(logits, terms)[1])
    finally:
        torch.set_num_threads(before)
    for loss, grad in found[1:]:
        assert loss.equal(found[0][0])
        assert grad.equal(found[0][1])


def test_a_gradient_is_given_once():
    z = random(7, BATCH, NUM_PDFS).requires_grad_()
    loss = summed(z, targets_of("dense", 7), 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_what_all_bfloat16_logits_have_in_common_does_not_count(kind, offset):
    logits = (offset + 1e-2 * abs(offset) * random(10, BATCH, NUM_PDFS)).bfloat16()
    (exact, _), (loss, _) = float64_and_ours(logits, [Term(targets_of(kind, 10), torch.ones(BATCH))])
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("state", [NUM_PDFS, -1, 10**9])
def test_a_state_that_is_none_is_an_error_in_bfloat16_too(state):
    targets = SoftBatch(torch.ones(BATCH, 1), torch.full((BATCH, 1), state))
    with pytest.raises((RuntimeError, IndexError)):
        cross_entropy(random(11, BATCH, NUM_PDFS).bfloat16(), [Term(targets, torch.ones(BATCH))])


def test_targets_of_other_frames_are_an_error_in_bfloat16_too():
    z, weight = random(12, BATCH, NUM_PDFS).bfloat16(), torch.ones(BATCH)
    for targets in (SoftBatch(torch.ones(BATCH, NUM_PDFS + 1)), SoftBatch(torch.ones(BATCH - 2, NUM_PDFS))):
        with pytest.raises(RuntimeError):
            cross_entropy(z, [Term(targets, weight)])
    with pytest.raises(RuntimeError):
        cross_entropy(z, [Term(targets_of("hard", 1), torch.ones(BATCH - 2))])
