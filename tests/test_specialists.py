"""Specialists beside a generalist: clusters, sampling, correction, inference, training, distilling back."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cross_entropies import plain
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.config import SpecialistsConfig, resolve
from asr_kd.distill.clustering import (
    Clusters,
    PredictionStatistics,
    agglomerate,
    choose_classes,
    cluster_states,
    correlations,
    online_kmeans,
    prediction_statistics,
)
from asr_kd.distill.soft_targets import OnlineTargets, check_members
from asr_kd.distill.specialist_inference import (
    SPECIALISTS,
    SpecialistAnswers,
    SpecialistEnsemble,
    em_step,
    nearest_to_all,
    objective,
)
from asr_kd.distill.specialist_training import (
    HalfSpecial,
    balanced,
    initialise_from,
    specialist_loss,
)
from asr_kd.distill.specialists import Specialist
from asr_kd.errors import AsrKdError
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.scoring.coverage import StateCounts, coverage_rows
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.scoring.system_list import read_systems
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader
from asr_kd.training import loop
from asr_kd.training.cross_entropy import SoftBatch
from asr_kd.training.data import LabelledSet, load_set

SMALL = ["--batch-size", "64", "--warmup-steps", "5", "--device", "cpu", "--precision", "float32"]
SHAPE = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
FLOAT64 = {"dtype": torch.float64}


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


# Inference.


def random_answers(seed: int, batch: int, num_pdfs: int, num_specialists: int, called_share: float = 0.7):
    """p_g, and answers of specialists whose sets overlap; some entries of p_g are exactly 0."""
    rng = np.random.default_rng(seed)
    p_g = rng.dirichlet(np.full(num_pdfs, 0.3), size=batch)
    p_g[p_g < 0.01] = 0.0
    p_g /= p_g.sum(axis=1, keepdims=True)
    membership = np.zeros((num_specialists, num_pdfs), dtype=bool)
    for m in range(num_specialists):
        membership[m, rng.choice(num_pdfs, rng.integers(1, num_pdfs), replace=False)] = True
    called = rng.random((batch, num_specialists)) < called_share
    special, dustbin = np.zeros((batch, num_pdfs)), np.zeros((batch, num_specialists))
    for m in range(num_specialists):
        p_m = rng.dirichlet(np.full(membership[m].sum() + 1, 0.5), size=batch) * called[:, m : m + 1]
        special[:, membership[m]] += p_m[:, :-1]
        dustbin[:, m] = p_m[:, -1]
    tensors = [torch.from_numpy(array) for array in (special, dustbin, called, membership)]
    return torch.from_numpy(p_g), SpecialistAnswers(*tensors)


def by_gradient(p_g: torch.Tensor, answers: SpecialistAnswers) -> torch.Tensor:
    """The paper's way: gradient descent on the logits z of q = softmax(z)."""
    z = torch.zeros_like(p_g).requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(torch.softmax(z, dim=1), p_g, answers).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.softmax(z.detach(), dim=1)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(3, 9))
@settings(max_examples=10, deadline=None)
def test_em_finds_what_gradient_descent_on_the_logits_finds(seed, num_specialists, num_pdfs):
    p_g, answers = random_answers(seed, 3, num_pdfs, num_specialists)
    q = nearest_to_all(p_g, answers, tolerance=1e-12, max_steps=5000)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(3, **FLOAT64))
    reference = objective(by_gradient(p_g, answers), p_g, answers)
    assert (objective(q, p_g, answers) <= reference + 1e-6).all()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(3, 9))
@settings(max_examples=10, deadline=None)
def test_where_the_generalist_rules_nothing_out_both_find_the_one_minimum(seed, num_specialists, num_pdfs):
    """The objective is strictly convex there."""
    p_g, answers = random_answers(seed, 3, num_pdfs, num_specialists)
    p_g = (p_g + 1 / num_pdfs) / 2
    q, reference = nearest_to_all(p_g, answers, tolerance=1e-12, max_steps=5000), by_gradient(p_g, answers)
    torch.testing.assert_close(objective(q, p_g, answers), objective(reference, p_g, answers), atol=1e-5, rtol=0)
    torch.testing.assert_close(q, reference, atol=3e-3, rtol=0)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(3, 9))
