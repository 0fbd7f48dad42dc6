"""The HMM side, file to file: train, align, make a graph. Outputs are complete or absent."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.config import HmmConfig
from asr_kd.corpus.datadir import read_words
from asr_kd.corpus.lexicon import MAX_OOV_SHARE, Lexicon, known_transcripts, read_lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm import graph as graphs
from asr_kd.hmm.align import AlignOptions, align_in_processes
from asr_kd.hmm.build_tree import TreeOptions
from asr_kd.hmm.em import Progress
from asr_kd.hmm.frontend import GmmFeats
from asr_kd.hmm.gmm import MonoOptions, select_subset, train_mono
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import RECORD, HmmModel
from asr_kd.hmm.triphones import TriOptions, train_tri
from asr_kd.lm.arpa import read_arpa
from asr_kd.store.ali import FAILED, FORMAT_NAME, require_fit, write_ali
from asr_kd.store.atomic import require_replaceable
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, require_same_kind

# Keys of HmmConfig that a monophone model does not depend on.
TRIPHONE_KEYS = ("gmm_context", "tree_", "tri_")
MONO_SUFFIX = "_mono"
LISTED = 50


def transcripts_of(
    data_dir: str | Path, lexicon: Lexicon, max_oov_share: float, progress: Progress, feats: GmmFeats | None = None
) -> dict[str, tuple[str, ...]]:
    """Words of every utterance that can be pronounced; raises AsrKdError if `feats` has an utterance without any."""
    spoken = read_words(data_dir)
    for utt_id in feats.reader.layout.utt_ids if feats else ():
        if utt_id not in spoken:
            raise AsrKdError(f"{feats.reader.path}: its utterance {utt_id!r} is not in {data_dir}/text")
    text = Path(data_dir) / "text"
    return known_transcripts(lexicon, spoken.items(), text, max_oov_share=max_oov_share, log=progress)


def load_with_feats(hmm_dir: str | Path, mfcc_h5: str | Path) -> tuple[HmmModel, GmmFeats]:
    """A model and features normalised as in its training; raises AsrKdError where their MFCC options differ."""
    model = HmmModel.load(hmm_dir)
    try:
        cmvn, norm_vars, mfcc = (model.options[name] for name in ("cmvn", "norm_vars", "mfcc"))
    except (KeyError, TypeError) as error:
        raise AsrKdError(f"{hmm_dir}/{RECORD}: lacks the features that it was trained on; train it again") from error
    feats = GmmFeats(mfcc_h5, cmvn, norm_vars)
    if feats.options_json != mfcc:
        raise AsrKdError(f"{mfcc_h5}: its MFCC options are not those that {hmm_dir} was trained with")
    return model, feats


def train_hmm(
    mfcc_h5: str | Path,
    data_dir: str | Path,
    lexicon_path: str | Path,
    out_dir: str | Path,
    config: HmmConfig,
    progress: Progress = lambda line: None,
) -> HmmModel:
    """Train the HMM-GMM of config.gmm_context on mfcc.h5 and save it in the folder out_dir.

    Triphones start from a monophone model, which is kept beside in `<out_dir>_mono`; after a kill the next run takes it
    from there if it was made from the same. The same inputs, configuration and seed give the same model, bit for bit,
    at the same thread count of BLAS.
    Raises AsrKdError where more than config.max_oov_share of the utterances have words that the lexicon lacks, more
    than config.gmm_max_failed_share cannot be aligned, features have no transcript, or a key has an unknown value.
    """
    require_replaceable(out_dir, RECORD)
    tree = TreeOptions(
        config.tree_num_leaves, config.tree_questions, config.tree_min_count, config.tree_min_gain, config.tree_merge
    )
    lang = Lang(
        read_lexicon(lexicon_path), config.sil_prob, config.position_dependent_phones, tuple(config.silence_phones)
    )
    feats = GmmFeats(mfcc_h5, config.gmm_cmvn)
    transcripts = transcripts_of(data_dir, lang.lexicon, config.max_oov_share, progress, feats)
    usable = {u: transcripts[u] for u in feats.reader.layout.utt_ids if u in transcripts}
    made_from = _made_from(config, lang, feats, usable)
    out_dir = Path(out_dir)
    mono_dir = out_dir if config.gmm_context == "mono" else out_dir.with_name(out_dir.name + MONO_SUFFIX)
    require_replaceable(mono_dir, RECORD)
    mono = _finished(mono_dir, made_from, progress)
    if mono is None:
        mono = _train_mono(lang, feats, usable, config, made_from, progress)
        mono.save(mono_dir)
    if config.gmm_context == "mono":
        return mono
    chosen = select_subset(_phones_of(lang, usable), config.tri_max_train_utts, config.gmm_seed)
    progress(f"triphones: training on {len(chosen)} of {feats.reader.layout.num_utts} utterances")
    options = TriOptions(
        num_iters=config.tri_num_iters,
        realign_iters=tuple(config.tri_realign_iters),
        total_gauss=config.tri_total_gauss,
        max_train_utts=config.tri_max_train_utts,
        max_failed_share=config.gmm_max_failed_share,
        tree=tree,
    )
    items = ((utt_id, feats[utt_id], usable[utt_id]) for utt_id in chosen)
    model = train_tri(mono, items, options=options, seed=config.gmm_seed, progress=progress)
    model.save(out_dir)
    return model


def _made_from(config: HmmConfig, lang: Lang, feats: GmmFeats, transcripts: dict[str, tuple[str, ...]]) -> str:
    """Digest of everything that a monophone model depends on."""
    keys = {key: value for key, value in asdict(config).items() if not key.startswith(TRIPHONE_KEYS)}
    lexicon = [sorted(lang.lexicon.entries.items()), sorted(lang.lexicon.probs.items())]
    inputs = [keys, lexicon, feats.reader.content_digest, sorted(transcripts.items())]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _finished(path: Path, made_from: str, progress: Progress) -> HmmModel | None:
    """The monophone model in the folder `path` if it is whole and made from the same."""
    try:
        model = HmmModel.load(path)
    except AsrKdError:
        return None
    if model.options.get("made_from") != made_from:
        return None
    progress(f"{path}: monophones are up to date")
    return model


def _phones_of(lang: Lang, transcripts: dict[str, tuple[str, ...]]) -> dict[str, set[str]]:
    """The phones of every utterance, by whichever pronunciation of its words."""
    of_word = {
        word: {phone for p in pronunciations for phone in lang.positioned(p)}
        for word, pronunciations in lang.lexicon.entries.items()
    }
    return {utt_id: set().union(*(of_word[word] for word in words)) for utt_id, words in transcripts.items()}


def _train_mono(
    lang: Lang,
    feats: GmmFeats,
    transcripts: dict[str, tuple[str, ...]],
    config: HmmConfig,
    made_from: str,
    progress: Progress,
) -> HmmModel:
    options = MonoOptions(
        num_iters=config.gmm_num_iters,
        total_gauss=config.gmm_total_gauss,
        topology=config.gmm_phone_topology,
        silence_topology=config.gmm_silence_topology,
        max_train_utts=config.gmm_max_train_utts,
        max_failed_share=config.gmm_max_failed_share,
        num_static=feats.reader.feat_dim,
    )
    chosen = select_subset(_phones_of(lang, transcripts), config.gmm_max_train_utts, config.gmm_seed)
    progress(f"monophones: training on {len(chosen)} of {feats.reader.layout.num_utts} utterances")
    items = ((utt_id, feats[utt_id], transcripts[utt_id]) for utt_id in chosen)
    model = train_mono(lang, items, options=options, seed=config.gmm_seed, progress=progress)
    model.options.update(
        cmvn=feats.cmvn,
        norm_vars=feats.norm_vars,
        mfcc=feats.options_json,
        mfcc_content_digest=feats.reader.content_digest,
        made_from=made_from,
    )
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
    fit: str | Path | None = None,
    lexicon_path: str | Path | None = None,
    progress: Progress = lambda line: None,
) -> list[str]:
    """Align every utterance of mfcc.h5 and write ali.h5 to `out`; returns the utterances that failed (pdf −1).

    fit: another feats.h5 whose frames the alignment is for, where an utterance was skipped in one of the two: those
    that mfcc.h5 lacks fail, those that `fit` lacks are left out.
    lexicon_path: a lexicon in place of the model's, with the same phones and the words of this set.
    Features are normalised as in training. Utterances with words that the model's lexicon lacks fail. Raises AsrKdError
    where MFCC options or the lexicon's phones differ from the model's, `fit` has other frames of an utterance, more
    than `max_oov_share` of the utterances have such words, more than `max_failed_share` fail, or `out` is there and no
    alignment.
    """
    require_same_kind(Path(out), FORMAT_NAME)
    model, feats = load_with_feats(hmm_dir, mfcc_h5)
    lang = lang_of(model, lexicon_path)
    transcripts = transcripts_of(data_dir, lang.lexicon, max_oov_share, progress, feats)
    layout = feats.reader.layout if fit is None else _layout_to_fit(fit, feats, progress)
    usable = {u: transcripts[u] for u in layout.utt_ids if u in transcripts and u in feats.reader}
    pdf = np.full(layout.num_frames, FAILED, dtype=np.int64)
    phone, tid = np.full_like(pdf, FAILED), np.full_like(pdf, FAILED)
    failed = [utt_id for utt_id in layout.utt_ids if utt_id not in usable]
    items = ((utt_id, feats[utt_id], words) for utt_id, words in usable.items())
    aligned = align_in_processes(model, lang, items, nj, options)
    for done, (utt_id, pdfs, phones, tids) in enumerate(aligned, 1 + len(failed)):
        if pdfs is None:
            failed.append(utt_id)
        else:
            rows = layout.rows(utt_id)
            pdf[rows], phone[rows], tid[rows] = pdfs, phones, tids
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
        tid=tid,
    )
    return failed


def lang_of(model: HmmModel, lexicon_path: str | Path | None) -> Lang:
    """The model's language, or its phones with the words of another lexicon; raises AsrKdError where phones differ."""
    if lexicon_path is None:
        return model.lang
    lang = Lang(read_lexicon(lexicon_path), **model.lang.options)
    if lang.phones != model.lang.phones:
        differing = sorted(set(lang.phones) ^ set(model.lang.phones))
        where = "the lexicon" if differing[0] in lang.phones else "the HMM"
        raise AsrKdError(f"{lexicon_path}: its phones have to be those of the HMM; only {where} has {differing[0]!r}")
    return lang


