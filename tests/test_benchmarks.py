"""The benchmarks at tiny sizes: that they run, and that what they compare is what they say."""

import importlib
import re
import shlex
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig, resolve
from asr_kd.nnet.model import Architecture, new_net

FOLDER = Path(__file__).parent.parent / "benchmarks"
SUITES = yaml.safe_load((FOLDER / "everything.yaml").read_text())
HERE = ("training.py", "streamed.py", "stacked.py", "targets.py", "fbank_device.py", "cost_model.py")
ENTRIES = [entry for entries in SUITES.values() for entry in entries]
# Each kind once: tiny, many are the same.
COMMANDS = {
    (entry["command"].split()[0], entry["tiny"]): shlex.split(f"{entry['command']} {entry['tiny']}")
    for entry in ENTRIES
    if entry["command"].split()[0] in HERE
}
CPU = torch.device("cpu")


@pytest.fixture
def module(monkeypatch):
    """A script of benchmarks/, imported: torch again in a process of its own takes seconds."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():  # `training` and the like are nobody else's business
            del sys.modules[name]


@pytest.mark.parametrize("words", COMMANDS.values(), ids=[f"{n}-{name}" for n, (name, _) in enumerate(COMMANDS)])
def test_every_command_runs_at_a_tiny_size(module, words, tmp_path, capfd):
    name, *options = words
    script = module(Path(name).stem)
    options = [*options, "--device", "cpu"] if "--device" in options else options
    known = script.build_parser().format_help()
    options += ["--folder", str(tmp_path)] if "--folder" in known else []
    options += ["--clock", "cpu"] if "--clock" in known else []  # without workers, which take seconds to start
    threads = torch.get_num_threads()
    assert run_main(script.main, script.build_parser(), options) == 0
    torch.set_num_threads(threads)
    printed = capfd.readouterr().out
    assert re.search(r"threads?|Tflop", printed)
    assert re.search(r"\d", printed.splitlines()[-1])


def test_a_stack_is_timed_by_the_processor(module):
    """Both looks at the clock of an epoch are at the same one: else its seconds are the machine's age."""
    script = module("stacked")
    config = replace(script.Net.parse("1x16/30:64", 30).config, max_steps=4, steps_per_epoch=2)
    sets = [script.labelled_set(600, 30, seed, config, CPU, torch.float32) for seed in (1, 2)]
    with script.processor_time():
        histories = script.histories(2, "always", config, sets, torch.float32)
    assert all(0 < row["seconds"] < 60 for rows in histories for row in rows)


def test_all_that_everything_names_is_there():
    named = {entry["command"].split()[0] for entry in ENTRIES}
    assert named <= {path.name for path in FOLDER.glob("*.py")}


def test_what_is_streamed_has_the_states_that_its_net_is_named_by(module, tmp_path, monkeypatch, capsys):
    streamed, seen = module("streamed"), []
    train = streamed.train

    def recorded(*args, **how):
        trained = train(*args, **how)
        seen.append(trained.net.architecture.num_pdfs)
        return trained

    monkeypatch.setattr(streamed, "train", recorded)
    options = ["--nets", "1x16/30:64,1x16/70:64", "--num-frames", "6000", "--rounds", "1", "--device", "cpu"]
    options += ["--folder", str(tmp_path)]
    assert run_main(streamed.main, streamed.build_parser(), options) == 0
    assert seen == [30] * 8 + [70] * 8  # two kinds of targets, two rounds, resident and streamed
    assert "1x16/70" in capsys.readouterr().out


def test_products_are_those_that_autograd_makes(module):
    """Counted by PyTorch: of a step of the same net."""
    from torch.utils.flop_counter import FlopCounterMode

    ceilings = module("ceilings")
    dims, batch = [26 * 40, 24, 24, 11], 16
    net, windows = new_net(Architecture(20, 5, 40, 2, 24, 11), 1), torch.randn(16, 26 * 40)
    products = ceilings.Products(dims, batch, CPU, torch.float32)
    with FlopCounterMode(display=False) as of_net:
        net(windows).sum().backward()
    with FlopCounterMode(display=False) as of_products:
        products.forward()
        products.backward()
    cost = ceilings.Cost.of(dims, batch, torch.float32)
    assert of_products.get_total_flops() == of_net.get_total_flops() == cost.operations * batch
    assert cost.bytes > 4 * sum(a * b for a, b in pairwise(dims)) / batch


