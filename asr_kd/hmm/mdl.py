"""Kaldi's text form of a model (`gmm-copy --binary=false`): TransitionModel, then AmDiagGmm.

Numbers are written with nine digits, which give a float32 back exactly.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.kaldi_model import parse_model

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


def parse_mdl(text: str, name: str) -> tuple[str, np.ndarray, list[Gmm]]:
    """Topology text, transition log-probabilities and GMMs of a Kaldi model in text form.

    Raises AsrKdError, naming the file `name`, where it is malformed, holds a number that no model has, or is of a chain
    model.
    """
    topology = re.search(r"<Topology>.*</Topology>[^\S\n]*\n", text, re.DOTALL)
    model = parse_model(text.encode(), name)
    if not topology or model.gmms is None:
        raise AsrKdError(f"{name}: is not a Kaldi HMM-GMM in text form")
    return topology.group(0), model.transitions.log_probs, model.gmms
