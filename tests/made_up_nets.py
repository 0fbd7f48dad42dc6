"""Nets for the toy set that nothing was trained for, and what they answer."""

from pathlib import Path

import numpy as np
import torch

from asr_kd.nnet.frames import Cmvn, Frames, front_end
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import TrainedNet, save_net
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout


def make_net(path: Path, toy: dict, seed: int, cmvn: str = "global", **changes) -> TrainedNet:
    """An untrained net for the toy set, whose biases are not 0, saved in the folder `path`."""
    reader = FeatsReader(toy["feats"])
    shape = {"left_context": 3, "right_context": 1, "num_hidden_layers": 2, "hidden_dim": 16, "num_pdfs": 6, **changes}
    net = new_net(Architecture(feat_dim=reader.feat_dim, dropout=0.1, **shape), seed)
    with torch.no_grad():
        for layer in net.linear:
            layer.bias.normal_(generator=torch.Generator().manual_seed(seed))
    labels = {"model_digest": "toy", "num_pdfs": 6}
    trained = TrainedNet(net.eval(), Cmvn.from_training_set(cmvn, reader), front_end(reader), labels, {})
    save_net(path, trained)
    return trained


def expected_log_post(nets: list[TrainedNet], feats: Path, **how) -> tuple[Layout, np.ndarray]:
    """The layout of `feats` and the log posteriors (num_frames, num_pdfs) of all its frames."""
    reader, first = FeatsReader(feats), nets[0]
    a = first.net.architecture
    frames = Frames.from_reader(reader, first.cmvn, a.left_context, a.right_context, torch.device("cpu"))
    blocks = mean_log_posteriors([each.net for each in nets], frames, **how)
    return reader.layout, np.concatenate([rows.numpy() for _, rows in blocks])
