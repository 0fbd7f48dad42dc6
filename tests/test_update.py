"""Recorded steps, with a stand-in for the CUDA graph; tests/test_device.py has the real one, where there is a GPU."""

import pytest
import torch
from command_line import run
from test_stacked import command

from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.training import update


@pytest.fixture
def recordings(monkeypatch):
    """Steps are recorded on a CPU, too; the list has an entry for each recording, the number of its replays."""
    made = []

    def recorded(work, device, undone):
        with undone:
            result = work().clone()
        made.append(0)
        number = len(made) - 1

        def replay() -> None:
            made[number] += 1
            result.copy_(work())

        return replay, result

    monkeypatch.setattr(update, "recorded", recorded)
    monkeypatch.setattr(update, "is_recorded", lambda run: run.is_recordable)
    return made


WAYS = {
    "plain": [],
    "dropout": ["--dropout", 0.2, "--max-norm", 1.0],
    "other rates of dropout": ["--dropout-schedule", "0.1,0.3"],
    "views": ["--time-masks", 1, "--feature-noise", 0.3],
    "sgd": ["--optimizer", "sgd"],
    "newbob": ["--schedule", "newbob", "--warmup-steps", 0, "--learning-rate", 0.05, "--keep-best", "xent"],
    "pruned": ["--prune-sparsity", 0.5],
    "average": ["--schedule", "constant", "--average-share", 0.6],
}


@pytest.mark.parametrize("stacked", ["never", "always"])
@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_are_those_of_before(toy, tmp_path, request, way, stacked):
    """The learning rate is rounded to float32, nothing else: recording has no effect, and nothing is forgotten."""
    if stacked == "always" and way in ("newbob", "pruned"):
        pytest.skip("trained in turn")
    argv = ["--num-epochs", 3, *WAYS[way], "--stacked", stacked, "--seeds", "1,2"]
    assert run(*command(toy, tmp_path / "plain", *argv, name="train")) == 0
    recordings = request.getfixturevalue("recordings")
    assert run(*command(toy, tmp_path / "recorded", *argv, name="train")) == 0
    for seed in ("seed1", "seed2"):
        plain, found = (load_net(tmp_path / folder / seed) for folder in ("plain", "recorded"))
        for weight, same in zip(plain.net.parameters(), found.net.parameters(), strict=True):
            torch.testing.assert_close(same, weight, rtol=1e-3, atol=1e-3 * float(weight.detach().abs().max()))
        losses = [[row["train_loss"] for row in each.training["history"]] for each in (plain, found)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    history = load_card(tmp_path / "recorded/seed1")["training"]["history"]
    nets = 1 if stacked == "always" else 2
    if way == "newbob":  # a rejected epoch brings another optimiser's state, and so a recording of its own
        assert not all(row["accepted"] for row in history)
        assert len(recordings) > nets
        return
    # 15 whole batches of 64 in 991 frames; what is smaller is not recorded.
    assert sum(recordings) == nets * 15 * len(history)
    assert len(recordings) == (2 * nets if way == "other rates of dropout" else nets)
