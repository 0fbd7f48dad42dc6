"""The HMM side, file to file: train, align, make a graph. Outputs are complete or absent."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asr_kd.corpus.datadir import read_data_dir
from asr_kd.corpus.lexicon import MAX_OOV_SHARE, Lexicon, known_transcripts, read_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm import graph as graphs
from asr_kd.hmm.align import AlignOptions, align_in_processes
from asr_kd.hmm.frontend import GmmFeats
from asr_kd.hmm.gmm import MonoOptions, select_subset, train_mono
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.store.ali import FAILED, write_ali

Progress = Callable[[str], None]


def _transcripts(
    data_dir: str | Path, lexicon: Lexicon, max_oov_share: float, progress: Progress, feats: GmmFeats | None = None
) -> dict[str, tuple[str, ...]]:
    """Words of every utterance that can be pronounced; raises AsrKdError if `feats` has an utterance without any."""
    spoken = {utterance.utt_id: utterance.words for utterance in read_data_dir(data_dir)}
    for utt_id in feats.reader.layout.utt_ids if feats else ():
        if utt_id not in spoken:
            raise AsrKdError(f"{feats.reader.path}: its utterance {utt_id!r} is not in {data_dir}")
    text = Path(data_dir) / "text"
    return known_transcripts(lexicon, spoken.items(), text, max_oov_share=max_oov_share, log=progress)


def train_hmm(
    mfcc_h5: str | Path,
    data_dir: str | Path,
    lexicon_path: str | Path,
    out_dir: str | Path,
    *,
    num_iters: int = 12,
    total_gauss: int = 1500,
    cmvn: str = "utterance",
    norm_vars: bool = True,
    seed: int = 0,
    max_train_utts: int = 300,
    topology: str = "3state",
    silence_topology: str = "3state",
    silence_prob: float = 0.2,
    position_dependent: bool = False,
    silence_phones: Sequence[str] = (),
    max_oov_share: float = MAX_OOV_SHARE,
    progress: Progress = lambda line: None,
) -> HmmModel:
    """Flat-start a monophone HMM-GMM on (a seeded subset of) mfcc.h5 and save it in the folder out_dir.

    The same inputs, options and seed give the same model, bit for bit, at the same thread count of BLAS.
    Raises AsrKdError where more than max_oov_share of the utterances have words that the lexicon lacks, for features
    without a transcript, or failed alignments.
    """
    lang = Lang(read_lexicon(lexicon_path), silence_prob, position_dependent, silence_phones)
    feats = GmmFeats(mfcc_h5, cmvn, norm_vars)
    transcripts = _transcripts(data_dir, lang.lexicon, max_oov_share, progress, feats)
    options = MonoOptions(
        num_iters=num_iters,
        total_gauss=total_gauss,
        topology=topology,
        silence_topology=silence_topology,
        max_train_utts=max_train_utts,
        num_static=feats.reader.feat_dim,
    )
    usable = {u: transcripts[u] for u in feats.reader.layout.utt_ids if u in transcripts}
    chosen = select_subset(usable, max_train_utts, seed)
    progress(f"training on {len(chosen)} of {feats.reader.layout.num_utts} utterances")
    items = ((utt_id, feats[utt_id], transcripts[utt_id]) for utt_id in chosen)
    model = train_mono(lang, items, options=options, seed=seed, progress=progress)
    model.options.update(
        cmvn=cmvn, norm_vars=norm_vars, mfcc=feats.options_json, mfcc_content_digest=feats.reader.content_digest
    )
    model.save(out_dir)
    return model


def align(
    mfcc_h5: str | Path,
    data_dir: str | Path,
    hmm_dir: str | Path,
    out: str | Path,
    nj: int = 1,
    *,
    options: AlignOptions | None = None,
    max_failed_share: float = 0.05,
    max_oov_share: float = MAX_OOV_SHARE,
    progress: Progress = lambda line: None,
) -> list[str]:
    """Align every utterance of mfcc.h5 and write ali.h5 to `out`; returns the utterances that failed (pdf −1).

    Features are normalised as in training. Utterances with words that the model's lexicon lacks fail. Raises AsrKdError
    where MFCC options differ from the model's, more than `max_oov_share` of the utterances have such words, or more
    than `max_failed_share` fail.
    """
    model = HmmModel.load(hmm_dir)
    feats = GmmFeats(mfcc_h5, model.options["cmvn"], model.options["norm_vars"])
    if feats.options_json != model.options["mfcc"]:
        raise AsrKdError(f"{mfcc_h5}: its MFCC options are not those that {hmm_dir} was trained with")
    transcripts = _transcripts(data_dir, model.lang.lexicon, max_oov_share, progress, feats)
    layout = feats.reader.layout
    pdf = np.full(layout.num_frames, FAILED, dtype=np.int64)
    phone = np.full(layout.num_frames, FAILED, dtype=np.int64)
    failed = [utt_id for utt_id in layout.utt_ids if utt_id not in transcripts]
    items = ((utt_id, feats[utt_id], transcripts[utt_id]) for utt_id in layout.utt_ids if utt_id in transcripts)
    for done, (utt_id, pdfs, phones) in enumerate(align_in_processes(model, items, nj, options), 1 + len(failed)):
        if pdfs is None:
            failed.append(utt_id)
        else:
            pdf[layout.rows(utt_id)], phone[layout.rows(utt_id)] = pdfs, phones
        if done % 500 == 0 or done == layout.num_utts:
            progress(f"aligned {done} of {layout.num_utts} utterances, {len(failed)} failed")
    if len(failed) > max_failed_share * layout.num_utts:
        raise AsrKdError(
            f"{mfcc_h5}: {len(failed)} of {layout.num_utts} utterances cannot be aligned (first: {failed[0]!r}), "
            f"more than the {100 * max_failed_share:g} % that are accepted"
        )
    write_ali(
        out,
        layout,
        pdf,
        num_pdfs=model.num_pdfs,
        model_digest=model.digest,
        sil_pdfs=model.sil_pdfs,
        phone=phone,
        phones=model.phones,
    )
    return failed


def make_graph(
    hmm_dir: str | Path,
    data_dir: str | Path | None,
    out_dir: str | Path,
    *,
    max_oov_share: float = MAX_OOV_SHARE,
    progress: Progress = lambda line: None,
) -> graphs.Graph:
    """HCLG with a unigram from data_dir's transcripts, or uniform for None, into the folder out_dir."""
    model = HmmModel.load(hmm_dir)
    transcripts = None
    if data_dir is not None:
        transcripts = list(_transcripts(data_dir, model.lang.lexicon, max_oov_share, progress).values())
    graph = graphs.make_graph(model, model.lang, transcripts)
    graph.save(out_dir)
    return graph