def test_the_users_loop_sees_the_windows_that_we_see(module, tmp_path):
    generated, plain = module("generated"), module("plain_loop")
    config = resolve(DnnConfig, {})
    feats, pdf = generated.frames_and_states(600, 30, 1, CPU, torch.float32)
    plain.write_feats(tmp_path / "feats.h5", feats)
    theirs = plain.Windows(tmp_path / "feats.h5", pdf.numpy(), config)
    ours = generated.labelled_set(600, 30, 1, config, CPU, torch.float32)
    for frame in (0, 3, 150, 299, 300, 597, 599):
        window, label = theirs[frame]
        torch.testing.assert_close(window[None], ours.frames.windows(torch.tensor([frame])), rtol=0, atol=0)
        assert label == int(ours.pdf[frame])


def test_a_model_is_found_again_in_points_that_follow_it(module):
    cost_model = module("cost_model")
    rows = [[10.0, 1.0, 2.0], [20.0, 5.0, 1.0], [5.0, 50.0, 3.0], [80.0, 7.0, 9.0], [1e3, 1e3, 1e3]]
    seconds = [3 * a + 2 * b + 0 * c for a, b, c in rows]
    assert cost_model.fit(rows, seconds) == pytest.approx([3, 2, 0], abs=1e-6)


def test_one_file_has_all_commands_and_what_failed(module, tmp_path, monkeypatch, capsys):
    everything = module("everything")
    ran = []

    def run(words, tell, minutes):
        ran.append(words)
        return ("| a |\n|---|\n| 1 |", True) if words[0] != "stacked.py" else ("error: no", False)

    monkeypatch.setattr(everything, "run", run)
    out = tmp_path / "found.md"
    options = ["--suite", "gpu", "--tiny", "--device", "cpu", "--out", str(out)]
    assert run_main(everything.main, everything.build_parser(), options) == 1
    assert len(ran) == len(SUITES["gpu"])
    assert all(words[-2:] == ["--device", "cpu"] for words in ran)
    text = out.read_text()
    assert text.count("\n## ") == len(ran)
    assert "error: no" in text
    assert "Aim: stacked / one at most 2.5 for ten of 4x512.\n" in text
    assert "stacked.py failed" in capsys.readouterr().err
    assert run_main(everything.main, everything.build_parser(), ["--only", "nothing", "--out", str(out)]) == 1
    assert "choose of training, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_its_suite_says_so(module, tmp_path):
    everything = module("everything")
    options = ["--suite", "gpu", "--tiny", "--only", "filterbanks", "--out", str(tmp_path / "found.md")]
    assert run_main(everything.main, everything.build_parser(), options) == 1
    assert "this PyTorch sees no GPU" in (tmp_path / "found.md").read_text()


def test_what_a_benchmark_printed_before_its_time_was_up_is_kept(module, tmp_path, monkeypatch):
    """With what it had started: a child that holds its output open would keep us waiting."""
    everything, told = module("everything"), []
    (tmp_path / "slow.py").write_text(
        "import subprocess, sys, time\nprint('| 1 |')\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(everything, "HERE", tmp_path)
    begin = time.monotonic()
    assert everything.run(["slow.py"], told.append, 0.05) == ("| 1 |\n\nended after 0.05 minutes", False)
    assert told == ["| 1 |"]
    assert time.monotonic() - begin < 50


def test_processes_are_as_many_as_there_are(module, monkeypatch):
    script = module("processes")
    monkeypatch.setattr(script.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert script.numbers_of_processes("1,3", CPU) == [1, 3]
    assert script.numbers_of_processes("all", CPU) == [1, 2, 4]
    assert script.numbers_of_processes("all", torch.device("cuda")) == [1, 2, 4, 8]
