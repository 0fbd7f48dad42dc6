"""The same commands on whatever device the machine has: a GPU where PyTorch sees one, else the CPU.

None of the optional packages (audio, Kaldi's wheels, quantization) is needed: on a machine with a GPU and without them
`python -m pytest tests/test_device.py` tests that GPU.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from conftest import train_in_pieces
from test_stacked import command, until_complete
from test_stream import MOST_OF_TOY

from asr_kd.features.fbank import compute_fbanks
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.device import resolve_precision
from asr_kd.nnet.net_dir import load_card, load_net
from asr_kd.scoring.frames import per_utterance_frame_scores
from asr_kd.scoring.labels import ali_labels
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.store.ali import AliReader
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILERS = ("cc", "gcc", "clang") if DEVICE == "cuda" else ("g++", "clang++")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a compiler")
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="PyTorch sees no GPU")

HERE = ["--device", DEVICE]
AS_USED = [*HERE, "--precision", "auto"]  # bfloat16 where the device multiplies it
# By how much numbers may differ from those of a CPU in float32: probabilities, and nats a frame.
PRECISIONS = {"float32": 2e-3, "auto": 0.03}


def training(folder: Path) -> dict:
    """What must be equal of two nets of the same bits: the weights, and what was seen of their training."""
    found = load_card(folder)
    for row in found["training"]["history"]:
        del row["seconds"], row["frames_per_second"]
    return {"weights": found["digest"], "history": found["training"]["history"]}


def assert_near(one: Path, other: Path) -> None:
    """Two nets are the same but for the order of sums, and so are their histories."""
    expected, found = load_net(one), load_net(other)
    for name, weight in expected.net.state_dict().items():
        near = {"rtol": 1e-3, "atol": 1e-3 * float(weight.abs().max())}
        torch.testing.assert_close(found.net.state_dict()[name], weight, **near)
    for row, same in zip(expected.training["history"], found.training["history"], strict=True):
        assert same["train_loss"] == pytest.approx(row["train_loss"], rel=1e-3)
        assert same["dev_frame_acc"] == pytest.approx(row["dev_frame_acc"], abs=1.0)


@pytest.fixture(scope="module")
def teachers(toy, tmp_path_factory):
    """Members that a CPU has trained."""
    out = tmp_path_factory.mktemp("teachers")
    assert run(*command(toy, out, "--num-epochs", 4)) == 0
    return [out / f"seed{seed}" for seed in (1, 2, 3)]


# The last batch of a pass over the 991 frames, 31 of 64, is smaller than the others, here and below.
TRAININGS = {
    "plain": [],
    "dropout and norms": ["--dropout", 0.2, "--input-dropout", 0.1, "--max-norm", 1.0],
    "views": ["--time-masks", 1, "--feature-noise", 0.3, "--freq-warp", 0.1],
    "average": ["--schedule", "constant", "--average-share", 0.6],
    "newbob": ["--schedule", "newbob", "--warmup-steps", 0, "--learning-rate", 0.05, "--keep-best", "xent"],
    "sgd": ["--optimizer", "sgd"],
    "rates of dropout": ["--dropout-schedule", "0.1,0.3"],
    "streamed": MOST_OF_TOY,
}


@pytest.mark.parametrize("name", TRAININGS)
def test_broken_off_between_any_steps_a_net_ends_with_the_same_bits(toy, tmp_path, monkeypatch, name):
    argv = command(toy, tmp_path / "whole", *AS_USED, *TRAININGS[name], name="train")
    assert run(*argv) == 0
    train_in_pieces([*argv[:-1], tmp_path / "broken"], monkeypatch)
    assert training(tmp_path / "broken/seed1") == training(tmp_path / "whole/seed1")


@needs_gpu
@pytest.mark.parametrize("name", ["plain", "views", "average", "newbob", "sgd"])
def test_recorded_steps_are_those_launched_one_by_one(toy, tmp_path, name):
    for way in ("true", "false"):
        options = [*HERE, "--precision", "float32", *TRAININGS[name], "--cuda-graphs", way]
        assert run(*command(toy, tmp_path / way, *options, name="train")) == 0
    if name == "newbob":  # to go back is to record anew
        assert not all(row["accepted"] for row in load_card(tmp_path / "true/seed1")["training"]["history"])
    assert_near(tmp_path / "false/seed1", tmp_path / "true/seed1")


KILLED_AFTER_TWENTY_SAVES = """
import os, signal, sys
from asr_kd.cli import main
from asr_kd.training import loop

