"""Training of tied triphones from a monophone model's alignment, as Kaldi's train_deltas.sh does.

Statistics of every triphone state, questions, a tree; then a Gaussian for each of its leaves from the statistics, the
alignment carried over to the new states, and passes of EM with growing GMMs and few new alignments.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.align import GraphCompiler, Item
from asr_kd.hmm.build_tree import GrownTree, Root, TreeOptions, build_tree
from asr_kd.hmm.em import EmOptions, Progress, TrainingSet, realign, train
from asr_kd.hmm.gaussians import MIN_OCCUPANCY, MIN_VARIANCE, Gmm
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.questions import clustered_questions
from asr_kd.hmm.tree_stats import TreeStats, frame_events


@dataclass(frozen=True, kw_only=True)
class TriOptions(EmOptions):
    """tree: how the states are tied; the rest as for monophones."""

    num_iters: int = 12
    total_gauss: int = 2000
    realign_iters: tuple[int, ...] = (5,)
    tree: TreeOptions = field(default_factory=TreeOptions)


def train_tri(
    mono: HmmModel,
    items: Iterable[Item],
    *,
    options: TriOptions,
    seed: int,
    progress: Progress = lambda line: None,
) -> HmmModel:
    """Train tied triphones on `items`, (utt_id, feats (num_frames, feat_dim) float32, words), in the order given.

    mono: a model of the same features that aligns them first. The same arguments give the same model, bit for bit.
    Raises AsrKdError for a word that the lexicon lacks, features that do not fit, or too many failed alignments.
    """
    corpus, lang = TrainingSet.from_items(items), mono.lang
    compiler = GraphCompiler(mono, lang)
    graphs = [compiler.compile(utt_id, words) for utt_id, _, words in corpus.items]
    alignment = realign(mono, corpus, graphs, options, progress)
    silence = [lang.phone_id[phone] for phone in lang.silence_phones]
    events = frame_events(mono, alignment, corpus.lengths, silence)
    aligned = alignment > 0
    stats = TreeStats.from_frames(events[aligned], corpus.data[aligned])
    grown = grow_tree(mono, stats, options.tree)
    num_frames = int(aligned.sum())
    progress(
        f"tree: {len(stats.events)} contexts, {grown.num_split} leaves, {grown.tree.num_pdfs} after joining; "
        f"log-likelihood {grown.gain / max(num_frames, 1):+.3f} a frame"
    )
    model = _initial_model(mono, grown, options, seed)
    compiler = GraphCompiler(model, lang)
    graphs = [compiler.compile(utt_id, words) for utt_id, _, words in corpus.items]
    return train(model, corpus, graphs, convert_alignment(mono, model, alignment, events), options, seed, progress)


def grow_tree(mono: HmmModel, stats: TreeStats, options: TreeOptions) -> GrownTree:
    """The tree of a monophone model's phones from statistics of its alignment.

    All positions of a phone share a root; silence and noise are not split. Questions are clusters of phones, and where
    phones depend on their place in the word, all phones of a place; silence and noise together are one too.
    """
    lang = mono.lang
    ids = [[lang.phone_id[phone] for phone in phones] for phones in lang.phone_roots]
    silence = {lang.phone_id[phone] for phone in lang.silence_phones}
    roots = [
        Root(tuple(phones), 1 + max(mono.class_of_state[phones[0]]), split=not silence.intersection(phones))
        for phones in ids
    ]
    questions = {*clustered_questions(stats, ids), tuple(sorted(silence)), *_places(lang)}
    return build_tree(stats, roots, sorted(questions), options, silence=lang.phone_id[lang.silence_phones[0]])


def _places(lang: Lang) -> list[tuple[int, ...]]:
    """Phone ids by what their names have beyond the base phone's; none where phones do not depend on position."""
    places: dict[str, list[int]] = {}
    for phone in lang.phones:
        places.setdefault(phone.removeprefix(lang.base_phone(phone)), []).append(lang.phone_id[phone])
    return [tuple(phones) for place, phones in places.items() if place]


def _initial_model(mono: HmmModel, grown: GrownTree, options: TriOptions, seed: int) -> HmmModel:
    """A Gaussian a leaf from its statistics; the monophone's GMM for a leaf that is hardly seen."""
    record = {**mono.options, **asdict(options), "seed": seed}
    model = HmmModel.untrained(mono.lang, mono.topology, grown.tree.to_bytes(), mono.gmms[0], record)
    if model.num_pdfs != grown.tree.num_pdfs:
        raise AsrKdError("the tree has leaves that no phone reaches")
    mean, variance = grown.moments.gaussians(MIN_VARIANCE)
    gmms = [Gmm.from_moments(np.ones(1), mean[[pdf]], variance[[pdf]]) for pdf in range(model.num_pdfs)]
    # A pdf of the new model belongs to one pdf of the old, for a root's states are told apart in both.
    old_pdf = {tuple(state): pdf for *state, pdf in mono.state_of_tid[1:, :3].tolist()}
    for phone, state, pdf in model.state_of_tid[1:, :3].tolist():
        if grown.moments.count[pdf] < MIN_OCCUPANCY:
            gmms[pdf] = mono.gmms[old_pdf[phone, state]]
    return model.with_parameters(_inherited_log_probs(mono, model), gmms)


def _inherited_log_probs(mono: HmmModel, model: HmmModel) -> np.ndarray:
    """Transition log-probabilities of the monophone states, for all the states that were made of them."""
    old = {(phone, state, index): tid for tid, (phone, state, _, index) in enumerate(mono.state_of_tid.tolist())}
    tids = [old[phone, state, index] for phone, state, _, index in model.state_of_tid.tolist()]
    return mono.log_probs[tids]


def convert_alignment(mono: HmmModel, model: HmmModel, alignment: np.ndarray, events: np.ndarray) -> np.ndarray:
    """An alignment of `mono` in the transition-ids of `model`, which has the same phones and topology (convert-ali).

    alignment: flat, (num_frames,), 0 where there is none; events: of its frames, (num_frames, 4), from frame_events.
    """
    rows = np.flatnonzero(alignment)
    contexts, of_row = np.unique(events[rows], axis=0, return_inverse=True)
    pdfs = model.context_tree.pdfs(contexts[:, :3], contexts[:, 3])[of_row]
    old = mono.state_of_tid[alignment[rows]]
    wanted = np.column_stack([old[:, 0], old[:, 1], pdfs, old[:, 3]])
    # Both sides as one number each, so that the transition-ids are found by a sorted search.
    size = 1 + max(int(wanted.max(initial=0)), int(model.state_of_tid.max()))
    powers = size ** np.arange(4)[::-1]
    known = model.state_of_tid[1:] @ powers
    order = np.argsort(known)
    converted = np.zeros_like(alignment)
    converted[rows] = 1 + order[np.searchsorted(known[order], wanted @ powers)]
    return converted
