#!/usr/bin/env python3
"""How long one utterance takes from its windows to log posteriors, by onnxruntime and by PyTorch, on a CPU.

The same net, of random weights, in both; the two take turns, so that whatever else the machine does meets both. Times
are of the processor (all threads together), the median over --runs; their ratio is what counts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from asr_kd.cli_common import DefaultsFormatter, Parser, run_main
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Cmvn
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.nnet.onnx_graph import INPUT, onnx_model

FRAMES_PER_SECOND = 100


def build_parser() -> argparse.ArgumentParser:
    """Sizes of the net and of the utterances."""
    parser = Parser(prog="onnx_latency.py", description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.1, 1.0, 3.0, 10.0], help="of the utterances")
    parser.add_argument("--hidden-dim", type=int, default=512, help="units of a layer")
    parser.add_argument("--num-hidden-layers", type=int, default=4, help="layers")
    parser.add_argument("--num-pdfs", type=int, default=400, help="states")
    parser.add_argument("--num-threads", type=int, default=1, help="of each of the two")
    parser.add_argument("--runs", type=int, default=15, help="of each utterance")
    return parser


def generated_net(args: argparse.Namespace) -> TrainedNet:
    """A net of the paper's window, untrained."""
    shape = Architecture(20, 5, 40, args.num_hidden_layers, args.hidden_dim, args.num_pdfs)
    cmvn = Cmvn("global", np.zeros(40, np.float32), np.ones(40, np.float32))
    return TrainedNet(new_net(shape, 1).eval(), cmvn, {}, {"model_digest": "generated"}, {})


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of the processor, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main(args: argparse.Namespace) -> None:
    """Print one line for each length."""
    import onnxruntime

    torch.set_num_threads(args.num_threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.num_threads
    trained = generated_net(args)
    model = onnx_model([trained]).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    print(f"{trained.net.num_parameters:,} parameters, {args.num_threads} threads, median of {args.runs} runs")
    for seconds in args.seconds:
        shape = (max(1, round(seconds * FRAMES_PER_SECOND)), trained.net.architecture.window, 40)
        windows = np.random.default_rng(0).normal(size=shape).astype(np.float32)

        def by_torch(windows: np.ndarray = windows) -> np.ndarray:
            with torch.inference_mode():
                return trained.net(torch.from_numpy(windows)).log_softmax(dim=-1).numpy()

        def by_onnx(windows: np.ndarray = windows) -> np.ndarray:
            return session.run(None, {INPUT: windows})[0]

        difference = float(np.abs(by_torch() - by_onnx()).max())  # the first run of each, to warm up
        if difference > 1e-4:
            raise AsrKdError(f"log posteriors differ by {difference:.2g}")
        times = [(cpu_seconds(by_torch), cpu_seconds(by_onnx)) for _ in range(args.runs)]
        torch_s, onnx_s = (statistics.median(each) for each in zip(*times, strict=True))
        print(
            f"{seconds:g} s of speech: torch {1e3 * torch_s:.2f} ms, onnxruntime {1e3 * onnx_s:.2f} ms of CPU, "
            f"onnxruntime is {torch_s / onnx_s:.2f} times as fast; log posteriors differ by {difference:.1g}"
        )


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
