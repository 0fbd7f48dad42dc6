import math
from collections.abc import Iterator

import pytest
import torch
from cross_entropies import plain, summed
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.distill.losses import distillation_loss, logit_difference, swap_where_wrong
from asr_kd.distill.soft_targets import StoredTargets, with_progress, write_soft_targets
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import combine
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader
from asr_kd.training.cross_entropy import SoftBatch


def random_logits(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 5.0, 20.0]))
@settings(max_examples=30, deadline=None)
def test_gradient_is_that_of_hintons_equation_2(seed, temperature):
    z, v = random_logits(seed, 4, 7).requires_grad_(), random_logits(seed + 1, 4, 7)
    p = torch.softmax(v / temperature, dim=-1)
    summed(z, SoftBatch(p), temperature).backward()
    expected = (torch.softmax(z.detach() / temperature, -1) - p) / temperature
    torch.testing.assert_close(z.grad, expected)


def test_at_high_temperature_the_gradient_matches_logits():
    """(z − v) / (N T²) for zero-meaned logits: equation 4 of the paper."""
    temperature = 1000.0
    z, v = random_logits(1, 3, 5), random_logits(2, 3, 5)
    z, v = (x - x.mean(dim=-1, keepdim=True) for x in (z, v))
    z.requires_grad_()
    summed(z, SoftBatch(torch.softmax(v / temperature, -1)), temperature).backward()
    expected = (z.detach() - v) / (5 * temperature**2)
    torch.testing.assert_close(z.grad * 1e6, expected * 1e6, atol=0.02, rtol=0.02)


def test_the_distillation_loss_comes_to_the_limit_of_logits_as_one_over_the_temperature():
    """Times T², through the loss that students have: the error of (z − v) / N falls tenfold for ten times T."""
    z, v = random_logits(1, 3, 5), random_logits(2, 3, 5)
    z, v = (x - x.mean(dim=-1, keepdim=True) for x in (z, v))
    no_label, errors = torch.full((3,), -1), []
    for temperature in (10.0, 100.0, 1000.0):
        student = z.clone().requires_grad_()
        targets = SoftBatch(torch.softmax(v / temperature, -1))
        loss = distillation_loss(student, no_label, targets, temperature=temperature, soft_weight=1.0)
        (3 * loss).backward()
        errors.append(float((student.grad - (z - v) / 5).abs().max()))
    assert errors[0] < 0.3
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.3)


def test_weights_and_temperature_squared_enter_as_documented():
    z, p = random_logits(5, 6, 4).float(), torch.softmax(random_logits(6, 6, 4).float(), -1)
    y = torch.tensor([0, 1, 2, 3, -1, -1])
    hard = torch.nn.functional.cross_entropy(z[:4], y[:4])
    soft = plain(z, SoftBatch(p), 3.0).mean()
    loss = distillation_loss(z, y, SoftBatch(p), temperature=3.0, soft_weight=0.7)
    torch.testing.assert_close(loss, 0.3 * hard + 0.7 * 9 * soft)
    free = distillation_loss(z, y, SoftBatch(p), temperature=3.0, soft_weight=2.0, hard_weight=5.0)
    torch.testing.assert_close(free, 5 * hard + 2 * 9 * soft)


def test_without_one_label_only_the_soft_term_remains():
    z, p = random_logits(7, 3, 4).float(), torch.softmax(random_logits(8, 3, 4).float(), -1)
    loss = distillation_loss(z, torch.full((3,), -1), SoftBatch(p), temperature=1.0, soft_weight=0.5)
    torch.testing.assert_close(loss, 0.5 * plain(z, SoftBatch(p), 1.0).mean())


@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 10.0]), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_both_means_are_distributions_and_agree_for_one_member(seed, temperature, members):
    logits = random_logits(seed, members, 3, 6)
    arithmetic = combine(logits, temperature, "arithmetic").exp().double()
    geometric = combine(logits, temperature, "geometric").exp().double()
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(arithmetic.sum(-1), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(geometric.sum(-1), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(arithmetic, torch.softmax(logits / temperature, -1).mean(0), atol=1e-5, rtol=1e-4)
    product = torch.softmax(logits / temperature, -1).log().mean(0).exp()
    torch.testing.assert_close(geometric, product / product.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    if members == 1:
        torch.testing.assert_close(arithmetic, geometric, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
@pytest.mark.parametrize("shape", [(5, 1000, 62), (3, 200, 741), (2, 40, 14000)])
def test_a_frame_has_the_bits_that_it_has_alone(shape, combination):
    """Means are taken in pieces, and blocks differ between machines."""
    logits = random_logits(1, *shape).float()
    whole = combine(logits, 2.0, combination)
    for row in (0, 17, shape[1] - 1):
        assert torch.equal(combine(logits[:, row : row + 1], 2.0, combination), whole[row : row + 1])


def test_members_are_asked_one_after_the_other_and_what_none_believes_has_a_logarithm():
    asked = []

    def members() -> Iterator[torch.Tensor]:
        for sign in (1, -1, 1):
            asked.append(len(asked))
            yield torch.tensor([[sign * 50.0, 0.0, -500.0]])

    log_post = combine(members(), 1.0, "arithmetic")
    assert len(asked) == 3
    torch.testing.assert_close(log_post[0, :2].exp(), torch.tensor([2 / 3, 1 / 3]), atol=1e-6, rtol=0)
    assert -88 < log_post[0, 2] < -87


def test_an_unknown_mean_is_refused():
    with pytest.raises(AsrKdError, match="harmonic"):
        combine(torch.zeros(2, 1, 3), 1.0, "harmonic")


@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 20.0]))
@settings(max_examples=30, deadline=None)
def test_matching_logits_has_the_gradient_of_equation_4(seed, temperature):
    """(z − v) / N for zero-meaned logits, whatever the temperature that the targets came at."""
    z, v = random_logits(seed, 3, 5), random_logits(seed + 1, 3, 5, scale=8.0)
    z, v = (x - x.mean(dim=-1, keepdim=True) for x in (z, v))
    z.requires_grad_()
    logit_difference(z, SoftBatch(torch.softmax(v / temperature, -1)), temperature).sum().backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 5, atol=1e-4, rtol=1e-4)


