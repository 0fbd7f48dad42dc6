"""Training in bfloat16 on a CPU by compiled passes, against autograd and torch's optimiser."""

import re

import numpy as np
import pytest
import torch
from command_line import run
from conftest import train_in_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stacked import command
from torch import nn

from asr_kd.nnet import cpu_kernels, rectified
from asr_kd.nnet.inference import of_type
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import load_net, weights_digest
from asr_kd.training import update
from asr_kd.training.working_copy import WorkingCopy

BFLOAT16 = ["--precision", "bfloat16"]
WAYS = {
    "plain": [],
    "clipped": ["--max-grad-norm", 0.1],
    "not clipped": ["--max-grad-norm", 0],
    "dropout": ["--dropout", 0.2, "--input-dropout", 0.1, "--max-norm", 1.0],
    "other rates of dropout": ["--dropout-schedule", "0.1,0.3"],
    "views": ["--time-masks", 1, "--feature-noise", 0.3],
    "pruned": ["--prune-sparsity", 0.5],
    "average": ["--schedule", "constant", "--average-share", 0.6],
}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_those_of_autocast_but_for_roundings(toy, tmp_path, monkeypatch, way):
    argv = ["--num-epochs", 3, *WAYS[way], *BFLOAT16]
    copies, made = [], update.working_copy
    monkeypatch.setattr(update, "working_copy", lambda *given: copies.append(made(*given)) or copies[-1])
    assert run(*command(toy, tmp_path / "ours", *argv, name="train")) == 0
    assert copies[0]
    monkeypatch.setattr(update, "working_copy", lambda *_: None)
    assert run(*command(toy, tmp_path / "autocast", *argv, name="train")) == 0
    ours, theirs = (load_net(tmp_path / folder / "seed1") for folder in ("ours", "autocast"))
    for row, other in zip(ours.training["history"], theirs.training["history"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=2e-2)
        assert row["dev_xent"] == pytest.approx(other["dev_xent"], rel=5e-2)
    for weight, other in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        cosine = nn.functional.cosine_similarity(weight.flatten(), other.flatten(), dim=0)
        assert cosine > 0.99


GOES_BACK = ["--schedule", "newbob", "--warmup-steps", 0, "--learning-rate", 0.05, "--keep-best", "xent"]


@pytest.mark.parametrize("options", [WAYS["plain"], WAYS["dropout"], WAYS["pruned"], GOES_BACK])
def test_a_run_in_pieces_ends_with_the_same_weights(toy, tmp_path, monkeypatch, options):
    argv = ["--num-epochs", 3, *options, *BFLOAT16]
    assert run(*command(toy, tmp_path / "whole", *argv, name="train")) == 0
    train_in_pieces(command(toy, tmp_path / "pieces", *argv, name="train"), monkeypatch)
    whole, pieces = (weights_digest(load_net(tmp_path / each / "seed1").net) for each in ("whole", "pieces"))
    assert whole == pieces


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("is_fused", [True, False])
def test_gradients_are_those_of_autograd(num_threads, monkeypatch, rates, is_fused):
    """Of the same weights, inputs and dropout, in float64."""
    if is_fused and not rectified.has_fused():
        pytest.skip("this CPU does not multiply bfloat16")
    monkeypatch.setattr(rectified, "has_fused", lambda: is_fused)
    net = new_net(Architecture(2, 2, 8, 2, 48, 11, dropout=rates[1], input_dropout=rates[0]), 1).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter + 0.1 * random(2, *parameter.shape)).bfloat16())
    windows, of_logits = random(3, 700, 40).bfloat16(), random(4, 700, 11).bfloat16()
    optimizer = torch.optim.AdamW([{"params": [each for each in net.parameters() if each.ndim > 1]}])
    copy = WorkingCopy(net, optimizer, 0.0, cpu_kernels)
    torch.manual_seed(5)
    logits = copy(windows)
    logits.backward(of_logits)
    torch.manual_seed(5)
    exact = windows
    for layer in net.layers:  # dropout draws as it does for bfloat16
        if isinstance(layer, nn.Dropout):
            exact = exact * layer(torch.ones_like(exact, dtype=torch.bfloat16))
        elif isinstance(layer, nn.Linear):
            exact = nn.functional.linear(exact.double(), layer.weight.double(), layer.bias.double())
        else:
            exact = exact.relu()
    assert (logits - exact).norm() < 0.02 * exact.norm()
    weights, biases = ([getattr(layer, name) for layer in net.linear] for name in ("weight", "bias"))
    gradients = torch.autograd.grad(exact, [*weights, *biases], of_logits.double())
    found = [*(layer.grad for layer in copy._layers), *(bias.grad for bias in biases)]
    for ours, theirs in zip(found, gradients, strict=True):
        assert (ours - theirs).norm() < 0.06 * theirs.norm()


