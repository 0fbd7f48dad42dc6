"""Several processes as torchrun starts them end with what one process ends with."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_set
from hypothesis import given
from hypothesis import strategies as st

from asr_kd.cli import main
from asr_kd.corpus.datadir import Recording, Utterance
from asr_kd.errors import AsrKdError
from asr_kd.features.extract import extract
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.device import resolve_device
from asr_kd.nnet.net_dir import CARD, load_card, load_net
from asr_kd.store.feats import FeatsReader
from asr_kd.store.lock import only_writer
from asr_kd.training import data_parallel, update
from asr_kd.world import ALONE, World

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)

ROOT = Path(__file__).parent.parent
# Steps of 99 of the 991 frames of `toy`: the last has one frame, and of 4 processes only one gets it.
SMALL = ["--hidden-dim", "16", "--num-hidden-layers", "2", "--left-context", "3", "--right-context", "1"]
SMALL += ["--batch-size", "99", "--num-epochs", "2", "--learning-rate", "0.01", "--warmup-steps", "5"]
SMALL += ["--device", "cpu", "--precision", "float32"]
# Only a process that hangs is killed, after so many seconds.
DEADLINE = 900


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit status (negative for a signal), and what it wrote to stderr."""

    status: int
    stderr: str


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def in_processes(folder: Path, *functions: Callable[[], int]) -> list[Ended]:
    """Call each function in a process of its own, forked, with the environment that torchrun would give it."""
    port, children = free_port(), []
    for rank, function in enumerate(functions):
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(folder / f"stderr{rank}", "w")  # noqa: SIM115 - until the child ends
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(functions))}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            status = 99
            try:
                status = function()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    ended, begin = [], time.monotonic()
    for rank, child in enumerate(children):
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() - begin > DEADLINE:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        ended.append(Ended(os.waitstatus_to_exitcode(found[1]), (folder / f"stderr{rank}").read_text()))
    return ended


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def together(size: int, folder: Path, *argv: object) -> list[Ended]:
    """Run one command in `size` processes, and see that it succeeds."""
    ended = in_processes(folder, *[lambda: run(*argv)] * size)
    assert [each.status for each in ended] == [0] * size, [each.stderr for each in ended]
    return ended


def sets(toy: dict) -> list[str]:
    return [item for key, path in toy.items() for item in (f"--{key.replace('_', '-')}", str(path))]


