"""Nets as ONNX files: onnxruntime computes what torch does."""

import json
import sys

import numpy as np
import pytest
import torch
from made_up_nets import expected_log_post, make_net

from asr_kd.cli import main
from asr_kd.errors import AsrKdError
from asr_kd.nnet import onnx_graph
from asr_kd.nnet.frames import Frames, front_end
from asr_kd.store.feats import FeatsReader

onnxruntime = pytest.importorskip("onnxruntime")


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def session(path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def windows(trained, feats, normalised: bool) -> np.ndarray:
    """All frames of a set with their contexts, (num_frames, window, feat_dim), as they are or normalised."""
    reader, a = FeatsReader(feats), trained.net.architecture
    if normalised:
        frames = Frames.from_reader(reader, trained.cmvn, a.left_context, a.right_context, torch.device("cpu"))
        return np.concatenate([each.numpy() for _, each in frames.blocks()]).reshape(-1, a.window, a.feat_dim)
    utts = [reader.windows(utt_id, a.left_context, a.right_context) for utt_id in reader.layout.utt_ids]
    return np.concatenate(utts).reshape(-1, a.window, a.feat_dim)


@pytest.mark.parametrize("cmvn", ["global", "none", "utterance"])
@pytest.mark.parametrize("members", ["one", "arithmetic", "geometric"])
def test_onnxruntime_equals_torch(toy, tmp_path, cmvn, members):
    nets = [make_net(tmp_path / f"net{seed}", toy, seed, cmvn) for seed in range(1 if members == "one" else 3)]
    combination = "arithmetic" if members == "one" else members
    argv = ["--nets", *(tmp_path / f"net{seed}" for seed in range(len(nets))), "--combination", combination]
    assert run("export", "--format", "onnx", *argv, "--out", tmp_path / "net.onnx") == 0
    _, expected = expected_log_post(nets, toy["dev_feats"], combination=combination)
    feats = windows(nets[0], toy["dev_feats"], normalised=cmvn == "utterance")
    net = session(tmp_path / "net.onnx")
    for size in (1, 7, len(feats)):
        (found,) = net.run(["log_post"], {"feats": feats[:size]})
        np.testing.assert_allclose(found, expected[:size], atol=1e-4)


def test_likelihoods_far_apart_do_not_overflow(toy, tmp_path):
    nets = [make_net(tmp_path / f"net{seed}", toy, seed) for seed in (1, 2)]
    with torch.no_grad():
        for trained in nets:
            trained.net.linear[-1].weight.mul_(300)
    model = onnx_graph.onnx_model(nets)
    net = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    _, expected = expected_log_post(nets, toy["dev_feats"])
    assert -88 < expected.min() < -87  # the smallest posterior of a mean
    (found,) = net.run(None, {"feats": windows(nets[0], toy["dev_feats"], normalised=False)})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)  # differences of float32 logits in the hundreds


def test_metadata_tell_how_to_feed_it(toy, tmp_path, capsys):
    trained = make_net(tmp_path / "net", toy, 1, "speaker")
    assert run("export", "--format", "onnx", "--nets", tmp_path / "net", "--out", tmp_path / "net.onnx") == 0
    assert "takes features that are normalised already (cmvn speaker)" in capsys.readouterr().err
    found = session(tmp_path / "net.onnx").get_modelmeta().custom_metadata_map
    assert found["format"] == "asr_kd.onnx"
    assert [int(found[key]) for key in ("num_pdfs", "left_context", "right_context", "feat_dim")] == [6, 3, 1, 40]
    assert (found["cmvn"], json.loads(found["cmvn_in_graph"])) == ("speaker", False)
    assert json.loads(found["front_end"]) == front_end(FeatsReader(toy["feats"]))
    assert json.loads(found["net_digests"]) == [trained.digest]
    assert found["model_digest"] == "toy"
    (feats,) = session(tmp_path / "net.onnx").get_inputs()
    assert feats.shape == ["batch", 5, 40]


def test_the_same_net_is_the_same_file(toy, tmp_path):
    make_net(tmp_path / "net", toy, 1)
    for name in ("a", "b"):
        assert run("export", "--format", "onnx", "--nets", tmp_path / "net", "--out", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_cannot_be_exported_is_refused(toy, tmp_path, monkeypatch):
    small, other = make_net(tmp_path / "a", toy, 1), make_net(tmp_path / "b", toy, 2, left_context=2)
    with pytest.raises(AsrKdError, match="differ in left_context: 2 and 3"):
        onnx_graph.onnx_model([small, other])
    with pytest.raises(AsrKdError, match="'specialists': choose arithmetic or geometric"):
        onnx_graph.onnx_model([small], "specialists")
    small.labels["specialist"] = {}
    with pytest.raises(AsrKdError, match="a specialist answers beside its generalist"):
        onnx_graph.onnx_model([small])
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 1000)
    with pytest.raises(AsrKdError, match="an ONNX file at most"):
        onnx_graph.onnx_model([other])
    other.net.layers.append(torch.nn.GELU())
    monkeypatch.undo()
    with pytest.raises(AsrKdError, match="a layer of type GELU cannot be exported"):
        onnx_graph.onnx_model([other])


def test_without_onnx_its_format_says_what_to_install(toy, tmp_path, monkeypatch, capsys):
    make_net(tmp_path / "net", toy, 1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("export", "--format", "onnx", "--nets", tmp_path / "net", "--out", tmp_path / "net.onnx") == 1
    assert "pip install '.[onnx]'" in capsys.readouterr().err
