"""Training of a monophone HMM-GMM from transcripts alone, the same to the bit from the same seed.

The flat start finds the phones; then, as in Kaldi's train_mono.sh, GMMs grow by splitting. They are realigned seldom:
each Viterbi pass lets the outer states of a phone that has few neighbours take some frames of them, and after a dozen
passes two boundaries in a hundred have moved out of 20 ms (espeak speech with true phone times).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from asr_kd.hmm.align import GraphCompiler, Item
from asr_kd.hmm.em import EmOptions, Progress, TrainingSet, realign, train
from asr_kd.hmm.flat_start import flat_start
from asr_kd.hmm.gaussians import MIN_VARIANCE, Gmm
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.wheels import kaldi


@dataclass(frozen=True, kw_only=True)
class MonoOptions(EmOptions):
    """topology, silence_topology: see asr_kd.hmm.topology; num_static: leading columns of the features that are no
    derivatives, for the flat start (0: all).
    """

    num_iters: int = 12
    total_gauss: int = 1500
    realign_iters: tuple[int, ...] = (3, 6)
    topology: str = "3state"
    silence_topology: str = "3state"
    num_static: int = 0


def select_subset(phones_of_utt: Mapping[str, Collection[str]], max_utts: int, seed: int) -> list[str]:
    """Sorted ids of a random subset, and of as many more as it takes for every phone to occur; 0 selects all."""
    utt_ids = sorted(phones_of_utt)
    if not max_utts or len(utt_ids) <= max_utts:
        return utt_ids
    order = [utt_ids[i] for i in np.random.default_rng(seed).permutation(len(utt_ids))]
    chosen = order[:max_utts]
    seen = {phone for utt_id in chosen for phone in phones_of_utt[utt_id]}
    for utt_id in order[max_utts:]:
        if not seen.issuperset(phones_of_utt[utt_id]):
            chosen.append(utt_id)
            seen.update(phones_of_utt[utt_id])
    return sorted(chosen)


def train_mono(
    lang: Lang,
    items: Iterable[Item],
    *,
    options: MonoOptions,
    seed: int,
    progress: Progress = lambda line: None,
) -> HmmModel:
    """Train from scratch on `items`, (utt_id, feats (num_frames, feat_dim) float32, words), used in the order given.

    progress receives a line per pass. Raises AsrKdError for a word that the lexicon lacks, features that do not fit,
    or too many failed alignments.
    """
    corpus = TrainingSet.from_items(items)
    model = initial_model(lang, corpus.data, options, seed)
    compiler = GraphCompiler(model, lang)
    graphs = [compiler.compile(utt_id, words) for utt_id, _, words in corpus.items]
    progress(f"flat start on {len(corpus.items)} utterances, {len(corpus.data)} frames")
    # Derivatives smear a boundary over several frames: the first alignment does without them.
    static = corpus.columns(options.num_static or corpus.data.shape[1])
    started = flat_start(initial_model(lang, static.data, options, seed), static.data, static.lengths, graphs)
    alignment = realign(started, static, graphs, options, progress)
    return train(model, corpus, graphs, alignment, options, seed, progress)


def initial_model(lang: Lang, data: np.ndarray, options: MonoOptions, seed: int) -> HmmModel:
    """Every pdf a single Gaussian of all frames; the phones of one root (all positions of a phone) share their pdfs."""
    khg = kaldi().khg
    silence_ids = [lang.phone_id[phone] for phone in lang.silence_phones]
    text = topology_text(len(lang.phones), options.topology, silence_ids, options.silence_topology)
    topology = khg.HmmTopology()
    topology.read(text)
    tree = khg.monophone_context_dependency_shared(
        phone_classes=[[lang.phone_id[phone] for phone in root] for root in lang.phone_roots],
        phone2num_pdf_classes=topology.get_phone_to_num_pdf_classes(),
    )
    wide = data.astype(np.float64)
    gmm = Gmm.from_moments(np.ones(1), wide.mean(0)[None], np.maximum(wide.var(0), MIN_VARIANCE)[None])
    tree_bytes = np.array(tree.__getstate__()[0], np.int8).tobytes()
    return HmmModel.untrained(lang, text, tree_bytes, gmm, {**asdict(options), "seed": seed})
