"""Pruning and quantization while training: schedules, resume, what is stored, and what is refused."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_systems import make_system
from safetensors.torch import load_file, save_file
from test_training import SMALL, run, sets

from asr_kd.cli import main
from asr_kd.config import CompressConfig, DnnConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.nnet import quantized as nnet_quantized
from asr_kd.nnet.model import Architecture, FrameClassifier, new_net
from asr_kd.nnet.net_dir import WEIGHTS, load_card, load_net
from asr_kd.nnet.plain_layers import plain_layers
from asr_kd.nnet.quantized import Quantization
from asr_kd.scoring.system_list import read_systems
from asr_kd.store.packing import pack, unpack
from asr_kd.training import loop
from asr_kd.training.pruning import Pruning, prune, sparsity_of
from asr_kd.training.quantization import prepare, quantized

# Enough to be taken for the card of a net that was trained by another configuration.
ANOTHER_CARD = json.dumps(
    {"format": "asr_kd.net", "architecture": {}, "num_parameters": 0, "digest": "", "cmvn": {}, "front_end": {}}
    | {"labels": {}, "training": {}}
)
ROOT = Path(__file__).parents[1]
SHAPE = Architecture(3, 1, 40, 2, 24, 6)
CONFIG, DNN = resolve(CompressConfig), resolve(DnnConfig)
PRUNED = ["--prune-sparsity", 0.8, "--prune-every", 3]


def pruning(num_steps: int, **keys) -> Pruning:
    config = replace(CONFIG, **{"prune_sparsity": 0.8, "prune_begin": 0.2, "prune_end": 0.7, **keys})
    return Pruning(config, DNN, num_steps)


def test_the_schedule_is_that_of_the_paper():
    """s_t = s_f (1 - (1 - (t - t0) / (n dt))^3), from t0 = 20 to t0 + n dt = 70 of 100 steps."""
    schedule = pruning(100, prune_every=10)
    for step, wanted in ((0, 0.0), (20, 0.0), (30, 0.8 * (1 - 0.8**3)), (45, 0.8 * 0.875), (70, 0.8), (100, 0.8)):
        assert schedule.sparsity(step) == pytest.approx(wanted)
    assert [step for step in range(101) if schedule.is_due(step)] == [30, 40, 50, 60, 70]
    assert [schedule.is_complete(step) for step in (69, 70, 100)] == [False, True, True]


@given(begin=st.floats(0, 1), length=st.floats(0, 1), every=st.integers(1, 40), num_steps=st.integers(1, 300))
def test_every_schedule_grows_and_prunes_last_when_it_is_complete(begin, length, every, num_steps):
    schedule = pruning(num_steps, prune_begin=begin, prune_end=min(1.0, begin + length), prune_every=every)
    shares = [schedule.sparsity(step) for step in range(num_steps + 1)]
    assert all(0 <= a <= b <= 0.8 for a, b in pairwise(shares))
    assert shares[-1] == 0.8
    due = [step for step in range(num_steps + 1) if schedule.is_due(step)]
    assert schedule.is_complete(due[-1])
    assert not any(schedule.is_complete(step) for step in due[:-1])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_least_weights_are_pruned_and_exactly_so_many(scope):
    net = new_net(SHAPE, seed=1)
    before = [layer.weight.detach().clone() for layer in net.linear]
    prune(net, 0.37, scope)
    zeros = [int((layer.weight == 0).sum()) for layer in net.linear]
    if scope == "layer":
        assert zeros == [round(0.37 * weight.numel()) for weight in before]
    assert sum(zeros) == pytest.approx(0.37 * sum(w.numel() for w in before), abs=1.5)
    pairs = [(layer.weight.detach(), weight) for layer, weight in zip(net.linear, before, strict=True)]
    if scope == "global":
        pairs = [tuple(torch.cat([each[i].flatten() for each in pairs]) for i in (0, 1))]
    for pruned, weight in pairs:
        assert weight[pruned == 0].abs().max() <= weight[pruned != 0].abs().min()
        assert torch.equal(pruned[pruned != 0], weight[pruned != 0])


def test_what_is_pruned_stays_so_and_the_best_epoch_is_a_pruned_one(toy, tmp_path):
    options = [*sets(toy), *SMALL, *PRUNED, "--num-epochs", 8, "--prune-begin", 0.05, "--prune-end", 0.5]
    run("train", *options, "--out", tmp_path)
    card = load_card(tmp_path / "seed1")
    shares = [row["sparsity"] for row in card["training"]["history"]]
    assert shares == sorted(shares)
    assert [row["pruned"] for row in card["training"]["history"]] == [False] * 3 + [True] * 5
    assert card["training"]["best_epoch"] >= 4
    net = load_net(tmp_path / "seed1").net
    for layer in net.linear:
        assert int((layer.weight == 0).sum()) == round(0.8 * layer.weight.numel())
    assert card["training"]["compress"]["sparsity"] == pytest.approx(sparsity_of(net)) == pytest.approx(0.8, abs=1e-3)
    assert card["training"]["history"][-1]["dev_frame_acc"] > 50


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("train", PRUNED),
        ("distill", [*PRUNED, "--prune-scope", "global", "--quantize", "int8", "--prune-end", 1]),
        ("train", ["--quantize", "int4"]),
    ],
    ids=["pruned", "pruned and int8", "int4"],
)
def test_an_interrupted_run_ends_with_the_same_net(toy, tmp_path, monkeypatch, command, keys):
    """Stopped within an epoch by a checkpoint for every step, and after one."""
    options = [*sets(toy), *SMALL, *keys]
    options += (
        ["--num-epochs", 2] if command == "train" else ["--student-epochs", 2, "--teachers", tmp_path / "t/seed1"]
    )
    if command == "distill":
        run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path / "t")
    run(command, *options, "--out", tmp_path / "whole")
    wanted = load_card(tmp_path / "whole" / "seed1")["digest"]
    options += ["--checkpoint-minutes", 1e-9]
    save = loop.save_checkpoint
    calls = []

    def stop(*args):
        save(*args)
        calls.append(1)
        if len(calls) % 13 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", stop)
    command_line = [str(word) for word in (command, *options, "--out", tmp_path / "broken")]
    while main(command_line) == 130:
        assert len(calls) < 100
    assert len(calls) > 26
    assert load_card(tmp_path / "broken" / "seed1")["digest"] == wanted


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_net_computes_what_it_was_trained_to_compute(toy, tmp_path, quantize, monkeypatch):
    quantization = Quantization(quantize, 32 if quantize == "int4" else 0)
    net = new_net(SHAPE, seed=1)
    prepare(net, quantization)
    net.train()
    x = torch.randn(64, 200, generator=torch.Generator().manual_seed(1))
    net(x).square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in net.linear)
    net.eval()
    ours = quantized(net, quantization).eval()
    for layer, trained in zip(ours.linear, net.linear, strict=True):
        assert torch.equal(layer.weight, trained.weight_fake_quantizer(trained.weight))
        assert layer.integers.unique().numel() <= 2**quantization.bits
    for inputs in (x, 4 * x):  # the latter beyond the limits that training found
        with torch.inference_mode(), monkeypatch.context() as patched:
            twin, by_kernels = net(inputs), ours(inputs)
            patched.setattr(nnet_quantized, "has_int8_products", lambda: False)
            by_floats = ours(inputs)
        spread = float(twin.std())
        # An activation in the middle between two levels may fall to either.
        for logits in (by_kernels, by_floats):
            assert float((logits - twin).abs().mean()) < 1e-3 * spread
            assert float((logits - twin).abs().max()) < 0.1 * spread


def test_eight_bits_do_not_overflow_sixteen():
    """All weights and activations at their limits: what CPUs without VNNI would get wrong with 255 levels."""
    layer = nnet_quantized.QuantizedLinear(64, 4, Quantization("int8"))
    layer.integers.fill_(-128)
    layer.integers[0].fill_(127)
    for value in (127.0, 255.0):  # the latter is cut off at the highest level
        with torch.inference_mode():
            products = layer(torch.full((3, 64), value))
        assert torch.equal(products, 64 * 127.0 * torch.tensor([127.0, -128, -128, -128]).expand(3, 4))


def test_a_frame_s_answer_does_not_depend_on_its_batch(toy, tmp_path):
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--quantize", "int8", "--out", tmp_path)
    net = load_net(tmp_path / "seed1").net
    x = torch.randn(16, 200, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(net(x), torch.cat([net(row[None]) for row in x]))


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ([], 4.0),
        (["--prune-sparsity", 0.5], 0.5 * 4 + 0.125),
        (["--prune-sparsity", 0.9], 0.1 * 4 + 0.125),
        (["--quantize", "int8"], 1.0),
        (["--quantize", "int4"], 0.5 + 2 / 20),
        (["--quantize", "int8", "--prune-sparsity", 0.9], 0.1 + 0.125),
    ],
)
def test_bytes_on_disk(toy, tmp_path, keys, most):
    """most: bytes a weight; biases, scales and the names of tensors come on top."""
    run("train", *sets(toy), *SMALL, "--hidden-dim", 160, "--num-epochs", 1, *keys, "--out", tmp_path)
    folder = tmp_path / "seed1"
    net = load_net(folder).net
    weights = sum(layer.in_features * layer.out_features for layer in net.linear)
    rest = sum(layer.out_features for layer in net.linear) * 8 + 1200
    size = (folder / WEIGHTS).stat().st_size
    assert most * weights * 0.97 < size < most * weights + rest
    assert net.num_parameters == weights + 160 + 6


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([torch.float32, torch.float16, torch.int8]))
def test_packing_keeps_every_bit(seed, sparsity, dtype):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(0, 9, size=2))
    values = rng.integers(-8, 8, size=shape) * (rng.random(shape) >= sparsity)
    tensor = torch.from_numpy(values.astype(np.float64)).to(dtype)
    if dtype.is_floating_point:
        tensor = torch.where(torch.from_numpy(rng.random(shape) < 0.2), -tensor, tensor)  # -0.0 too
    int4 = {"a"} if dtype == torch.int8 else set()
    packed = pack({"a": tensor, "b": tensor}, int4)
    found = unpack(packed, {"a": torch.empty_like(tensor), "b": torch.empty_like(tensor)}, int4)
    for name in ("a", "b"):
        assert found[name].view(torch.uint8).equal(tensor.view(torch.uint8)) or not tensor.numel()
        assert sum(part.nbytes for key, part in packed.items() if key.startswith(name)) <= tensor.nbytes


@pytest.mark.parametrize("keys", [["--quantize", "int4"], [*PRUNED, "--quantize", "int8"], PRUNED])
def test_a_damaged_compressed_net_is_refused(toy, tmp_path, keys):
    run("train", *sets(toy), *SMALL, "--num-epochs", 2, *keys, "--out", tmp_path)
    folder = tmp_path / "seed1"
    whole = load_file(folder / WEIGHTS)
    for name in [key for key in whole if "weight" in key or "integers" in key]:
        for damage in ("lost", "shorter", "changed", "another type"):
            tensors = {key: value.clone() for key, value in whole.items()}
            if damage == "lost":
                del tensors[name]
            elif damage == "shorter":
                tensors[name] = tensors[name].flatten()[:-1]
            elif damage == "changed":
                tensors[name].view(torch.uint8).flatten()[0] ^= 0xFF
            else:
                tensors[name] = tensors[name].to(torch.float64)
            save_file(tensors, folder / WEIGHTS)
            with pytest.raises(AsrKdError, match=r"cannot be loaded|does not hold the weights"):
                load_net(folder)
    save_file({**whole, "more": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(AsrKdError, match="more is no part"):
        load_net(folder)


def test_copies_of_a_quantized_net_answer_alike():
    net = FrameClassifier(SHAPE, Quantization("int8")).eval()
    for layer in net.linear:
        layer.integers.random_(-128, 128, generator=torch.Generator().manual_seed(1))
        layer.scale.fill_(0.01)
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = net(x)
        other = copy.deepcopy(net)
        assert torch.equal(other(x), before)
        other.layers[-1].bias += 1.0
        assert torch.equal(other(x), before + 1.0)


def test_a_quantized_net_does_what_nets_do(toy, tmp_path, capsys):
    """Start of another, teacher, corrected, inspected, counted."""
    run("train", *sets(toy), *SMALL, "--num-epochs", 2, "--out", tmp_path / "float")
    start = ["--initialise", tmp_path / "float/seed1"]
    run("train", *sets(toy), *SMALL, "--num-epochs", 2, "--quantize", "int8", *start, "--out", tmp_path / "int8")
    compressed = tmp_path / "int8/seed1"
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--initialise", compressed, "--out", tmp_path / "again")
    run("distill", *sets(toy), *SMALL, "--student-epochs", 1, "--teachers", compressed, "--out", tmp_path / "student")
    dev = ["--feats", toy["dev_feats"], "--ali", toy["dev_ali"], "--device", "cpu"]
    run("count-errors", "--nets", compressed, *dev, "--out", tmp_path / "errors.json")
    run("correct-bias", "--net", compressed, *dev, "--classes", "1,2", "--test-tuned", "--out", tmp_path / "corrected")
    assert load_net(tmp_path / "corrected").net.quantization == Quantization("int8")
    capsys.readouterr()
    run("inspect", compressed)
    assert "int8" in capsys.readouterr().out


@pytest.mark.parametrize("quantization", [Quantization("int8"), Quantization("int4", 8)])
def test_quantized_nets_have_no_form_in_float_formats(quantization):
    trained = SimpleNamespace(net=FrameClassifier(SHAPE, quantization))
    with pytest.raises(AsrKdError, match=f"a net in {quantization.to} cannot be exported to ONNX or nnet1"):
        plain_layers(trained)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--prune-sparsity", 1], "prune_sparsity 1.0: must be from 0 to below 1"),
        (["--prune-sparsity", -0.1], "prune_sparsity -0.1: must be from 0 to below 1"),
        (["--prune-sparsity", 0.5, "--prune-begin", 0.7], "prune_begin 0.7: must be at most prune_end, 0.6"),
        (["--prune-sparsity", 0.5, "--prune-end", 1.5], "prune_end 1.5: must be from 0 to 1"),
        (["--prune-every", 0], "prune_every 0: must be at least 1"),
        (["--prune-scope", "row"], "prune_scope is 'row', but should be layer or global"),
        (["--prune-sparsity", 0.5, "--schedule", "newbob"], "schedule newbob goes back"),
        (["--quantize", "int2"], "quantize is 'int2', but should be int8 or int4, or null"),
        (["--quantize", "int4", "--quantize-group", 1], "quantize_group 1: must be at least 2"),
        (["--quantize", "int4", "--hidden-dim", 37], "a layer of 37 inputs has no groups of 8 to 32 weights"),
    ],
)
def test_what_cannot_be_is_refused(toy, tmp_path, capsys, keys, message):
    """Also where a net was: it stays."""
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "net.json").write_text(ANOTHER_CARD)
    command_line = ["train", *sets(toy), *SMALL, *keys, "--out", tmp_path]
    assert main([str(word) for word in command_line]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "seed1" / "net.json").read_text() == ANOTHER_CARD


def test_without_torchao_nets_are_applied_but_not_trained(toy, tmp_path, capsys, monkeypatch):
    options = ["train", *sets(toy), *SMALL, "--num-epochs", 1, "--quantize", "int8", "--out", tmp_path]
    run(*options)
    digest = load_card(tmp_path / "seed1")["digest"]
    monkeypatch.setitem(sys.modules, "torchao.quantization.qat", None)
    assert main([str(word) for word in [*options, "--seeds", 2]]) == 1
    assert "pip install '.[quantize]'" in capsys.readouterr().err
    assert load_net(tmp_path / "seed1").digest == digest


def test_a_card_of_no_known_quantization_is_refused(toy, tmp_path):
    run("train", *sets(toy), *SMALL, "--num-epochs", 1, "--quantize", "int8", "--out", tmp_path)
    card = tmp_path / "seed1" / "net.json"
    contents = json.loads(card.read_text())
    del contents["seal"]
    card.write_text(json.dumps({**contents, "quantization": {"to": "int2", "group": 0}}))
    with pytest.raises(AsrKdError, match="no quantization to int2"):
        load_net(tmp_path / "seed1")


def test_a_key_without_effect_trains_nothing_again(toy, tmp_path, capsys):
    options = ["train", *sets(toy), *SMALL, "--num-epochs", 1, "--out", tmp_path]
    run(*options)
    run(*options, "--prune-every", 7, "--quantize-group", 16)
    assert "up to date" in capsys.readouterr().err
    run(*options, "--prune-sparsity", 0.5)
    assert load_card(tmp_path / "seed1")["training"]["compress"]["prune_sparsity"] == 0.5


def script(path: str):
    """A script of the repository, to be called here: importing torch again takes seconds."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *argv: module.main(module.build_parser().parse_args([str(word) for word in argv]))


