"""A net, or an ensemble that answers together, as one ONNX file: windows of features in, log posteriors out.

    feats       (batch, window, feat_dim) float32: each frame with its context, as Kaldi's splice-feats gives it; raw
                where CMVN is global or none (it is a part of the graph then), else normalised over the speaker or the
                utterance by whoever feeds it
    log_post    (batch, num_pdfs) float32, of any batch

The file's metadata tell contexts, states, front end and CMVN. The graph is made of operators by hand, since a net is a
handful of them: no tracing, and the same file from every version of torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asr_kd import __version__
from asr_kd.choices import Combination, require_choice
from asr_kd.errors import AsrKdError, install_hint
from asr_kd.nnet.inference import SMALLEST
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.nnet.plain_layers import Affine, plain_layers, require_exportable
from asr_kd.store.atomic import atomic_path

if TYPE_CHECKING:
    import onnx

FORMAT, VERSION = "asr_kd.onnx", 1
INPUT, OUTPUT = "feats", "log_post"
# Old enough for every runtime of the last years; nothing newer is needed.
OPSET, IR_VERSION = 17, 8
# What one file of protobuf can hold.
MAX_BYTES = 1 << 31


def export_onnx(out: str | Path, nets: Sequence[TrainedNet], combination: Combination = "arithmetic") -> None:
    """Write the file `out`, complete or not at all; combination: of the members, as asr_kd.nnet.inference has it.

    Raises AsrKdError where the nets do not belong together, are too large for one file, or onnx is not installed.
    """
    model = onnx_model(nets, combination)
    with atomic_path(out) as temporary:
        temporary.write_bytes(model.SerializeToString())


def onnx_model(nets: Sequence[TrainedNet], combination: Combination = "arithmetic") -> "onnx.ModelProto":
    """The same in memory, checked by onnx."""
    try:
        import onnx
    except ImportError as error:
        raise AsrKdError(f"--format onnx needs the package onnx ({error}); {install_hint('onnx')}") from error
    require_exportable(nets)
    require_choice("combination", combination, Combination)
    num_bytes = 4 * sum(trained.net.num_parameters for trained in nets)
    if num_bytes >= MAX_BYTES:
        raise AsrKdError(
            f"the nets have {num_bytes / 1e9:.1f} GB, and an ONNX file at most {MAX_BYTES / 1e9:.1f}; "
            "distil them into one net, and export that"
        )
    first = nets[0]
    a, graph = first.net.architecture, _Graph()
    windows = INPUT
    if first.cmvn.mode == "global":
        windows = graph.add("Sub", windows, graph.constant("mean", first.cmvn.mean))
        windows = graph.add("Mul", windows, graph.constant("istd", first.cmvn.istd))
    windows = graph.add("Flatten", windows, axis=1)
    logits = [_logits(graph, trained, windows, f"net{number}") for number, trained in enumerate(nets, 1)]
    _combine(graph, logits, combination)
    float32 = onnx.TensorProto.FLOAT
    shapes = {INPUT: ("batch", a.window, a.feat_dim), OUTPUT: ("batch", a.num_pdfs)}
    feats, log_post = (onnx.helper.make_tensor_value_info(name, float32, shape) for name, shape in shapes.items())
    made = onnx.helper.make_graph(graph.nodes, "asr_kd", [feats], [log_post], graph.constants)
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="asr_kd",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, _metadata(nets, combination))
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Operators in the order in which they are computed, and the numbers that they take."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        """Returns `name`, by which operators take `values` float32."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Returns the name of what `operator` makes of `inputs`."""
        from onnx import helper

        output = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


def _logits(graph: _Graph, trained: TrainedNet, values: str, name: str) -> str:
    for number, layer in enumerate(plain_layers(trained)):
        if isinstance(layer, Affine):
            weight = graph.constant(f"{name}.{number}.weight", layer.weight)
            bias = graph.constant(f"{name}.{number}.bias", layer.bias)
            values = graph.add("Gemm", values, weight, bias, transB=1)
        else:
            values = graph.add("Relu", values)
    return values


def _combine(graph: _Graph, logits: Sequence[str], combination: Combination) -> None:
    """What asr_kd.nnet.inference.combine does at temperature 1."""
    if len(logits) == 1:
        graph.add("LogSoftmax", *logits, output=OUTPUT, axis=1)
    elif combination == "geometric":
        graph.add("LogSoftmax", graph.add("Mean", *logits), output=OUTPUT, axis=1)
    else:
        members = [graph.add("LogSoftmax", each, axis=1) for each in logits]
        highest = graph.add("Max", *members)
        total = graph.add("Sum", *(graph.add("Exp", graph.add("Sub", each, highest)) for each in members))
        log_sum = graph.add("Add", highest, graph.add("Log", total))
        mean = graph.add("Sub", log_sum, graph.constant("log_num_nets", np.log(len(logits))))
        graph.add("Max", mean, graph.constant("log_smallest", np.log(SMALLEST)), output=OUTPUT)


def _metadata(nets: Sequence[TrainedNet], combination: Combination) -> dict[str, str]:
    first = nets[0]
    a = first.net.architecture
    values = {
        "format": FORMAT,
        "version": VERSION,
        "num_pdfs": a.num_pdfs,
        "left_context": a.left_context,
        "right_context": a.right_context,
        "feat_dim": a.feat_dim,
        "cmvn": first.cmvn.mode,
        "cmvn_in_graph": first.cmvn.fixed,
        "front_end": first.front_end,
        "num_nets": len(nets),
        "combination": combination,
        "net_digests": [trained.digest for trained in nets],
        "model_digest": first.labels["model_digest"],
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
