"""The decoding graph HCLG over a loop of words, and its files (Mohri, Pereira & Riley 2002; Kaldi's mkgraph.sh)."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.openfst import read_vector_fst
from asr_kd.hmm.sealed import read_record, require_seal, sealed_folder
from asr_kd.hmm.wheels import arcs, kaldi

FORMAT = "asr_kd-graph"
VERSION = 1
RECORD = "graph.json"


@dataclass(frozen=True)
class GraphArcs:
    """A graph as arrays, one entry an arc, in the order of their source state.

    source, target, ilabel (transition-id, 0 for none), olabel (word id, 0 for none): (num_arcs,) int64;
    weight: (num_arcs,) float64 costs; final: (num_states,) float64 costs, infinite where a path cannot end.
    """

    start: int
    source: np.ndarray
    target: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    weight: np.ndarray
    final: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.final)

    @classmethod
    def from_fst(cls, fst: object) -> "GraphArcs":
        """Read a kaldifst StdVectorFst."""
        rows = [
            (state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value)
            for state in range(fst.num_states)
            for arc in arcs(fst, state)
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 5)
        labels = table[:, :4].astype(np.int64).T
        final = np.array([fst.final(state).value for state in range(fst.num_states)], dtype=np.float64)
        return cls(fst.start, *labels, table[:, 4], final)

    def to_fst(self) -> object:
        """The same graph as a kaldifst StdVectorFst."""
        k = kaldi()
        fst = k.fst.StdVectorFst()
        for _ in range(self.num_states):
            fst.add_state()
        fst.start = self.start
        for state in np.flatnonzero(np.isfinite(self.final)):
            fst.set_final(int(state), float(self.final[state]))
        columns = (self.source, self.ilabel, self.olabel, self.weight, self.target)
        for source, ilabel, olabel, weight, target in zip(*(c.tolist() for c in columns), strict=True):
            fst.add_arc(source, k.fst.StdArc(ilabel, olabel, weight, target))
        return fst

    def with_insertion_penalty(self, penalty: float) -> "GraphArcs":
        """A copy in which every arc that puts out a word costs `penalty` more."""
        weight = self.weight + penalty * (self.olabel != 0)
        return GraphArcs(self.start, self.source, self.target, self.ilabel, self.olabel, weight, self.final)

    def text(self) -> str:
        """OpenFst's text form; weights have nine digits, which give their float32 back exactly."""
        order = np.argsort(self.source != self.start, kind="stable")
        columns = (self.source, self.target, self.ilabel, self.olabel, self.weight)
        lines = [
            f"{s} {t} {i} {o} {w:.9g}" for s, t, i, o, w in zip(*(c[order].tolist() for c in columns), strict=True)
        ]
        lines += [f"{state} {self.final[state]:.9g}" for state in np.flatnonzero(np.isfinite(self.final))]
        return "\n".join(lines) + "\n"


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
        if not (labels_fit and words_fit and states_fit) or not np.isfinite(a.weight).all():
            raise AsrKdError("the decoding graph has a label, state or weight that its model does not know")
        if self.t2pdf[1:].min() < 0 or self.t2pdf[1:].max() >= self.num_pdfs:
            raise AsrKdError("the decoding graph's table of transition-ids does not fit its number of pdfs")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over arcs, tables and the model's digest."""
        digest = hashlib.sha256(f"{FORMAT} {VERSION} {self.model_digest} {self.num_pdfs}\n".encode())
        digest.update(self.arcs.text().encode())
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
            if not self.arcs.to_fst().write(str(folder / "HCLG.fst")):
                raise AsrKdError(f"{path}: HCLG.fst could not be written")
            words = ["<eps>", *self.words]
            (folder / "words.txt").write_text("".join(f"{w} {i}\n" for i, w in enumerate(words)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Read what save wrote; raises AsrKdError for what is missing, damaged or changed by hand."""
        path = Path(path)
        record = read_record(path, RECORD, FORMAT, VERSION, "graph")
        t2pdf = np.array(record["t2pdf"], dtype=np.int64)
        graph = cls(
            GraphArcs(*read_vector_fst(path / "HCLG.fst")),
            t2pdf,
            record["num_pdfs"],
            record["words"],
            record["model_digest"],
            record["unigram"],
        )
        require_seal(path, RECORD, record, graph.digest)
        return graph


def word_loop(lang: Lang, transcripts: Iterable[Sequence[str]] | None) -> tuple[dict[str, float], float]:
    """Costs (−log probability) of each word, and of the end.

    From `transcripts`: relative frequencies with one added to each word, the end counted once an utterance.
    Without: words uniform and the end free. Raises AsrKdError for a word that the lexicon lacks.
    """
    if transcripts is None:
        return {word: math.log(len(lang.words)) for word in lang.words}, 0.0
    counts: Counter = Counter(lang.words)
    ends = 1
    for index, words in enumerate(transcripts):
        lang.word_ids(words, f"transcript {index + 1}")
        counts.update(words)
        ends += 1
    total = sum(counts.values()) + ends
    return {word: -math.log(counts[word] / total) for word in lang.words}, -math.log(ends / total)


def make_graph(
    model: HmmModel,
    lang: Lang,
    transcripts: Iterable[Sequence[str]] | None,
    *,
    transition_scale: float = 1.0,
    self_loop_scale: float = 0.1,
) -> Graph:
    """HCLG over a loop of words: unigram from training `transcripts`, uniform for None.

    Scales as in Kaldi's mkgraph.sh. No insertion penalty is baked in; the Decoder takes one.
    """
    k = kaldi()
    costs, end = word_loop(lang, transcripts)
    lines = [f"0 0 {lang.word_id[word]} {lang.word_id[word]} {cost}" for word, cost in costs.items()]
    grammar = k.fst.compile("\n".join([*lines, f"0 {end}"]) + "\n", acceptor=False)
    k.fst.arcsort(grammar, sort_type="ilabel")
    lexicon_grammar = k.fst.compose(lang.lexicon_fst(disambig=True), grammar)
    _determinize(lexicon_grammar, "L∘G")
    k.fst.minimize_encoded(lexicon_grammar)
    k.fst.arcsort(lexicon_grammar, sort_type="ilabel")
    context_graph, windows = k.fst.compose_context(
        disambig_syms=lang.disambig_ids,
        context_width=model.ctx_dep.context_width,
        central_position=model.ctx_dep.central_position,
        ifst=lexicon_grammar,
    )
    k.fst.arcsort(context_graph, sort_type="ilabel")
    config = k.khg.HTransducerConfig(transition_scale=transition_scale)
    h, disambig = k.khg.get_h_transducer(
        ilabel_info=windows, ctx_dep=model.ctx_dep, trans_model=model.transition_model, config=config
    )
    k.fst.arcsort(h, sort_type="olabel")
    hclg = k.fst.compose(h, context_graph)
    _determinize(hclg, "H∘C∘L∘G")
    hclg = _without_symbols(hclg, set(disambig))
    k.fst.minimize_encoded(hclg)
    hclg = k.khg.add_self_loops(
        self_loop_scale=self_loop_scale,
        disambig_syms=[],
        reorder=True,
        trans_model=model.transition_model,
        ifst=hclg,
    )
    unigram = {word: math.exp(-cost) for word, cost in costs.items()}
    return Graph(GraphArcs.from_fst(hclg), model.t2pdf, model.num_pdfs, lang.words, model.digest, unigram)


def _determinize(fst: object, name: str) -> None:
    """In place; raises AsrKdError where it does not end."""
    # A limit, since determinisation of what has no determinised form would fill the memory.
    stopped = kaldi().fst.determinize_star(fst, max_states=max(100_000, 50 * fst.num_states), use_log=True)
    if stopped:
        raise AsrKdError(f"{name} cannot be determinised; is the lexicon ambiguous beyond its words?")


def _without_symbols(fst: object, symbols: set[int]) -> object:
    """A copy with the input labels `symbols` made epsilon (fstrmsymbols, which the wheels lack)."""
    a = GraphArcs.from_fst(fst)
    ilabel = np.where(np.isin(a.ilabel, sorted(symbols)), 0, a.ilabel)
    return GraphArcs(a.start, a.source, a.target, ilabel, a.olabel, a.weight, a.final).to_fst()