@settings(max_examples=50, deadline=None)
def test_no_step_of_em_raises_the_objective_and_all_keep_a_distribution(seed, num_specialists, num_pdfs):
    p_g, answers = random_answers(seed, 4, num_pdfs, num_specialists)
    q = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(num_pdfs), size=4))
    before = objective(q, p_g, answers)
    for _ in range(20):
        q = em_step(q, p_g, answers)
        now = objective(q, p_g, answers)
        assert (now <= before + 1e-12).all()
        torch.testing.assert_close(q.sum(dim=1), torch.ones(4, **FLOAT64))
        before = now


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_the_objective_is_convex_in_q(seed, weight):
    p_g, answers = random_answers(seed, 4, 7, 3)
    a, b = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(7), size=(2, 4)))
    between = objective(weight * a + (1 - weight) * b, p_g, answers)
    assert (between <= weight * objective(a, p_g, answers) + (1 - weight) * objective(b, p_g, answers) + 1e-12).all()


def test_the_objective_is_the_papers_up_to_entropies():
    """KL(p_g, q) + Σ KL(p_m, q), written out specialist by specialist."""
    p_g, answers = random_answers(3, 2, 6, 2, called_share=1.0)
    q = torch.from_numpy(np.random.default_rng(5).dirichlet(np.ones(6), size=2))
    single = SpecialistAnswers(
        answers.special * 0, answers.dustbin[:, :1] * 0 + 1.0, answers.called[:, :1], answers.membership[:1]
    )
    outside = q[:, ~answers.membership[0]].sum(dim=1)
    torch.testing.assert_close(objective(q, p_g, single), -torch.xlogy(p_g, q).sum(1) - outside.log())
    torch.testing.assert_close(
        objective(q, p_g, answers),
        -torch.xlogy(p_g + answers.special, q).sum(1)
        - sum(answers.dustbin[:, m] * q[:, ~answers.membership[m]].sum(1).log() for m in range(2)),
    )


def test_the_objective_is_a_sum_of_divergences_but_for_entropies():
    """KL(p_g, q) + Σ KL(p_m, q), equation 5; over its own states and a dustbin for a specialist."""
    p_g, q, *p_m = torch.from_numpy(np.random.default_rng(5).dirichlet(np.ones(6), size=4))[:, None]
    membership = torch.tensor([[True, True, True, False, False, False], [False, False, True, True, True, False]])

    def seen_by(p, member):
        return torch.cat([p[:, member], p[:, ~member].sum(dim=1, keepdim=True)], dim=1)

    def kl(p, q):
        return torch.xlogy(p, p / q).sum(dim=1)

    pairs = [(p_g, q), *((seen_by(p, own), seen_by(q, own)) for p, own in zip(p_m, membership, strict=True))]
    special = sum(p * own for p, own in zip(p_m, membership, strict=True))
    dustbin = torch.stack([p[:, ~own].sum(dim=1) for p, own in zip(p_m, membership, strict=True)], dim=1)
    answers = SpecialistAnswers(special, dustbin, torch.ones(1, 2, dtype=torch.bool), membership)
    entropies = sum(-torch.xlogy(p, p).sum(dim=1) for p, _ in pairs)
    torch.testing.assert_close(objective(q, p_g, answers), sum(kl(*pair) for pair in pairs) + entropies)


def test_one_specialist_has_the_answer_in_closed_form():
    """Inside: the mean of both. Outside: the mean of the masses, shared out as p_g does."""
    p_g = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 0.9, 0.1]], **FLOAT64)
    membership = torch.tensor([[True, True, False, False]])
    special = torch.tensor([[0.1, 0.3, 0.0, 0.0], [0.2, 0.3, 0.0, 0.0]], **FLOAT64)
    dustbin = torch.tensor([[0.6], [0.5]], **FLOAT64)
    answers = SpecialistAnswers(special, dustbin, torch.ones(2, 1, dtype=torch.bool), membership)
    q = nearest_to_all(p_g, answers, tolerance=1e-15, max_steps=10_000)
    outside = (p_g[:, 2:].sum(1, keepdim=True) + dustbin) / 2
    expected = torch.cat([(p_g + special)[:, :2] / 2, outside * p_g[:, 2:] / p_g[:, 2:].sum(1, keepdim=True)], dim=1)
    torch.testing.assert_close(q, expected, atol=1e-6, rtol=1e-5)


