"""Kaldi's final.mdl, text or binary: the transition model, and the diagonal GMMs behind it if it has them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.transitions import Transitions
from asr_kd.store.kaldi_object import KaldiObject, read_file

_NET_ALONE = ("<Nnet>", "<Nnet3>")


@dataclass(frozen=True)
class KaldiModel:
    """What a final.mdl holds; gmms: one a pdf, or None where the states have something else, a net say."""

    transitions: Transitions
    gmms: list[Gmm] | None


def read_mdl(path: str | Path) -> KaldiModel:
    """Read a final.mdl; raises AsrKdError, naming file and byte, where it is none, damaged, or of a chain model."""
    return parse_model(read_file(path), path)


def parse_model(data: bytes, name: str | Path) -> KaldiModel:
    """The same from the bytes of the file `name`."""
    source = KaldiObject(data, name)
    if source.peek() in _NET_ALONE:
        raise AsrKdError(f"{name}: is a net without its transition model; name the final.mdl beside the alignments")
    transitions = Transitions.read(source)
    if source.peek() != "<DIMENSION>":  # of an nnet2 or nnet3 model, or the transition model alone
        return KaldiModel(transitions, None)
    gmms = read_gmms(source)
    if len(gmms) != transitions.num_pdfs:
        raise AsrKdError(f"{name}: holds {len(gmms)} GMMs, but its states have {transitions.num_pdfs}")
    return KaldiModel(transitions, gmms)


def read_gmms(source: KaldiObject) -> list[Gmm]:
    """The AmDiagGmm that comes next, and ends the file."""
    source.expect("<DIMENSION>")
    dim = source.int()
    source.expect("<NUMPDFS>")
    num_pdfs = source.int()
    if dim < 1 or num_pdfs < 1:
        raise source.error(f"announces {num_pdfs} GMMs of dimension {dim}")
    gmms: list[Gmm] = []
    while not source.at_end():
        source.expect("<DiagGMM>", "<DiagGMMBegin>")
        gmms.append(_read_gmm(source, dim, len(gmms)))
        if len(gmms) > num_pdfs:
            break
    if len(gmms) != num_pdfs:
        raise source.error(f"holds {len(gmms)} GMMs or more, but announces {num_pdfs}")
    return gmms


def _read_gmm(source: KaldiObject, dim: int, number: int) -> Gmm:
    if source.peek() == "<GCONSTS>":  # made anew from the rest, as Kaldi does
        source.expect("<GCONSTS>")
        source.vector()
    source.expect("<WEIGHTS>")
    weights = source.vector()
    source.expect("<MEANS_INVVARS>")
    means_invvars = source.matrix()
    source.expect("<INV_VARS>")
    inv_vars = source.matrix()
    source.expect("</DiagGMM>", "<DiagGMMEnd>")
    if not len(weights) or means_invvars.shape != (len(weights), dim) or inv_vars.shape != means_invvars.shape:
        raise source.error(f"GMM {number} is not of dimension {dim} throughout")
    positive = np.concatenate([weights, inv_vars.ravel()])
    if not np.isfinite(means_invvars).all() or not np.isfinite(positive).all() or not (positive > 0).all():
        raise source.error(f"GMM {number} has a weight or variance that is not positive and finite")
    return Gmm(weights, means_invvars, inv_vars)
