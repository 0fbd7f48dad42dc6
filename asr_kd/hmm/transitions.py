"""Kaldi's TransitionModel: what each transition-id stands for, computed from topology and states by our own code.

A transition-state is a phone, one of its HMM states and a pdf; its arcs, in the order of the topology, are counted
through all states from 1, and these counts are the transition-ids. Formats and meaning: Kaldi's
src/hmm/hmm-topology.h and transition-model.h, the form with <Triples> and the later one with <Tuples>.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.kaldi_object import KaldiObject

NO_PDF = -1
# Probabilities of a state's arcs may miss one by this much: text forms are rounded.
SUM_TOLERANCE = 0.01
# Binary topologies that tell the pdf-class of self-loops begin with this number where others have a count.
_WITH_LOOP_CLASSES = -1


@dataclass(frozen=True)
class HmmState:
    """A state of a phone: its pdf-class (NO_PDF: the end), that of its self-loop, and (to, probability) of each arc."""

    pdf_class: int
    loop_class: int
    arcs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Topology:
    """The HMM states of each phone id, the last one being the end."""

    states: dict[int, tuple[HmmState, ...]]

    @property
    def of_chain_model(self) -> bool:
        """Whether self-loops have pdfs of their own, as in Kaldi's chain models alone."""
        return any(s.pdf_class != s.loop_class for states in self.states.values() for s in states)

    @classmethod
    def read(cls, source: KaldiObject) -> "Topology":
        """The topology that comes next, text or binary; raises AsrKdError where it is none."""
        source.expect("<Topology>")
        states = _read_binary_states(source) if source.binary else _read_text_states(source)
        source.expect("</Topology>")
        if not states:
            raise source.error("has a topology of no phone")
        for phone, of_phone in states.items():
            _check_states(source, phone, of_phone)
        return cls(states)


def _check_states(source: KaldiObject, phone: int, states: tuple[HmmState, ...]) -> None:
    *emitting, end = states or (HmmState(NO_PDF, NO_PDF, ()),)
    fits = phone > 0 and emitting and end == HmmState(NO_PDF, NO_PDF, ())
    for state in emitting:
        fits = fits and state.arcs and min(state.pdf_class, state.loop_class) >= 0
        fits = fits and len({to for to, _ in state.arcs}) == len(state.arcs)
        fits = fits and all(0 <= to < len(states) and 0 <= probability <= 1 for to, probability in state.arcs)
    if not fits:
        raise source.error(f"has a topology of phone {phone} that is none: states that emit, then an end without arcs")


def _read_text_states(source: KaldiObject) -> dict[int, tuple[HmmState, ...]]:
    states: dict[int, tuple[HmmState, ...]] = {}
    while source.peek() == "<TopologyEntry>":
        source.expect("<TopologyEntry>")
        source.expect("<ForPhones>")
        phones = []
        while source.peek() != "</ForPhones>":
            phones.append(source.int())
        source.expect("</ForPhones>")
        entry = []
        while source.expect("<State>", "</TopologyEntry>") == "<State>":
            if source.int() != len(entry):
                raise source.error("has states of a phone that are not counted from 0")
            entry.append(_read_text_state(source))
        for phone in phones:
            if phone in states:
                raise source.error(f"has two topologies of phone {phone}")
            states[phone] = tuple(entry)
    return states


def _read_text_state(source: KaldiObject) -> HmmState:
    pdf_class = loop_class = NO_PDF
    arcs: list[tuple[int, float]] = []
    while (token := source.token()) != "</State>":
        if token == "<PdfClass>":
            pdf_class = loop_class = source.int()
        elif token == "<ForwardPdfClass>":
            pdf_class = source.int()
            source.expect("<SelfLoopPdfClass>")
            loop_class = source.int()
        elif token == "<Transition>":
            arcs.append((source.int(), source.float()))
        else:
            raise source.error(f"has {token!r} within a state of its topology")
    return HmmState(pdf_class, loop_class, tuple(arcs))


