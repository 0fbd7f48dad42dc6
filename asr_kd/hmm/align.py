"""Forced alignment: the best path of HMM states through the words that were spoken."""

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.wheels import kaldi

# (utt_id, feats (num_frames, feat_dim) float32, words)
Item = tuple[str, np.ndarray, Sequence[str]]
# (utt_id, pdf, phone index, transition-id), each (num_frames,) int64, or None for all three where none was found
Aligned = tuple[str, np.ndarray | None, np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class AlignOptions:
    """Scales and beams of Kaldi's gmm-align-compiled; beams are in scaled log-likelihood.

    A second pass with `retry_beam` follows where the first does not reach the end; it is wide, for voices unlike those
    of the training set: the graph of a transcript is small enough to search whole.
    """

    acoustic_scale: float = 0.1
    transition_scale: float = 1.0
    self_loop_scale: float = 0.1
    beam: float = 10.0
    retry_beam: float = 200.0

    def __post_init__(self) -> None:
        if not 0 < self.beam < self.retry_beam:
            raise AsrKdError(f"the retry_beam has to be wider than the beam, in {self}")


class GraphCompiler:
    """Makes the graph of an utterance from its words, without transition probabilities, which change in training."""

    def __init__(self, model: HmmModel, lang: Lang) -> None:
        khg = kaldi().khg
        options = khg.TrainingGraphCompilerOptions(transition_scale=0.0, self_loop_scale=0.0, reorder=True)
        # Held, because the C++ side keeps plain pointers to them.
        self._held = (model.transition_model, model.ctx_dep, lang.lexicon_fst(disambig=False), options)
        self._compiler = khg.TrainingGraphCompiler(
            trans_model=self._held[0],
            ctx_dep=self._held[1],
            lex_fst=self._held[2],
            disambig_syms=lang.disambig_ids,
            opts=options,
        )
        self._lang = lang

    def compile(self, utt_id: str, words: Sequence[str]) -> object:
        """The graph (a kaldifst StdVectorFst); raises AsrKdError for a word that the lexicon lacks."""
        graph = self._compiler.compile_graph_from_text(self._lang.word_ids(words, utt_id))
        if graph.start < 0:
            raise AsrKdError(f"utterance {utt_id!r}: no path through its words could be made")
        return graph


def require_feats(feats: np.ndarray, feat_dim: int, utt_id: str) -> np.ndarray:
    """`feats` as contiguous float32; raises AsrKdError unless it is (num_frames, feat_dim) and finite."""
    if feats.ndim != 2 or feats.shape[1] != feat_dim:
        raise AsrKdError(f"utterance {utt_id!r}: features of shape {feats.shape}, but {feat_dim} columns are needed")
    if not np.isfinite(feats).all():
        raise AsrKdError(f"utterance {utt_id!r}: its features hold NaN or infinity")
    return np.ascontiguousarray(feats, dtype=np.float32)


def align_graph(
    model: HmmModel, graph: object, utt_id: str, feats: np.ndarray, options: AlignOptions
) -> np.ndarray | None:
    """Transition-ids of the best path, (num_frames,) int64; None if no path reaches the end within the beams.

    graph: as from GraphCompiler.compile; it is copied, not changed. feats: (num_frames, feat_dim).
    """
    khg = kaldi().khg
    feats = require_feats(feats, model.feat_dim, utt_id)
    if len(feats) == 0:
        return None
    weighted = graph.copy()
    khg.add_transition_probs(
        trans_model=model.transition_model,
        disambig_syms=[],
        transition_scale=options.transition_scale,
        self_loop_scale=options.self_loop_scale,
        fst=weighted,
    )
    decodable = khg.DecodableAmDiagGmmScaled(
        am=model.acoustic_model, tm=model.transition_model, feats=feats, scale=options.acoustic_scale
    )
    result = khg.align_utterance_wrapper(
        config=khg.AlignConfig(beam=options.beam, retry_beam=options.retry_beam),
        utt=utt_id,
        acoustic_scale=options.acoustic_scale,
        fst=weighted,
        decodable=decodable,
        num_done=0,
        num_error=0,
        num_retried=0,
        tot_like=0.0,
        frame_count=0,
    )
    tids = np.array(result[5], dtype=np.int64)
    return tids if result[0] == 1 and len(tids) == len(feats) else None


def align_utterances(
    model: HmmModel, lang: Lang, items: Iterable[Item], options: AlignOptions | None = None
) -> Iterator[Aligned]:
    """Align each of `items`.

    Raises AsrKdError for a word that the lexicon lacks and for features that do not fit the model.
    """
    options = options or AlignOptions()
    compiler = GraphCompiler(model, lang)
    for utt_id, feats, words in items:
        tids = align_graph(model, compiler.compile(utt_id, words), utt_id, feats, options)
        if tids is None:
            yield utt_id, None, None, None
        else:
            yield utt_id, model.t2pdf[tids], model.t2phone[tids], tids


_worker: tuple[HmmModel, Lang, AlignOptions] | None = None


def _start_worker(model: HmmModel, lang: Lang, options: AlignOptions) -> None:
    global _worker
    _worker = (model, lang, options)


def _align_chunk(items: list[Item]) -> list[Aligned]:
    model, lang, options = _worker
    return list(align_utterances(model, lang, items, options))


def align_in_processes(
    model: HmmModel,
    lang: Lang,
    items: Iterable[Item],
    nj: int,
    options: AlignOptions | None = None,
    chunk_size: int = 100,
) -> Iterator[Aligned]:
    """align_utterances in `nj` processes (the wheels hold the GIL, so threads gain nothing); order is kept.

    Workers are spawned, not forked: a fork after torch's thread pool has started can hang.
    """
    options = options or AlignOptions()
    if nj <= 1:
        yield from align_utterances(model, lang, items, options)
        return
    with multiprocessing.get_context("spawn").Pool(nj, _start_worker, (model, lang, options)) as pool:
        for results in pool.imap(_align_chunk, _chunks(items, chunk_size)):
            yield from results


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
