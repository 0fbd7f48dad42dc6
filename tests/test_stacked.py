"""Members trained together end as they do in turn, whatever happens on the way."""

import os
import signal
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.nnet.stacked import StackedNets
from asr_kd.training import loop, stacked
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets
from asr_kd.training.optimizer import bound_norms, clip_gradients, clip_gradients_of_each
from asr_kd.training.stacked import train_all

SMALL = ["--hidden-dim", 16, "--num-hidden-layers", 2, "--left-context", 3, "--right-context", 1]
SMALL += ["--batch-size", 64, "--warmup-steps", 5, "--num-members", 3, "--num-seeds", 1, "--num-epochs", 3]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", 0.01]


def command(toy: dict, out: Path, *options: object, name: str = "train-ensemble") -> list[str]:
    sets = [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", path)]
    small = SMALL if name == "train-ensemble" else [*SMALL[:12], *SMALL[16:]]
    return [str(arg) for arg in (name, *sets, *small, *options, "--out", out)]


def assert_same(one: Path, other: Path, bits: bool = False, near: float = 1e-5) -> None:
    """Two nets are the same but for the order of sums, or to the bit, and so are their histories."""
    expected, found = load_net(one), load_net(other)
    for name, weight in expected.net.state_dict().items():
        tolerance = {"rtol": 0, "atol": 0} if bits else {"rtol": near, "atol": near * float(weight.abs().max())}
        torch.testing.assert_close(found.net.state_dict()[name], weight, **tolerance)
    a, b = expected.training, found.training
    for key in ("fingerprint", "best_epoch", "stopped_by", "seed", "num_train_frames"):
        assert a[key] == b[key], key
    for row, same in zip(a["history"], b["history"], strict=True):
        for key in ("epoch", "step", "num_frames", "learning_rate", "dev_frame_acc"):
            assert row[key] == same[key], key
        for key in ("train_loss", "dev_xent"):
            assert same[key] == (row[key] if bits else pytest.approx(row[key], rel=near)), key


FEATURES = {
    "plain": [],
    "dropout": ["--dropout", 0.2, "--input-dropout", 0.1],
    "dropout schedule": ["--dropout-schedule", "0.3,0"],
    "views": ["--time-masks", 1, "--feature-noise", 0.3, "--freq-warp", 0.1],
    "clipping and norms": ["--max-grad-norm", 0.5, "--max-norm", 1.0],
    "average": ["--schedule", "constant", "--average-share", 0.6],
    "sgd, smoothing": ["--optimizer", "sgd", "--label-smoothing", 0.1, "--schedule", "cosine"],
    "short epochs": ["--max-steps", 33, "--steps-per-epoch", 7, "--keep-best", "xent"],
}


@pytest.mark.parametrize("name", FEATURES)
def test_members_trained_together_are_those_trained_in_turn(toy, tmp_path, name):
    # Where every window is another in every step, a unit of a longer run may be on one side of 0 in the one way, and on
    # the other in the other, by the order of sums on the machine at hand.
    short = ["--num-epochs", 1] if name == "views" else []
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, "--stacked", way, *FEATURES[name], *short)) == 0
    for seed in ("seed1", "seed2", "seed3"):
        assert_same(tmp_path / "never" / seed, tmp_path / "always" / seed)
        assert load_card(tmp_path / "always" / seed)["training"]["num_together"] == 3
        assert sorted(path.name for path in (tmp_path / "always" / seed).iterdir()) == ["final.safetensors", "net.json"]


def until_complete(argv: list[str], monkeypatch, after: int) -> int:
    """Run `argv`, interrupted after so many saves each time, until it ends by itself; returns how often it was."""
    save = stacked.save_checkpoint
    for broken in range(50):
        calls = []

        def save_then_stop(*args, calls=calls):
            save(*args)
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt

        monkeypatch.setattr(stacked, "save_checkpoint", save_then_stop)
        status = main(argv)
        if status == 0:
            return broken
        assert status == 130
    raise AssertionError("no end")


