import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asr_kd.cli import main
from asr_kd.cli_common import Parser, at_least_one, run_main, share
from asr_kd.commands.environment import check_part

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/run.sh"))


def recipe(script: Path, *argv: str) -> subprocess.CompletedProcess:
    command = ["bash", str(script), *argv]
    environment = {"ASR_KD_PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_every_command_has_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert {"train", "train-ensemble", "soft-targets", "distill", "decode", "score", "report", "align"} <= set(listed)
    for command in listed:
        if command == "COMMAND":
            continue
        with pytest.raises(SystemExit) as exit_info:
            main([command, "--help"])
        assert exit_info.value.code == 0
        assert f"asr-kd {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["decode", "check-search"])
def test_what_searches_a_graph_offers_nothing_that_makes_one(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "--max-active" in text
    assert not any(option in text for option in ("--grammar", "--ngram-order", "--ngram-prune"))
    tuning = ("--acwts", "--insertion-penalties", "--lattice-beam")
    assert [option in text for option in tuning] == 3 * [command == "decode"]


@pytest.mark.parametrize("script", sorted((ROOT / "data_prep").glob("*.py")), ids=lambda path: path.name)
def test_every_data_prep_script_has_help_and_refuses_unknown_options(script):
    helped = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert helped.stdout.startswith(f"usage: {script.name}")
    assert "default: None" not in helped.stdout
    assert os.access(script, os.X_OK)
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for option in ("--no-such-option", "--hel"):
        with pytest.raises(SystemExit) as exit_info:
            run_main(module.main, module.build_parser(), [option])
        assert exit_info.value.code == 2, option


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.empty(1 << 58),
        lambda: np.empty((1 << 62, 1 << 62)),
        lambda: torch.empty(1 << 55),
        lambda: torch.empty(1 << 62, 1 << 62),
    ],
)
def test_sizes_beyond_memory_are_one_sentence(make, capsys):
    assert run_main(lambda _: make(), Parser(), []) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: sizes that were asked for need more memory than")


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_mistake_of_the_program_is_not_taken_for_the_users(error):
    def main(_):
        raise error("a mistake")

    with pytest.raises(error, match="a mistake"):
        run_main(main, Parser(), [])


@pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_tells_its_options_and_refuses_what_it_does_not_know(script, tmp_path):
    assert "--holdout-speaker" in recipe(RECIPES[0], "--help").stdout
    helped = recipe(script, "--help")
    assert helped.returncode == 0
    assert "01_data" in helped.stdout
    stages = (["--stage", "99"], ["--stage", "2", "--stop-stage", "1"], ["--stop-stage", "0"])
    for argv in (
        *stages,
        ["--no-such-key", "1"],
        ["--stage"],
        ["--stage", "x"],
        ["stray"],
        ["--preset", "no-such-preset"],
        ["--preset", "--stage"],
        ["--device=tpu"],
        ["--nj", "0"],
        ["--corpus", "no/such/folder"],
    ):
        refused = recipe(script, "--exp", str(tmp_path / "exp"), *argv)
        assert refused.returncode == 2, argv
        assert "error: " in refused.stderr
    unknown = recipe(script, "--no-such-key", "1").stderr.splitlines()[-1]
    assert unknown == "error: unknown option --no-such-key; see --help, and conf/*.yaml for the keys"
    assert "expected true or false" in recipe(RECIPES[0], "--any-version", "yes").stderr


@pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.parent.name)
def test_a_stage_without_its_inputs_says_what_is_missing(script, tmp_path):
    for stage in (2, 5):
        refused = recipe(script, "--exp", str(tmp_path / "exp"), "--stage", str(stage), "--stop-stage", str(stage))
        assert refused.returncode == 1
        assert "is missing; run the stages before this one" in refused.stderr


def test_env_explains_a_torchaudio_that_a_cpu_only_torch_cannot_import(monkeypatch):
    def fail(name):
        raise OSError("libc10_cuda.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert "everything else works without it" in check_part("torchaudio", "pip install x", None)
    assert "libc10_cuda.so" in check_part("torchaudio", "pip install x", "13.0")


def test_env_names_what_is_missing():
    assert check_part("no_such_module", "pip install it", None) == "missing (no_such_module): pip install it"


def test_a_missing_wheel_is_one_clear_sentence(monkeypatch, tmp_path, capsys):
    from asr_kd.errors import AsrKdError
    from asr_kd.hmm import wheels

    monkeypatch.setitem(sys.modules, "kaldi_hmm_gmm", None)
    wheels.kaldi.cache_clear() if hasattr(wheels.kaldi, "cache_clear") else None
    with pytest.raises(AsrKdError, match=r"in the checkout: pip install .\.\[hmm\]"):
        wheels.kaldi()


@pytest.mark.parametrize("text", ["-1", "nan", "1.5", "some"])
def test_a_share_lies_between_0_and_1(text):
    assert share("0.25") == 0.25
    with pytest.raises(argparse.ArgumentTypeError, match="not a share"):
        share(text)


@pytest.mark.parametrize("text", ["0", "-2", "1.5", "many"])
def test_a_number_of_processes_counts_from_1(text, capsys):
    assert at_least_one("1") == 1
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
        at_least_one(text)
    with pytest.raises(SystemExit) as exit_info:
        main(["decode", f"--nj={text}"])
    assert exit_info.value.code == 2
    assert "--nj" in capsys.readouterr().err.splitlines()[-1]
