"""Kaldi's text form of a model (`gmm-copy --binary=false`): TransitionModel, then AmDiagGmm.

Numbers are written with nine digits, which give a float32 back exactly.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.gaussians import Gmm

if TYPE_CHECKING:
    from asr_kd.hmm.model import HmmModel


def _vector(values: np.ndarray) -> str:
    return " [ " + " ".join(f"{value:.9g}" for value in values) + " ]\n"


def _matrix(rows: np.ndarray) -> str:
    return " [\n" + "\n".join("  " + " ".join(f"{value:.9g}" for value in row) for row in rows) + " ]\n"


def format_mdl(model: "HmmModel") -> str:
    """The text of final.mdl."""
    transitions = model.transition_model
    tuples = [t.__getstate__() for t in transitions.tuples]
    parts = ["<TransitionModel>\n", model.topology, f"<Triples> {len(tuples)}\n"]
    parts += [f"{phone} {state} {pdf}\n" for phone, state, pdf, _ in tuples]
    parts += ["</Triples>\n<LogProbs>\n", _vector(model.log_probs), "</LogProbs>\n</TransitionModel>\n"]
    parts.append(f"<DIMENSION> {model.feat_dim} <NUMPDFS> {model.num_pdfs}")
    for gmm in model.gmms:
        parts += [" <DiagGMM>\n<GCONSTS> ", _vector(gmm.gconsts), "<WEIGHTS> ", _vector(gmm.weights)]
        parts += ["<MEANS_INVVARS> ", _matrix(gmm.means_invvars), "<INV_VARS> ", _matrix(gmm.inv_vars), "</DiagGMM>"]
    return "".join(parts) + "\n"


def _numbers(block: str, tag: str, name: str) -> np.ndarray:
    found = re.search(rf"<{tag}>\s*\[([^\]]*)\]", block)
    if not found:
        raise AsrKdError(f"{name}: a <{tag}> block is missing; it is not a Kaldi model in text form")
    try:
        return np.array(found.group(1).split(), dtype=np.float32)
    except ValueError as error:
        raise AsrKdError(f"{name}: a <{tag}> block holds what is no number ({error})") from error


def parse_mdl(text: str, name: str) -> tuple[str, np.ndarray, list[Gmm]]:
    """Topology text, transition log-probabilities and GMMs of a Kaldi model in text form.

    Raises AsrKdError, naming the file `name`, where it is malformed, holds a number that no model has, or is of a chain
    model.
    """
    topology = re.search(r"<Topology>.*</Topology>[^\S\n]*\n", text, re.DOTALL)
    sizes = re.search(r"<DIMENSION>\s+(\d+)\s+<NUMPDFS>\s+(\d+)", text)
    if not topology or not sizes:
        raise AsrKdError(f"{name}: is not a Kaldi HMM-GMM in text form")
    if "<ForwardPdfClass>" in topology.group(0):
        raise AsrKdError(
            f"{name}: is of a chain model (its states have a <ForwardPdfClass>), each of whose outputs stands for "
            "several frames; frame classifiers need an HMM-GMM of the full frame rate, as asr-kd train-hmm makes"
        )
    dim, num_pdfs = int(sizes.group(1)), int(sizes.group(2))
    log_probs = _numbers(text, "LogProbs", name)
    gmms = []
    for block in text[sizes.end() :].split("<DiagGMM>")[1:]:
        weights = _numbers(block, "WEIGHTS", name)
        means_invvars, inv_vars = _numbers(block, "MEANS_INVVARS", name), _numbers(block, "INV_VARS", name)
        shape = (len(weights), dim)
        if not len(weights) or means_invvars.size != len(weights) * dim or inv_vars.size != means_invvars.size:
            raise AsrKdError(f"{name}: GMM {len(gmms)} is not of dimension {dim} throughout")
        if not np.isfinite(means_invvars).all() or not (inv_vars > 0).all() or not (weights > 0).all():
            raise AsrKdError(f"{name}: GMM {len(gmms)} has a weight or variance that is not positive and finite")
        gmms.append(Gmm(weights, means_invvars.reshape(shape), inv_vars.reshape(shape)))
    if len(gmms) != num_pdfs or num_pdfs == 0:
        raise AsrKdError(f"{name}: holds {len(gmms)} GMMs but announces {num_pdfs}")
    return topology.group(0), log_probs, gmms
