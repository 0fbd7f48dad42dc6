"""The states of a system that Kaldi trained, kept in the place of an HMM of our own: they label frames, and paths.

A folder of final.mdl and tree as they were, the lexicon if it is known, and hmm.json. Nets, alignments and graphs know
the model by the digest of its transition model alone, so that the folders that Kaldi copies it to count as one.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_kd.corpus.lexicon import Lexicon, read_lexicon_in, write_lexicon_in
from asr_kd.errors import AsrKdError
from asr_kd.hmm.kaldi_lang import ImportedLang
from asr_kd.hmm.kaldi_model import parse_model
from asr_kd.hmm.model import IMPORTED_FORMAT, RECORD, HmmModel, silence_pdfs
from asr_kd.hmm.sealed import format_of, read_record, require_seal, sealed_folder
from asr_kd.hmm.transitions import Transitions
from asr_kd.hmm.tree import ContextTree
from asr_kd.store.kaldi_object import read_file

VERSION = 1


@dataclass(frozen=True)
class ImportedHmm:
    """mdl, tree: the bytes of Kaldi's files (tree: b"" where there is none); lang: its symbols.

    Has of an HmmModel what alignments, graphs and word times need. Raises AsrKdError where the parts do not belong
    together.
    """

    mdl: bytes
    tree: bytes
    lang: ImportedLang

    def __post_init__(self) -> None:
        if self.tree:
            tree = ContextTree.from_bytes(self.tree, "tree")
            if tree.num_pdfs != self.num_pdfs:
                raise AsrKdError(f"the tree has {tree.num_pdfs} pdfs, but final.mdl has {self.num_pdfs}")
            self._require_made_from(tree)
        highest = int(self.transitions.t2phone_id.max())
        if highest > len(self.phones):
            raise AsrKdError(f"final.mdl has phone {highest}, but phones.txt names {len(self.phones)}")

    def _require_made_from(self, tree: ContextTree) -> None:
        """Raise AsrKdError unless the states of each phone have the pdfs of the tree, as Kaldi makes them."""
        pdfs: dict[tuple[int, int], set[int]] = {}
        for phone, state, pdf in self.transitions.tuples[:, :3].tolist():
            pdfs.setdefault((phone, state), set()).add(pdf)
        for phone, states in self.transitions.topology.states.items():
            for number, state in enumerate(states[:-1]):
                if tree.pdfs_of(phone, state.pdf_class) != pdfs.get((phone, number), set()):
                    raise AsrKdError(f"its phone {phone} has other pdfs than in the tree, which is of another model")

    @classmethod
    def read(cls, mdl: Path, tree: Path | None, lang: ImportedLang) -> "ImportedHmm":
        """From Kaldi's files; raises AsrKdError that names the file that is not what it should be."""
        data, tree_data = read_file(mdl), b"" if tree is None else read_file(tree)
        parse_model(data, mdl)  # for errors that name the file
        if tree is not None:
            ContextTree.from_bytes(tree_data, str(tree))
        try:
            return cls(data, tree_data, lang)
        except AsrKdError as error:
            raise AsrKdError(f"{mdl}: {error}") from None

    @cached_property
    def transitions(self) -> Transitions:
        return parse_model(self.mdl, "final.mdl").transitions

    @property
    def phones(self) -> list[str]:
        """Names by phone index."""
        return self.lang.phones

    @property
    def num_pdfs(self) -> int:
        return self.transitions.num_pdfs

    @property
    def t2pdf(self) -> np.ndarray:
        """pdf-id of each transition-id, (num_transition_ids + 1,) int64; index 0 is a dummy, −1."""
        return self.transitions.t2pdf

    @cached_property
    def t2phone(self) -> np.ndarray:
        """Phone index of each transition-id, (num_transition_ids + 1,) int64; index 0 is a dummy, −1."""
        return np.maximum(self.transitions.t2phone_id - 1, -1)

    @property
    def enters_phone(self) -> np.ndarray:
        """Whether a transition-id is the first of a phone, (num_transition_ids + 1,) bool."""
        return self.transitions.enters_phone

    @property
    def sil_pdfs(self) -> list[int]:
        """pdf-ids that silence and noise use."""
        return silence_pdfs(self.lang, self.t2pdf, self.t2phone)

    @property
    def digest(self) -> str:
        """SHA-256 over the transition model."""
        return self.transitions.digest

    @cached_property
    def seal(self) -> str:
        """SHA-256 over all that is kept."""
        seal = hashlib.sha256(self.mdl + self.tree)
        lexicon = (sorted(self.lang.lexicon.entries.items()), sorted(self.lang.lexicon.probs.items()))
        seal.update(repr((self.lang.options, lexicon)).encode())
        return seal.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the folder `path`, atomically."""
        record = {"digest": self.seal, "model_digest": self.digest, "num_pdfs": self.num_pdfs, **self.lang.options}
        with sealed_folder(path, RECORD, IMPORTED_FORMAT, VERSION, record) as folder:
            (folder / "final.mdl").write_bytes(self.mdl)
            if self.tree:
                (folder / "tree").write_bytes(self.tree)
            if self.lang.lexicon.entries:
                write_lexicon_in(folder, self.lang.lexicon)

    @classmethod
    def load(cls, path: str | Path) -> "ImportedHmm":
        """Read what save wrote; raises AsrKdError for what is missing, damaged or changed by hand."""
        path = Path(path)
        record = read_record(path, RECORD, IMPORTED_FORMAT, (VERSION,), "HMM")
        has_lexicon = any((path / name).exists() for name in ("lexicon.txt", "lexiconp.txt"))
        lexicon = read_lexicon_in(path) if has_lexicon else Lexicon({})
        try:
            lang = ImportedLang(lexicon, **{name: record[name] for name in ImportedLang.OPTIONS})
            phones = [*lang.phones, *lang.silence_phones]
            if not all(isinstance(phone, str) for phone in phones) or not set(lang.silence_phones) <= set(lang.phones):
                raise ValueError("phones")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AsrKdError(f"{path / RECORD}: is damaged ({error!r}); import the model again") from error
        tree = path / "tree" if (path / "tree").exists() else None
        hmm = cls.read(path / "final.mdl", tree, lang)
        require_seal(path, RECORD, record, hmm.seal)
        return hmm


def load_hmm(path: str | Path) -> HmmModel | ImportedHmm:
    """The HMM in a folder, ours or imported; raises AsrKdError as their own readers do."""
    return ImportedHmm.load(path) if format_of(path, RECORD) == IMPORTED_FORMAT else HmmModel.load(path)
