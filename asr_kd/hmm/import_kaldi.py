"""A system that Kaldi trained as what our other commands take: features, states of their frames, priors, a graph.

Nothing is trained or aligned again. Features are kept raw unless normalisation is asked for, alignments become states
by Kaldi's own transition model, and the decoding graph is Kaldi's HCLG as it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from asr_kd.corpus.symbols import read_symbols
from asr_kd.errors import AsrKdError
from asr_kd.features.cmvn import apply_cmvn
from asr_kd.features.deltas import add_deltas
from asr_kd.features.kaldi_conf import CmvnOptions
from asr_kd.features.options import FrontEndOptions
from asr_kd.hmm.const_fst import read_graph_fst
from asr_kd.hmm.graph import Graph, GraphArcs
from asr_kd.hmm.imported import ImportedHmm
from asr_kd.hmm.transitions import Transitions
from asr_kd.store.ali import FAILED, SUBSAMPLING, write_ali
from asr_kd.store.exchange import FeatureSource, RecordedOptions
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_ark import read_int_vectors, read_matrices

LISTED = 20
Log = Callable[[str], None]


def refuse_chain_folder(folder: Path) -> None:
    """Raise AsrKdError where a folder says that its frames are fewer than those of the features."""
    file = folder / "frame_subsampling_factor"
    try:
        factor = file.read_text(encoding="utf-8").strip() if file.is_file() else "1"
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{file}: cannot be read ({error})") from error
    if factor != "1":
        raise AsrKdError(
            f"{file}: is {factor[:20]!r}, so that {folder} is of a chain model with one state for several frames; give "
            "alignments of the full frame rate, such as those of tri3"
        )


def alignment_tables(folder: Path) -> list[str]:
    """The tables of an alignment folder, as rspecifiers: ali.*.gz, or ali.*.ark, or ali.*.scp, one for each job.

    Raises AsrKdError where there are none, or not as many as num_jobs says.
    """
    for ending, kind in ((".gz", "ark"), (".ark", "ark"), (".scp", "scp")):
        # ali.1.gz of Kaldi's scripts, and ali.gz; not ali_tmp.1.gz.
        found = [file for file in folder.glob(f"ali*{ending}") if re.fullmatch(rf"ali(\.\d+)?\{ending}", file.name)]
        if not found:
            continue
        jobs = folder / "num_jobs"
        try:
            num_jobs = int(jobs.read_text()) if jobs.is_file() else len(found)
        except (OSError, ValueError) as error:
            raise AsrKdError(f"{jobs}: is not a number of jobs ({error})") from error
        if len(found) != num_jobs:
            raise AsrKdError(f"{folder}: has {len(found)} of the {num_jobs} files ali.*{ending} that num_jobs tells of")
        return [f"{kind}:{file}" for file in sorted(found, key=lambda file: (len(file.name), file.name))]
    raise AsrKdError(f"{folder}: has no alignments (ali.1.gz, ali.2.gz, …)")


@dataclass(frozen=True)
class Alignments:
    """States, phones and transition-ids for the frames of a layout, and why utterances have none, by their ids."""

    pdf: np.ndarray
    phone: np.ndarray
    tid: np.ndarray
    left_out: dict[str, str]


def read_alignments(tables: Sequence[str], hmm: ImportedHmm, layout: Layout, log: Log = lambda _: None) -> Alignments:
    """Transition-ids of every utterance of a layout, with their states and phones; −1 where there are none that fit.

    Utterances that the layout lacks are passed over. Raises AsrKdError for a table that is damaged, an utterance that
    comes twice, and alignments of chain models, which have a state for three frames.
    """
    pdf, phone, tid = (np.full(layout.num_frames, FAILED, dtype=np.int64) for _ in range(3))
    left_out = dict.fromkeys(layout.utt_ids, "has no alignment")
    seen: set[str] = set()
    wrong_lengths: list[tuple[int, int]] = []
    for table in tables:
        for utt_id, tids in read_int_vectors(table):
            if utt_id in seen:
                raise AsrKdError(f"{table}: utterance {utt_id!r} comes twice")
            seen.add(utt_id)
            if utt_id not in layout.index:
                continue
            rows = layout.rows(utt_id)
            length = rows.stop - rows.start
            try:
                hmm.transitions.require_path(tids)
                if len(tids) != length:
                    wrong_lengths.append((len(tids), length))
                    raise AsrKdError(f"has {len(tids)} frames, its features {length}")
            except AsrKdError as error:
                left_out[utt_id] = str(error)
                continue
            pdf[rows], phone[rows], tid[rows] = hmm.t2pdf[tids], hmm.t2phone[tids], tids
            del left_out[utt_id]
    found = len(seen & set(layout.utt_ids))
    if wrong_lengths and len(wrong_lengths) == found and all(n == -(-m // SUBSAMPLING) for n, m in wrong_lengths):
        raise AsrKdError(
            f"{tables[0]}: has one state for {SUBSAMPLING} frames, as alignments of chain models have; give alignments "
            "of the full frame rate, such as those of tri3"
        )
    if len(seen) > found:
        log(f"{len(seen) - found} aligned utterances have no features here and are passed over")
    return Alignments(pdf, phone, tid, left_out)


def import_alignments(
    out: str | Path, folder: Path, hmm: ImportedHmm, layout: Layout, *, max_bad_share: float, log: Log = lambda _: None
) -> None:
    """Write ali.h5 from an alignment folder, for features of a layout.

    Utterances without an alignment that fits are listed through log and have no label. Raises AsrKdError where they are
    more than max_bad_share of all, or as read_alignments does.
    """
    tables = alignment_tables(folder)
    found = read_alignments(tables, hmm, layout, log)
    for utt_id, reason in list(found.left_out.items())[:LISTED]:
        log(f"warning: {utt_id} {reason}; its frames have no label")
    if len(found.left_out) > LISTED:
        log(f"warning: so have {len(found.left_out) - LISTED} more utterances")
    num_bad = len(found.left_out)
    if num_bad > max_bad_share * layout.num_utts or num_bad == layout.num_utts:
        utt_id, reason = next(iter(found.left_out.items()))
        raise AsrKdError(
            f"{folder}: {num_bad} of {layout.num_utts} utterances have no alignment that fits, more than the share of "
            f"{max_bad_share:g} that is allowed; the first: {utt_id} {reason}"
        )
    how = {"num_pdfs": hmm.num_pdfs, "model_digest": hmm.digest, "sil_pdfs": hmm.sil_pdfs}
    write_ali(out, layout, found.pdf, **how, phone=found.phone, phones=hmm.phones, tid=found.tid)


def import_graph(folder: Path, hmm: ImportedHmm) -> Graph:
    """HCLG.fst and words.txt of a folder that mkgraph.sh made, as a graph over the states of `hmm`.

    Raises AsrKdError where they are missing, damaged, or of another model.
    """
    refuse_chain_folder(folder)
    fst, words = folder / "HCLG.fst", read_symbols(folder / "words.txt")
    counted = folder / "num_pdfs"
    try:
        num_pdfs = int(counted.read_text()) if counted.is_file() else hmm.num_pdfs
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{counted}: is not a number of pdfs ({error})") from error
    if num_pdfs != hmm.num_pdfs:
        raise AsrKdError(f"{counted}: is {num_pdfs}, but the model has {hmm.num_pdfs} pdfs; the graph is of another")
    arcs = GraphArcs(*read_graph_fst(fst))
    if (highest := int(arcs.olabel.max(initial=0))) >= len(words):
        raise AsrKdError(
            f"{folder / 'words.txt'}: names words up to {len(words) - 1}, but {fst} has a word {highest}; it is of "
            "another graph, or cut short"
        )
    try:
        graph = Graph(arcs, hmm.t2pdf, hmm.num_pdfs, words[1:], hmm.digest, {})
        _require_states_of(arcs, hmm.transitions)
    except AsrKdError as error:
        raise AsrKdError(f"{fst}: {error}") from None
    return graph


def _require_states_of(arcs: GraphArcs, model: Transitions) -> None:
    """Raise AsrKdError for a graph of another model, whose transition-ids may be numbers of this one, too.

    Every graph has the self-loop of an HMM state on each node that arcs of the state lead to (graphs made with reorder,
    as Kaldi's are) or leave, and none elsewhere.
    """
    is_loop = model.is_self_loop[arcs.ilabel]
    loop_at = np.full(arcs.num_states, -1)
    loop_at[arcs.source[is_loop]] = model.t2state[arcs.ilabel[is_loop]]
    others = (arcs.ilabel > 0) & ~is_loop
    state = model.t2state[arcs.ilabel[others]]
    expected = np.where(np.isin(state, model.t2state[model.is_self_loop]), state, -1)
    found = (loop_at[arcs.target[others]], loop_at[arcs.source[others]])
    if (arcs.source != arcs.target)[is_loop].any() or not any((at == expected).all() for at in found):
        raise AsrKdError("its self-loops are not those of the model's states; the graph is of another model")


@dataclass(frozen=True)
class KnownFrontEnd:
    """A front end of ours that made the features, so that more can be made alike (asr-kd recognize)."""

    kind: str
    known: FrontEndOptions

    def options(self, feat_dim: int) -> FrontEndOptions:
        """For features of so many columns; raises AsrKdError where it makes others."""
        if feat_dim != self.known.feat_dim:
            raise AsrKdError(
                f"the features have {feat_dim} columns, but by the options given they have {self.known.feat_dim}; if "
                "something else was appended (pitch, deltas), leave --feature-conf out"
            )
        return self.known


@dataclass(frozen=True)
class Processing:
    """What is done to features on their way in: CMVN by Kaldi's statistics, then derivatives of (order, window)."""

    cmvn: CmvnOptions | None = None
    stats: str = ""
    deltas: tuple[int, int] | None = None

    def applied(self, source: FeatureSource) -> FeatureSource:
        """The features of a source so treated; raises AsrKdError for statistics that do not fit."""
        options, feat_dim = source.options, source.options.feat_dim
        if not isinstance(options, RecordedOptions):
            fields = {**options.__dict__}
            options = RecordedOptions(fields, feat_dim, options.num_mel_bins)
        if self.cmvn is not None:
            settings = {"over": "speaker", "norm_means": self.cmvn.norm_means, "norm_vars": self.cmvn.norm_vars}
            if self.cmvn.skip_dims:
                settings["skip_dims"] = list(self.cmvn.skip_dims)
            options = options.with_processing("cmvn", settings)
        if self.deltas is not None:
            order, window = self.deltas
            options = options.with_processing("deltas", {"delta_order": order, "delta_window": window})
            options = replace(options, feat_dim=feat_dim * (order + 1))
        stats = dict(read_matrices(self.stats, np.float64)) if self.stats else {}
        return replace(source, options=options, utts=self._utts(source, stats))

    def _utts(self, source: FeatureSource, stats: dict[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
        for utt_id, spk_id, feats in source.utts:
            if self.cmvn is not None and self.cmvn.norm_means:
                if spk_id not in stats:
                    raise AsrKdError(
                        f"{self.stats}: has no statistics of speaker {spk_id!r}{_why(utt_id, spk_id, stats)}"
                    )
                try:
                    normalised = apply_cmvn(feats, stats[spk_id], norm_vars=self.cmvn.norm_vars)
                except AsrKdError as error:
                    raise AsrKdError(f"{self.stats}: statistics of {spk_id!r} do not fit {utt_id}: {error}") from error
                if self.cmvn.skip_dims:
                    if max(self.cmvn.skip_dims) >= feats.shape[1]:
                        raise AsrKdError(f"--skip-dims names column {max(self.cmvn.skip_dims)} of {feats.shape[1]}")
                    normalised[:, list(self.cmvn.skip_dims)] = feats[:, list(self.cmvn.skip_dims)]
                feats = normalised
            yield utt_id, spk_id, feats if self.deltas is None or not len(feats) else add_deltas(feats, *self.deltas)


def _why(utt_id: str, spk_id: str, stats: dict[str, np.ndarray]) -> str:
    """What a speaker without statistics may come from."""
    if utt_id in stats:
        return "; they are of utterances: let utt2spk name each utterance as its own speaker"
    return "; without utt2spk, each utterance is its own speaker" if spk_id == utt_id else ""