@pytest.mark.parametrize("name", ["dropout", "views", "average", "sgd, smoothing"])
def test_broken_off_after_any_step_they_end_with_the_same_bits(toy, tmp_path, monkeypatch, name):
    options = ["--stacked", "always", *FEATURES[name], "--patience", 1]
    assert main(command(toy, tmp_path / "whole", *options)) == 0
    argv = command(toy, tmp_path / "broken", *options, "--checkpoint-minutes", 1e-9)
    assert until_complete(argv, monkeypatch, after=11) >= 3
    for seed in ("seed1", "seed2", "seed3"):
        assert_same(tmp_path / "whole" / seed, tmp_path / "broken" / seed, bits=True)


def test_a_member_that_gets_no_better_leaves_the_others(toy, tmp_path, monkeypatch, capsys):
    """Broken off after every save: before a member that stopped is saved, and before the rest is."""
    options = ["--num-epochs", 20, "--patience", 2, "--keep-best", "xent", "--learning-rate", 0.1]
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, "--stacked", way, *options)) == 0
    cards = [load_card(tmp_path / "always" / f"seed{seed}")["training"] for seed in (1, 2, 3)]
    assert len({len(card["history"]) for card in cards}) > 1
    assert sorted(card["num_together"] for card in cards)[0] < 3
    capsys.readouterr()
    argv = command(toy, tmp_path / "broken", *options, "--stacked", "always")
    assert until_complete(argv, monkeypatch, after=1) >= max(len(card["history"]) for card in cards) - 1
    assert "warning" not in capsys.readouterr().err
    for seed in ("seed1", "seed2", "seed3"):
        assert_same(tmp_path / "never" / seed, tmp_path / "always" / seed, near=1e-3)  # roundings grow at this rate
        assert_same(tmp_path / "always" / seed, tmp_path / "broken" / seed, bits=True)


@pytest.mark.parametrize(("number", "moment"), [(1, "after"), (2, "before"), (3, "after")])
def test_killed_members_go_on_together(toy, tmp_path, number, moment):
    options = ["--stacked", "always", "--dropout", 0.2]
    assert main(command(toy, tmp_path / "whole", *options)) == 0
    argv = command(toy, tmp_path / "killed", *options)
    child = os.fork()
    if child == 0:
        save, calls = stacked.save_checkpoint, []

        def save_or_die(*args):
            calls.append(1)
            if len(calls) == number and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            save(*args)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        stacked.save_checkpoint = save_or_die
        os._exit(main(argv))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    # What was begun together goes on so, though by itself it would not be on a CPU.
    argv[argv.index("--stacked") + 1] = "auto"
    assert main(argv) == 0
    for seed in ("seed1", "seed2", "seed3"):
        assert_same(tmp_path / "whole" / seed, tmp_path / "killed" / seed, bits=True)


def test_complete_members_are_left_alone_and_more_are_trained_after_those_that_were_begun(
    toy, tmp_path, monkeypatch, capsys
):
    argv = command(toy, tmp_path, "--stacked", "always")
    one = [*argv[:-2], "--num-members", "1", "--out", str(tmp_path)]
    assert main(one) == 0
    made = (tmp_path / "seed1/net.json").stat().st_mtime_ns
    save = stacked.save_checkpoint

    def save_then_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(stacked, "save_checkpoint", save_then_stop)
    assert main(argv) == 130
    monkeypatch.setattr(stacked, "save_checkpoint", save)
    capsys.readouterr()
    assert main([*argv, "--num-members", "5"]) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'seed1'}: up to date" in said
    assert f"{tmp_path / 'seed2'}, seed3: continuing after step" in said
    assert f"2 together: {tmp_path / 'seed4'}, seed5" in said
    assert (tmp_path / "seed1/net.json").stat().st_mtime_ns == made
    assert main(command(toy, tmp_path / "in turn", "--num-members", 5)) == 0
    for seed in range(1, 6):
        assert_same(tmp_path / "in turn" / f"seed{seed}", tmp_path / f"seed{seed}")


