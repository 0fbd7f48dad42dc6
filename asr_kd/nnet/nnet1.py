"""A net as Kaldi's nnet1 reads it, in text: components, each with its dimensions and its numbers.

nnet1 has no plain ReLU: <ParametricRelu>, in Kaldi since 2016, multiplies positive numbers by its first vector (here
1) and negative ones by its second (here 0), which is exactly one; its learning rates are 0, so that it stays one in
training. Kaldi's src/nnet: nnet-component.cc, nnet-affine-transform.h, nnet-parametric-relu.h, nnet-various.h.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.nnet.plain_layers import Affine, plain_layers


def net_components(trained: TrainedNet) -> Iterator[Iterable[str]]:
    """The components of final.nnet, each as lines of text."""
    for layer in plain_layers(trained):
        if isinstance(layer, Affine):
            dim_out, dim_in = layer.weight.shape
            yield _component("AffineTransform", dim_out, dim_in, "", *_matrix(layer.weight), _vector(layer.bias))
        else:
            rates = "<BiasLearnRateCoef> 0 <LearnRateCoef> 0 <ClipGradient> 0"
            slopes = (_vector(np.full(layer.dim, slope)) for slope in (1.0, 0.0))
            yield _component("ParametricRelu", layer.dim, layer.dim, rates, *slopes)
    num_pdfs = trained.net.architecture.num_pdfs
    yield _component("Softmax", num_pdfs, num_pdfs)


def transform_components(trained: TrainedNet) -> Iterator[Iterable[str]]:
    """The components of final.feature_transform, each as lines of text."""
    a, cmvn = trained.net.architecture, trained.cmvn
    if cmvn.mode == "global":
        fixed = "<LearnRateCoef> 0"
        yield _component("AddShift", a.feat_dim, a.feat_dim, fixed, _vector(-cmvn.mean))
        yield _component("Rescale", a.feat_dim, a.feat_dim, fixed, _vector(cmvn.istd))
    offsets = " ".join(map(str, range(-a.left_context, a.right_context + 1)))
    yield _component("Splice", a.window * a.feat_dim, a.feat_dim, f"[ {offsets} ]")


def _component(name: str, dim_out: int, dim_in: int, options: str = "", *values: str) -> Iterator[str]:
    yield f"<{name}> {dim_out} {dim_in}"
    yield from [options] if options else []
    yield from values
    yield "<!EndOfComponent>"


def _numbers(row: np.ndarray) -> str:
    """With as many digits as tell every float32 from its neighbours."""
    return " ".join(f"{value:.9g}" for value in row.tolist())


def _vector(vector: np.ndarray) -> str:
    return f"[ {_numbers(vector)} ]"


def _matrix(matrix: np.ndarray) -> Iterator[str]:
    yield "["
    for number, row in enumerate(matrix, 1):
        yield f"  {_numbers(row)}{' ]' if number == len(matrix) else ''}"


def write_nnet(path: Path, components: Iterable[Iterable[str]]) -> None:
    """Write components as one net, line by line."""
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in chain(["<Nnet>"], chain.from_iterable(components), ["</Nnet>"]))
