"""Passes over bfloat16 logits that numba compiles; of the loss, tests/test_cross_entropy.py has them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.nnet import cpu_kernels
from asr_kd.nnet.inference import combine


def logits_of(seed: int, rows: int, num_pdfs: int) -> torch.Tensor:
    return (4 * torch.randn(rows, num_pdfs, generator=torch.Generator().manual_seed(seed))).bfloat16()


@given(
    st.integers(0, 1000),
    st.integers(1, 9),
    st.sampled_from([1, 2, 17, 900]),
    st.sampled_from([0.5, 1.0, 2.0, 20.0]),
    st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_the_mean_of_members_is_that_of_their_softmaxes(seed, rows, num_pdfs, temperature, num_threads):
    members = [logits_of(seed + n, rows, num_pdfs) for n in range(3)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = combine(members, temperature, "arithmetic")
    finally:
        torch.set_num_threads(before)
    expected = sum((each.double() / temperature).softmax(dim=1) for each in members) / 3
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.log(), rtol=1e-6, atol=2e-6)


def test_a_row_that_is_no_distribution_is_told_as_that_and_no_other():
    logits = logits_of(1, 7, 5)
    logits[1, 2], logits[2, 0], logits[3, 4], logits[4, 1] = float("nan"), -float("nan"), float("inf"), float("-inf")
    logits[5] = float("-inf")
    total = torch.zeros(7, 5)
    cpu_kernels.add_softmax(total, logits, 1.0)
    torch.testing.assert_close(total, logits.float().softmax(dim=1), rtol=1e-6, atol=1e-7, equal_nan=True)
    assert total.isnan().all(dim=1).tolist() == [False, True, True, True, False, True, False]


def test_what_cannot_be_compiled_is_done_by_pytorch(monkeypatch):
    """numba is missing where a GPU's machine has PyTorch alone."""
    from asr_kd.nnet import inference

    members = [logits_of(n, 6, 40) for n in range(2)]
    found = combine(members, 2.0, "arithmetic")
    monkeypatch.setattr(inference, "cpu_kernels", lambda device: None)
    torch.testing.assert_close(combine(members, 2.0, "arithmetic"), found, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 5), (5, 1)])
def test_no_rows_and_no_choice(shape):
    total = torch.zeros(shape)
    cpu_kernels.add_softmax(total, torch.zeros(shape).bfloat16(), 1.0)
    assert total.eq(1).all()


@given(
    st.integers(0, 1000),
    st.integers(1, 9),
    st.sampled_from([20, 64, 65, 900, 3000]),
    st.integers(1, 128),
    st.sampled_from([None, 2]),
)
@settings(max_examples=100, deadline=None)
def test_the_largest_of_a_row_are_those_of_topk(seed, rows, num_pdfs, number, num_values):
    """num_values: that there are, so that many are equal, of which the first are taken."""
    x = torch.randn(rows, num_pdfs, generator=torch.Generator().manual_seed(seed))
    x = x if num_values is None else (x * num_values / 3).round()
    x[0, :: max(1, num_pdfs // 3)] = float("-inf")
    number = min(number, num_pdfs // 20)
    values, place = cpu_kernels.top_k(x, number)
    expected = x.sort(dim=1, descending=True, stable=True)
    assert values.equal(expected.values[:, :number])
    assert place.equal(expected.indices[:, :number])


@pytest.mark.parametrize(("num_pdfs", "number"), [(70, 0), (70, 4), (70, 71), (4000, 129)])
def test_numbers_that_are_none_or_too_many_are_left_to_pytorch(num_pdfs, number):
    assert cpu_kernels.top_k(torch.randn(5, num_pdfs), number) is None


def test_a_mean_can_be_differentiated():
    members = [logits_of(n, 6, 40).requires_grad_() for n in range(2)]
    combine(members, 2.0, "arithmetic").sum().backward()
    exact = [each.detach().double().requires_grad_() for each in members]
    (sum((each / 2).softmax(dim=1) for each in exact) / 2).log().sum().backward()
    for one, other in zip(members, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=2**-6, atol=1e-2)


def test_of_a_row_with_nan_the_largest_are_left_to_pytorch():
    x = torch.randn(5, 70)
    assert cpu_kernels.top_k(x, 3) is not None
    x[3, 66] = float("nan")
    assert cpu_kernels.top_k(x, 3) is None