def test_begun_one_way_they_go_on_the_other(toy, tmp_path, monkeypatch, capsys):
    assert main(command(toy, tmp_path / "whole")) == 0

    def broken_off(out: Path, way: str, module: ModuleType) -> None:
        save = module.save_checkpoint

        def save_then_stop(*args):
            save(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "save_checkpoint", save_then_stop)
        assert main(command(toy, out, "--stacked", way)) == 130
        monkeypatch.setattr(module, "save_checkpoint", save)
        capsys.readouterr()

    broken_off(tmp_path / "in turn", "never", loop)
    assert main(command(toy, tmp_path / "in turn", "--stacked", "always")) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'in turn/seed1'}: continuing after step" in said
    assert "2 together" in said
    assert_same(tmp_path / "whole/seed1", tmp_path / "in turn/seed1", bits=True)
    assert_same(tmp_path / "whole/seed3", tmp_path / "in turn/seed3")

    broken_off(tmp_path / "together", "always", stacked)
    assert main(command(toy, tmp_path / "together", "--stacked", "never", "--num-members", 1)) == 0
    assert "with stacked auto or always they go on" in capsys.readouterr().err
    assert (tmp_path / "together/seed1/stacked.safetensors").exists()
    # Two of them are left; another comes before them.
    assert main(command(toy, tmp_path / "together", "--first-seed", 0, "--num-members", 4)) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'together/seed2'}, seed3: continuing after step" in said
    assert not list(tmp_path.glob("*/*/*stacked*"))
    assert_same(tmp_path / "whole/seed2", tmp_path / "together/seed2")


def test_another_configuration_is_trained_from_the_beginning(toy, tmp_path, monkeypatch):
    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    save = stacked.save_checkpoint
    monkeypatch.setattr(stacked, "save_checkpoint", stop)
    assert main(command(toy, tmp_path / "a", "--stacked", "always", "--weight-decay", 0.1)) == 130
    monkeypatch.setattr(stacked, "save_checkpoint", save)
    for folder in ("a", "b"):
        assert main(command(toy, tmp_path / folder, "--stacked", "always")) == 0
    assert_same(tmp_path / "a/seed1", tmp_path / "b/seed1", bits=True)


def test_what_cannot_be_trained_together_is_trained_in_turn_or_refused(toy, tmp_path, capsys):
    refused = {"schedule newbob": ["--schedule", "newbob", "--warmup-steps", 0], "unlike numbers": ["--folds", 3]}
    for reason, options in refused.items():
        assert main(command(toy, tmp_path, "--stacked", "always", *options)) == 1
        assert reason in capsys.readouterr().err
    assert main(command(toy, tmp_path, "--stacked", "auto", "--folds", 3)) == 0
    assert load_card(tmp_path / "seed2")["training"]["num_together"] == 1
    assert (
        main(
            command(toy, tmp_path / "b", "--stacked", "always", "--seeds", "1,2", "--prune-sparsity", 0.5, name="train")
        )
        == 1
    )
    assert "pruned or quantized" in capsys.readouterr().err
    assert main(command(toy, tmp_path, "--stacked", "true")) == 1
    assert "should be auto, always or never" in capsys.readouterr().err


def test_small_nets_are_trained_together_on_a_gpu_alone(tmp_path, monkeypatch):
    how = []
    monkeypatch.setattr(stacked, "why_in_turn", lambda runs: None)
    monkeypatch.setattr(stacked, "train_together", lambda runs: how.append("together"))
    monkeypatch.setattr(stacked, "train_net", lambda run: how.append("in turn"))

    def trained(device: str, width: int, key: str = "auto") -> list[str]:
        run = SimpleNamespace(out=tmp_path, architecture=Architecture(20, 5, 40, 4, width, 500), transfer_index=None)
        run.config = SimpleNamespace(batch_size=1024)
        run.train = SimpleNamespace(frames=SimpleNamespace(device=torch.device(device)))
        how.clear()
        train_all([run, run], key)
        return how

    assert trained("cuda", 512) == ["together"]
    assert trained("cuda", 512, "never") == ["in turn", "in turn"]
    assert trained("cuda", 2560) == ["in turn", "in turn"]
    assert trained("cpu", 512) == ["in turn", "in turn"]
    assert trained("cpu", 2560, "always") == ["together"]
    train_all([], "always")  # of more processes than members, some have none


def test_a_loss_that_is_no_number_names_the_net(toy, tmp_path, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "1e9", "--max-grad-norm", "0"]
    assert main(command(toy, tmp_path, "--stacked", "always", *options)) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "seed") in said
    assert "lower the learning rate" in said


def test_single_nets_of_several_seeds_too(toy, tmp_path):
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, "--seeds", "4,7", "--stacked", way, name="train")) == 0
    for seed in ("seed4", "seed7"):
        assert_same(tmp_path / "never" / seed, tmp_path / "always" / seed)


