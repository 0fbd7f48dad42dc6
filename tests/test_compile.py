"""Steps that torch.compile compiles end where the same steps end uncompiled."""

import shutil

import pytest
import torch
from test_stacked import assert_same, command

from asr_kd.cli import main
from asr_kd.nnet.net_dir import load_card

COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("stacked", ["never", "always"])
def test_compiled_steps_are_those_of_before(toy, tmp_path, capsys, stacked):
    """The last batch of a pass, smaller than the others, is there too; in turn the first net is there already."""
    options = ["--stacked", stacked, "--num-hidden-layers", 1, "--dropout", 0.2, "--max-norm", 1.0]
    options += ["--num-epochs", 2, "--num-members", 2]
    assert main(command(toy, tmp_path / "eager", *options)) == 0
    argv = command(toy, tmp_path / "compiled", *options)
    if stacked == "never":
        shutil.copytree(tmp_path / "eager/seed1", tmp_path / "compiled/seed1")
    assert main([*argv, "--compile", "true"]) == 0
    assert_same(tmp_path / "eager/seed2", tmp_path / "compiled/seed2")
    assert load_card(tmp_path / "compiled/seed2")["training"]["compile"] is True
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().err.count("up to date") == 2


@pytest.mark.parametrize("stacked", ["never", "always"])
def test_what_holds_all_frames_is_no_input_that_a_cuda_graph_copies(toy, tmp_path, monkeypatch, stacked):
    targets, inputs, compile_it = tmp_path / "targets.h5", [], torch.compile
    assert main(command(toy, tmp_path / "teacher", "--num-members", 1, "--num-epochs", 1)) == 0
    how = ["--teachers", tmp_path / "teacher/seed1", "--feats", toy["feats"], "--top-k", 3, "--device", "cpu"]
    assert main([str(arg) for arg in ("soft-targets", *how, "--out", targets)]) == 0

    def look_then_run(graph, examples):
        inputs.extend((len(each), getattr(each, "_dynamo_static_input_type", None)) for each in examples)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda forward, **how: compile_it(forward, dynamic=False, backend=look_then_run)
    )
    options = ["--compile", "true", "--stacked", stacked, "--seeds", "1,2", "--student-epochs", 1, "--targets", targets]
    assert main(command(toy, tmp_path, *options, name="distill")) == 0
    of_all_frames = [
        static for size, static in inputs if size == load_card(tmp_path / "seed1")["training"]["num_train_frames"]
    ]
    assert of_all_frames
    assert len(of_all_frames) % 4 == 0  # labels; and targets: their states and tail too
    assert set(of_all_frames) == {"unguarded"}


def test_members_that_are_drawn_for_every_batch_are_not_compiled(toy, tmp_path, capsys):
    assert main(command(toy, tmp_path, "--num-members", 2, "--num-epochs", 1)) == 0
    options = ["--compile", "true", "--online-members", 1, "--seeds", 1, "--student-epochs", 1]
    options += ["--teachers", tmp_path / "seed1", tmp_path / "seed2"]
    assert main(command(toy, tmp_path / "student", *options, name="distill")) == 1
    assert "error: compile true: not with online_members" in capsys.readouterr().err


def test_without_a_compiler_one_sentence_says_so(toy, tmp_path, capsys):
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}):
        assert main(command(toy, tmp_path, "--compile", "true", "--seeds", 1, name="train")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: compile true: cannot be done here")
    assert "set compile to false" in last
    assert "\n" not in last