def test_matching_logits_of_stored_targets_cuts_off_what_they_cannot_hold():
    z, v = torch.zeros(1, 3), torch.tensor([[30.0, 0.0, 0.0]])
    stored = SoftBatch(torch.softmax(v, -1).half())
    cut = torch.tensor([[24 * math.log(2), 0.0, 0.0]])
    ideal = logit_difference(z, SoftBatch(torch.softmax(v, -1)), 1.0)
    torch.testing.assert_close(ideal, v.var(correction=0)[None] / 2)
    torch.testing.assert_close(logit_difference(z, stored, 1.0), cut.var(correction=0)[None] / 2)
    warm = SoftBatch(torch.softmax(v / 5, -1).half())
    torch.testing.assert_close(logit_difference(z, warm, 5.0), ideal, rtol=0.01, atol=0)


def test_matching_logits_of_zero_targets_stays_finite_and_of_top_k_is_refused():
    z = random_logits(9, 2, 4).float()
    assert torch.isfinite(logit_difference(z, SoftBatch(torch.eye(4)[:2]), 1.0)).all()
    with pytest.raises(AsrKdError, match="all states"):
        logit_difference(z, SoftBatch(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2)), 1.0)


def test_conditional_learning_follows_the_teacher_only_where_it_is_right():
    z, p = random_logits(10, 4, 3).float(), torch.tensor([[0.6, 0.3, 0.1]] * 4)
    y = torch.tensor([0, 1, -1, 0])
    soft = 4 * plain(z, SoftBatch(p), 2.0)
    hard = torch.nn.functional.cross_entropy(z, y.clamp(min=0), reduction="none")
    expected = torch.stack([soft[0], hard[1], soft[2], soft[3]]).mean()
    loss = distillation_loss(z, y, SoftBatch(p), temperature=2.0, soft_weight=0.5, label_use="conditional")
    torch.testing.assert_close(loss, expected)


@given(st.integers(0, 1000), st.lists(st.integers(-1, 5), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_swapped_targets_are_the_same_numbers_with_the_label_on_top(seed, labels):
    p, y = torch.softmax(random_logits(seed, 4, 6), -1), torch.tensor(labels)
    swapped = swap_where_wrong(SoftBatch(p), y).prob
    torch.testing.assert_close(swapped.sort(-1).values, p.sort(-1).values)
    expected_best = torch.where(y >= 0, y, p.argmax(-1))
    assert torch.equal(swapped.argmax(-1), expected_best)
    unchanged = (y < 0) | (y == p.argmax(-1))
    assert torch.equal(swapped[unchanged], p[unchanged])


def test_progress_is_told_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("asr_kd.distill.soft_targets._PROGRESS_SECONDS", 0.0)
    blocks = [(slice(begin, begin + 4), torch.full((4, 2), float(begin))) for begin in (0, 4, 8)]
    told: list[str] = []
    assert list(with_progress(iter(blocks), "targets.h5", 12, told.append)) == blocks
    assert [line.split(",")[0] for line in told] == ["targets.h5: 4 of 12 frames", "targets.h5: 8 of 12 frames"]
    assert list(with_progress(iter([]), "targets.h5", 0, told.append)) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"top_k": None},
        {"top_k": 3},
        {"top_k": 3, "target_bits": 8},
        {"top_k": 3, "target_pruning": "random"},
        {"top_k": None, "top_k_kl": 0.01},
    ],
    ids=str,
)
def test_targets_kept_in_memory_are_those_that_are_stored(toy, tmp_path, keys):
    reader, cpu = FeatsReader(toy["dev_feats"]), torch.device("cpu")
    frames = Frames(reader.read_all(), reader.layout, 1, 1, cpu)
    # Of many states some do not fit into 15 bits.
    num_pdfs = 50_000 if keys["top_k"] else 6
    nets = [new_net(Architecture(1, 1, 40, 1, 8, num_pdfs), seed) for seed in (1, 2)]
    members = [TrainedNet(net, None, {}, {"model_digest": "toy"}, {}) for net in nets]
    how = {"temperature": 2.0, "combination": "arithmetic", "dtype": torch.float32, **keys}
    write_soft_targets(tmp_path / "targets.h5", members, reader, frames, **how)
    stored = StoredTargets.from_readers([TargetsReader(tmp_path / "targets.h5")], cpu)
    kept = StoredTargets.from_members(members, frames, **how)
    index = torch.arange(reader.layout.num_frames)
    one, other = stored.batch(index, frames), kept.batch(index, frames)
    assert torch.equal(one.prob, other.prob)
    if one.pdf is not None:
        assert torch.equal(one.pdf, other.pdf)
        assert num_pdfs == 6 or (one.pdf.min() >= 0 and one.pdf.max() > 1 << 15)
    drawn = keys.get("target_pruning") == "random"
    assert (one.tail is None) == (other.tail is None) == (one.pdf is None or drawn)
    if one.tail is not None:
        assert torch.equal(one.tail, other.tail)
