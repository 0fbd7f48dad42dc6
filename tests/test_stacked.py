"""Members trained together end as they do in turn, whatever happens on the way."""

from pathlib import Path

import pytest
import torch

from asr_kd.cli import main
from asr_kd.nnet.net_dir import load_card, load_net

SMALL = ["--hidden-dim", 16, "--num-hidden-layers", 2, "--left-context", 3, "--right-context", 1]
SMALL += ["--batch-size", 64, "--warmup-steps", 5, "--num-members", 3, "--num-seeds", 1, "--num-epochs", 3]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", 0.01]


def command(toy: dict, out: Path, *options: object, name: str = "train-ensemble") -> list[str]:
    sets = [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", path)]
    small = SMALL if name == "train-ensemble" else [*SMALL[:12], *SMALL[16:]]
    return [str(arg) for arg in (name, *sets, *small, *options, "--out", out)]


def assert_same(one: Path, other: Path, bits: bool = False) -> None:
    """Two nets are the same but for the order of sums, or to the bit, and so are their histories."""
    expected, found = load_net(one), load_net(other)
    for name, weight in expected.net.state_dict().items():
        tolerance = {"rtol": 0, "atol": 0} if bits else {"rtol": 1e-5, "atol": 1e-5 * float(weight.abs().max())}
        torch.testing.assert_close(found.net.state_dict()[name], weight, **tolerance)
    a, b = expected.training, found.training
    for key in ("fingerprint", "best_epoch", "stopped_by", "seed", "num_train_frames"):
        assert a[key] == b[key], key
    for row, same in zip(a["history"], b["history"], strict=True):
        for key in ("epoch", "step", "num_frames", "learning_rate", "dev_frame_acc"):
            assert row[key] == same[key], key
        for key in ("train_loss", "dev_xent"):
            assert same[key] == (row[key] if bits else pytest.approx(row[key], rel=1e-5)), key


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
    for way in ("never", "always"):
        assert main(command(toy, tmp_path / way, "--stacked", way, *FEATURES[name])) == 0
    for seed in ("seed1", "seed2", "seed3"):
        assert_same(tmp_path / "never" / seed, tmp_path / "always" / seed)
        assert load_card(tmp_path / "always" / seed)["training"]["num_together"] == 3
        assert sorted(path.name for path in (tmp_path / "always" / seed).iterdir()) == ["final.safetensors", "net.json"]