@given(st.integers(1, 9), st.sampled_from([1, 2, 5000]), st.sampled_from([1, 3]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rows_are_added_up_and_gradients_pass_where_units_answer(rows, dim, threads, seed):
    grad, result = random(seed, rows, dim).bfloat16(), random(seed + 1, rows, dim).relu().bfloat16()
    expected = torch.where(result == 0, 0.0, grad.float())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(cpu_kernels.sum_over_rows(grad), grad.float().sum(0), rtol=1e-5, atol=1e-5)
        squares = cpu_kernels.sum_of_squares(grad)
        sums = cpu_kernels.relu_backward_(grad, result)
    finally:
        torch.set_num_threads(before)
    assert squares == pytest.approx(float(random(seed, rows, dim).bfloat16().double().square().sum()), rel=1e-5)
    assert grad.float().equal(expected)
    torch.testing.assert_close(sums, expected.sum(0), rtol=1e-5, atol=1e-5)


def test_sums_do_not_depend_on_the_number_of_threads():
    x, found = random(1, 1000, 700).bfloat16(), set()
    before = torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found.add((cpu_kernels.sum_over_rows(x).numpy().tobytes(), cpu_kernels.sum_of_squares(x)))
    torch.set_num_threads(before)
    assert len(found) == 1


@given(st.floats(0, 0.1), st.floats(1e-5, 0.1), st.floats(0.01, 1), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_steps_are_those_of_torch(weight_decay, rate, scale, num_steps):
    weight = nn.Parameter(random(1, 70, 300))
    theirs = nn.Parameter(weight.detach().clone())
    optimizer = torch.optim.AdamW([theirs], lr=rate, weight_decay=weight_decay)
    mean, square, copy = torch.zeros_like(weight), torch.zeros_like(weight), torch.empty_like(weight).bfloat16()
    for step in range(1, num_steps + 1):
        grad = random(step + 1, 70, 300).bfloat16()
        theirs.grad = grad.float() * scale
        optimizer.step()
        numbers = cpu_kernels.AdamW.of(step, scale, optimizer.param_groups[0])
        cpu_kernels.adamw(weight, grad, mean, square, copy, numbers)
    state = optimizer.state[theirs]
    for ours, other in ((weight, theirs), (mean, state["exp_avg"]), (square, state["exp_avg_sq"])):
        torch.testing.assert_close(ours.detach(), other.detach(), rtol=2e-5, atol=2e-4 * rate + 1e-6)
    assert copy.equal(weight.detach().bfloat16())


def test_gradients_are_clipped_by_the_norm_of_all_of_them():
    net = new_net(Architecture(0, 0, 4, 1, 8, 3), 1)
    optimizer = torch.optim.AdamW([{"params": [each for each in net.parameters() if each.ndim > 1]}])
    copy = WorkingCopy(net, optimizer, 1.0, cpu_kernels)
    copy(1e-3 * random(1, 60, 4)).backward(random(2, 60, 3).bfloat16())  # the biases' are the largest by far
    gradients = [*(layer.grad for layer in copy._layers), *(layer.bias.grad for layer in net.linear)]
    norm = nn.utils.get_total_norm([each.float() for each in gradients])
    before = [layer.bias.grad.clone() for layer in net.linear]
    kept = []
    optimizer.register_step_pre_hook(lambda *_: kept.extend(layer.bias.grad.clone() for layer in net.linear))
    copy.step()
    for clipped, grad in zip(kept, before, strict=True):
        torch.testing.assert_close(clipped, grad / (norm + 1e-6), rtol=1e-4, atol=0)


def test_a_hidden_weight_that_is_no_number_is_told(toy, tmp_path, monkeypatch, capsys):
    """Fused ReLUs make a 0 of NaN, so that no loss shows it."""

    def spoiled(*given):
        made = working_copy(*given)
        with torch.no_grad():
            given[1].linear[0].weight[0, 0] = float("nan")
        return made

    working_copy = update.working_copy
    monkeypatch.setattr(update, "working_copy", spoiled)
    argv = ["--num-epochs", 1, "--max-grad-norm", 0, *BFLOAT16]
    assert run(*command(toy, tmp_path, *argv, name="train")) == 1
    assert re.search(r"error: .*(a weight is no number|the loss is nan) in epoch 1", capsys.readouterr().err)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_does_not_stay_unseen(value):
    """Neither clipping nor the copy makes a number of it."""
    net = new_net(Architecture(0, 0, 4, 1, 8, 3), 1)
    optimizer = torch.optim.AdamW([{"params": [each for each in net.parameters() if each.ndim > 1]}])
    copy = WorkingCopy(net, optimizer, 5.0, cpu_kernels)
    copy(random(1, 6, 4)).backward(torch.full((6, 3), value, dtype=torch.bfloat16))
    copy.step()
    assert np.isnan(net.linear[-1].weight.detach().numpy()).any()
    assert copy(random(1, 6, 4)).isnan().any()


@pytest.mark.parametrize("is_fused", [True, False])
def test_answers_in_bfloat16_are_those_of_the_layers(monkeypatch, is_fused):
    if is_fused and not rectified.has_fused():
        pytest.skip("this CPU does not multiply bfloat16")
    monkeypatch.setattr(rectified, "has_fused", lambda: is_fused)
    net = new_net(Architecture(2, 2, 8, 3, 48, 11, dropout=0.5), 1).eval()
    windows = random(3, 700, 5, 8).bfloat16()
    with torch.no_grad():
        answers = of_type(net, torch.bfloat16)(windows)
        assert answers.equal(of_type(net, torch.bfloat16).layers(windows.flatten(1)))
        assert answers.equal(of_type(net, torch.bfloat16)(windows))
    assert not of_type(net, torch.bfloat16).train()(windows).equal(answers)
