"""The decoding graph HCLG over a loop of words, and its files (Mohri, Pereira & Riley 2002; Kaldi's mkgraph.sh)."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.expand import Windows, expand
from asr_kd.hmm.grammar import loop_arcs, ngram_arcs, word_loop
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.minimize import minimize
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.sealed import read_record, require_seal, sealed_folder
from asr_kd.hmm.self_loops import add_self_loops
from asr_kd.hmm.wheels import kaldi
from asr_kd.lm.ngram import NgramModel

FORMAT = "asr_kd-graph"
VERSION = 2
RECORD = "graph.json"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Graph:
    """HCLG with what it takes to decode with it.

    t2pdf: (num_transition_ids + 1,) int64, index 0 a dummy; words: names by word id − 1;
    model_digest: the HMM that it was made from. Raises AsrKdError when it has no path or does not fit t2pdf.
    """

    arcs: GraphArcs
    t2pdf: np.ndarray
    num_pdfs: int
    words: list[str]
    model_digest: str
    unigram: dict[str, float]

    def __post_init__(self) -> None:
        a = self.arcs
        if a.num_states == 0 or not 0 <= a.start < a.num_states or len(a.source) == 0:
            raise AsrKdError("the decoding graph is empty")
        if not np.isfinite(a.final).any():
            raise AsrKdError("the decoding graph has no final state")
        labels_fit = a.ilabel.min() >= 0 and a.ilabel.max() < len(self.t2pdf)
        words_fit = a.olabel.min() >= 0 and a.olabel.max() <= len(self.words)
        states_fit = min(a.source.min(), a.target.min()) >= 0 and max(a.source.max(), a.target.max()) < a.num_states
        costs_fit = np.isfinite(a.weight).all() and (a.final > -np.inf).all()  # which NaN is not
        if not (labels_fit and words_fit and states_fit and costs_fit):
            raise AsrKdError("the decoding graph has a label, state or weight that its model does not know")
        if self.t2pdf[1:].min() < 0 or self.t2pdf[1:].max() >= self.num_pdfs:
            raise AsrKdError("the decoding graph's table of transition-ids does not fit its number of pdfs")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over arcs, tables and the model's digest."""
        return self._digest(VERSION)

    def _digest(self, version: int) -> str:
        digest = hashlib.sha256(f"{FORMAT} {version} {self.model_digest} {self.num_pdfs}\n".encode())
        for part in [self.arcs.text().encode()] if version == 1 else self.arcs.parts():
            digest.update(part)
        digest.update(np.ascontiguousarray(self.t2pdf, np.int64).tobytes())
        digest.update("\n".join(self.words).encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write HCLG.fst (OpenFst binary, as Kaldi reads it), words.txt and graph.json into `path`, atomically."""
        record = {
            "digest": self.digest,
            "model_digest": self.model_digest,
            "num_pdfs": self.num_pdfs,
            "t2pdf": self.t2pdf.tolist(),
            "words": self.words,
            "unigram": self.unigram,
        }
        with sealed_folder(path, RECORD, FORMAT, VERSION, record) as folder:
            self.arcs.write(folder / "HCLG.fst")
            words = ["<eps>", *self.words]
            (folder / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Read what save wrote; raises AsrKdError for what is missing, damaged or changed by hand."""
        path = Path(path)
        record = read_record(path, RECORD, FORMAT, (1, VERSION), "graph")
        try:
            t2pdf = np.array(record["t2pdf"], dtype=np.int64)
            num_pdfs, words = int(record["num_pdfs"]), list(record["words"])
            digest, unigram = record["model_digest"], record["unigram"]
            if not all(isinstance(name, str) for name in (*words, digest)):
                raise TypeError("a word or digest that is no text")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AsrKdError(f"{path / RECORD}: is damaged ({error!r}); make the graph again") from error
        graph = cls(GraphArcs.read(path / "HCLG.fst"), t2pdf, num_pdfs, words, digest, unigram)
        require_seal(path, RECORD, record, graph._digest(record["version"]))
        return graph


def make_graph(
    model: HmmModel,
    lang: Lang,
    transcripts: Iterable[Sequence[str]] | None,
    *,
    lm: NgramModel | None = None,
    transition_scale: float = 1.0,
    self_loop_scale: float = 0.1,
    progress: Progress = lambda line: None,
) -> Graph:
    """HCLG over a back-off model `lm`, or over a loop of words: unigram from `transcripts`, uniform for None.

    Scales as in Kaldi's mkgraph.sh. No insertion penalty is baked in; the Decoder takes one. progress gets a line a
    stage. Raises AsrKdError where the lexicon has no word of `lm`, or is ambiguous beyond its words.
    """
    if lm is not None:
        grammar, unigram = ngram_arcs(lang, lm, progress), {}
    else:
        costs, end = word_loop(lang, transcripts)
        grammar, unigram = loop_arcs(lang, costs, end), {word: math.exp(-cost) for word, cost in costs.items()}
    lexicon_grammar = _compose_lexicon(lang, grammar, lm is not None, progress)
    context_graph, windows = _compose_context(lang, model, lexicon_grammar, progress)
    expanded = expand(context_graph, windows, model, transition_scale)
    hclg = add_self_loops(expanded, model, self_loop_scale)
    progress(f"H∘C∘L∘G with self-loops: {hclg.num_states} states")
    return Graph(hclg, model.t2pdf, model.num_pdfs, lang.words, model.digest, unigram)


def _compose_lexicon(lang: Lang, grammar: GraphArcs, backoff: bool, progress: Progress) -> object:
    """det(L∘G); backoff: whether the grammar has back-off arcs."""
    fst = kaldi().fst
    grammar = grammar.to_fst()
    fst.arcsort(grammar, sort_type="ilabel")
    composed = fst.compose(lang.lexicon_fst(disambig=True, backoff=backoff), grammar)
    progress(f"L∘G: {composed.num_states} states, of G {grammar.num_states}")
    _determinize(composed, "L∘G", progress)
    fst.arcsort(composed, sort_type="ilabel")
    return composed


def _compose_context(
    lang: Lang, model: HmmModel, lexicon_grammar: object, progress: Progress
) -> tuple[GraphArcs, Windows]:
    """min(det(C∘L∘G)), in which phones in context that have the same states are one label, and what labels stand for.

    Disambiguation symbols have done their work and are epsilon.
    """
    fst = kaldi().fst
    composed, windows = fst.compose_context(
        disambig_syms=lang.disambig_ids,
        context_width=model.ctx_dep.context_width,
        central_position=model.ctx_dep.central_position,
        ifst=lexicon_grammar,
    )
    arcs, windows = GraphArcs.from_fst(composed), Windows.of(windows, model)
    composed = replace(arcs, ilabel=windows.same[arcs.ilabel]).to_fst()
    progress(f"C∘L∘G: {composed.num_states} states, {len(np.unique(arcs.ilabel))} phones in context")
    _determinize(composed, "C∘L∘G", progress)
    least = minimize(GraphArcs.from_fst(composed).without_labels(np.flatnonzero(windows.phone == 0)))
    progress(f"minimised: {least.num_states} states")
    return least, windows


def _determinize(fst: object, name: str, progress: Progress) -> None:
    """In place; raises AsrKdError where it does not end, and where nothing is left."""
    if not fst.num_states:
        raise AsrKdError(f"{name} is empty: no word sequence of the grammar can be pronounced")
    # A limit, since determinisation of what has no determinised form would fill the memory.
    stopped = kaldi().fst.determinize_star(fst, max_states=max(100_000, 50 * fst.num_states), use_log=True)
    if stopped:
        raise AsrKdError(f"{name} cannot be determinised; is the lexicon ambiguous beyond its words?")
    progress(f"{name} determinised: {fst.num_states} states")