def assert_same_net(one: Path, several: Path) -> None:
    """Equal but for the order of sums."""
    expected, found = load_net(one), load_net(several)
    weights, others = expected.net.state_dict(), found.net.state_dict()
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-4, atol=1e-5)
    for row, other in zip(expected.training["history"], found.training["history"], strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
        assert other["dev_xent"] == pytest.approx(row["dev_xent"], rel=1e-5)
        assert other["dev_frame_acc"] == pytest.approx(row["dev_frame_acc"], abs=0.8)  # of 135 frames, one
    assert found.training["fingerprint"] == expected.training["fingerprint"]


@given(num=st.integers(0, 60), size=st.integers(1, 9))
def test_shares_are_all_and_alike(num: int, size: int):
    items = list(range(num))
    shares = [World(rank, size).share(items) for rank in range(size)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.share(items) == items


def test_the_world_is_what_torchrun_says():
    assert World.of_environment({}) == ALONE
    assert World.of_environment({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == ALONE
    assert World.of_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == World(5, 8, 1)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_an_environment_that_torchrun_does_not_make_is_named(environment):
    with pytest.raises(
        AsrKdError, match=f"WORLD_SIZE={environment['WORLD_SIZE']}.*start several processes by torchrun"
    ):
        World.of_environment(environment)


@pytest.mark.parametrize("command", ["config", "env"])
def test_a_command_that_cannot_share_its_work_is_refused_once(command, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(command) == 1
    assert "error: torchrun started 2 processes of this command" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert run(command) == 1
    assert capsys.readouterr().err == ""


def test_each_process_of_a_machine_has_its_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert resolve_device("auto", World(5, 8, 1)) == torch.device("cuda", 1)
    assert taken == [1]
    assert resolve_device("cpu", World(7, 8, 3)) == torch.device("cpu")
    with pytest.raises(AsrKdError, match="no GPU is left for process 3 of this machine, which has 2"):
        resolve_device("cuda", World(2, 8, 2))


# What is drawn or decided for a whole batch, or by dev, must be the same in all processes.
OPTIONS = {
    "plain": [],
    "augmented and clipped": ["--time-masks", 1, "--feature-noise", 0.2, "--time-warp", 0.1, "--max-grad-norm", 0.3],
    "streamed": ["--resident-frames", 900, "--batch-size", 32, "--time-masks", 1],
    "pruned and bounded": ["--prune-sparsity", 0.5, "--prune-every", 7, "--max-norm", 1.0, "--label-smoothing", 0.1],
    "newbob": [
        "--optimizer",
        "sgd",
        "--schedule",
        "newbob",
        "--learning-rate",
        0.3,
        "--warmup-steps",
        0,
        "--keep-best",
        "xent",
    ],
}


@pytest.mark.parametrize(
    ("size", "name"),
    [(4, "plain"), (4, "augmented and clipped"), (2, "streamed"), (2, "pruned and bounded"), (2, "newbob")],
)
def test_one_net_trained_together_is_that_of_one_process(toy, tmp_path, size, name):
    argv = ["train", *sets(toy), *SMALL, *OPTIONS[name]]
    assert run(*argv, "--out", tmp_path / "one") == 0
    ended = together(size, tmp_path, *argv, "--out", tmp_path / "several")
    assert_same_net(tmp_path / "one/seed1", tmp_path / "several/seed1")
    assert load_card(tmp_path / "several/seed1")["training"]["num_processes"] == size
    assert f"in {size} processes" in ended[0].stderr
    assert [each.stderr for each in ended[1:]] == [""] * (size - 1)
    # It is there, for one process too.
    again = together(2, tmp_path, *argv, "--out", tmp_path / "several")
    assert "seed1: up to date" in again[0].stderr


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A training set of several blocks of 8192 frames, and two members, as an ensemble that one process trained."""
    folder = tmp_path_factory.mktemp("many")
    feats, ali = write_set(folder, "a", 620, seed=1)
    dev_feats, dev_ali = write_set(folder, "b", 8, seed=2)
    paths = {"feats": feats, "ali": ali, "dev_feats": dev_feats, "dev_ali": dev_ali}
    argv = ["train-ensemble", *sets(paths), *SMALL, "--batch-size", 512, "--num-members", 3, "--num-epochs", 1]
    assert run(*argv, "--out", folder / "members") == 0
    return {"paths": paths, "argv": argv, "members": [folder / f"members/seed{seed}" for seed in (1, 2, 3)]}


def test_members_are_spread_and_the_same_bit_for_bit(many, tmp_path):
    ended = together(2, tmp_path, *many["argv"], "--out", tmp_path)
    for member in many["members"]:
        assert load_card(tmp_path / member.name)["digest"] == load_card(member)["digest"]
    assert [each.stderr.count("ended by") for each in ended] == [1, 2]
    assert json.loads((tmp_path / "run.json").read_text())["config"]["num_members"] == 3


@pytest.mark.parametrize(
    "options", [["--top-k", 3], ["--top-k", 3, "--target-bits", 8], ["--top-k", "null", "--combination", "geometric"]]
)
def test_soft_targets_are_the_same_file(many, tmp_path, options):
    argv = ["soft-targets", "--teachers", *many["members"], "--feats", many["paths"]["feats"], *options]
    argv += ["--device", "cpu", "--precision", "float32"]
    assert run(*argv, "--out", tmp_path / "one.h5") == 0
    together(3, tmp_path, *argv, "--out", tmp_path / "several.h5")
    assert (tmp_path / "several.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()
    assert not list(tmp_path.glob("*.shards"))
    assert "up to date" in together(2, tmp_path, *argv, "--out", tmp_path / "several.h5")[0].stderr


def test_soft_targets_of_other_members_in_one_file_are_refused(many, tmp_path):
    """As where a machine has an older copy of the nets."""
    argv = ["soft-targets", "--feats", many["paths"]["feats"], "--device", "cpu", "--out", tmp_path / "t.h5"]
    ended = in_processes(tmp_path, *[lambda net=net: run(*argv, "--teachers", net) for net in many["members"][:2]])
    assert [each.status for each in ended] == [1, 1]
    assert "t.h5: not all processes have the same inputs, options and version" in ended[0].stderr
    assert not (tmp_path / "t.h5").exists()


def test_features_named_as_the_output_of_soft_targets_keep_their_shards(many, tmp_path, monkeypatch):
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.random.default_rng(1).integers(-9000, 9000, 1600, dtype=np.int16), 8000)
    monkeypatch.setattr("asr_kd.features.extract.SHARD_BYTES", 1)
    utts = [Utterance(f"u{n}", "s", Recording(f"u{n}", str(wav)), words=("one",)) for n in range(3)]
    extract(utts, tmp_path / "f.h5", FbankOptions(sample_frequency=8000, num_mel_bins=3), nj=2)
    shards = FeatsReader(tmp_path / "f.h5").shards
    argv = ["soft-targets", "--feats", many["paths"]["feats"], "--device", "cpu", "--teachers", many["members"][0]]
    ended = in_processes(tmp_path, *[lambda: run(*argv, "--out", tmp_path / "f.h5")] * 2)
    assert [each.status for each in ended] == [1, 1]
    assert "f.h5: exists and is asr_kd.feats" in ended[0].stderr
    assert len(shards) > 1
    assert FeatsReader(tmp_path / "f.h5").read_all().shape[1] == 3
    (tmp_path / "far").mkdir()
    (tmp_path / "far/link.h5").symlink_to(tmp_path / "f.h5")
    assert FeatsReader(tmp_path / "far/link.h5").shards == shards


def test_what_fails_here_is_not_the_loss_of_another(tmp_path):
    def own_failure() -> int:
        world = World.of_environment()
        net = torch.nn.Linear(2, 2)
        with world.connected():
            loss = net(torch.ones(1, 2)).sum()
            net.weight.register_hook(lambda grad: (_ for _ in ()).throw(RuntimeError("mine")))
            with pytest.raises(RuntimeError, match="mine"):
                data_parallel.backward_together(net, loss, 0.5, world)
            os._exit(0)

    assert [each.status for each in in_processes(tmp_path, *[own_failure] * 2)] == [0, 0]


@pytest.mark.parametrize("options", [["--labelled-share", 0.4], ["--label-use", "conditional"]])
def test_a_student_trained_together_is_that_of_one_process(many, toy, tmp_path, options):
    """Parts of a batch differ in how many labels they have."""
    argv = ["distill", *sets(toy), "--teachers", *many["members"], *SMALL, "--student-epochs", 2, *options]
    assert run(*argv, "--out", tmp_path / "one") == 0
    together(2, tmp_path, *argv, "--out", tmp_path / "several")
    assert_same_net(tmp_path / "one/seed1", tmp_path / "several/seed1")


def test_features_are_extracted_together(tmp_path, monkeypatch):
    monkeypatch.setattr("asr_kd.features.extract.SHARD_BYTES", 40_000)
    options, utts = FbankOptions(sample_frequency=8000, num_mel_bins=3), []
    for number in range(7):
        wav = tmp_path / f"{number}.wav"
        soundfile.write(wav, np.random.default_rng(number).integers(-9000, 9000, 1600, dtype=np.int16), 8000)
        utts.append(Utterance(f"u{number}", "s", Recording(f"u{number}", str(wav)), words=("one",)))
    extract(utts, tmp_path / "one.h5", options)

    def one_of_three() -> int:
        world = World.of_environment()
        with world.connected():
            extract(utts, tmp_path / "several.h5", options, world=world)
        return 0

    assert [each.status for each in in_processes(tmp_path, *[one_of_three] * 3)] == [0, 0, 0]
    one, several = FeatsReader(tmp_path / "one.h5"), FeatsReader(tmp_path / "several.h5")
    assert several.content_digest == one.content_digest
    np.testing.assert_array_equal(several.read_all(), one.read_all())


def test_a_second_run_in_the_same_folder_is_refused(toy, tmp_path):
    argv = ["train", *sets(toy), *SMALL, "--out", tmp_path]
    with only_writer(tmp_path / "seed1" / CARD):
        ended = in_processes(tmp_path, *[lambda: run(*argv)] * 2)
    assert [each.status for each in ended] == [1, 1]
    assert ended[0].stderr.count("another run is writing it") == 1
    assert "error: rank 1 of 2 lost another one" in ended[1].stderr
    assert "Traceback" not in ended[1].stderr


def test_processes_with_other_data_or_options_are_refused(toy, tmp_path):
    argv = ["train", *sets(toy), *SMALL, "--out", tmp_path, "--learning-rate"]
    ended = in_processes(tmp_path, lambda: run(*argv, 0.01), lambda: run(*argv, 0.02))
    assert [each.status for each in ended] == [1, 1]
    assert all("not all processes have the same data, options" in each.stderr for each in ended)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it(toy, tmp_path):
    """One that still frees a tensor while Python exits aborts the process."""

    def train_and_count() -> int:
        status = run("train", *sets(toy), *SMALL, "--out", tmp_path)
        names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
        return status or sum("gloo" in name for name in names)

    assert [each.status for each in in_processes(tmp_path, *[train_and_count] * 2)] == [0, 0]


def test_int8_is_for_one_process(toy, tmp_path):
    argv = ["train", *sets(toy), *SMALL, "--out", tmp_path, "--quantize", "int8"]
    ended = in_processes(tmp_path, *[lambda: run(*argv)] * 2)
    assert [each.status for each in ended] == [1, 1]
    assert "error: quantize int8: the range of activations is that of a whole batch" in ended[0].stderr


# With dropout, whose random numbers go on too, and saved after every step: 11 in an epoch, of which there are 2.
UNBROKEN = [*SMALL, "--dropout", 0.2, "--checkpoint-minutes", 1e-9]
# Another one in every session; that of a failure is in what it says, for `ASR_KD_KILLED_AT=…`.
KILLED_AT = int(os.environ.get("ASR_KD_KILLED_AT", random.SystemRandom().randint(2, 22)))


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory) -> str:
    """Digest of the net that two processes train when nobody disturbs them."""
    folder = tmp_path_factory.mktemp("unbroken")
    together(2, folder, "train", *sets(toy), *UNBROKEN, "--out", folder)
    return load_card(folder / "seed1")["digest"]


@pytest.mark.parametrize("killed", [0, 1])
def test_whoever_is_killed_the_next_run_goes_on_from_the_last_step(toy, unbroken, tmp_path, killed):
    argv = ["train", *sets(toy), *UNBROKEN, "--out", tmp_path]

    def run_and_be_killed() -> int:
        backward, calls = update.backward_together, []

        def backward_or_die(*args):
            calls.append(1)
            if len(calls) == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            return backward(*args)

        update.backward_together = backward_or_die
        return run(*argv)

    functions = [lambda: run(*argv)] * 2
    functions[killed] = run_and_be_killed
    ended = in_processes(tmp_path, *functions)
    assert ended[killed].status == -signal.SIGKILL
    assert "lost another one" in ended[1 - killed].stderr
    assert f"continuing after step {KILLED_AT - 1}, in epoch" in together(2, tmp_path, *argv)[0].stderr
    assert load_card(tmp_path / "seed1")["digest"] == unbroken, f"killed in step {KILLED_AT}"


KILLER = """
import os, signal, sys
from asr_kd.cli import main
from asr_kd.training import update

backward, calls = update.backward_together, []

def backward_or_die(*args):
    calls.append(1)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and len(calls) == KILLED_AT:
        open(__file__ + ".was_killed", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(*args)

update.backward_together = backward_or_die
sys.exit(main())
"""


def torchrun(options: list[str], script: Path, *argv: object) -> subprocess.Popen:
    """`script` under torchrun, which starts its processes again once."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "--max-restarts=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), *map(str, argv)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("num_machines", [1, 2])
def test_torchrun_starts_all_again_and_the_weights_are_those_of_an_unbroken_run(toy, unbroken, tmp_path, num_machines):
    """Two machines: a torchrun each, with the options that docs/scaling.md has for ssh."""
    script = tmp_path / "killer.py"
    script.write_text(KILLER.replace("KILLED_AT", str(KILLED_AT)))
    options = ["--standalone", "--nproc-per-node=2"]
    if num_machines == 2:
        options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=train1", "--rdzv-backend=c10d"]
        options += [f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    argv = ["train", *sets(toy), *UNBROKEN, "--out", tmp_path]
    machines = [torchrun(options, script, *argv) for _ in range(num_machines)]
    try:
        printed = [each.communicate(timeout=2 * DEADLINE)[1] for each in machines]
    finally:
        for each in machines:
            each.kill()
    assert [each.returncode for each in machines] == [0] * num_machines, "\n".join(printed)
    assert (tmp_path / "killer.py.was_killed").exists()
    assert "seed1: continuing after step" in "".join(printed)
    assert load_card(tmp_path / "seed1")["digest"] == unbroken, f"killed in step {KILLED_AT}"
