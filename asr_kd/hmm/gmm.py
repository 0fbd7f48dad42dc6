"""Training of a monophone HMM-GMM from transcripts alone, the same to the bit from the same seed.

The flat start finds the phones; then, as in Kaldi's train_mono.sh, GMMs grow by splitting. They are realigned seldom:
each Viterbi pass lets the outer states of a phone that has few neighbours take some frames of them, and after a dozen
passes two boundaries in a hundred have moved out of 20 ms (espeak speech with true phone times).

Alignment runs in the wheels; update and splitting of the Gaussians in numpy, over all frames of a pdf at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.align import AlignOptions, GraphCompiler, Item, align_graph, require_feats
from asr_kd.hmm.flat_start import flat_start
from asr_kd.hmm.gaussians import MIN_VARIANCE, Gmm, split_targets
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.wheels import kaldi

# Transition update of Kaldi's MleTransitionUpdateConfig.
TRANSITION_FLOOR = 0.01
TRANSITION_MIN_COUNT = 5.0


@dataclass(frozen=True)
class MonoOptions:
    """num_iters: passes of EM; total_gauss: Gaussians in all, reached at three quarters of the passes;
    topology, silence_topology: see asr_kd.hmm.topology;
    max_train_utts: train on a seeded subset of at most so many (0: on all);
    max_failed_share: more failed alignments than this end the training with an error;
    num_static: leading columns of the features that are no derivatives, for the flat start (0: all);
    realign_iters: passes that start with a new alignment.
    """

    num_iters: int = 12
    total_gauss: int = 1500
    topology: str = "3state"
    silence_topology: str = "3state"
    max_train_utts: int = 300
    max_failed_share: float = 0.2
    num_static: int = 0
    realign_iters: tuple[int, ...] = (3, 6)
    align: AlignOptions = field(default_factory=AlignOptions)

    def __post_init__(self) -> None:
        if self.num_iters < 1 or self.total_gauss < 1 or self.max_train_utts < 0:
            raise AsrKdError(f"num_iters and total_gauss must be positive and max_train_utts not negative, in {self}")


def select_subset(words_of_utt: dict[str, tuple[str, ...]], max_utts: int, seed: int) -> list[str]:
    """Sorted ids of a random subset, and of as many more as it takes for every word to occur; 0 selects all."""
    utt_ids = sorted(words_of_utt)
    if not max_utts or len(utt_ids) <= max_utts:
        return utt_ids
    order = [utt_ids[i] for i in np.random.default_rng(seed).permutation(len(utt_ids))]
    chosen = order[:max_utts]
    seen = {word for utt_id in chosen for word in words_of_utt[utt_id]}
    for utt_id in order[max_utts:]:
        if not seen.issuperset(words_of_utt[utt_id]):
            chosen.append(utt_id)
            seen.update(words_of_utt[utt_id])
    return sorted(chosen)


def train_mono(
    lang: Lang,
    items: Iterable[Item],
    *,
    options: MonoOptions,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> HmmModel:
    """Train from scratch on `items`, (utt_id, feats (num_frames, feat_dim) float32, words), used in the order given.

    progress receives a line per pass. Raises AsrKdError for a word that the lexicon lacks, features that do not fit,
    or too many failed alignments.
    """
    items = [(utt_id, np.asarray(feats), words) for utt_id, feats, words in items]
    if not items:
        raise AsrKdError("there is no utterance to train the HMM on")
    dim = items[0][1].shape[1]
    items = [(utt_id, require_feats(feats, dim, utt_id), words) for utt_id, feats, words in items]
    data = np.concatenate([feats for _, feats, _ in items])
    model = _initial_model(lang, data, options, seed)
    compiler = GraphCompiler(model, lang)
    graphs = [compiler.compile(utt_id, words) for utt_id, _, words in items]
    progress(f"flat start on {len(items)} utterances, {len(data)} frames")
    alignment = _first_alignment(lang, items, graphs, np.array([len(feats) for _, feats, _ in items]), options, seed)
    generator = np.random.default_rng(seed)
    realign, last_growth = options.realign_iters, max(1, round(options.num_iters * 0.75))
    for iteration in range(1, options.num_iters + 1):
        if iteration in realign:
            alignment = _realign(model, items, graphs, options)
        share = min(1.0, iteration / last_growth)
        num_gauss = round(model.num_pdfs + share * max(0, options.total_gauss - model.num_pdfs))
        model = _update(model, data, alignment, num_gauss if iteration <= last_growth else 0, generator)
        progress(
            f"pass {iteration}/{options.num_iters}: {sum(len(g.weights) for g in model.gmms)} Gaussians, "
            f"{int((alignment > 0).sum())} of {len(data)} frames aligned"
        )
    return model


def _initial_model(lang: Lang, data: np.ndarray, options: MonoOptions, seed: int) -> HmmModel:
    """Every pdf a single Gaussian of all frames."""
    khg = kaldi().khg
    silence_ids = [lang.phone_id[phone] for phone in lang.silence_phones]
    text = topology_text(len(lang.phones), options.topology, silence_ids, options.silence_topology)
    topology = khg.HmmTopology()
    topology.read(text)
    tree = khg.monophone_context_dependency_shared(
        phone_classes=[[lang.phone_id[phone] for phone in root] for root in lang.phone_roots],
        phone2num_pdf_classes=topology.get_phone_to_num_pdf_classes(),
    )
    transitions = khg.TransitionModel(ctx_dep=tree, hmm_topo=topology)
    wide = data.astype(np.float64)
    gmm = Gmm.from_moments(np.ones(1), wide.mean(0)[None], np.maximum(wide.var(0), MIN_VARIANCE)[None])
    return HmmModel(
        lang,
        text,
        np.array(tree.__getstate__()[0], np.int8).tobytes(),
        np.array(transitions.log_probs, np.float32),
        [gmm] * transitions.num_pdfs,
        {**asdict(options), "seed": seed},
    )


def _first_alignment(
    lang: Lang, items: list[Item], graphs: list, lengths: np.ndarray, options: MonoOptions, seed: int
) -> np.ndarray:
    """Transition-ids from the flat start on static features, flat; 0 for an utterance too short for its words."""
    num_static = options.num_static or items[0][1].shape[1]
    static = [(utt_id, np.ascontiguousarray(feats[:, :num_static]), words) for utt_id, feats, words in items]
    data = np.concatenate([feats for _, feats, _ in static])
    model = flat_start(_initial_model(lang, data, options, seed), data, lengths, graphs)
    return _realign(model, static, graphs, options)


def _realign(model: HmmModel, items: list[Item], graphs: list, options: MonoOptions) -> np.ndarray:
    paths = [
        align_graph(model, graph, utt_id, feats, options.align)
        for (utt_id, feats, _), graph in zip(items, graphs, strict=True)
    ]
    return _join(paths, items, options)


def _join(paths: list[np.ndarray | None], items: list[Item], options: MonoOptions) -> np.ndarray:
    """Flat transition-ids, 0 where an alignment failed; raises AsrKdError where too many did."""
    failed = [utt_id for (utt_id, _, _), path in zip(items, paths, strict=True) if path is None]
    if len(failed) > options.max_failed_share * len(items):
        raise AsrKdError(
            f"{len(failed)} of {len(items)} utterances could not be aligned in training (first: {failed[0]!r}); "
            "are transcripts and audio those of the same utterances?"
        )
    return np.concatenate(
        [np.zeros(len(item[1]), np.int64) if path is None else path for item, path in zip(items, paths, strict=True)]
    )


def _update(
    model: HmmModel, data: np.ndarray, alignment: np.ndarray, num_gauss: int, generator: np.random.Generator
) -> HmmModel:
    """One step of EM on the frames that `alignment` (flat transition-ids) gives each pdf, then growth to num_gauss."""
    used = np.flatnonzero(alignment)
    pdf_of_frame = model.t2pdf[alignment[used]]
    occupancy = np.bincount(pdf_of_frame, minlength=model.num_pdfs)
    frames = np.split(used[np.argsort(pdf_of_frame, kind="stable")], np.cumsum(occupancy)[:-1])
    gmms = [gmm.reestimate(data[rows].astype(np.float64)) for gmm, rows in zip(model.gmms, frames, strict=True)]
    if num_gauss:
        targets = split_targets(occupancy, num_gauss)
        gmms = [gmm.split(target, generator) for gmm, target in zip(gmms, targets, strict=True)]
    log_probs = _transition_log_probs(model, np.bincount(alignment[used], minlength=len(model.log_probs)))
    return HmmModel(model.lang, model.topology, model.tree, log_probs, gmms, model.options)


def _transition_log_probs(model: HmmModel, counts: np.ndarray) -> np.ndarray:
    """Maximum-likelihood transition log-probabilities, (num_transition_ids + 1,), floored (MleUpdate in Kaldi)."""
    log_probs = model.log_probs.copy()
    state_of_tid = np.array(model.transition_model.id2state)
    for state in range(1, int(state_of_tid.max()) + 1):
        tids = np.flatnonzero(state_of_tid == state)
        if counts[tids].sum() < TRANSITION_MIN_COUNT or len(tids) == 1:
            continue
        probs = np.maximum(counts[tids] / counts[tids].sum(), TRANSITION_FLOOR)
        log_probs[tids] = np.log(probs / probs.sum())
    return log_probs