@pytest.mark.parametrize(
    "options",
    [
        ["--soft-weight", 0.7],
        ["--label-use", "conditional", "--time-masks", 1],
        ["--label-use", "swap", "--matching", "logits", "--soft-weight", 0.5],
        ["--labelled-share", 0.5, "--student-average-share", 0.5, "--online-members", 1],
    ],
)
def test_students_of_several_seeds_too(teachers, toy, tmp_path, options):
    options = ["--seeds", "1,2", "--student-epochs", 2, "--temperature", 2, *options, "--teachers", *teachers]
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, *options, "--stacked", way, name="distill")) == 0
    for seed in ("seed1", "seed2"):
        assert_same(tmp_path / "never" / seed, tmp_path / "always" / seed)
        assert load_card(tmp_path / "always" / seed)["training"]["num_together"] == 2


def test_students_on_stored_targets_too(teachers, toy, tmp_path):
    targets = tmp_path / "targets.h5"
    how = ["--teachers", *teachers, "--feats", toy["feats"], "--top-k", 3, "--device", "cpu", "--precision", "float32"]
    assert main([str(arg) for arg in ("soft-targets", *how, "--out", targets)]) == 0
    options = ["--seeds", "1,2", "--student-epochs", 2, "--targets", targets]
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, *options, "--stacked", way, name="distill")) == 0
    assert_same(tmp_path / "never/seed2", tmp_path / "always/seed2")


@pytest.fixture(scope="module")
def teachers(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("teachers")
    assert main(command(toy, out, "--num-members", 2, "--num-epochs", 1)) == 0
    return [out / "seed1", out / "seed2"]


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_stacked_nets_compute_what_each_computes(num_nets, num_layers, batch, seed):
    """Logits, losses, gradients, clipped and then norms bounded."""
    torch.manual_seed(seed)
    nets = [new_net(Architecture(1, 1, 4, num_layers, 8, 5), seed + n) for n in range(num_nets)]
    stack = StackedNets(nets)
    windows, labels = torch.randn(num_nets, batch, 12), torch.randint(-1, 5, (num_nets, batch))
    soft = torch.rand(num_nets, batch, 5).softmax(-1)

    def terms(labels: torch.Tensor, soft: torch.Tensor) -> list[Term]:
        weight = torch.full(labels.shape, 1 / batch)
        return [Term(hard_targets(labels), weight), Term(SoftBatch(soft), weight, 2.0)]

    losses = cross_entropy(stack(windows), terms(labels.flatten(), soft.flatten(0, 1)))
    assert losses.shape == (num_nets,)
    losses.sum().backward()
    clip_gradients_of_each(stack, 0.5)
    for n, net in enumerate(nets):
        loss = cross_entropy(net(windows[n]), terms(labels[n], soft[n]))
        torch.testing.assert_close(losses[n], loss)
        loss.backward()
        clip_gradients(net, 0.5)
        for ours, theirs in zip(net.linear, stack.linear, strict=True):
            torch.testing.assert_close(theirs.weight.grad[n], ours.weight.grad)
            torch.testing.assert_close(theirs.bias.grad.view(num_nets, -1)[n], ours.bias.grad)
    bound_norms(stack, 0.7)
    for n, net in enumerate(nets):
        bound_norms(net, 0.7)
        for ours, theirs in zip(net.linear, stack.linear, strict=True):
            torch.testing.assert_close(theirs.weight[n], ours.weight)


def test_losses_of_several_nets_in_chunks_are_those_of_each(monkeypatch):
    logits = torch.randn(3, 10, 7, dtype=torch.float64, requires_grad=True)
    term = Term(hard_targets(torch.randint(7, (30,))), torch.rand(30))
    whole = cross_entropy(logits, [term])
    (gradient,) = torch.autograd.grad((whole * torch.tensor([1.0, 2.0, 3.0])).sum(), logits)
    monkeypatch.setattr("asr_kd.training.cross_entropy.rows_at_once", lambda device, size: 4)
    parts = cross_entropy(logits, [term])
    torch.testing.assert_close(parts, whole)
    (of_parts,) = torch.autograd.grad((parts * torch.tensor([1.0, 2.0, 3.0])).sum(), logits)
    torch.testing.assert_close(of_parts, gradient)