def test_a_specialist_for_all_but_one_state_knows_every_state():
    """Nothing is hidden in its dustbin, so the answer is the plain mean, after one step."""
    p_g = torch.tensor([[0.4, 0.3, 0.3]], **FLOAT64)
    special, dustbin = torch.tensor([[0.6, 0.1, 0.0]], **FLOAT64), torch.tensor([[0.3]], **FLOAT64)
    answers = SpecialistAnswers(
        special, dustbin, torch.ones(1, 1, dtype=torch.bool), torch.tensor([[True, True, False]])
    )
    torch.testing.assert_close(nearest_to_all(p_g, answers), torch.tensor([[0.5, 0.2, 0.3]], **FLOAT64))


def test_frames_that_call_no_specialist_keep_the_generalists_answer():
    p_g, answers = random_answers(11, 6, 5, 3, called_share=0.0)
    assert torch.equal(nearest_to_all(p_g, answers), p_g)


def test_no_mass_of_the_generalist_is_lost_to_float32():
    p_g, answers = random_answers(4, 200, 40, 6)
    single = SpecialistAnswers(answers.special.float(), answers.dustbin.float(), answers.called, answers.membership)
    q = nearest_to_all(p_g.float(), single)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(200), atol=1e-4, rtol=0)
    best = objective(nearest_to_all(p_g, answers, tolerance=1e-12, max_steps=5000), p_g, answers)
    assert (objective(q.double(), p_g, answers) - best).max() < 1e-3


# What a specialist is.


def a_specialist(outputs: str = "dustbin", prior: float = 0.1, classes: tuple[int, ...] = (1, 3)) -> Specialist:
    return Specialist(classes, 5, prior, outputs, "generalist", "hmm")


def test_the_correction_makes_calibrated_posteriors_of_a_net_that_saw_half_special_frames():
    """Five Gaussians of unequal priors: the optimal answer under the sampling, corrected, is the true posterior."""
    priors, means = torch.tensor([0.3, 0.05, 0.25, 0.1, 0.3]), torch.tensor([-2.0, -0.5, 0.0, 0.4, 2.0])
    x = torch.linspace(-4, 4, 50)
    likelihood = torch.exp(-0.5 * (x[:, None] - means) ** 2)
    true = priors * likelihood / (priors * likelihood).sum(1, keepdim=True)
    specialist = a_specialist(prior=0.15)
    sampled = priors * torch.where(specialist.membership(x.device), 0.5 / 0.15, 0.5 / 0.85)
    optimal = sampled * likelihood
    wanted = torch.stack([true[:, 1], true[:, 3], true[:, [0, 2, 4]].sum(1)], dim=1)
    dustbin = torch.stack([optimal[:, 1], optimal[:, 3], optimal[:, [0, 2, 4]].sum(1)], dim=1).log()
    torch.testing.assert_close(specialist.log_posteriors(dustbin + 7.0).exp(), wanted, atol=1e-5, rtol=1e-4)
    full = a_specialist("full", prior=0.15)
    torch.testing.assert_close(full.log_posteriors(optimal.log()).exp(), wanted, atol=1e-5, rtol=1e-4)


def test_a_net_trained_on_half_special_frames_is_calibrated_after_correction():
    """Softmax regression on samples drawn half and half; known posteriors of two Gaussians against a third."""
    generator = torch.Generator().manual_seed(1)
    priors, means = torch.tensor([0.9, 0.06, 0.04]), torch.tensor([-1.0, 0.5, 1.5])
    num = 40_000
    label = torch.cat([torch.zeros(num // 2), 1 + (torch.rand(num // 2, generator=generator) < 0.4).float()]).long()
    x = means[label] + torch.randn(num, generator=generator)
    specialist = Specialist((1, 2), 3, 0.1, "dustbin", "generalist", "hmm")
    local = specialist.local_labels(label)
    features = torch.stack([x, torch.ones(num)], dim=1)
    weight = torch.zeros(3, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight.T, local)
        loss.backward()
        return loss

    optimizer.step(closure)
    grid = torch.linspace(-3, 3, 30)
    posterior = priors * torch.exp(-0.5 * (grid[:, None] - means) ** 2)
    posterior /= posterior.sum(1, keepdim=True)
    logits = torch.stack([grid, torch.ones(30)], dim=1) @ weight.detach().T
    corrected = specialist.log_posteriors(logits).exp()
    assert (corrected - posterior[:, [1, 2, 0]]).abs().max() < 0.03
    assert (logits.softmax(1) - posterior[:, [1, 2, 0]]).abs().max() > 0.3


def test_labels_and_targets_are_named_by_the_specialists_outputs():
    pdf = torch.tensor([0, 1, 2, 3, 4, -1], dtype=torch.int32)
    assert a_specialist().local_labels(pdf).tolist() == [2, 0, 2, 1, 2, -1]
    assert a_specialist("full").local_labels(pdf).tolist() == pdf.tolist()
    prob = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]])
    torch.testing.assert_close(a_specialist().local_targets(prob), torch.tensor([[0.2, 0.15, 0.65]]))
    assert torch.equal(a_specialist("full").local_targets(prob), prob)