save, calls = loop.save_checkpoint, []

def save_then_die(*args):
    save(*args)
    calls.append(1)
    if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)

loop.save_checkpoint = save_then_die
main(sys.argv[1:])
"""


def test_killed_in_the_second_epoch_a_net_ends_with_the_same_bits(toy, tmp_path, capsys):
    argv = command(toy, tmp_path / "whole", *AS_USED, "--dropout", 0.2, name="train")
    assert run(*argv) == 0
    argv = [*argv[:-1], str(tmp_path / "killed"), "--checkpoint-minutes", "1e-9"]
    child = subprocess.run([sys.executable, "-c", KILLED_AFTER_TWENTY_SAVES, *argv], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    capsys.readouterr()
    assert run(*argv) == 0
    assert "continuing after step" in capsys.readouterr().err
    assert training(tmp_path / "killed/seed1") == training(tmp_path / "whole/seed1")


@pytest.mark.parametrize("options", [[], ["--max-norm", 1.0, "--max-grad-norm", 0.5], ["--time-masks", 1]])
def test_members_trained_together_are_those_trained_in_turn(toy, tmp_path, options):
    for way in ("never", "always"):
        assert run(*command(toy, tmp_path / way, *HERE, *options, "--stacked", way)) == 0
    for seed in ("seed1", "seed2", "seed3"):
        assert_near(tmp_path / "never" / seed, tmp_path / "always" / seed)


def test_members_trained_together_go_on_with_the_same_bits(toy, tmp_path, monkeypatch):
    how = [*AS_USED, "--stacked", "always", *TRAININGS["dropout and norms"]]
    assert run(*command(toy, tmp_path / "whole", *how)) == 0
    argv = command(toy, tmp_path / "broken", *how, "--checkpoint-minutes", 1e-9)
    assert until_complete(argv, monkeypatch, after=13) >= 3
    for seed in ("seed1", "seed2", "seed3"):
        assert training(tmp_path / "broken" / seed) == training(tmp_path / "whole" / seed)


STORED = {"dense": [], "top-k": ["--top-k", 3], "drawn": ["--top-k", 3, "--target-pruning", "random"]}
STORED["8 bits"] = ["--top-k", 3, "--target-bits", 8]


@pytest.fixture(scope="module")
def sources(toy, teachers, tmp_path_factory):
    """Where soft targets come from, as options of distill: files made on DEVICE, and members that answer online."""
    folder, found = tmp_path_factory.mktemp("targets"), {}
    for name, kept in STORED.items():
        argv = ["soft-targets", "--teachers", *teachers, "--feats", toy["feats"], *kept, *AS_USED]
        assert run(*argv, "--temperature", 2, "--out", folder / f"{name}.h5") == 0
        found[name] = ["--targets", folder / f"{name}.h5"]
    found["online"] = ["--teachers", *teachers, "--temperature", 2]
    found["drawn members"] = [*found["online"], "--online-members", 1]
    return found


LOSSES = {
    "soft": ["--soft-weight", 1],
    "hard and soft": ["--soft-weight", 0.5, "--hard-weight", 0.8],
    "conditional": ["--label-use", "conditional"],
    "swap": ["--label-use", "swap"],
    "logits": ["--matching", "logits", "--soft-weight", 0.5],
}
OF_ALL_STATES = ("swap", "logits")  # losses that need targets of all of them
SOURCES = (*STORED, "online", "drawn members")
WAYS = [(source, loss, "resident") for source in SOURCES for loss in LOSSES]
WAYS = [way for way in WAYS if way[1] not in OF_ALL_STATES or way[0] not in ("top-k", "8 bits", "drawn")]
WAYS += [(source, "hard and soft", "streamed") for source in SOURCES]


@pytest.mark.parametrize(("source", "loss", "held"), WAYS)
def test_students_learn(toy, tmp_path, sources, source, loss, held):
    def history(folder: str, *how: object) -> list[dict]:
        options = ["--student-epochs", 4, "--student-learning-rate", 0.01, *how, *sources[source], *LOSSES[loss]]
        options += MOST_OF_TOY if held == "streamed" else []
        assert run(*command(toy, tmp_path / folder, *options, name="distill")) == 0
        return load_card(tmp_path / folder / "seed1")["training"]["history"]

    here = history("here", *AS_USED)
    assert here[-1]["train_loss"] < here[0]["train_loss"]
    assert here[-1]["dev_frame_acc"] > 60.0
    if DEVICE == "cuda":
        cpu = history("cpu", "--device", "cpu", "--precision", "float32")
        # A GPU draws another order of the frames; of two orders, nets differ by up to 7 points on these 270.
        assert here[-1]["dev_frame_acc"] == pytest.approx(cpu[-1]["dev_frame_acc"], abs=10.0)


@needs_compiler
@pytest.mark.parametrize("stacked", [pytest.param("never", marks=needs_gpu), "always"])
def test_compiled_steps_are_those_of_before(toy, tmp_path, sources, stacked):
    options = [*HERE, *sources["top-k"], "--seeds", "1,2", "--num-hidden-layers", 1, "--stacked", stacked]
    options += ["--dropout", 0.2, "--max-norm", 1.0]
    for compiled in ("false", "true"):
        argv = command(toy, tmp_path / compiled, *options, "--student-epochs", 2, name="distill")
        assert run(*argv, "--compile", compiled) == 0
    assert_near(tmp_path / "false/seed2", tmp_path / "true/seed2")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_soft_targets_are_those_of_a_cpu(toy, tmp_path, teachers, combination, precision):
    def targets(name: str, *options: object) -> TargetsReader:
        argv = ["soft-targets", "--teachers", *teachers, "--feats", toy["feats"], "--combination", combination]
        assert run(*argv, *options, "--out", tmp_path / name) == 0
        return TargetsReader(tmp_path / name)

    here, near = [*HERE, "--precision", precision], {"rtol": 0, "atol": PRECISIONS[precision]}
    expected = targets("cpu.h5", "--device", "cpu", "--precision", "float32").prob.astype(np.float32)
    np.testing.assert_allclose(targets("dense.h5", *here).prob, expected, **near)
    top = targets("top.h5", *here, "--top-k", 3)
    np.testing.assert_allclose(top.prob, np.take_along_axis(expected, top.pdf.astype(int), axis=1), **near)
    np.testing.assert_allclose(top.tail, np.sort(expected, axis=1)[:, :-3].sum(axis=1), **near)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_errors_and_frame_scores_are_those_of_a_cpu(toy, tmp_path, teachers, precision):
    def counted(name: str, device: str, precision: str) -> dict:
        argv = ["count-errors", "--nets", teachers[0], "--feats", toy["dev_feats"], "--ali", toy["dev_ali"]]
        assert run(*argv, "--device", device, "--precision", precision, "--out", tmp_path / name) == 0
        return json.loads((tmp_path / name).read_text())[0]

    def scored(device: str, dtype: torch.dtype):
        nets = [load_net(teacher) for teacher in teachers]
        for trained in nets:
            trained.net.to(device)
        posteriors = SetPosteriors(nets, FeatsReader(toy["dev_feats"]), "arithmetic", torch.device(device), dtype)
        return per_utterance_frame_scores(posteriors.blocks(), ali_labels(AliReader(toy["dev_ali"])))

    near = PRECISIONS[precision]
    cpu, here = counted("cpu.json", "cpu", "float32"), counted("here.json", DEVICE, precision)
    assert here["frames_by_pdf"] == cpu["frames_by_pdf"]
    assert here["errors"] == pytest.approx(cpu["errors"], abs=near * cpu["num_frames"])
    assert here["xent"] == pytest.approx(cpu["xent"], abs=near)
    dtype = resolve_precision(precision, torch.device(DEVICE))
    cpu, here = scored("cpu", torch.float32), scored(DEVICE, dtype)
    np.testing.assert_array_equal(here.num_frames, cpu.num_frames)
    assert here.correct.sum() == pytest.approx(cpu.correct.sum(), abs=near * cpu.num_frames.sum())
    np.testing.assert_allclose(here.xent_sum, cpu.xent_sum, rtol=0, atol=near * cpu.num_frames.max())


@needs_gpu
def test_filterbanks_are_those_of_a_cpu():
    rng, options = np.random.default_rng(3), FbankOptions()
    utterances = [rng.normal(scale=3000, size=size).astype(np.float32) for size in (400, 401, 16_000, 300_000)]
    on_device = compute_fbanks([torch.from_numpy(samples).to(DEVICE) for samples in utterances], options)
    for feats, expected in zip(on_device, compute_fbanks(utterances, options), strict=True):
        np.testing.assert_allclose(feats.cpu().numpy(), expected, rtol=0, atol=1e-3)
