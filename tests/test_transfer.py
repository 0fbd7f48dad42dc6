from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.distill.bias import bias_for_shares, common_bias_for_accuracy
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.nnet.priors import count_pdfs, write_counts
from asr_kd.store.ali import AliReader
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader

SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "64", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", "0.01"]
CPU = ["--device", "cpu", "--precision", "float32"]
NUM_PDFS = 6


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def log_posteriors(net_dir: Path, feats: Path) -> torch.Tensor:
    trained, reader = load_net(net_dir), FeatsReader(feats)
    a = trained.net.architecture
    frames = Frames.from_reader(reader, trained.cmvn, a.left_context, a.right_context, torch.device("cpu"))
    return torch.cat([log_post for _, log_post in mean_log_posteriors([trained.net], frames)])


@pytest.fixture(scope="module")
def teachers(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("teachers")
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    return [out / f"seed{seed}" for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def targets(toy, teachers):
    out = teachers[0].parent / "targets.h5"
    run("soft-targets", "--teachers", *teachers, "--feats", toy["feats"], "--temperature", 1, "--out", out, *CPU)
    return out


# Biases


@given(st.integers(0, 1000), st.sampled_from([1.0, 5.0, 20.0]), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_a_known_shift_of_some_biases_is_found_again(seed, sharpness, num_classes):
    """Of some classes jointly, and of all, where biases are known up to a constant."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(300, 7, generator=generator, dtype=torch.float64)
    classes = torch.randperm(7, generator=generator)[:num_classes].tolist()
    shift = torch.zeros(7, dtype=torch.float64)
    shift[classes] = 8 * torch.rand(num_classes, generator=generator, dtype=torch.float64) - 6
    shares = logits.softmax(-1).mean(0)[classes]
    biases = bias_for_shares((logits + shift).log_softmax(-1), classes, shares, tolerance=1e-9)
    expected = -shift[classes]
    if num_classes == 7:
        expected = expected - expected.mean()
    torch.testing.assert_close(biases, expected, atol=1e-3, rtol=1e-3)


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_mean_posteriors_become_the_shares_whatever_they_are(seed, shares):
    logits = 30 * torch.randn(200, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    classes = list(range(1, 1 + len(shares)))
    logits[:, classes] -= 40
    biases = bias_for_shares(logits.log_softmax(-1), classes, shares)
    logits[:, classes] += biases
    expected = torch.tensor(shares, dtype=torch.float64)
    torch.testing.assert_close(logits.softmax(-1).mean(0)[classes], expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("classes", "shares", "message"),
    [
        ([0, 1], [0.5, 0.5], "less than 1"),
        ([0], [0.0], "above 0"),
        ([0, 1, 2], [0.2, 0.2, 0.2], "sum to 1"),
        ([0, 0], [0.2, 0.2], "different"),
        ([3], [0.2], "from 0 to 2"),
        ([0], [0.2, 0.3], "2 shares"),
    ],
)
def test_shares_that_no_bias_gives_are_refused(classes, shares, message):
    with pytest.raises(AsrKdError, match=message):
        bias_for_shares(torch.zeros(4, 3).log_softmax(-1), classes, shares)


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_no_common_bias_is_better_on_its_labels_than_the_test_tuned_one(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    log_post = (3 * torch.randn(60, 5, generator=generator)).log_softmax(-1)
    labels = torch.randint(-1, 5, (60,), generator=generator)
    classes = list(range(num_classes))

    def num_correct(bias: float) -> int:
        shifted = log_post.double().clone()
        shifted[:, classes] += bias
        return int((shifted.argmax(-1) == labels).sum())

    best = common_bias_for_accuracy(log_post, labels, classes)
    assert num_correct(best) >= max(num_correct(bias) for bias in np.linspace(-25, 25, 401))


def test_where_nothing_can_be_gained_the_test_tuned_bias_stays_near_0():
    log_post = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert common_bias_for_accuracy(log_post, torch.tensor([0, 1]), [0]) == pytest.approx(0, abs=1e-6)
    assert common_bias_for_accuracy(log_post, torch.tensor([0, 0]), [0]) == pytest.approx(np.log(9) + 1, abs=1e-5)


def test_correct_bias_gives_the_states_the_teachers_shares(toy, teachers, targets, tmp_path):
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--classes", "2,4", *CPU]
    run(*argv, "--targets", targets, "--out", tmp_path / "net")
    before, after = (log_posteriors(net, toy["feats"]) for net in (teachers[0], tmp_path / "net"))
    wanted = TargetsReader(targets).prob.astype(np.float64).mean(0)
    np.testing.assert_allclose(after.exp().mean(0)[[2, 4]], wanted[[2, 4]], rtol=1e-4)
    # Nothing else changed: the ratios of the other states are as they were.
    torch.testing.assert_close((after - before)[:, 0], (after - before)[:, 5], atol=1e-4, rtol=0)
    record = load_card(tmp_path / "net")["training"]["bias_correction"]
    assert record["by"] == "unlabelled statistics"
    assert record["net"] == load_card(teachers[0])["digest"]
    made = (tmp_path / "net/net.json").stat().st_mtime_ns
    run(*argv, "--targets", targets, "--out", tmp_path / "net")
    assert (tmp_path / "net/net.json").stat().st_mtime_ns == made


def test_correct_bias_by_counts_and_test_tuned_is_named_so(toy, teachers, tmp_path, capsys):
    ali = AliReader(toy["ali"])
    write_counts(tmp_path / "counts", count_pdfs(ali.pdf, NUM_PDFS))
    argv = ["correct-bias", "--net", teachers[0], "--feats", toy["feats"], "--classes", "3", *CPU]
    run(*argv, "--counts", tmp_path / "counts", "--out", tmp_path / "counted")
    share = (ali.pdf == 3).mean()
    assert log_posteriors(tmp_path / "counted", toy["feats"]).exp().mean(0)[3] == pytest.approx(share, rel=1e-4)
    run(*argv, "--test-tuned", "--ali", toy["ali"], "--out", tmp_path / "tuned")
    assert load_card(tmp_path / "tuned")["training"]["bias_correction"]["by"] == "test-tuned"
    labels = torch.from_numpy(ali.pdf)
    accuracy = {
        net: (log_posteriors(net, toy["feats"]).argmax(-1) == labels).sum() for net in (teachers[0], tmp_path / "tuned")
    }
    assert accuracy[tmp_path / "tuned"] >= accuracy[teachers[0]]
    assert "give --ali" in refused(capsys, *argv, "--test-tuned", "--out", tmp_path / "x")
    assert "the net has 0 to 5" in refused(
        capsys, *argv[:-6], "--classes", "6", *CPU, "--counts", tmp_path / "counts", "--out", tmp_path / "x"
    )


def test_top_k_targets_and_dense_ones_have_the_same_means_where_all_is_kept(toy, teachers, targets, tmp_path):
    run("soft-targets", "--teachers", *teachers, "--feats", toy["feats"], "--temperature", 1, "--top-k", 6, *CPU,
        "--out", tmp_path / "top.h5")  # fmt: skip
    rows = np.arange(0, TargetsReader(targets).layout.num_frames, 3)
    np.testing.assert_allclose(TargetsReader(tmp_path / "top.h5").mean(rows), TargetsReader(targets).mean(rows))