def test_a_fresh_specialist_answers_nearly_as_its_generalist():
    generalist = new_net(Architecture(1, 1, 4, 2, 16, 5, dropout=0.2), seed=1).eval()
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(2))
    logits = generalist(x).detach()
    for outputs in ("dustbin", "full"):
        specialist = a_specialist(outputs)
        others = logits[:, [0, 2, 4]]
        gap = float((others.logsumexp(1) - others.mean(1)).mean())
        # Another dropout makes other names of the layers, but the same layers.
        net = new_net(Architecture(1, 1, 4, 2, 16, specialist.num_outputs), seed=3)
        initialise_from(generalist, specialist, gap)(net)
        wanted = specialist.local_targets(logits.softmax(1)) if outputs == "dustbin" else logits.softmax(1)[:, [1, 3]]
        got = specialist.log_posteriors(net(x).detach()).exp()[:, : wanted.shape[1]]
        tolerance = 0.25 if outputs == "dustbin" else 1e-5
        assert (got - wanted).abs().max() < tolerance
        assert (got - wanted).mean(dim=0).abs().max() < 0.02


# Clusters.


def block_confusions(sizes: tuple[int, ...], seed: int = 0) -> PredictionStatistics:
    """Predictions whose confusions stay within blocks of states, and the blocks' partition."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(len(sizes)), sizes)
    label = rng.integers(0, len(block), size=6000)
    prob = rng.gamma(0.3, size=(6000, len(block))) * (block[label][:, None] == block)
    prob[np.arange(6000), label] += 1.0
    prob /= prob.sum(axis=1, keepdims=True)
    confusions = np.stack([prob[label == j].mean(axis=0) for j in range(len(block))])
    return PredictionStatistics(np.cov(prob.T, bias=True), confusions)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a[:, None] == a, b[:, None] == b)


@pytest.mark.parametrize("name", ["kmeans", "confusions"])
def test_states_that_are_confused_come_together(name):
    sizes = (3, 4, 5)
    statistics = block_confusions(sizes)
    found = [cluster_states(name, statistics, 3, seed).cluster for seed in range(5)]
    block = np.repeat(np.arange(3), sizes)
    # On-line K-means depends on what it begins with, as any K-means does.
    assert sum(same_partition(cluster, block) for cluster in found) >= (5 if name == "confusions" else 2)


@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from(["kmeans", "confusions", "random"]))
@settings(max_examples=40, deadline=None)
def test_every_clustering_has_so_many_clusters_and_every_state_once(seed, num, name):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(12, 0.3), size=60)
    confusions = rng.dirichlet(np.full(12, 0.3), size=12)
    clusters = cluster_states(name, PredictionStatistics(np.cov(prob.T), confusions), num, seed)
    chosen = choose_classes(clusters, None)
    assert len(chosen) == num
    assert sorted(np.concatenate(chosen)) == list(range(12))
    sized = choose_classes(clusters, 5)
    assert all(len(np.unique(each)) == 5 for each in sized)
    again = cluster_states(name, PredictionStatistics(np.cov(prob.T), confusions), num, seed)
    np.testing.assert_array_equal(again.cluster, clusters.cluster)


def test_a_random_partition_is_even():
    clusters = cluster_states("random", block_confusions((6, 5)), 3, seed=4)
    assert sorted(np.bincount(clusters.cluster)) == [3, 4, 4]


def test_a_size_takes_the_nearest_own_states_first():
    clusters = Clusters(np.array([0, 0, 0, 1, 1]), np.array([[0.3, 0.1, 0.2, 0.0, 0.9], [0.5, 0.4, 0.1, 0.2, 0.1]]))
    assert [each.tolist() for each in choose_classes(clusters, 2)] == [[1, 2], [3, 4]]
    assert [each.tolist() for each in choose_classes(clusters, 4)] == [[0, 1, 2, 3], [1, 2, 3, 4]]
    with pytest.raises(AsrKdError, match="specialist_size 5"):
        choose_classes(clusters, 5)


def test_kmeans_is_a_fixed_point_of_its_own_rule_and_ward_cuts_where_it_is_told():
    points = correlations(block_confusions((4, 4, 4)).covariance)
    cluster = online_kmeans(points, 3, seed=2)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for j in range(len(points)):
        if (cluster == cluster[j]).sum() > 1:
            sums = [unit[(cluster == m) & (np.arange(len(points)) != j)].sum(axis=0) for m in range(3)]
            assert np.argmax([each @ unit[j] / np.linalg.norm(each) for each in sums]) == cluster[j]
    assert [len(set(agglomerate(points, k))) for k in (2, 5)] == [2, 5]


def test_more_specialists_than_pairs_of_states_and_unknown_clusterings_are_refused():
    with pytest.raises(AsrKdError, match="num_specialists 7"):
        cluster_states("kmeans", block_confusions((6, 6)), 7, 1)
    with pytest.raises(AsrKdError, match="clustering 'phones'"):
        cluster_states("phones", block_confusions((6, 6)), 2, 1)
    with pytest.raises(AsrKdError, match="clustering is 'phones', but should be kmeans, confusions or random"):
        resolve(SpecialistsConfig, {"clustering": "phones"})


# Training.


@pytest.fixture(scope="module")
def generalist(toy, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generalist")
    run("train", *sets(toy), "--out", out, "--num-epochs", 3, "--learning-rate", 0.01, *SHAPE, *SMALL)
    return out / "seed1"


def load(toy, which: str = "", **shape) -> LabelledSet:
    shape = {"left_context": 3, "right_context": 1, "device": torch.device("cpu"), "dtype": torch.float32, **shape}
    return load_set(toy[f"{which}feats"], toy[f"{which}ali"], cmvn="utterance", **shape)


@pytest.fixture(scope="module")
def specialists(toy, generalist, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("specialists")
    run(*train_command(toy, generalist, out))
    return out


def train_command(toy, generalist, out, **options) -> list[object]:
    options = {
        "num_specialists": 2,
        "specialist_epochs": 2,
        "specialist_size": 4,
        "specialist_outputs": "dustbin",
        **options,
    }
    given = [item for key, value in options.items() for item in (f"--{key.replace('_', '-')}", value)]
    return ["train-specialists", "--generalist", generalist, *sets(toy), "--out", out, *given, *SMALL]


def test_statistics_of_predictions_are_those_of_the_posteriors(toy, generalist):
    data = load(toy, "dev_")
    trained = load_net(generalist)
    statistics = prediction_statistics(trained.net, data, torch.float32)
    windows = data.frames.windows(torch.arange(data.frames.layout.num_frames))
    prob = trained.net(windows).detach().softmax(1).double().numpy()
    np.testing.assert_allclose(statistics.covariance, np.cov(prob.T, bias=True), atol=1e-6)
    label = data.pdf.numpy()
    for pdf in range(6):
        np.testing.assert_allclose(statistics.confusions[pdf], prob[label == pdf].mean(axis=0), atol=1e-6)


def test_every_pass_has_all_special_frames_and_as_many_others_drawn_anew(toy):
    train = load(toy)
    special = torch.tensor([True, False, True, False, False, False])
    draw = HalfSpecial(train, special)
    is_special = special[train.pdf.long()]
    first, second = (draw(torch.Generator().manual_seed(seed)).long() for seed in (1, 2))
    assert draw.prior == pytest.approx(float(is_special.float().mean()))
    for frames in (first, second):
        half = len(frames) // 2
        assert torch.equal(frames[:half].sort().values, torch.nonzero(is_special).squeeze(1))
        assert not is_special[frames[half:]].any()
    assert set(first[half:].tolist()) != set(second[half:].tolist())
    # Where the others are fewer, all of them come before one comes again.
    most = HalfSpecial(train, ~special)(torch.Generator().manual_seed(1))
    times = torch.bincount(most[len(most) // 2 :].long(), minlength=len(train.pdf))[is_special]
    assert times.max() - times.min() <= 1
    with pytest.raises(AsrKdError, match="frames of its states and of others"):
        HalfSpecial(train, torch.ones(6, dtype=torch.bool))


def test_dev_is_balanced_as_training_is(toy):
    dev = load(toy, "dev_")
    specialist = Specialist((1, 4), 6, 0.3, "dustbin", "generalist", "hmm")
    kept = balanced(dev, specialist, seed=1)
    counts = torch.bincount(kept.pdf[kept.pdf >= 0].long(), minlength=3)
    assert counts[:2].sum() == counts[2] > 0
    assert torch.equal(kept.pdf[kept.pdf >= 0], specialist.local_labels(dev.pdf)[kept.pdf >= 0])


def test_soft_targets_replace_the_labels_of_other_states_alone(toy, generalist):
    train, trained = load(toy), load_net(generalist)
    specialist = Specialist((1, 4), 6, 0.3, "full", trained.digest, "toy")
    teacher = OnlineTargets([trained], 2.0, "arithmetic", torch.float32)
    index = torch.arange(40)
    windows = train.frames.windows(index)
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    labels = train.labels_of(index)
    others = (labels != 1) & (labels != 4)
    soft = 4 * plain(logits, SoftBatch((trained.net(windows) / 2).softmax(1).detach()), 2.0)
    hard = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    loss = specialist_loss(train, specialist, teacher)(logits, index, windows)
    torch.testing.assert_close(loss, torch.where(others, soft, hard).mean())


def test_specialists_are_nets_that_know_their_classes(specialists, generalist, toy):
    about = json.loads((specialists / "specialists.json").read_text())
    assert len(about["classes"]) == 2
    train = load(toy)
    for number, classes in enumerate(about["classes"], 1):
        card = load_card(specialists / f"spec{number}")
        specialist = Specialist.of(load_net(specialists / f"spec{number}"))
        assert list(specialist.classes) == classes
        assert card["architecture"]["num_pdfs"] == len(classes) + 1
        assert specialist.generalist == load_card(generalist)["digest"]
        share = np.isin(train.pdf.numpy(), classes).mean()
        assert specialist.prior == pytest.approx(share)
        assert card["training"]["num_train_frames"] == 2 * np.isin(train.pdf.numpy(), classes).sum()


def test_specialists_trained_side_by_side_are_those_trained_in_turn(specialists, generalist, toy, tmp_path):
    run(*train_command(toy, generalist, tmp_path), "--nj", 2)
    for number in (1, 2):
        assert load_card(tmp_path / f"spec{number}")["digest"] == load_card(specialists / f"spec{number}")["digest"]


def test_an_interrupted_specialist_ends_with_the_same_weights(specialists, generalist, toy, tmp_path, monkeypatch):
    end_epoch, calls = loop.end_epoch, []

    def stop(run_, state):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return end_epoch(run_, state)

    monkeypatch.setattr(loop, "end_epoch", stop)
    assert main([str(arg) for arg in train_command(toy, generalist, tmp_path)]) != 0
    monkeypatch.undo()
    run(*train_command(toy, generalist, tmp_path))
    assert load_card(tmp_path / "spec1")["digest"] == load_card(specialists / "spec1")["digest"]


def test_specialists_that_are_there_are_not_trained_again(specialists, generalist, toy, capsys):
    run(*train_command(toy, generalist, specialists))
    assert capsys.readouterr().err.count("up to date") == 3


def test_nets_that_do_not_belong_together_are_refused(specialists, generalist, toy, tmp_path, capsys):
    reader = FeatsReader(toy["dev_feats"])
    trained, first, second = load_net(generalist), *(load_net(specialists / f"spec{n}") for n in (1, 2))
    check_members([trained, first, second], reader, "toy", combination="specialists")
    for members, combination, complaint in (
        ([first, second], "arithmetic", "beside its generalist alone"),
        ([first], None, "beside its generalist alone"),
        ([first, second], "specialists", "generalist must come first"),
        ([trained], "specialists", "at least one specialist"),
        ([trained, trained], "specialists", "made by asr-kd train-specialists"),
    ):
        with pytest.raises(AsrKdError, match=complaint):
            check_members(members, reader, combination=combination)
    run("train", *sets(toy), "--out", tmp_path, "--seeds", 2, "--num-epochs", 1, *SHAPE, *SMALL)
    with pytest.raises(AsrKdError, match="beside another generalist"):
        check_members([load_net(tmp_path / "seed2"), first], reader, combination="specialists")
    assert main([str(a) for a in train_command(toy, specialists / "spec1", tmp_path)]) == 1
    assert "is a specialist" in capsys.readouterr().err
    assert main([str(a) for a in train_command(toy, generalist, tmp_path, hidden_dim=32)]) == 1
    assert "the generalist has 16" in capsys.readouterr().err
    assert main([*map(str, train_command(toy, generalist, tmp_path)), "--label-smoothing", "0.1"]) == 1
    assert "give it to train-ensemble" in capsys.readouterr().err


def test_labels_that_members_have_smoothed_are_not_so_to_specialists(specialists, generalist, toy, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("label_smoothing: 0.3\n")
    run(*train_command(toy, generalist, tmp_path / "out"), "--config", config)
    for spec in ("spec1", "spec2"):
        card = load_card(tmp_path / "out" / spec)
        assert card["digest"] == load_card(specialists / spec)["digest"]
        assert card["training"]["config"]["label_smoothing"] == 0


def test_the_ensemble_answers_as_every_frame_by_itself_would(specialists, generalist, toy):
    dev = load(toy, "dev_")
    members = [load_net(path) for path in (generalist, specialists / "spec1", specialists / "spec2")]
    windows = dev.frames.windows(torch.arange(60))
    log_q = SpecialistEnsemble(members, 2, torch.float32).log_posteriors(windows)
    p_g = members[0].net(windows).detach().softmax(1)
    own = [Specialist.of(member) for member in members[1:]]
    for frame in range(0, 60, 7):
        called = [s for s in own if set(p_g[frame].topk(2).indices.tolist()) & set(s.classes)]
        special, dustbin = torch.zeros(1, 6, **FLOAT64), torch.zeros(1, 2, **FLOAT64)
        for s in called:
            p_m = s.log_posteriors(members[1 + own.index(s)].net(windows[frame : frame + 1]).detach()).exp()[0].double()
            special[0, list(s.classes)] += p_m[:-1]
            dustbin[0, own.index(s)] = p_m[-1]
        membership = torch.stack([s.membership(torch.device("cpu")) for s in own])
        answers = SpecialistAnswers(special, dustbin, torch.tensor([[s in called for s in own]]), membership)
        q = nearest_to_all(p_g[frame : frame + 1].double(), answers, tolerance=1e-12, max_steps=5000)
        reached = objective(log_q[frame : frame + 1].double().exp(), p_g[frame : frame + 1].double(), answers)
        assert reached - objective(q, p_g[frame : frame + 1].double(), answers) < 1e-3
    hot = SpecialistEnsemble(members, 2, torch.float32).log_posteriors(windows, temperature=3.0)
    torch.testing.assert_close(hot, (log_q / 3).log_softmax(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_answer_for_a_set_in_whatever_precision(specialists, generalist, toy, dtype):
    """The generalist is known by its weights, and these are what they were after they were converted."""
    members = [load_net(path) for path in (generalist, specialists / "spec1", specialists / "spec2")]
    with FeatsReader(toy["dev_feats"]) as reader:
        found = dict(SetPosteriors(members, reader, SPECIALISTS, torch.device("cpu"), dtype))
    frames = load(toy, "dev_").frames
    exact = SpecialistEnsemble(members, 1, torch.float32).log_posteriors(frames.windows(torch.arange(60)))
    assert list(found) == list(frames.layout.utt_ids)
    utterances = np.concatenate(list(found.values()))[:60]
    torch.testing.assert_close(
        torch.from_numpy(utterances).exp(), exact.exp(), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0
    )


@pytest.mark.parametrize(("outputs", "soft"), [("dustbin", "false"), ("full", "true")])
def test_specialists_score_better_than_their_generalist_on_their_states(toy, generalist, tmp_path, outputs, soft):
    run(
        *train_command(toy, generalist, tmp_path, specialist_outputs=outputs, specialist_soft_targets=soft),
        *("--specialist-epochs", 6, "--specialist-learning-rate", 0.003),
    )
    train = load(toy)
    members = [load_net(path) for path in (generalist, tmp_path / "spec1", tmp_path / "spec2")]
    windows = train.frames.windows(torch.arange(len(train.pdf)))
    together = SpecialistEnsemble(members, 1, torch.float32).log_posteriors(windows)
    alone = members[0].net(windows).detach().log_softmax(1)
    labels = train.pdf.long()
    xent = [float(torch.nn.functional.nll_loss(each, labels)) for each in (alone, together)]
    assert xent[1] < xent[0]


def test_generalist_and_specialists_are_distilled_back_into_one_net(specialists, generalist, toy, tmp_path, capsys):
    teachers = ["--teachers", generalist, specialists / "spec1", specialists / "spec2"]
    together = [*teachers, "--combination", "specialists"]
    run("soft-targets", *together, "--feats", toy["feats"], "--out", tmp_path / "t.h5", "--device", "cpu")
    targets = TargetsReader(tmp_path / "t.h5")
    assert (targets.combination, targets.num_pdfs, len(targets.members)) == ("specialists", 6, 3)
    np.testing.assert_allclose(targets.prob.astype(float).sum(axis=1), 1, atol=5e-3)
    distill = ["distill", *sets(toy), "--student-epochs", 2, *SHAPE, *SMALL]
    run(*distill, "--targets", tmp_path / "t.h5", "--out", tmp_path / "stored")
    run(*distill, *together, "--out", tmp_path / "online")
    for name in ("stored", "online"):
        student = load_net(tmp_path / name / "seed1")
        assert student.net.architecture == load_net(generalist).net.architecture
        assert Specialist.of(student) is None
    digests = [
        load_card(tmp_path / name / "seed1")["training"]["history"][-1]["dev_xent"] for name in ("stored", "online")
    ]
    assert digests[0] == pytest.approx(digests[1], rel=0.02)
    capsys.readouterr()
    assert main([str(a) for a in ["soft-targets", *teachers, "--feats", toy["feats"], "--out", tmp_path / "u.h5"]]) == 1
    assert "combination specialists" in capsys.readouterr().err


def test_changes_are_told_by_the_number_of_specialists_that_cover_a_state(
    specialists, generalist, toy, tmp_path, capsys
):
    seeds = [
        StateCounts(*map(np.array, ([0, 1, 2], [10, 20, 30], [5, 10, 20], [4, 12, 26]))),
        StateCounts(*map(np.array, ([1, 1, 0], [10, 20, 30], [5, 10, 20], [5, 12, 18]))),
    ]
    rows = coverage_rows(seeds)
    told = [[row[key] for key in ("num_specialists", "num_states", "num_frames", "delta_correct")] for row in rows]
    assert told == [[0, 2, 40, -3], [1, 3, 50, 4], [2, 1, 30, 6], [None, 6, 120, 7]]
    assert rows[2]["relative_change"] == pytest.approx(30.0)
    assert rows[1]["accuracy"] == pytest.approx(58.0)
    dev = ["--feats", toy["dev_feats"], "--ali", toy["dev_ali"], "--device", "cpu"]
    given = ["--specialists", specialists, *dev]
    run("specialist-coverage", "--generalists", generalist, *given, "--out", tmp_path / "rows.json")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert printed.count("\n") == len(rows) + 2
    history = load_card(generalist)["training"]["history"]
    assert rows[-1]["generalist_accuracy"] == pytest.approx(max(row["dev_frame_acc"] for row in history))
    two = ["specialist-coverage", "--generalists", generalist, generalist, *given, "--out", tmp_path / "x"]
    assert main([str(arg) for arg in two]) == 1


def test_a_system_of_specialists_is_listed_as_others_are(tmp_path):
    entry = "- {name: s, role: specialists, combination: specialists, nets: [[g, a, b]]}\n"
    (tmp_path / "systems.yaml").write_text(entry)
    (system,) = read_systems(tmp_path / "systems.yaml")
    assert system.combination == "specialists"
    assert math.prod(map(len, system.nets)) == 3


def test_the_experiment_of_the_paper_tells_its_options_and_needs_a_base(tmp_path):
    script = ["bash", str(Path(__file__).parents[1] / "recipes/paper/specialists.sh")]
    told = subprocess.run([*script, "--help"], capture_output=True, text=True)
    assert told.returncode == 0
    assert "--clusterings" in told.stdout
    refused = subprocess.run([*script, "--base", tmp_path, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "no config.yaml there" in refused.stderr