def test_the_table_says_what_nets_cost_and_what_distillation_gains(toy, tmp_path, capsys):
    options = [*sets(toy), *SMALL, "--num-epochs", 1, "--student-epochs", 1, "--seeds", "1-2"]
    for kind, keys in (("full", []), ("pruned80+int8", ["--prune-sparsity", 0.8, "--quantize", "int8"])):
        run("train", *options, *keys, "--out", tmp_path / "labels" / kind)
        teacher = tmp_path / "labels/full/seed1"
        run("distill", *options, *keys, "--teachers", teacher, "--out", tmp_path / "distilled" / kind)
    table = script("recipes/paper/compression_table.py")
    about = ["--nets", tmp_path, "--kinds", "full", "pruned80+int8", "--seeds", 1, 2]
    table(*about, "--teachers", teacher, "--systems", tmp_path / "systems.yaml")
    names = [spec.name for spec in read_systems(tmp_path / "systems.yaml")]
    assert names[0] == "ensemble"
    rng = np.random.default_rng(1)
    for number, name in enumerate(names):
        seeds = [1] if name == "ensemble" else [1, 2]
        make_system(name, "baseline", seeds, 2.0 + 0.1 * number, 0.3, rng).save(tmp_path / "scores" / f"{name}.json")
    first = [tmp_path / "labels" / kind / "seed1" for kind in ("full", "pruned80+int8")]
    benchmark = ["--full", teacher, "--nets", *first, "--rounds", 1, "--seconds", 0.01]
    script("benchmarks/compression.py")(*benchmark, "--out", tmp_path / "speed.json")
    capsys.readouterr()
    table(*about, "--scores", tmp_path / "scores", "--speed", tmp_path / "speed.json", "--out", tmp_path / "rows.json")
    full, small = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (full["sparsity"], full["num_parameters"]) == (0.0, small["num_parameters"])
    assert small["sparsity"] >= 0.8 - 1e-3
    assert small["bytes"] < full["bytes"] / 3
    difference = small["frame_accuracy_difference"]
    by_training = [small[f"frame_accuracy_{training}"]["value"] for training in ("distilled", "labels")]
    assert difference["difference"] == pytest.approx(by_training[0] - by_training[1])
    assert set(small["time_of_full"]) == {"1", "256"}
    shown = capsys.readouterr().out
    assert "| pruned80+int8 |" in shown
    measured = json.loads((tmp_path / "speed.json").read_text())
    microseconds = measured["microseconds_of_full"]["1"] * measured["nets"][1]["time_of_full"]["1"]
    assert f"| {microseconds:.1f} (" in shown