def _read_binary_states(source: KaldiObject) -> dict[int, tuple[HmmState, ...]]:
    phones, entry_of = source.int_vector().tolist(), source.int_vector().tolist()
    with_loops = (num_entries := source.int()) == _WITH_LOOP_CLASSES
    if with_loops:
        num_entries = source.int()
    entries = []
    for _ in range(num_entries):
        states = []
        for _ in range(source.int()):
            pdf_class = source.int()
            loop_class = source.int() if with_loops else pdf_class
            arcs = tuple((source.int(), source.float()) for _ in range(source.int()))
            states.append(HmmState(pdf_class, loop_class, arcs))
        entries.append(tuple(states))
    for phone in phones:
        if not (0 < phone < len(entry_of) and 0 <= entry_of[phone] < len(entries)):
            raise source.error(f"has no topology of phone {phone}")
    if len(set(phones)) != len(phones):
        raise source.error("has two topologies of one phone")
    return {phone: entries[entry_of[phone]] for phone in phones}


@dataclass(frozen=True)
class Transitions:
    """A transition model.

    tuples: (num_states, 4) int64, phone id, HMM state, pdf, pdf of the self-loop, of each transition-state;
    log_probs: (num_transition_ids + 1,) float32, index 0 unused. Tables over transition-ids have a dummy, −1 or False,
    at index 0.
    """

    topology: Topology
    tuples: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def read(cls, source: KaldiObject) -> "Transitions":
        """The transition model that comes next; raises AsrKdError where it is none, or that of a chain model."""
        source.expect("<TransitionModel>")
        topology = Topology.read(source)
        form = source.expect("<Triples>", "<Tuples>")
        if topology.of_chain_model:
            raise AsrKdError(
                f"{source.name}: is of a chain model (its states have a <ForwardPdfClass>), each of whose outputs "
                "stands for several frames; frame classifiers need an HMM-GMM of the full frame rate, such as tri3, or "
                "one that asr-kd train-hmm makes"
            )
        width = 3 if form == "<Triples>" else 4
        num_states = source.int()
        if not 0 < num_states <= len(source.data):
            raise source.error(f"declares {num_states} states")
        tuples = np.array([[source.int() for _ in range(width)] for _ in range(num_states)], np.int64)
        source.expect(form.replace("<", "</"))
        source.expect("<LogProbs>")
        log_probs = source.vector()
        source.expect("</LogProbs>")
        source.expect("</TransitionModel>")
        transitions = cls(topology, tuples[:, [0, 1, 2, width - 1]], log_probs)
        transitions._check(source)
        return transitions

    def _check(self, source: KaldiObject) -> None:
        states = self.topology.states
        keys = [tuple(row) for row in self.tuples.tolist()]
        if any(a >= b for a, b in pairwise(keys)):
            raise source.error("has transition-states that are not in order")
        for phone, hmm_state, pdf, loop_pdf in keys:
            if phone not in states or not 0 <= hmm_state < len(states[phone]) - 1 or pdf < 0 or pdf != loop_pdf:
                raise source.error(f"has a state {hmm_state} of phone {phone}, pdf {pdf}, that its topology lacks")
        if len(self.log_probs) != 1 + self.num_transition_ids:
            raise source.error(
                f"has {len(self.log_probs) - 1} probabilities for {self.num_transition_ids} transition-ids"
            )
        with np.errstate(over="ignore"):
            sums = np.bincount(self.t2state[1:], np.exp(self.log_probs[1:].astype(np.float64)))[1:]
        if not (np.abs(sums - 1) <= SUM_TOLERANCE).all():
            state = int((~(np.abs(sums - 1) <= SUM_TOLERANCE)).argmax())
            raise source.error(f"has probabilities of transition-state {state + 1} that sum to {sums[state]:.4g}")

    @property
    def num_transition_ids(self) -> int:
        return len(self.t2state) - 1

    @cached_property
    def num_pdfs(self) -> int:
        return 1 + int(self.tuples[:, 2].max())

    @cached_property
    def _arcs(self) -> list[tuple[tuple[int, float], ...]]:
        """The arcs of each transition-state."""
        return [self.topology.states[phone][state].arcs for phone, state in self.tuples[:, :2].tolist()]

    @cached_property
    def t2state(self) -> np.ndarray:
        """Transition-state, from 1, of each transition-id, (num_transition_ids + 1,) int64."""
        return np.concatenate([[-1], np.repeat(np.arange(len(self._arcs)) + 1, [len(arcs) for arcs in self._arcs])])

    @cached_property
    def t2target(self) -> np.ndarray:
        """HMM state that each transition-id leads to, (num_transition_ids + 1,) int64."""
        return np.array([-1, *(to for arcs in self._arcs for to, _ in arcs)], np.int64)

    def _of_state(self, column: int) -> np.ndarray:
        return np.concatenate([[-1], self.tuples[self.t2state[1:] - 1, column]])

    @cached_property
    def t2pdf(self) -> np.ndarray:
        """pdf-id of each transition-id, (num_transition_ids + 1,) int64."""
        return self._of_state(2)

    @cached_property
    def t2phone_id(self) -> np.ndarray:
        """Kaldi's phone id, from 1, of each transition-id, (num_transition_ids + 1,) int64."""
        return self._of_state(0)

    @cached_property
    def t2hmm_state(self) -> np.ndarray:
        """HMM state, from 0, of each transition-id, (num_transition_ids + 1,) int64."""
        return self._of_state(1)

    @cached_property
    def is_self_loop(self) -> np.ndarray:
        """Whether a transition-id leads back to its state, (num_transition_ids + 1,) bool."""
        return (self.t2target == self.t2hmm_state) & (self.t2state > 0)

    @cached_property
    def leaves_phone(self) -> np.ndarray:
        """Whether a transition-id leads to its phone's end, (num_transition_ids + 1,) bool."""
        last = [len(self.topology.states[phone]) - 1 for phone in self.t2phone_id[1:].tolist()]
        return self.t2target == np.array([-2, *last])

    @cached_property
    def enters_phone(self) -> np.ndarray:
        """Whether a transition-id is the first of a phone in graphs made with reorder, (num_transition_ids + 1,) bool.

        There, the arc that leaves HMM state 0 comes before that state's self-loops.
        """
        return (self.t2hmm_state == 0) & ~self.is_self_loop

    def require_path(self, tids: np.ndarray) -> None:
        """Raise AsrKdError unless tids (num_frames,) are a path of whole phones, as every alignment is.

        A state's self-loops stand behind the arc that leaves it (graphs made with reorder, as Kaldi's are) or before.
        """
        if not len(tids):
            raise AsrKdError("has no frame")
        if tids.min() < 1 or tids.max() > self.num_transition_ids:
            raise AsrKdError(
                f"has transition-ids from {tids.min()} to {tids.max()}, but the model has {self.num_transition_ids}"
            )
        # One visit of a state for each arc that leaves it.
        visits = np.flatnonzero(~self.is_self_loop[tids])
        if not len(visits) or not (self._loops_fit(tids) or self._loops_fit(tids[::-1])):
            raise AsrKdError("stays in states that it does not come through; it is of another model")
        found = tids[visits]
        begins = self.t2hmm_state[found] == 0
        ends = self.leaves_phone[found]
        same_phone = self.t2phone_id[found[1:]] == self.t2phone_id[found[:-1]]
        goes_on = same_phone & (self.t2target[found[:-1]] == self.t2hmm_state[found[1:]])
        if not begins[0] or not ends[-1] or not np.where(ends[:-1], begins[1:], goes_on).all():
            raise AsrKdError("is no path through the states of whole phones; it is of another model, or cut")

    def _loops_fit(self, tids: np.ndarray) -> bool:
        """Whether every self-loop is of the state whose leaving arc is the last before it."""
        visit = np.cumsum(~self.is_self_loop[tids]) - 1
        states = self.t2state[tids]
        return bool(visit[0] == 0 and (states == states[np.flatnonzero(~self.is_self_loop[tids])[visit]]).all())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over states, topology and probabilities."""
        digest = hashlib.sha256(repr(sorted(self.topology.states.items())).encode())
        digest.update(np.ascontiguousarray(self.tuples, "<i8").tobytes())
        digest.update(np.ascontiguousarray(self.log_probs, "<f4").tobytes())
        return digest.hexdigest()
