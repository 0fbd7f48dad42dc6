"""The kernels that GPUs take the loss by; where there is no GPU, Triton interprets them in a process of its own.

(It must be told so before it is imported, which PyTorch may have done here.)
"""

import os
import subprocess
import sys

import pytest
import torch
from test_cross_entropy import BATCH, KINDS, NUM_PDFS, random, targets_of

from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_HERE = DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
here = pytest.mark.skipif(not IS_HERE, reason="done by test_kernels_interpreted, in a process of its own")


@pytest.mark.skipif(IS_HERE, reason="the tests below run here")
def test_kernels_interpreted():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.fixture(scope="module")
def fused():
    from asr_kd.nnet.gpu_kernels import is_usable
    from asr_kd.training import fused_cross_entropy

    assert is_usable(DEVICE)
    return fused_cross_entropy


def on(device: torch.device, terms: list[Term]) -> list[Term]:
    parts = [(*(None if part is None else part.to(device) for part in vars(term.targets).values()),) for term in terms]
    return [
        Term(SoftBatch(*part), term.weight.to(device), term.temperature)
        for part, term in zip(parts, terms, strict=True)
    ]


def compare(fused, logits: torch.Tensor, terms: list[Term], num_nets: int | None, tolerance: float) -> None:
    """Losses and gradients, of nets whose losses weigh 1, 2, …, are those of the definition in float64."""
    weights = torch.ones(()) if num_nets is None else torch.arange(1.0, num_nets + 1)
    ours = logits.to(DEVICE, copy=True).requires_grad_()
    losses = fused.FusedCrossEntropy.apply(ours, on(DEVICE, terms), num_nets)
    (losses * weights.to(DEVICE)).sum().backward()
    exact = logits.double().requires_grad_()
    expected = cross_entropy(exact if num_nets is None else exact.view(num_nets, -1, exact.shape[1]), terms)
    (expected * weights).sum().backward()
    assert torch.allclose(losses.cpu().double(), expected, rtol=2e-5, atol=1e-5)
    assert ours.grad.dtype == logits.dtype
    assert (ours.grad.cpu().double() - exact.grad).norm() <= tolerance * exact.grad.norm()


@here
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in columns that are not there
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_definition(fused, kind, temperature, dtype):
    logits, tolerance = random(0, BATCH, NUM_PDFS).to(dtype), 1e-5 if dtype == torch.float32 else 1e-2
    soft, labels = Term(targets_of(kind, 1), random(2, BATCH), temperature), torch.tensor([3, -1, 0, 8, 8, 1, 5])
    compare(fused, logits, [soft], None, tolerance)
    compare(fused, logits, [soft, Term(hard_targets(labels), random(3, BATCH))], None, tolerance)


@here
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("num_pdfs", [300, 4096, 9001])
def test_rows_of_any_length_of_several_nets(fused, num_pdfs):
    """Of 9001 states a kernel sees some at a time; labels are smoothed by a tensor that holds one number."""
    logits, weight = random(4, 6, num_pdfs).float(), random(5, 6)
    top = random(6, 6, num_pdfs).softmax(dim=-1).topk(20, dim=-1)
    tail = 1 - top.values.sum(dim=-1)
    evenly = torch.full((), 1 / num_pdfs).expand(6, num_pdfs)
    for targets in (SoftBatch(top.values, top.indices, tail), SoftBatch(evenly)):
        compare(fused, logits, [Term(targets, weight, 2.0)], 2, 1e-4)


@here
def test_far_away_logits_give_no_nan(fused):
    """A state that takes all, or all but nothing: the rest has a logarithm all the same."""
    logits = torch.tensor([[200.0, 0.0, 0.0, -200.0], [-1e4, 1e4, 0.0, 0.0]])
    top = SoftBatch(torch.tensor([[0.9], [0.5]]), torch.tensor([[0], [1]]), torch.tensor([0.1, 0.5]))
    compare(fused, logits, [Term(top, torch.ones(2), 1.0)], None, 1e-5)


@here
def test_of_a_sum_of_nets_losses_every_net_gets_its_gradient(fused):
    """The gradient that a sum hands down is one number, expanded."""
    logits, labels = random(7, 6, 5).float(), torch.tensor([0, 1, 2, 3, 4, 0])
    ours = logits.to(DEVICE, copy=True).requires_grad_()
    terms = [Term(hard_targets(labels), torch.ones(6))]
    fused.FusedCrossEntropy.apply(ours, on(DEVICE, terms), 3).sum().backward()
    exact = logits.double().requires_grad_()
    cross_entropy(exact, terms).backward()
    torch.testing.assert_close(ours.grad.cpu().double(), exact.grad, rtol=1e-5, atol=1e-6)


@here
@pytest.mark.parametrize("held_as", [torch.float32, torch.bfloat16, torch.int8])
def test_windows_are_those_of_the_plain_gather(fused, held_as):
    from asr_kd.nnet.frames import STEP, as_held, windows_of
    from asr_kd.nnet.gpu_kernels import gathered

    feats = as_held(random(8, 23, 5).float(), held_as)
    dtype = torch.float32 if held_as == torch.int8 else held_as
    offsets, context = torch.tensor([0, 4, 5, 23]), torch.arange(-3, 2)
    index = torch.tensor([0, 3, 4, 5, 22, 11, 21, 4])
    utt = torch.searchsorted(offsets, index, right=True)
    inputs = (feats, index, context, offsets[utt - 1], offsets[utt] - 1)
    found = gathered(*(each.to(DEVICE) for each in inputs), dtype, STEP if held_as == torch.int8 else 1.0)
    expected = windows_of(feats, offsets, context, index, dtype)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)


@here
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_pdfs", [1, 60, 9001])
def test_softmax_is_added_to_what_is_there(fused, num_pdfs, dtype):
    from asr_kd.nnet.gpu_kernels import add_softmax

    logits, total = 3 * random(9, 6, num_pdfs).to(dtype), random(10, 6, num_pdfs).float()
    logits[0, 0] = 1000.0
    expected = total.double() + (logits.double() / 2.5).softmax(dim=-1)
    found = total.to(DEVICE, copy=True)
    add_softmax(found, logits.to(DEVICE), 2.5)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=1e-6)
