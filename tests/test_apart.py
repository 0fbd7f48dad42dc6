"""Nets that processes of their own train, on a CPU."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import run
from test_stacked import command

from asr_kd.nnet.device import resolve_device
from asr_kd.nnet.net_dir import load_net
from asr_kd.training.apart import nets_apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
STORED = ["--top-k", 3, "--temperature", 2]


@pytest.fixture(autouse=True)
def two_threads():
    """Of all processes together, so that each of two has one: pytest's own has used more already."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # whatever happened
    torch.set_num_threads(before)


def digests(folder) -> dict[str, str]:
    return {path.name: load_net(path).digest for path in sorted(folder.iterdir()) if path.is_dir()}


def in_turn(*argv: object) -> None:
    torch.set_num_threads(1)
    assert run(*argv) == 0
    torch.set_num_threads(2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_those_of_nets_in_turn(toy, tmp_path, capfd, precision):
    argv = ["--num-members", 3, "--num-epochs", 2, "--dropout", 0.1, "--precision", precision]
    in_turn(*command(toy, tmp_path / "turn", *argv))
    capfd.readouterr()
    assert run(*command(toy, tmp_path / "apart", *argv, "--nj", 2)) == 0
    assert digests(tmp_path / "apart") == digests(tmp_path / "turn")
    lines = capfd.readouterr().err.splitlines()[1:]
    assert {line.split()[0] for line in lines} == {"seed1", "seed2", "seed3"}
    assert run(*command(toy, tmp_path / "apart", *argv, "--nj", 2)) == 0
    assert capfd.readouterr().err.count("up to date") == 3


@pytest.mark.parametrize("kind", ["stored", "online"])
def test_students_too(toy, tmp_path, kind):
    assert run(*command(toy, tmp_path / "nets", "--num-members", 2, "--num-epochs", 1)) == 0
    teachers = ["--teachers", tmp_path / "nets/seed1", tmp_path / "nets/seed2"]
    source = [*teachers, "--temperature", 2]
    if kind == "stored":
        targets = tmp_path / "targets.h5"
        assert run("soft-targets", *teachers, "--feats", toy["feats"], *STORED, "--out", targets) == 0
        source = ["--targets", targets]
    argv = [*source, "--student-epochs", 2, "--student-start", "random", "--seeds", "1-3"]
    in_turn(*command(toy, tmp_path / "turn", *argv, name="distill"))
    assert run(*command(toy, tmp_path / "apart", *argv, "--nj", 3, name="distill")) == 0
    assert digests(tmp_path / "apart") == digests(tmp_path / "turn")


def test_one_that_cannot_be_trained_ends_all_in_a_sentence(toy, tmp_path, capsys):
    argv = ["--num-members", 2, "--num-epochs", 2, "--learning-rate", 1e30, "--max-grad-norm", 0]
    assert run(*command(toy, tmp_path, *argv, "--nj", 2)) == 1
    assert capsys.readouterr().err.count("error: ") == 1


def test_nets_that_are_streamed_are_trained_in_turn(toy, tmp_path, capfd):
    argv = ["--num-members", 2, "--num-epochs", 1, "--resident-frames", 900]
    assert run(*command(toy, tmp_path, *argv, "--nj", 2)) == 0
    assert "\nseed1 " not in capfd.readouterr().err


def test_a_gpu_and_one_process_have_their_threads():
    for nj, device in ((1, resolve_device("cpu")), (4, torch.device("cuda"))):
        with nets_apart(nj, device) as apart:
            assert apart is None
            assert torch.get_num_threads() == 2


@pytest.mark.parametrize("whom", ["all", "one", "parent"])
def test_after_a_kill_the_same_command_ends_with_the_same_weights(toy, tmp_path, whom):
    """Processes whose parent is gone do not train on."""
    argv = ["--num-members", 3, "--num-epochs", 60, "--checkpoint-minutes", 1e-4, "--nj", 2]
    start = [sys.executable, "-m", "asr_kd.cli"]
    whole = [*start, *command(toy, tmp_path / "whole", *argv)]
    killed = [*start, *command(toy, tmp_path / "killed", *argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run(whole, check=True, env=environment, capture_output=True)
    with subprocess.Popen(killed, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("seed2") and line.split()[1:2] == ["3"]:
                break
        children = _children_of(process.pid)
        for pid in {"all": [process.pid, *children], "one": children[:1], "parent": [process.pid]}[whom]:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(map(_is_at_work, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        num_complete = len(list((tmp_path / "killed").glob("*/net.json")))
        rest = process.stderr.read()
    assert num_complete == 0  # it was not their end that ended them
    assert process.returncode == (1 if whom == "one" else -signal.SIGKILL)
    if whom == "one":
        assert "its process was ended by signal 9" in rest.splitlines()[-1]
    subprocess.run(killed, check=True, env=environment, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def _is_at_work(pid: int) -> bool:
    """Whether a process is there that has not ended; one that has may wait for its parent to ask."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize(("nets", "share"), [("1-2", 1), ("1", 2)])
def test_threads_are_divided_however_many_cores_there_are(toy, tmp_path, nets, share):
    """What numba starts with, all cores, is nobody's share: of two threads here, beside eight cores."""
    argv = command(toy, tmp_path, "--seeds", nets, "--max-steps", 5, "--precision", "bfloat16", "--nj", 2, name="train")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "8"}
    start = [sys.executable, "-m", "asr_kd.cli"]
    subprocess.run([*start, *argv], check=True, env=environment, capture_output=True, timeout=300)
    for card in tmp_path.glob("seed*"):
        assert load_net(card).training["num_threads"] == share


@pytest.mark.parametrize("nj", [1, 2])
def test_more_memory_than_there_is_is_told_in_a_sentence(toy, tmp_path, nj, capfd):
    options = ["--seeds", "1-2", "--num-hidden-layers", 2, "--hidden-dim", 300_000_000, "--nj", nj]
    assert run(*command(toy, tmp_path, *options, name="train")) == 1
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert "error: sizes that were asked for need more memory than there is" in told.splitlines()[-1]


def test_torchrun_has_its_own_processes(toy, tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("asr_kd.world.World.connected", lambda self: contextlib.nullcontext())
    assert run(*command(toy, tmp_path, "--num-members", 2, "--nj", 2)) == 1
    assert "--nj: under torchrun" in capsys.readouterr().err
