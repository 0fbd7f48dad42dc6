"""Small whole files of each kind, written by hand, for the readers that fuzz.py tries; none needs the wheels."""

import struct

import numpy as np
import torch

from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.transitions import HmmState, Topology, Transitions
from asr_kd.hmm.tree import ContextTree, Leaf, Node, Table
from asr_kd.nnet.frames import Cmvn
from asr_kd.nnet.model import Architecture, FrameClassifier
from asr_kd.nnet.net_dir import TrainedNet

_LEFT_TO_RIGHT = (
    HmmState(0, 0, ((0, 0.75), (1, 0.25))),
    HmmState(1, 1, ((1, 0.5), (2, 0.5))),
    HmmState(-1, -1, ()),
)
# Three phones of two states each, a pdf a state but for the last, which shares one.
TOPOLOGY_TRANSITIONS = Transitions(
    Topology(dict.fromkeys((1, 2, 3), _LEFT_TO_RIGHT)),
    np.array([[1, 0, 0, 0], [1, 1, 1, 1], [2, 0, 2, 2], [2, 1, 3, 3], [3, 0, 4, 4], [3, 1, 3, 3]]),
    np.log([1.0, *[0.75, 0.25, 0.5, 0.5] * 3]).astype(np.float32),
)
KALDI_WORDS = "<eps> 0\na 1\nab 2\nb 3\n!SIL 4\n#0 5\n<s> 6\n</s> 7\n"


def made_up_gmms(num_pdfs: int) -> list[Gmm]:
    """Two Gaussians of two dimensions a pdf."""
    rng = np.random.default_rng(3)
    return [
        Gmm.from_moments(np.full(2, 0.5), rng.normal(size=(2, 2)), rng.uniform(0.5, 2, size=(2, 2)))
        for _ in range(num_pdfs)
    ]


def text_mdl(transitions: Transitions) -> str:
    """Kaldi's text of a transition model alone."""
    parts = ["<TransitionModel> \n<Topology> \n"]
    for phone, states in transitions.topology.states.items():
        parts.append(f"<TopologyEntry> \n<ForPhones> \n{phone} \n</ForPhones> \n")
        for number, state in enumerate(states):
            arcs = "".join(f"<Transition> {to} {probability} " for to, probability in state.arcs)
            parts.append(f"<State> {number} {f'<PdfClass> {state.pdf_class} ' if state.arcs else ''}{arcs}</State> \n")
        parts.append("</TopologyEntry> \n")
    rows = "".join(f"{phone} {state} {pdf} \n" for phone, state, pdf, _ in transitions.tuples.tolist())
    probs = " ".join(f"{value:.7g}" for value in transitions.log_probs)
    parts.append(f"</Topology> \n<Triples> {len(transitions.tuples)} \n{rows}</Triples> \n<LogProbs> \n [ {probs} ]\n")
    return "".join(parts) + "</LogProbs> \n</TransitionModel> \n"


def text_tree(tree: ContextTree) -> str:
    """Kaldi's text of a tree."""

    def node(each: Node | None) -> str:
        if each is None:
            return "NULL "
        if isinstance(each, Leaf):
            return f"CE {each.pdf} "
        if isinstance(each, Table):
            return f"TE {each.key} {len(each.children)} ( {''.join(map(node, each.children))}) \n"
        values = "".join(f"{value} " for value in each.values)
        return f"SE {each.key} [ {values}]\n{{ {node(each.yes)}{node(each.no)}}} \n"

    return f"ContextDependency {tree.context_width} {tree.central} ToPdf {node(tree.root)}EndContextDependency "


def tiny_fst(*, const: bool, aligned: bool = False) -> bytes:
    """A graph of three states and four arcs in OpenFst's binary form."""
    arcs = [[(1, 1, 0.5, 1), (3, 0, 1.25, 2)], [(2, 0, 0.0, 1), (4, 2, -1.0, 2)], []]
    finals = [np.inf, np.inf, 0.75]
    kind = b"const" if const else b"vector"
    out = struct.pack("<ii", 2125659606, len(kind)) + kind + struct.pack("<i", 8) + b"standard"
    out += struct.pack("<iiQqqq", 1 if aligned else 2, 4 if aligned else 0, 3, 0, len(arcs), sum(map(len, arcs)))
    packed = [b"".join(struct.pack("<iifi", *arc) for arc in of_state) for of_state in arcs]
    if not const:
        states = zip(finals, arcs, packed, strict=True)
        return out + b"".join(struct.pack("<fq", final, len(a)) + p for final, a, p in states)

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 16) if aligned else data

    first, out = 0, pad(out)
    for final, of_state in zip(finals, arcs, strict=True):
        epsilons = [sum(arc[side] == 0 for arc in of_state) for side in (0, 1)]
        out += struct.pack("<fIIII", final, first, len(of_state), *epsilons)
        first += len(of_state)
    return pad(out) + b"".join(packed)


def tiny_net() -> TrainedNet:
    """A net that nobody trained."""
    torch.manual_seed(1)
    net = FrameClassifier(Architecture(1, 1, 3, 1, 4, 5)).eval()
    cmvn = Cmvn("utterance", np.zeros(3, np.float32), np.ones(3, np.float32))
    return TrainedNet(net, cmvn, {"kind": "fbank"}, {"num_pdfs": 5, "model_digest": "m"}, {"seed": 1})