def _layout_to_fit(fit: str | Path, feats: GmmFeats, progress: Progress) -> Layout:
    """The layout of other features, for an alignment made on `feats`; raises AsrKdError where their frames differ."""
    wanted, found = FeatsReader(fit).layout, feats.reader.layout
    common = [utt_id for utt_id in wanted.utt_ids if utt_id in found.index]
    require_fit(_part(found, common), _part(wanted, common), (str(feats.reader.path), str(fit)))
    for here, there, path in ((found, wanted, fit), (wanted, found, feats.reader.path)):
        if missing := [utt_id for utt_id in here.utt_ids if utt_id not in there.index]:
            progress(f"warning: {path} lacks {len(missing)} utterances: {', '.join(missing[:LISTED])}")
    return wanted


def _part(layout: Layout, utt_ids: Sequence[str]) -> Layout:
    lengths = dict(zip(layout.utt_ids, layout.lengths.tolist(), strict=True))
    return Layout.from_lengths(utt_ids, [lengths[u] for u in utt_ids], layout.frame_shift_ms, layout.snip_edges)


def make_graph(
    hmm_dir: str | Path,
    data_dir: str | Path | None,
    out_dir: str | Path,
    *,
    lm: str | Path | None = None,
    lexicon_path: str | Path | None = None,
    max_oov_share: float = MAX_OOV_SHARE,
    progress: Progress = lambda line: None,
) -> graphs.Graph:
    """HCLG over the ARPA file `lm`, a unigram of data_dir's transcripts, or uniform words, into the folder out_dir.

    lexicon_path: a lexicon in place of the model's, with the same phones: other words, or letters. Raises AsrKdError
    where its phones differ.
    """
    require_replaceable(out_dir, graphs.RECORD)
    model = HmmModel.load(hmm_dir)
    lang = lang_of(model, lexicon_path)
    grammar = load_grammar(lang, data_dir, lm, max_oov_share, progress)
    graph = graphs.make_graph(model, lang, **grammar, progress=progress)
    graph.save(out_dir)
    return graph


def load_grammar(
    lang: Lang, data_dir: str | Path | None, lm: str | Path | None, max_oov_share: float, progress: Progress
) -> dict[str, Any]:
    """What graph.make_graph takes for a grammar: the ARPA file `lm`, or data_dir's transcripts, or neither."""
    if lm is not None:
        return {"transcripts": None, "lm": read_arpa(lm, progress)}
    if data_dir is None:
        return {"transcripts": None}
    return {"transcripts": list(transcripts_of(data_dir, lang.lexicon, max_oov_share, progress).values())}
