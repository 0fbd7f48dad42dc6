import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import train_in_pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.config import DnnConfig, resolve
from asr_kd.distill.soft_targets import OnlineTargets
from asr_kd.errors import AsrKdError
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.frames import Cmvn, Frames
from asr_kd.nnet.inference import mean_log_posteriors, of_type
from asr_kd.nnet.model import Architecture, FrameClassifier, new_net
from asr_kd.nnet.net_dir import load_card, load_net, weights_digest
from asr_kd.nnet.quantized import Quantization
from asr_kd.store import tensors
from asr_kd.store.ali import AliReader, write_ali
from asr_kd.store.feats import FeatsReader, content_digest
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.hdf5 import Layout, blocks_of_utterances, read_layout, seal
from asr_kd.store.targets import TargetsReader
from asr_kd.training import data, loop, update
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.optimizer import clip_gradients
from asr_kd.training.run import NOT_IN_WEIGHTS, WITHOUT_EFFECT, Run, hard_loss

SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "1", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "64", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32", "--learning-rate", "0.01"]


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def run(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


@pytest.fixture(scope="module")
def members(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("members")
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    return [out / f"seed{seed}" for seed in (1, 2, 3)]


def test_windows_are_those_of_splice_feats(toy):
    with FeatsReader(toy["feats"]) as reader:
        cmvn = Cmvn.from_training_set("utterance", reader)
        frames = Frames.from_reader(reader, cmvn, 4, 2, torch.device("cpu"))
        normalised = np.concatenate([feats for _, feats in cmvn.normalised_blocks(reader, block_frames=50)])
        for utt_id in reader.layout.utt_ids[:5]:
            rows = reader.layout.rows(utt_id)
            feats = normalised[rows]
            index = np.clip(np.arange(len(feats))[:, None] + np.arange(-4, 3), 0, len(feats) - 1)
            expected = feats[index].reshape(len(feats), -1)
            got = frames.windows(torch.arange(rows.start, rows.stop)).numpy()
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["global", "speaker", "utterance"])
def test_cmvn_gives_zero_mean_and_unit_variance_over_its_groups(toy, mode):
    with FeatsReader(toy["feats"]) as reader:
        blocks = Cmvn.from_training_set(mode, reader).normalised_blocks(reader)
        feats = np.concatenate([feats for _, feats in blocks])
        keys = {"global": ["all"] * reader.layout.num_utts, "speaker": reader.spk_ids}.get(mode, reader.layout.utt_ids)
        group = np.repeat(np.array(keys), reader.layout.lengths)
        for key in set(keys):
            np.testing.assert_allclose(feats[group == key].mean(0), 0, atol=1e-3)
            np.testing.assert_allclose(feats[group == key].std(0), 1, atol=1e-3)


def test_an_ensemble_learns_and_its_members_differ_by_seed_alone(members, toy, tmp_path):
    cards = [load_card(member) for member in members]
    assert len({card["digest"] for card in cards}) == 3
    assert all(card["training"]["history"][-1]["dev_frame_acc"] > 50 for card in cards)
    # A member trained alone is the member trained among others.
    run("train", *sets(toy), "--out", tmp_path, "--seeds", "2", "--num-epochs", 4, *SMALL)
    assert load_card(tmp_path / "seed2")["digest"] == cards[1]["digest"]


def test_the_best_epoch_by_dev_is_kept(members, toy):
    card = load_card(members[0])
    history = card["training"]["history"]
    best = max(row["dev_frame_acc"] for row in history)
    assert history[card["training"]["best_epoch"] - 1]["dev_frame_acc"] == best


def test_a_complete_net_is_not_trained_again(members, toy, capsys):
    out = members[0].parent
    before = (members[0] / "net.json").stat().st_mtime_ns
    run("train-ensemble", *sets(toy), "--out", out, "--num-members", 3, "--num-epochs", 4, *SMALL)
    assert (members[0] / "net.json").stat().st_mtime_ns == before
    assert capsys.readouterr().err.count("up to date") == 3


def test_another_configuration_trains_anew_and_says_what_it_replaces(toy, tmp_path, capsys):
    for dim, replaced in ((8, 0), (12, 1)):
        run("train", *sets(toy), "--out", tmp_path, "--num-epochs", 1, *SMALL, "--hidden-dim", dim)
        assert capsys.readouterr().err.count("seed1: holds a net made from other inputs or another") == replaced
    assert load_card(tmp_path / "seed1")["architecture"]["hidden_dim"] == 12


def test_an_interrupted_run_ends_with_the_same_weights(toy, tmp_path, monkeypatch):
    """Stop after every epoch in turn; dropout too must draw what an unbroken run would have drawn."""
    options = [*sets(toy), "--num-epochs", 4, *SMALL, "--dropout", 0.2]
    run("train", *options, "--out", tmp_path / "whole")
    wanted = load_card(tmp_path / "whole" / "seed1")["digest"]
    evaluate = loop.evaluate
    for broken_epoch in range(1, 5):
        calls = []

        def stop(net, dev, dtype, calls=calls, broken_epoch=broken_epoch):
            calls.append(1)
            if len(calls) == broken_epoch:
                raise KeyboardInterrupt
            return evaluate(net, dev, dtype)

        out = tmp_path / f"broken{broken_epoch}"
        monkeypatch.setattr(loop, "evaluate", stop)
        assert main([str(a) for a in ("train", *options, "--out", out)]) == 130
        monkeypatch.setattr(loop, "evaluate", evaluate)
        run("train", *options, "--out", out)
        assert load_card(out / "seed1")["digest"] == wanted


def kill_in_child(argv: list[object], patch: Callable[[], None]) -> None:
    """Run `asr-kd` in a forked child which `patch` makes end itself by SIGKILL, and see that it did."""
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the child ends
        patch()
        os._exit(main([str(arg) for arg in argv]))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run ended before it was killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_at_save(number: int, moment: str) -> None:
    """SIGKILL before, in the middle of, or after the writing of checkpoint `number`, counted over all seeds."""
    save, write, calls = loop.save_checkpoint, tensors.save_file, []

    def half_a_file(contents, path, metadata):
        write(contents, path, metadata)
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def save_or_die(folder, contents):
        calls.append(1)
        if len(calls) == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == number and moment == "within":
            tensors.save_file = half_a_file
        save(folder, contents)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.save_checkpoint = save_or_die


@pytest.mark.parametrize(
    ("number", "moment"), [(1, "before"), (1, "after"), (3, "within"), (7, "within"), (8, "after")]
)
def test_a_killed_run_ends_with_the_same_weights(whole_run, toy, tmp_path, number, moment):
    """Two seeds of five epochs each: the kills hit the first and the second member; the first is not trained again."""
    argv = [*whole_run["argv"], "--out", tmp_path]
    kill_in_child(argv, lambda: kill_at_save(number, moment))
    first_done = number > 5
    assert (tmp_path / "seed1/net.json").exists() == first_done
    made = (tmp_path / "seed1/net.json").stat().st_mtime_ns if first_done else None
    run(*argv)
    assert made is None or (tmp_path / "seed1/net.json").stat().st_mtime_ns == made
    for seed in ("seed1", "seed2"):
        assert load_card(tmp_path / seed)["digest"] == load_card(whole_run["out"] / seed)["digest"]
        assert not (tmp_path / seed / "checkpoint.safetensors").exists()


@pytest.fixture(scope="module")
def whole_run(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    argv = ["train-ensemble", *sets(toy), *SMALL, "--num-members", 2, "--num-seeds", 1, "--num-epochs", 5]
    run(*argv, "--out", out)
    return {"argv": argv, "out": out}


FEATURES = {
    "masks": ["--time-masks", 1, "--freq-masks", 2, "--time-mask-width", 2],
    "noise and smoothing": ["--feature-noise", 0.3, "--label-smoothing", 0.1],
    "dropout schedule": ["--dropout-schedule", "0.3,0.1,0"],
    "cosine": ["--schedule", "cosine"],
    "newbob": ["--schedule", "newbob", "--learning-rate", 0.3, "--warmup-steps", 0, "--keep-best", "xent"],
    "budget": ["--max-steps", 50, "--steps-per-epoch", 13],
    "sgd": ["--optimizer", "sgd"],
    "average": ["--schedule", "constant", "--average-share", 0.6],
}


@pytest.mark.parametrize("name", FEATURES)
def test_whatever_is_on_a_kill_between_any_steps_changes_nothing(toy, tmp_path, name, monkeypatch):
    """Saved after every step; killed after 1, 2, 3, … saves until it ends by itself."""
    argv = ["train", *sets(toy), *SMALL, "--num-epochs", 4, *FEATURES[name], "--dropout", 0.2]
    run(*argv, "--out", tmp_path / "whole")
    train_in_pieces([*argv, "--out", tmp_path / "broken"], monkeypatch)
    whole, pieces = (load_card(tmp_path / folder / "seed1") for folder in ("whole", "broken"))
    assert pieces["digest"] == whole["digest"]
    timings = ("seconds", "frames_per_second")
    for card in (whole, pieces):
        for row in card["training"]["history"]:
            for key in timings:
                row.pop(key)
    assert pieces["training"]["history"] == whole["training"]["history"]


def history(folder: Path) -> list[dict]:
    return load_card(folder)["training"]["history"]


def test_a_budget_of_steps_is_kept_to_the_step(toy, tmp_path):
    run("train", *sets(toy), *SMALL, "--max-steps", 7, "--steps-per-epoch", 3, "--out", tmp_path)
    assert [row["step"] for row in history(tmp_path / "seed1")] == [3, 6, 7]
    assert sum(row["num_frames"] for row in history(tmp_path / "seed1")) == 7 * 64
    assert load_card(tmp_path / "seed1")["training"]["stopped_by"] == "max_steps"


def test_epochs_of_the_length_of_a_pass_are_the_default(toy, tmp_path):
    """An epoch's length decides when dev is looked at, and nothing about the steps."""
    with FeatsReader(toy["feats"]) as reader:
        steps = -(-reader.layout.num_frames // 64)
    common = ["train", *sets(toy), *SMALL, "--dropout", 0.2]
    run(*common, "--num-epochs", 2, "--out", tmp_path / "passes")
    run(*common, "--max-steps", 2 * steps, "--steps-per-epoch", steps // 2, "--out", tmp_path / "parts")
    assert [row["step"] for row in history(tmp_path / "passes/seed1")] == [steps, 2 * steps]
    last = [history(tmp_path / name / "seed1")[-1] for name in ("passes", "parts")]
    assert last[0]["dev_xent"] == last[1]["dev_xent"]


def test_patience_ends_a_run_that_gets_no_better(toy, tmp_path, capsys):
    options = ["--num-epochs", 20, "--patience", 3, "--keep-best", "xent", "--learning-rate", 1.0]
    run("train", *sets(toy), *SMALL, *options, "--out", tmp_path)
    training = load_card(tmp_path / "seed1")["training"]
    assert training["stopped_by"] == "patience"
    assert len(training["history"]) == training["best_epoch"] + 3
    assert "ended by patience" in capsys.readouterr().err


def test_the_net_is_the_mean_of_its_weights_after_each_of_the_last_steps(toy, tmp_path, monkeypatch):
    """Of 20 steps in 4 epochs the last 13: from the 8th on, in the second epoch."""
    options = ["--max-steps", 20, "--steps-per-epoch", 5, "--schedule", "constant", "--keep-best", "last"]
    seen = []
    clip = update.clip_gradients

    def watch(net, max_norm):  # before each step: the weights after the one before
        seen.append({name: weight.detach().clone() for name, weight in net.named_parameters()})
        clip(net, max_norm)

    monkeypatch.setattr(update, "clip_gradients", watch)
    run("train", *sets(toy), *SMALL, *options, "--average-share", 0.65, "--out", tmp_path / "mean")
    run("train", *sets(toy), *SMALL, *options, "--out", tmp_path / "last")
    mean, last = (load_net(tmp_path / name / "seed1") for name in ("mean", "last"))
    expected = [*seen[8:20], dict(last.net.named_parameters())]
    for name, weight in mean.net.named_parameters():
        assert torch.allclose(weight, torch.stack([each[name] for each in expected]).mean(dim=0), atol=1e-6)
    dev = [[row["dev_xent"] for row in history(tmp_path / name / "seed1")] for name in ("mean", "last")]
    assert dev[0][0] == dev[1][0]
    assert all(one != other for one, other in zip(dev[0][1:], dev[1][1:], strict=True))


def test_averages_that_cannot_be_are_refused(toy, tmp_path, capsys):
    refused = {
        "newbob goes back": ["--schedule", "newbob"],
        "must all be as sparse": ["--prune-sparsity", 0.5, "--prune-end", 0.6],
    }
    for complaint, options in refused.items():
        argv = ["train", *sets(toy), *SMALL, "--average-share", 0.5, *options, "--out", tmp_path]
        assert main([str(arg) for arg in argv]) == 1
        assert complaint in capsys.readouterr().err


def test_newbob_goes_back_to_the_last_accepted_epoch_and_ends_by_itself(toy, tmp_path, monkeypatch):
    """The net that begins an epoch has the loss on dev that the schedule measures the epoch against."""
    begun = []
    train_epoch = loop._train_epoch

    def watch(run, state, save):
        begun.append((state.schedule.state["loss"], loop.evaluate(state.net, run.dev, run.dtype)["dev_xent"]))
        train_epoch(run, state, save)

    monkeypatch.setattr(loop, "_train_epoch", watch)
    options = ["--schedule", "newbob", "--learning-rate", 0.3, "--warmup-steps", 0, "--num-epochs", 40]
    run("train", *sets(toy), *SMALL, *options, "--keep-best", "xent", "--out", tmp_path)
    training = load_card(tmp_path / "seed1")["training"]
    rows = training["history"]
    assert training["stopped_by"] == "newbob"
    assert {row["accepted"] for row in rows} == {True, False}
    assert len(begun) == len(rows)
    assert all(wanted == found for wanted, found in begun)
    accepted = [row for row in rows if row["accepted"]]
    assert training["best_epoch"] == accepted[-1]["epoch"]
    assert accepted[-1]["dev_xent"] == min(row["dev_xent"] for row in rows)


def test_newbob_that_accepts_nothing_says_so(toy, tmp_path, capsys):
    options = ["--schedule", "newbob", "--learning-rate", 30, "--warmup-steps", 0, "--num-epochs", 2]
    assert main([str(a) for a in ("train", *sets(toy), *SMALL, *options, "--out", tmp_path)]) == 1
    assert "not one epoch was better on dev than the untrained net" in capsys.readouterr().err


@pytest.mark.parametrize("criterion", ["frame_acc", "xent"])
def test_the_best_epoch_is_that_of_the_criterion(criterion):
    rows = [(40.0, 1.5), (42.0, 1.6), (42.0, 1.4), (41.0, 1.4), (39.0, 1.7)]
    made = [{"epoch": n, "dev_frame_acc": acc, "dev_xent": xent} for n, (acc, xent) in enumerate(rows, 1)]
    assert loop.best_epoch(made, criterion) == {"frame_acc": 3, "xent": 4}[criterion]
    made[2]["accepted"] = made[3]["accepted"] = False
    assert loop.best_epoch(made, criterion) == {"frame_acc": 2, "xent": 1}[criterion]


def toy_set(toy: dict, left: int = 3, right: int = 1) -> LabelledSet:
    context = {"left_context": left, "right_context": right}
    return load_set(
        toy["feats"], toy["ali"], cmvn="utterance", device=torch.device("cpu"), dtype=torch.float32, **context
    )


def test_more_frames_than_are_counted_are_refused(toy, monkeypatch):
    monkeypatch.setattr(data, "MAX_FRAMES", 10)
    with pytest.raises(AsrKdError, match=r"at most 10 frames, these are \d+; stream them"):
        toy_set(toy)


def test_label_smoothing_is_the_cross_entropy_with_smoothed_targets(toy):
    """(1 − ε) of the mass on the label, ε over all states (Szegedy et al. 2016, section 7)."""
    train = toy_set(toy)
    index = train.labelled[:50]
    logits = torch.randn(50, train.num_pdfs, generator=torch.Generator().manual_seed(1))
    target = torch.full((50, train.num_pdfs), 0.2 / train.num_pdfs)
    target[torch.arange(50), train.labels_of(index)] += 0.8
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(hard_loss(train, 0.2)(logits, index, None), expected)


def test_label_smoothing_reaches_training(toy, tmp_path):
    losses = []
    for smoothing in (0, 0.3):
        out = tmp_path / str(smoothing)
        run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--label-smoothing", smoothing, "--out", out)
        losses.append(history(out / "seed1")[0]["train_loss"])
    assert losses[0] != losses[1]


def test_teachers_see_the_masked_windows_and_dev_is_never_masked(toy, monkeypatch):
    train = toy_set(toy)
    config = resolve(DnnConfig, {"hidden_dim": 8, "num_hidden_layers": 1, "left_context": 3, "right_context": 1})
    config = replace(config, batch_size=64, max_steps=3, time_masks=1, time_mask_width=5)
    seen, evaluated = [], []

    def loss(logits, index, windows):
        seen.append(windows.clone())
        return hard_loss(train)(logits, index, windows)

    monkeypatch.setattr(loop, "save_net", lambda *_: None)
    evaluate = loop.evaluate

    def watch(net, dev, dtype):
        evaluated.extend(windows for _, windows in dev.frames.blocks())
        return evaluate(net, dev, dtype)

    monkeypatch.setattr(loop, "evaluate", watch)
    out = Path(toy["feats"]).parent / "masked"
    loop.train_net(Run(out, 1, config, train, train, train.labelled, loss, {"kind": "test"}, torch.float32))
    masked = [(windows.view(len(windows), 5, 40) == 0).all(dim=2).any() for windows in seen]
    assert all(masked)
    assert len(seen) == 3
    assert not any((windows.view(len(windows), 5, 40) == 0).all(dim=2).any() for windows in evaluated)


def test_a_table_with_a_header_and_a_row_for_every_epoch_is_printed(toy, tmp_path, capsys):
    run("train", *sets(toy), *SMALL, "--num-epochs", 3, "--checkpoint-minutes", 1e-9, "--out", tmp_path)
    lines = capsys.readouterr().err.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    rows = [line for line in lines[header + 1 :] if re.match(r" +\d+ +\d+ .*%", line)]
    assert [int(row.split()[0]) for row in rows] == [1, 2, 3]
    assert "left" in lines[header]
    assert any("saved within the epoch" in line for line in lines)


def test_curves_for_tensorboard(toy, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the curves need TensorBoard: pip install '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ["train", *sets(toy), *SMALL, "--num-epochs", 4, "--out", tmp_path, "--tensorboard", "true"]
    save, calls = loop.save_checkpoint, []

    def stop_before_the_third(folder, contents):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(folder, contents)

    monkeypatch.setattr(loop, "save_checkpoint", stop_before_the_third)
    assert main([str(a) for a in argv]) == 130
    run(*argv)
    events = EventAccumulator(str(tmp_path / "tensorboard/seed1")).Reload()
    rows = history(tmp_path / "seed1")
    points = [(event.step, event.value) for event in events.Scalars("dev_frame_acc")]
    assert points == [(row["step"], pytest.approx(row["dev_frame_acc"], rel=1e-6)) for row in rows]


def test_without_tensorboard_its_option_says_what_to_install(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    argv = ["train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path, "--tensorboard", "true"]
    assert main([str(a) for a in argv]) == 1
    assert "pip install '.[tensorboard]'" in capsys.readouterr().err


def test_keys_without_effect_do_not_make_a_net_be_trained_again(toy, tmp_path):
    train = toy_set(toy)

    def made_from(**values: object) -> str:
        config = resolve(DnnConfig, values)
        return Run(tmp_path, 1, config, train, train, train.labelled, hard_loss(train), {}, torch.float32).fingerprint

    assert made_from() == made_from(checkpoint_minutes=3, tensorboard=True)
    assert len({made_from(), made_from(patience=2), made_from(schedule="cosine"), made_from(max_steps=9)}) == 4
    # The files give these keys the values that have no effect.
    defaults = resolve(DnnConfig)
    assert {key: getattr(defaults, key) for key in WITHOUT_EFFECT} == WITHOUT_EFFECT
    # Of these every value counts; a new key belongs to one of the three.
    counts = {"left_context", "right_context", "num_hidden_layers", "hidden_dim", "cmvn", "dropout", "optimizer"}
    counts |= {"learning_rate", "final_learning_rate_ratio", "warmup_steps", "weight_decay", "max_grad_norm"}
    counts |= {"batch_size", "num_epochs", "precision"}
    assert {field.name for field in fields(DnnConfig)} == counts | NOT_IN_WEIGHTS | set(WITHOUT_EFFECT)


def test_views_of_students_alone_leave_members_as_they_are(members, toy, tmp_path):
    views = ["--freq-warp", 0.1, "--view-share", 0]
    run("train", *sets(toy), "--seeds", 1, "--num-epochs", 4, *SMALL, *views, "--out", tmp_path / "member")
    cards = [load_card(each)["training"] for each in (tmp_path / "member/seed1", members[0])]
    assert cards[0]["fingerprint"] == cards[1]["fingerprint"]
    views += ["--student-view-share", 0.5, "--student-epochs", 1]
    run("train", *sets(toy), *SMALL, *views, "--as-long-as-students", "--out", tmp_path / "long")
    run("distill", *sets(toy), *SMALL, *views, "--teachers", *members, "--out", tmp_path / "student")
    for name in ("long", "student"):
        assert load_card(tmp_path / name / "seed1")["training"]["config"]["view_share"] == 0.5


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 5.0, 1e9])
def test_clipping_is_torchs_bit_for_bit(max_norm):
    ours, theirs = (new_net(Architecture(1, 1, 4, 2, 8, 5), seed=3) for _ in range(2))
    x, y = torch.randn(12, 12), torch.arange(12) % 5
    for net in (ours, theirs):
        torch.nn.functional.cross_entropy(net(x), y).backward()
    clip_gradients(ours, max_norm)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 12), st.integers(0, 12), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_any_context_cuts_the_windows_that_clamped_indices_give(lengths, left, right, block_frames):
    layout = Layout.from_lengths([f"u{n}" for n in range(len(lengths))], lengths)
    feats = np.random.default_rng(1).normal(size=(layout.num_frames, 3)).astype(np.float32)
    utts = list(blocks_of_utterances(layout.offsets, block_frames))
    assert [u for part in utts for u in range(part.start, part.stop)] == list(range(len(lengths)))
    first = np.repeat(layout.offsets[:-1], lengths)[:, None]
    last = np.repeat(layout.offsets[1:], lengths)[:, None] - 1
    rows = np.clip(np.arange(layout.num_frames)[:, None] + np.arange(-left, right + 1), first, last)
    wanted = torch.from_numpy(feats[rows].reshape(layout.num_frames, -1))
    frames = Frames(feats, layout, left, right, torch.device("cpu"))
    assert torch.equal(frames.windows(torch.arange(layout.num_frames)), wanted)
    index = torch.randint(0, layout.num_frames, (7,))
    assert torch.equal(frames.windows(index), wanted[index])


@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 0, 2), (30, 30, 1), (0, 4, 0)])
def test_any_context_and_depth_trains(toy, tmp_path, shape):
    left, right, layers = shape
    size = ["--left-context", left, "--right-context", right, "--num-hidden-layers", layers]
    run("train", *sets(toy), *SMALL, *size, "--num-epochs", 2, "--out", tmp_path)
    net = load_net(tmp_path / "seed1").net
    assert net(torch.zeros(3, left + 1 + right, 40)).shape == (3, 6)
    assert net.num_parameters == sum(p.numel() for p in net.parameters())
    rows = history(tmp_path / "seed1")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_features_that_are_not_numbers_are_named(toy, tmp_path, capsys):
    path = tmp_path / "nan.h5"
    shutil.copy(toy["feats"], path)
    with h5py.File(path, "r+") as file:
        utt_id, begin, end = file["utt/id"].asstr()[2], *file["utt/offset"][2:4]
        file["feats"][int(begin) + 1, 5] = np.nan
        values = np.ascontiguousarray(file["feats"][begin:end])
    argv = ["train", *sets({**toy, "feats": path}), *SMALL, "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 1
    assert f"{path}: features of {utt_id} are damaged" in capsys.readouterr().err
    # The same from a program that writes its digests over whatever it has.
    with h5py.File(path, "r+") as file:
        file["utt/digest"][2] = np.frombuffer(hashlib.sha256(values).digest(), np.uint8)
        layout, speakers = read_layout(file), file["utt/spk"].asstr()[:]
        file.attrs["content_digest"] = content_digest(file.attrs, layout, speakers, file["utt/digest"][:])
        seal(file)
    assert main([str(a) for a in argv]) == 1
    assert f"{path}: features of {utt_id} are not finite" in capsys.readouterr().err


def test_labels_beyond_the_number_of_states_are_refused(toy, tmp_path, capsys):
    shutil.copy(toy["ali"], tmp_path / "ali.h5")
    with h5py.File(tmp_path / "ali.h5", "r+") as file:
        file["pdf"][3] = 6
    argv = ["train", *sets({**toy, "ali": tmp_path / "ali.h5"}), *SMALL, "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 1
    assert "the model has 6" in capsys.readouterr().err


def test_logits_of_many_states_come_in_smaller_blocks(toy):
    train = toy_set(toy)
    nets = [new_net(Architecture(3, 1, 40, 1, 8, train.num_pdfs), seed) for seed in (1, 2)]
    blocks = list(mean_log_posteriors(nets, train.frames, max_numbers=400))
    whole = torch.cat([log_post for _, log_post in mean_log_posteriors(nets, train.frames)])
    assert max(len(log_post) for _, log_post in blocks) == 400 // (4 * train.num_pdfs)
    torch.testing.assert_close(torch.cat([log_post for _, log_post in blocks]), whole)


def test_weights_in_bfloat16_answer_as_those_that_autocast_converts(toy):
    train = toy_set(toy)
    net = new_net(Architecture(3, 1, 40, 2, 8, train.num_pdfs), 1)
    converted, windows = of_type(net, torch.bfloat16), train.frames.windows(torch.arange(50))
    assert converted.linear[0].weight.dtype == torch.bfloat16
    assert net.linear[0].weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(converted(windows), net(windows))
    assert of_type(net, torch.float32) is net
    integers = FrameClassifier(net.architecture, Quantization("int8", 0))
    assert of_type(integers, torch.bfloat16) is integers


def test_a_full_disk_is_one_sentence_and_the_next_run_continues(whole_run, tmp_path):
    """The checkpoint of epoch 3 does not fit; that of epoch 2 stays."""
    argv, stderr = [str(arg) for arg in (*whole_run["argv"], "--out", tmp_path)], tmp_path / "stderr"
    child = os.fork()
    if child == 0:
        sys.stderr = open(stderr, "w", buffering=1)  # noqa: SIM115 - until the child ends
        save, calls = loop.save_checkpoint, []

        def save_on_a_full_disk(folder, contents):
            calls.append(1)
            if len(calls) == 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            save(folder, contents)

        loop.save_checkpoint = save_on_a_full_disk
        os._exit(main(argv))
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 1
    last = stderr.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "checkpoint.safetensors: could not be written" in last
    assert [path.name for path in (tmp_path / "seed1").iterdir()] == ["checkpoint.safetensors"]
    run(*argv)
    for seed in ("seed1", "seed2"):
        assert load_card(tmp_path / seed)["digest"] == load_card(whole_run["out"] / seed)["digest"]


def test_a_damaged_checkpoint_is_named_and_one_of_another_version_is_passed_over(toy, tmp_path, capsys):
    argv = ["train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path]
    path = tmp_path / "seed1/checkpoint.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"no checkpoint")
    assert main([str(a) for a in argv]) == 1
    assert f"{path}: damaged checkpoint" in capsys.readouterr().err
    tensors.save_file({"model/x": torch.zeros(1)}, path, metadata={"progress": json.dumps({"fingerprint": "x"})})
    run(*argv)
    assert load_card(tmp_path / "seed1")["training"]["stopped_by"] == "num_epochs"


def test_a_net_that_leaves_the_numbers_in_its_last_step_is_an_error_too(toy, tmp_path, capsys):
    options = [*sets(toy), *SMALL, "--max-steps", 1, "--learning-rate", "1e30", "--warmup-steps", 0]
    assert main([str(a) for a in ("train", *options, "--max-grad-norm", 0, "--out", tmp_path)]) == 1
    assert "dev's loss is nan in epoch 1; lower the learning rate" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(toy, tmp_path, capsys):
    options = [*sets(toy), *SMALL, "--optimizer", "sgd", "--learning-rate", "1e9", "--max-grad-norm", "0"]
    assert main([str(a) for a in ("train", *options, "--out", tmp_path)]) == 1
    assert "lower the learning rate" in capsys.readouterr().err


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        tensors.save_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_changed_weight_file_is_refused(members, tmp_path, capsys):
    from asr_kd.errors import AsrKdError

    shutil.copytree(members[0], tmp_path / "net")
    path = tmp_path / "net" / "final.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AsrKdError, match="does not hold the weights"):
        load_net(tmp_path / "net")
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(AsrKdError, match="cannot be loaded"):
        load_net(tmp_path / "net")


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_stored_targets_are_the_members_mean_and_train_the_student_that_online_ones_do(
    members, toy, tmp_path, combination
):
    common = ["--temperature", 2, "--combination", combination, "--teachers", *members]
    run("soft-targets", *common, "--feats", toy["feats"], "--out", tmp_path / "targets.h5", "--device", "cpu")
    reader = TargetsReader(tmp_path / "targets.h5")
    np.testing.assert_allclose(reader.prob.astype(np.float64).sum(1), 1, atol=4e-3)
    student = [*sets(toy), *SMALL, "--student-epochs", 3, "--soft-weight", 1]
    run("distill", *student, "--targets", tmp_path / "targets.h5", "--out", tmp_path / "stored")
    run("distill", *student, *common, "--out", tmp_path / "online")
    accuracy = [
        load_card(tmp_path / way / "seed1")["training"]["history"][-1]["dev_xent"] for way in ("stored", "online")
    ]
    # float16 targets are lossless in effect, not in bits.
    assert accuracy[0] == pytest.approx(accuracy[1], rel=1e-3)


def test_a_member_named_twice_is_refused(members, toy, tmp_path, capsys):
    shutil.copytree(members[0], tmp_path / "copy")
    teachers = ["--teachers", *members, tmp_path / "copy"]
    argv = ["soft-targets", *teachers, "--feats", toy["feats"], "--out", tmp_path / "targets.h5", "--device", "cpu"]
    assert main([str(word) for word in argv]) == 1
    assert f"copy: is the same net as {members[0]}" in capsys.readouterr().err
    assert not (tmp_path / "targets.h5").exists()


def test_members_drawn_for_every_batch_answer_as_all_on_average(members, toy):
    nets = [load_net(member) for member in members]
    reader, kind = FeatsReader(toy["feats"]), torch.float32
    frames = Frames.from_readers([reader], nets[0].cmvn, 3, 1, torch.device("cpu"), kind)
    windows = frames.windows(torch.arange(50))
    everyone = OnlineTargets(nets, 2.0, "arithmetic", kind).batch(torch.arange(50), windows).prob
    one = OnlineTargets(nets, 2.0, "arithmetic", kind, num_drawn=1)
    # As many batches as it takes, of which the frames' numbers alone differ.
    drawn = torch.stack([one.batch(torch.arange(50) + 7 * step, windows).prob for step in range(600)])
    assert len(torch.unique(drawn, dim=0)) == len(nets)
    torch.testing.assert_close(drawn.mean(0), everyone, atol=0.03, rtol=0)
    assert torch.equal(one.batch(torch.arange(50), windows).prob, drawn[0])
    too_many = OnlineTargets(nets, 2.0, "arithmetic", kind, num_drawn=9)
    assert torch.equal(too_many.batch(torch.arange(50), windows).prob, everyone)


def test_drawn_members_are_for_the_arithmetic_mean_alone(members, toy, tmp_path, capsys):
    student = [*sets(toy), *SMALL, "--teachers", *members, "--student-epochs", 1, "--out", tmp_path / "student"]
    student += ["--online-members", 1]
    assert main([str(word) for word in ("distill", *student, "--combination", "geometric")]) == 1
    assert "online_members 1: members drawn at random are right" in capsys.readouterr().err
    run("distill", *student)
    assert load_card(tmp_path / "student/seed1")["training"]["loss"]["online_members"] == 1


def test_top_k_of_all_states_equals_dense(members, toy, tmp_path):
    for k in ("null", "6", "3"):
        run(
            "soft-targets", "--teachers", *members, "--feats", toy["feats"], "--top-k", k, "--temperature", 1,
            "--out", tmp_path / f"{k}.h5", "--device", "cpu",
        )  # fmt: skip
    dense, whole, top = (TargetsReader(tmp_path / f"{k}.h5") for k in ("null", "6", "3"))
    spread = np.zeros_like(dense.prob)
    np.put_along_axis(spread, whole.pdf, whole.prob, axis=1)
    np.testing.assert_array_equal(spread, dense.prob)
    mass = top.prob.astype(np.float64).sum(1) + top.tail
    np.testing.assert_allclose(mass, 1, atol=1e-3)
    np.testing.assert_array_equal(top.prob, np.sort(dense.prob, axis=1)[:, :2:-1])


def test_k_is_chosen_by_what_it_loses_and_is_told_and_recorded(members, toy, tmp_path, capsys):
    common = ["--teachers", *members, "--feats", toy["feats"], "--temperature", 1, "--out", tmp_path / "t.h5"]
    run("soft-targets", *common, "--top-k-kl", "0.01")
    top_k = TargetsReader(tmp_path / "t.h5").prob.shape[1]
    assert f"top_k {top_k}, the smallest that loses at most 0.01 nats a frame" in capsys.readouterr().err
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["top_k_kl"] == 0.01
        assert 0 < file.attrs["lost_kl"] <= 0.01
        assert file.attrs["top_k"] == top_k
    run("soft-targets", *common, "--top-k-kl", "1e-9")
    assert top_k < TargetsReader(tmp_path / "t.h5").prob.shape[1] == 5  # the last state is all of its tail


def test_targets_drawn_at_random_have_the_means_of_all_targets_and_train_a_student(members, toy, tmp_path):
    common = ["--teachers", *members, "--feats", toy["feats"], "--temperature", 2]
    run("soft-targets", *common, "--out", tmp_path / "dense.h5")
    run("soft-targets", *common, "--top-k", 3, "--target-pruning", "random", "--out", tmp_path / "drawn.h5")
    dense, drawn = (TargetsReader(tmp_path / f"{name}.h5") for name in ("dense", "drawn"))
    rows = np.arange(dense.layout.num_frames)
    # Six deviations: a target that is drawn is 0 or at most a third.
    np.testing.assert_allclose(drawn.mean(rows), dense.mean(rows), atol=1 / len(rows) ** 0.5)
    assert not drawn.tail.any()
    student = [*sets(toy), *SMALL, "--student-epochs", 1, "--soft-weight", 1]
    xent = []
    for name in ("dense", "drawn"):
        run("distill", *student, "--targets", tmp_path / f"{name}.h5", "--out", tmp_path / name)
        xent.append(history(tmp_path / name / "seed1")[-1]["dev_xent"])
    assert xent[1] == pytest.approx(xent[0], rel=0.05)


def test_targets_of_other_frames_or_values_are_refused(members, toy, tmp_path, capsys):
    run("soft-targets", "--teachers", *members, "--feats", toy["dev_feats"], "--out", tmp_path / "dev.h5")
    student = [*sets(toy), *SMALL, "--student-epochs", 1, "--out", tmp_path / "student"]
    assert main([str(a) for a in ("distill", *student, "--targets", tmp_path / "dev.h5")]) == 1
    assert "made for other utterances" in capsys.readouterr().err
    run("soft-targets", "--teachers", *members, "--feats", toy["feats"], "--out", tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file.attrs["content_digest"] = "0" * 64
        seal(file)
    assert main([str(a) for a in ("distill", *student, "--targets", tmp_path / "train.h5")]) == 1
    assert "other feature values" in capsys.readouterr().err
    run("distill", *student, "--targets", tmp_path / "train.h5", "--allow-views")


def test_the_sweep_tries_every_setting_and_names_the_best(members, toy, tmp_path):
    run(
        "sweep", *sets(toy), *SMALL, "--teachers", *members, "--sweep-epochs", 1, "--sweep-temperatures", "1,4",
        "--sweep-soft-weights", "1,0.5", "--sweep-combinations", "arithmetic,geometric", "--seeds", "1-2",
        "--student-start", "member", "--out", tmp_path,
    )  # fmt: skip
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert len(rows) == len({(r["temperature"], r["soft_weight"], r["combination"]) for r in rows}) == 8
    best = max(rows, key=lambda row: sum(row["per_seed"]))
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {
        key: best[key] for key in ("temperature", "soft_weight", "combination")
    }
    assert any(row["per_seed"][0] != row["per_seed"][1] for row in rows)
    for row in rows:
        name = f"{row['combination']}-T{row['temperature']:g}-w{row['soft_weight']:g}"
        last = [history(tmp_path / name / f"seed{seed}")[-1] for seed in (1, 2)]
        assert row["per_seed"] == [epoch["dev_frame_acc"] for epoch in last]
        assert row["dev_frame_acc"] == pytest.approx(sum(row["per_seed"]) / 2)
        assert row["dev_xent"] == pytest.approx(sum(epoch["dev_xent"] for epoch in last) / 2)


def test_a_sweep_of_one_setting_trains_nothing(members, toy, tmp_path):
    run(
        "sweep", *sets(toy), *SMALL, "--teachers", *members, "--sweep-temperatures", 4, "--sweep-soft-weights", 1,
        "--out", tmp_path,
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "sweep.json", "best.yaml"}
    assert json.loads((tmp_path / "sweep.json").read_text()) == []
    chosen = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert chosen == {"temperature": 4, "soft_weight": 1, "combination": "arithmetic"}


def test_baseline_and_student_leave_out_frames_without_a_label(members, toy, tmp_path):
    ali = AliReader(toy["ali"])
    end, pdf = int(ali.layout.offsets[1]), ali.pdf.copy()
    pdf[:end] = -1
    write_ali(tmp_path / "ali.h5", ali.layout, pdf, num_pdfs=ali.num_pdfs, model_digest="toy", sil_pdfs=[0])
    options = [*sets({**toy, "ali": tmp_path / "ali.h5"}), *SMALL]
    run("train", *options, "--num-epochs", 1, "--out", tmp_path / "hard")
    run("distill", *options, "--teachers", *members, "--student-epochs", 1, "--out", tmp_path / "soft")
    with FeatsReader(toy["feats"]) as reader:
        total = reader.layout.num_frames
    assert load_card(tmp_path / "hard/seed1")["training"]["num_train_frames"] == total - end
    assert load_card(tmp_path / "soft/seed1")["training"]["num_train_frames"] == total - end


def test_an_alignment_of_other_utterances_is_refused(toy, tmp_path, capsys):
    crossed = {**toy, "ali": toy["dev_ali"]}
    assert main([str(a) for a in ("train", *sets(crossed), *SMALL, "--out", tmp_path)]) == 1
    assert str(toy["dev_ali"]) in capsys.readouterr().err


def test_dev_must_not_hold_training_utterances(toy, tmp_path, capsys):
    leaky = {**toy, "dev_feats": toy["feats"], "dev_ali": toy["ali"]}
    assert main([str(a) for a in ("train", *sets(leaky), *SMALL, "--out", tmp_path)]) == 1
    assert "is in the training set too" in capsys.readouterr().err


def test_initial_weights_follow_from_the_seed():
    shape = Architecture(1, 1, 4, 2, 8, 5)
    assert weights_digest(new_net(shape, 1)) == weights_digest(new_net(shape, 1)) != weights_digest(new_net(shape, 2))


def test_an_utterance_of_one_frame_has_a_window():
    layout = Layout.from_lengths(["a", "b"], [1, 3])
    frames = Frames(np.arange(8, dtype=np.float32).reshape(4, 2), layout, 2, 1, torch.device("cpu"))
    assert frames.windows(torch.tensor([0])).tolist() == [[0, 1] * 4]
    assert frames.windows(torch.tensor([3])).tolist() == [[2, 3, 4, 5, 6, 7, 6, 7]]


def test_the_training_side_imports_without_librosa_torchaudio_and_the_kaldi_wheels():
    blocked = ["tensorboard", "librosa", "torchaudio", "kaldi_hmm_gmm", "kaldifst", "numba", "espeakng_loader"]
    program = (
        f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked}]; "
        "from asr_kd.cli import main; import asr_kd.scoring.report, asr_kd.scoring.results, asr_kd.features.fbank; "
        "raise SystemExit(main(['config']))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_nets_are_not_applied_to_features_of_another_front_end(members, toy, tmp_path, capsys):
    with (
        FeatsReader(toy["feats"]) as reader,
        FeatsWriter(
            tmp_path / "other.h5", kind="fbank", options=FbankOptions(sample_frequency=8000), sample_rate=8000
        ) as writer,
    ):
        for utt_id, spk_id in zip(reader.layout.utt_ids, reader.spk_ids, strict=True):
            writer.append(utt_id, spk_id, reader[utt_id])
    argv = ["soft-targets", "--teachers", *members, "--feats", tmp_path / "other.h5", "--out", tmp_path / "t.h5"]
    assert main([str(arg) for arg in argv]) == 1
    assert "another front end" in capsys.readouterr().err


def test_targets_over_states_of_another_hmm_are_refused(members, toy, tmp_path, capsys):
    run("soft-targets", "--teachers", *members, "--feats", toy["feats"], "--out", tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file.attrs["model_digest"] = "another"
        seal(file)
    argv = ["distill", *sets(toy), *SMALL, "--targets", tmp_path / "t.h5", "--out", tmp_path / "student"]
    assert main([str(arg) for arg in argv]) == 1
    assert "another HMM" in capsys.readouterr().err


def test_a_stamp_does_not_outlive_the_start_of_other_work(tmp_path):
    from asr_kd.runinfo import make

    output = tmp_path / "output"
    runs = []

    def work():
        runs.append(1)
        output.write_text("a")

    def fail():
        raise KeyboardInterrupt

    assert make(output, work, command="test", source="a")
    assert not make(output, work, command="test", source="a")
    with pytest.raises(KeyboardInterrupt):  # overwritten from here on, perhaps killed
        make(output, fail, command="test", source="b")
    assert make(output, work, command="test", source="a")
    assert len(runs) == 2


@pytest.mark.parametrize("option", ["--num-epochs", "--batch-size", "--hidden-dim"])
def test_sizes_of_nothing_are_refused(toy, tmp_path, option, capsys):
    assert main([str(a) for a in ("train", *sets(toy), *SMALL, option, 0, "--out", tmp_path)]) == 1
    assert "must be at least 1" in capsys.readouterr().err


def test_seeds_have_bounds(toy, tmp_path, capsys):
    members = [str(a) for a in ("train-ensemble", *sets(toy), *SMALL, "--out", tmp_path, "--first-seed")]
    assert main([*members, "999999"]) == 1
    assert "above 999999" in capsys.readouterr().err
    for seed in ("-1", "1000000", "x"):
        with pytest.raises(SystemExit):
            main([*members, seed])
        assert f"--first-seed: '{seed}' is not a whole number from 0 to 999999" in capsys.readouterr().err


def test_a_net_starts_from_another_for_each_seed_or_from_one_for_all(members, toy, tmp_path, capsys):
    out = tmp_path / "student"
    two = members[:2]
    args = [*sets(toy), *SMALL, "--num-epochs", 1, "--learning-rate", 1e-12, "--out", out]
    run("train", *args, "--seeds", "1-2", "--initialise", *two)
    for seed, member in enumerate(two, 1):
        trained, start = load_net(out / f"seed{seed}"), load_net(member)
        assert trained.training["started_from"] == start.digest
        for ours, theirs in zip(trained.net.linear, start.net.linear, strict=True):
            assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    run("train", *args, "--seeds", "1-2", "--initialise", members[0])
    assert load_net(out / "seed2").training["started_from"] == load_net(members[0]).digest  # trained anew
    capsys.readouterr()
    assert main([str(a) for a in ["train", *args, "--seeds", "1-3", "--initialise", *two]]) == 1
    assert "2 nets for 3 seeds" in capsys.readouterr().err
    assert main([str(a) for a in ["train", *args, "--hidden-dim", 7, "--initialise", members[0]]]) == 1
    assert "is to start from" in capsys.readouterr().err
    assert main([str(a) for a in ["train", *args, "--cmvn", "global", "--initialise", members[0]]]) == 1
    assert "normalises by" in capsys.readouterr().err


def test_students_start_from_members_where_the_configuration_says_so(members, toy, tmp_path, capsys):
    args = [*sets(toy), *SMALL, "--student-start", "member", "--student-epochs", 1]
    run("distill", "--teachers", *members, *args, "--seeds", "2-4", "--out", tmp_path / "online")
    for seed, member in ((2, members[1]), (3, members[2]), (4, members[0])):
        assert load_card(tmp_path / f"online/seed{seed}")["training"]["started_from"] == load_card(member)["digest"]
    sweep = ["sweep", "--teachers", *members, *args, "--online-targets", "true", "--sweep-epochs", 1]
    run(*sweep, "--sweep-temperatures", "2,4", "--sweep-soft-weights", 1, "--seeds", 2, "--out", tmp_path / "sweep")
    card = load_card(tmp_path / "sweep/arithmetic-T2-w1/seed2")
    assert card["training"]["started_from"] == load_card(members[1])["digest"]
    assert card["training"]["loss"]["values"] == "online"
    run("soft-targets", "--teachers", *members, "--feats", toy["feats"], "--device", "cpu", "--precision", "float32",
        "--out", tmp_path / "t.h5")  # fmt: skip
    capsys.readouterr()
    stored = ["distill", "--targets", tmp_path / "t.h5", *args, "--out", tmp_path / "stored"]
    assert main([str(arg) for arg in stored]) == 1
    assert "with --initialise" in capsys.readouterr().err