def test_the_experiment_tells_its_options_and_refuses_kinds_that_it_does_not_know(tmp_path):
    command_line = ["bash", ROOT / "recipes/paper/compression.sh"]
    told = subprocess.run([*command_line, "--help"], capture_output=True, text=True)
    assert told.returncode == 0
    assert "pruned80+int8" in told.stdout
    (tmp_path / "config.yaml").write_text("hidden_dim: 16\n")
    command_line += ["--base", tmp_path, "--out", tmp_path / "out", "--kinds", "narrow,int2"]
    environment = {**os.environ, "ASR_KD_PYTHON": sys.executable}
    refused = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "--kinds int2: no such compression" in refused.stderr
    for joined in ("int8+int4", "narrow+narrow", "pruned50+int8+pruned80"):
        command_line[-1] = joined
        refused = subprocess.run(command_line, capture_output=True, text=True, env=environment)
        assert refused.returncode == 2
        assert f"--kinds {joined}: joins two of one sort" in refused.stderr
    told = {"": "expected names joined", "int8+": "expected names joined", "*": "expected names joined"}
    told |= {"pruned00": "no such compression", "narrow+int8,full,int8+narrow": "names one net twice"}
    told |= {"full,full": "names one net twice"}
    for kinds, complaint in told.items():
        command_line[-1] = kinds
        refused = subprocess.run(command_line, capture_output=True, text=True, env=environment)
        assert (refused.returncode, complaint in refused.stderr) == (2, True), refused.stderr
    command_line[-1] = "narrow"
    refused = subprocess.run([*command_line, "--split", "train"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "--split train: expected dev or test" in refused.stderr
