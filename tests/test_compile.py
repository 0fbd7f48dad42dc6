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


def test_without_a_compiler_one_sentence_says_so(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    assert main(command(toy, tmp_path, "--compile", "true", "--seeds", 1, name="train")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: compile true: cannot be done here")
    assert "set compile to false" in last
    assert "\n" not in last
