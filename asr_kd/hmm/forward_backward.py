"""Expectations over all paths through training graphs, compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr_kd.compiled import compiled
from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.wheels import kaldi


class TrainingPaths(NamedTuple):
    """Graphs of utterances side by side, without epsilon; every arc into a state carries the state's pdf.

    first_state: (num_utts + 1,); start: (num_utts,), a state; pdf: (num_states,) of the arcs into it; final:
    (num_states,) probabilities; first_arc: (num_states + 1,), where the arcs that leave a state begin; target, prob,
    enters: (num_arcs,), enters where an arc begins a phone.
    """

    first_state: np.ndarray
    start: np.ndarray
    pdf: np.ndarray
    final: np.ndarray
    first_arc: np.ndarray
    target: np.ndarray
    prob: np.ndarray
    enters: np.ndarray

    @classmethod
    def of(cls, model: HmmModel, graphs: Sequence[object]) -> "TrainingPaths":
        """From what GraphCompiler made of each utterance; raises AsrKdError where a state has arcs of two pdfs."""
        pieces = [_with_transition_probs(model, graph) for graph in graphs]
        num_states = np.array([piece.num_states for piece in pieces])
        first_state = np.concatenate([[0], np.cumsum(num_states)])
        source, target = (
            np.concatenate([getattr(piece, end) + first for piece, first in zip(pieces, first_state[:-1], strict=True)])
            for end in ("source", "target")
        )
        tids = np.concatenate([piece.ilabel for piece in pieces])
        arc_pdf, total = model.t2pdf[tids].astype(np.int64), int(first_state[-1])
        pdf = np.zeros(total, np.int64)
        pdf[target] = arc_pdf
        if (arc_pdf < 0).any() or (pdf[target] != arc_pdf).any():
            raise AsrKdError("a training graph has arcs of two pdfs into one state; was it made with reorder?")
        return cls(
            first_state,
            first_state[:-1] + np.array([piece.start for piece in pieces]),
            pdf,
            np.exp(-np.concatenate([piece.final for piece in pieces])),
            np.searchsorted(source, np.arange(total + 1)),
            target,
            np.exp(-np.concatenate([piece.weight for piece in pieces])),
            model.enters_phone[tids],
        )


def _with_transition_probs(model: HmmModel, graph: object) -> GraphArcs:
    k = kaldi()
    weighted = graph.copy()
    k.khg.add_transition_probs(
        trans_model=model.transition_model, disambig_syms=[], transition_scale=1.0, self_loop_scale=1.0, fst=weighted
    )
    k.fst.rmepsilon(weighted)
    return GraphArcs.from_fst(weighted)


@compiled
def write_occupancies(paths, first_utt, offset, likelihoods, change, occupancies):
    """P(pdf of the frame | all frames) into the rows of `occupancies` (num_frames, num_pdfs), utterance by utterance.

    paths: TrainingPaths; offset: (num_utts + 1,), where the frames of utterances first_utt, first_utt + 1, ... begin;
    likelihoods: (num_frames, num_pdfs), scaled by any factor a frame; change: (num_frames,) factor for beginning a
    phone with the frame. An utterance that no path fits gets zeros.
    """
    for number in range(len(offset) - 1):
        utt, first_row, length = first_utt + number, offset[number], offset[number + 1] - offset[number]
        first, num_states = paths.first_state[utt], paths.first_state[utt + 1] - paths.first_state[utt]
        alpha = np.zeros((length + 1, num_states))
        alpha[0, paths.start[utt] - first] = 1.0
        for frame in range(length):
            row, here, then = first_row + frame, alpha[frame], alpha[frame + 1]
            for state in range(num_states):
                if here[state] > 0:
                    for arc in range(paths.first_arc[first + state], paths.first_arc[first + state + 1]):
                        factor = change[row] if paths.enters[arc] else 1.0
                        then[paths.target[arc] - first] += here[state] * paths.prob[arc] * factor
            for state in range(num_states):
                then[state] *= likelihoods[row, paths.pdf[first + state]]
            _normalise(then)
        beta, onward = paths.final[first : first + num_states].copy(), np.zeros(num_states)
        for frame in range(length, 0, -1):
            row, posterior = first_row + frame - 1, alpha[frame]
            posterior *= beta
            _normalise(posterior)
            occupancies[row] = 0.0
            for state in range(num_states):
                pdf = paths.pdf[first + state]
                occupancies[row, pdf] += posterior[state]
                onward[state] = likelihoods[row, pdf] * beta[state]
            for state in range(num_states):
                beta[state] = 0.0
                for arc in range(paths.first_arc[first + state], paths.first_arc[first + state + 1]):
                    factor = change[row] if paths.enters[arc] else 1.0
                    beta[state] += paths.prob[arc] * factor * onward[paths.target[arc] - first]
            _normalise(beta)


@compiled
def _normalise(values):
    """Scale `values` in place to a sum of one, unless all are zero."""
    total = values.sum()
    if total > 0:
        values /= total
