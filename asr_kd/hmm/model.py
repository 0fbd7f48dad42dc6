"""The HMM-GMM: a tree, a topology, transition probabilities and one diagonal GMM per pdf.

Held as plain arrays and text, so that it pickles into worker processes, has a digest, and is saved in Kaldi's own
text form (`final.mdl`, read by Kaldi as it is); the C++ objects are rebuilt from them. Nothing is unpickled on load.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_kd.corpus.lexicon import read_lexicon_in, write_lexicon_in
from asr_kd.errors import AsrKdError
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.kaldi_lang import ImportedLang
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.mdl import format_mdl, parse_mdl
from asr_kd.hmm.sealed import format_of, read_record, require_seal, sealed_folder
from asr_kd.hmm.tree import ContextTree
from asr_kd.hmm.wheels import kaldi
from asr_kd.store.kaldi_object import BINARY_MARK

FORMAT = "asr_kd-hmm"
VERSION = 1
RECORD = "hmm.json"
IMPORTED_FORMAT = "asr_kd-imported-hmm"  # of asr_kd/hmm/imported.py, under the same RECORD


@dataclass(frozen=True)
class HmmModel:
    """A trained HMM-GMM and the language it was trained with.

    topology: Kaldi's text; tree: Kaldi's binary ContextDependency; log_probs: (num_transition_ids + 1,) float32,
    index 0 unused; gmms: one per pdf. Transition-ids count from 1, pdf-ids from 0, phone indexes from 0 (silence).
    options: what it was trained with, for the record.
    """

    lang: Lang
    topology: str
    tree: bytes
    log_probs: np.ndarray
    gmms: list[Gmm]
    options: dict = field(default_factory=dict)

    @classmethod
    def untrained(cls, lang: Lang, topology: str, tree: bytes, gmm: Gmm, options: dict) -> "HmmModel":
        """A model with the topology's own transition probabilities, in which `gmm` stands for every pdf."""
        bare = cls(lang, topology, tree, np.zeros(0, np.float32), [], options)
        transitions = bare._topology_transitions
        return cls(
            lang, topology, tree, np.array(transitions.log_probs, np.float32), [gmm] * transitions.num_pdfs, options
        )

    def with_parameters(self, log_probs: np.ndarray, gmms: list[Gmm]) -> "HmmModel":
        """The same states with other transition probabilities and Gaussians."""
        return HmmModel(self.lang, self.topology, self.tree, log_probs, gmms, self.options)

    def __getstate__(self) -> dict:
        # Cached C++ objects do not cross a process boundary; they are rebuilt on the other side.
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    @property
    def num_pdfs(self) -> int:
        return len(self.gmms)

    @property
    def feat_dim(self) -> int:
        return self.gmms[0].inv_vars.shape[1]

    @property
    def phones(self) -> list[str]:
        """Names by phone index, silence first."""
        return self.lang.phones

    @cached_property
    def ctx_dep(self) -> object:
        """The tree as khg's ContextDependency; raises AsrKdError if its bytes are no tree."""
        if not self.tree.startswith(b"ContextDependency "):
            raise AsrKdError("the tree of this HMM is not a Kaldi ContextDependency")
        tree = kaldi().khg.ContextDependency.__new__(kaldi().khg.ContextDependency)
        try:
            tree.__setstate__((np.frombuffer(self.tree, np.int8).tolist(),))
        except RuntimeError as error:
            raise AsrKdError(f"the tree of this HMM is damaged ({error})") from error
        return tree

    @cached_property
    def context_tree(self) -> ContextTree:
        """The tree as a ContextTree."""
        return ContextTree.from_bytes(self.tree, "the tree of this HMM")

    @cached_property
    def _topology_transitions(self) -> object:
        """khg's TransitionModel with the topology's own probabilities."""
        khg = kaldi().khg
        topology = khg.HmmTopology()
        topology.read(self.topology)
        return khg.TransitionModel(ctx_dep=self.ctx_dep, hmm_topo=topology)

    @cached_property
    def transition_model(self) -> object:
        """khg's TransitionModel with this model's probabilities."""
        khg, model = kaldi().khg, self._topology_transitions
        if model.num_pdfs != self.num_pdfs or model.num_transition_ids + 1 != len(self.log_probs):
            raise AsrKdError("the tree, the topology and the parameters of this HMM do not belong together")
        state = list(model.__getstate__())
        state[6] = [float(p) for p in self.log_probs]
        self_loop = np.zeros(model.num_transition_states + 1)
        id2state = model.id2state  # once: every access copies it
        for tid in range(1, model.num_transition_ids + 1):
            if model.is_self_loop(tid):
                self_loop[id2state[tid]] = np.exp(self.log_probs[tid])
        # Index 7 is log(1 − self-loop probability) of each transition state, floored as in ComputeDerivedOfProbs.
        state[7] = [0.0, *np.log(np.maximum(1.0 - self_loop[1:], 1e-10)).tolist()]
        rebuilt = khg.TransitionModel.__new__(khg.TransitionModel)
        rebuilt.__setstate__(tuple(state))
        return rebuilt

    @cached_property
    def acoustic_model(self) -> object:
        """khg's AmDiagGmm."""
        khg = kaldi().khg
        model = khg.AmDiagGmm()
        for gmm in self.gmms:
            diag = khg.DiagGmm.__new__(khg.DiagGmm)
            diag.__setstate__((gmm.weights, gmm.inv_vars, gmm.means_invvars))
            diag.compute_gconsts()
            model.add_pdf(diag)
        return model

    @property
    def _tids(self) -> range:
        return range(1, len(self.log_probs))

    @cached_property
    def t2pdf(self) -> np.ndarray:
        """pdf-id of each transition-id, (num_transition_ids + 1,) int64; index 0 is a dummy, −1."""
        t2pdf = np.array(self.transition_model.transition_id_to_pdf_array(), dtype=np.int64)
        t2pdf[0] = -1
        return t2pdf

    @cached_property
    def t2phone(self) -> np.ndarray:
        """Phone index of each transition-id, (num_transition_ids + 1,) int64; index 0 is a dummy, −1."""
        tm = self.transition_model
        return np.array([-1] + [tm.transition_id_to_phone(t) - 1 for t in self._tids], dtype=np.int64)

    @cached_property
    def transition_state(self) -> np.ndarray:
        """Number of the transition-state of each transition-id, from 1, (num_transition_ids + 1,) int64; 0 for none."""
        return np.array(self.transition_model.id2state, dtype=np.int64)

    @cached_property
    def is_self_loop(self) -> np.ndarray:
        """Whether a transition-id stays in its state, (num_transition_ids + 1,) bool; index 0 is a dummy, False."""
        return np.array([False, *(self.transition_model.is_self_loop(tid) for tid in self._tids)])

    @cached_property
    def state_of_tid(self) -> np.ndarray:
        """(phone id, hmm-state, pdf-id, index of the transition in its state) of each transition-id.

        (num_transition_ids + 1, 4) int64; index 0 is a dummy, −1.
        """
        tm = self.transition_model
        tuples = np.array([t.__getstate__()[:3] for t in tm.tuples], dtype=np.int64)
        state = self.transition_state[1:]
        index = np.arange(1, len(state) + 1) - np.array(tm.state2id)[state]
        return np.concatenate([np.full((1, 4), -1), np.column_stack([tuples[state - 1], index])])

    @cached_property
    def class_of_state(self) -> dict[int, list[int]]:
        """pdf-class of each emitting hmm-state, by phone id."""
        topology = self.transition_model.topo
        states = {phone: topology.topology_for_phone(phone) for phone in topology.phones}
        return {p: [s.forward_pdf_class for s in entry if s.transitions] for p, entry in states.items()}

    @cached_property
    def t2class(self) -> np.ndarray:
        """pdf-class of each transition-id, (num_transition_ids + 1,) int64; index 0 is a dummy, −1."""
        classes = [self.class_of_state[phone][state] for phone, state in self.state_of_tid[1:, :2].tolist()]
        return np.array([-1, *classes], dtype=np.int64)

    @cached_property
    def enters_phone(self) -> np.ndarray:
        """Whether a transition-id is the first of a phone in graphs made with reorder, (num_transition_ids + 1,) bool.

        There, the arc that leaves hmm-state 0 comes before that state's self-loops.
        """
        return (self.state_of_tid[:, 1] == 0) & ~self.is_self_loop

    @property
    def sil_pdfs(self) -> list[int]:
        """pdf-ids that silence and noise use."""
        return silence_pdfs(self.lang, self.t2pdf, self.t2phone)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that alignments and graphs depend on."""
        digest = hashlib.sha256(f"{FORMAT} {VERSION}\n".encode())
        digest.update(self.lang.phones_txt().encode())
        digest.update(self.lang.words_txt().encode())
        digest.update(repr(sorted(self.lang.lexicon.entries.items())).encode())
        digest.update(f"{self.lang.silence_prob!r}\n{self.topology}".encode())
        # Left out where empty, so that a model without them has the digest that it had before there were any.
        for option in (sorted(self.lang.lexicon.probs.items()), self.lang.noise_phones):
            digest.update(repr(option).encode() if option else b"")
        digest.update(self.tree)
        digest.update(np.ascontiguousarray(self.log_probs).tobytes())
        for gmm in self.gmms:
            for array in (gmm.weights, gmm.means_invvars, gmm.inv_vars):
                digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the folder `path`, atomically: final.mdl, tree, lexicon.txt (or lexiconp.txt), phones.txt, words.txt
        and hmm.json.
        """
        record = {
            "digest": self.digest,
            **self.lang.options,
            "num_pdfs": self.num_pdfs,
            "feat_dim": self.feat_dim,
            "options": self.options,
        }
        with sealed_folder(path, RECORD, FORMAT, VERSION, record) as folder:
            (folder / "final.mdl").write_text(format_mdl(self), encoding="utf-8")
            (folder / "tree").write_bytes(BINARY_MARK + self.tree)
            write_lexicon_in(folder, self.lang.lexicon)
            (folder / "phones.txt").write_text(self.lang.phones_txt(), encoding="utf-8")
            (folder / "words.txt").write_text(self.lang.words_txt(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "HmmModel":
        """Read what save wrote; raises AsrKdError for what is missing, damaged, changed by hand, or from Kaldi."""
        path = Path(path)
        if format_of(path, RECORD) == IMPORTED_FORMAT:
            raise AsrKdError(
                f"{path}: was imported from Kaldi, and only an HMM that asr-kd train-hmm made can be used for this; "
                "build graphs by Kaldi's mkgraph.sh, align by steps/align_*.sh, and import both (asr-kd import-kaldi)"
            )
        record = read_record(path, RECORD, FORMAT, (VERSION,), "HMM")
        try:
            mdl = (path / "final.mdl").read_text(encoding="utf-8")
            tree = (path / "tree").read_bytes().removeprefix(BINARY_MARK)
        except (OSError, ValueError) as error:
            raise AsrKdError(f"{path}: not a readable HMM folder ({error})") from error
        lexicon = read_lexicon_in(path)
        try:
            lang = Lang(lexicon, **{name: record[name] for name in Lang.OPTIONS if name in record})
        except (TypeError, ValueError, OverflowError) as error:
            raise AsrKdError(f"{path / RECORD}: is damaged ({error}); train the HMM again") from error
        topology, log_probs, gmms = parse_mdl(mdl, str(path / "final.mdl"))
        model = cls(lang, topology, tree, log_probs, gmms, record.get("options", {}))
        require_seal(path, RECORD, record, model.digest)
        return model


def silence_pdfs(lang: Lang | ImportedLang, t2pdf: np.ndarray, t2phone: np.ndarray) -> list[int]:
    """pdf-ids of the silence phones of `lang`, whose indexes t2phone holds, (num_transition_ids + 1,) as t2pdf."""
    silence = [lang.phones.index(phone) for phone in lang.silence_phones]
    return sorted(set(t2pdf[np.isin(t2phone, silence)].tolist()))
