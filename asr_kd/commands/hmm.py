"""`asr-kd train-hmm`, `align`, `make-graph`, `check-boundaries`, `check-search`."""

import argparse
from pathlib import Path

import numpy as np

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, output, path
from asr_kd.commands.options import COUNTS, DEVICE, GRAPH, NJ, SEARCH
from asr_kd.config import DecodeConfig, HmmConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make

DATA = path("--data", "Kaldi data directory with the transcripts")
HMM = path("--hmm", "folder made by asr-kd train-hmm")
LEXICON = path("--lexicon", "a lexicon in place of the HMM's, with the same phones and other words", required=False)
LM = path(
    "--lm", "ARPA file of words, gunzipped where it is named *.gz: the grammar, instead of `grammar`", required=False
)


@command(
    "train-hmm",
    "flat-start a GMM-HMM",
    path("--feats", "MFCCs (data_prep/extract_fbank.py --kind mfcc)"),
    DATA,
    path("--lexicon", "Kaldi's lexicon.txt"),
    path("--out", "folder of the model"),
    config=[HmmConfig],
)
def train_hmm(args: argparse.Namespace) -> None:
    """Train a GMM-HMM from MFCCs and transcripts alone; the same seed gives the same model.

    Triphones (--gmm-context triphone) start from monophones, which are kept beside, in OUT_mono.
    """
    from asr_kd.hmm import steps
    from asr_kd.store.feats import FeatsReader

    config = resolve(HmmConfig, args.values)
    make(
        args.out,
        lambda: steps.train_hmm(
            args.feats,
            args.data,
            args.lexicon,
            args.out,
            config,
            progress=log,
        ),
        command=args.command_line,
        feats=FeatsReader(args.feats).content_digest,
        text=file_digest([args.data / "text", args.lexicon]),
        config=config,
    )


@command(
    "align",
    "give every frame its HMM state",
    path("--feats", "MFCCs of the set"),
    DATA,
    HMM,
    path("--out", "ali.h5"),
    output("--counts", "write the states' frame counts here (of the training set: priors)", required=False),
    path("--fit", "feats.h5 that it is for, if another utterance was skipped there than in --feats", required=False),
    LEXICON,
    NJ,
    config=["max_oov_share", "gmm_max_failed_share"],
)
def align(args: argparse.Namespace) -> None:
    """Forced alignment.

    The states fit any features of the same frames: align clean MFCCs, train on noisy filterbanks.
    """
    from asr_kd.hmm import steps
    from asr_kd.hmm.model import HmmModel
    from asr_kd.nnet.priors import count_pdfs, write_counts
    from asr_kd.store.ali import AliReader
    from asr_kd.store.feats import FeatsReader

    def work() -> None:
        shares = {
            "max_oov_share": args.values["max_oov_share"],
            "max_failed_share": args.values["gmm_max_failed_share"],
        }
        how = {**shares, "fit": args.fit, "lexicon_path": args.lexicon, "progress": log}
        for utt_id in steps.align(args.feats, args.data, args.hmm, args.out, args.nj, **how):
            log(f"warning: {utt_id} could not be aligned; its frames have no label")

    make(
        args.out,
        work,
        command=args.command_line,
        feats=FeatsReader(args.feats).content_digest,
        text=file_digest([args.data / "text"]),
        hmm=HmmModel.load(args.hmm).digest,
        **({} if args.fit is None else {"fit": FeatsReader(args.fit).layout.digest}),
        **_made_with(args.lexicon),
    )
    if args.counts:
        ali = AliReader(args.out)
        write_counts(args.counts, count_pdfs(ali.pdf, ali.num_pdfs))


@command(
    "make-graph",
    "build HCLG",
    HMM,
    path("--data", "training data directory, for a unigram grammar", required=False),
    LM,
    LEXICON,
    path("--out", "folder of the graph"),
    config=["grammar", "max_oov_share"],
)
def make_graph(args: argparse.Namespace) -> None:
    """Lexicon and grammar composed into HCLG: an n-gram (--lm), or a loop of words."""
    from asr_kd.hmm import steps
    from asr_kd.hmm.model import HmmModel

    grammar = _grammar(args, args.data)
    if args.values["grammar"] == "unigram" and not (args.data or args.lm):
        raise AsrKdError("grammar unigram needs transcripts: give --data, --lm, or --grammar uniform")

    def work() -> None:
        share = args.values["max_oov_share"]
        how = {"lexicon_path": args.lexicon, "max_oov_share": share, "progress": log}
        graph = steps.make_graph(args.hmm, **grammar, out_dir=args.out, **how)
        log(f"{args.out}: {graph.arcs.num_states} states, {len(graph.arcs.source)} arcs")

    text = grammar["lm"] or (grammar["data_dir"] and grammar["data_dir"] / "text")
    make(
        args.out,
        work,
        command=args.command_line,
        hmm=HmmModel.load(args.hmm).digest,
        grammar="ngram" if args.lm else args.values["grammar"],
        text=file_digest([text] if text else []),
        **_made_with(args.lexicon),
    )


def _made_with(lexicon: Path | None) -> dict[str, str]:
    return {} if lexicon is None else {"lexicon": file_digest([lexicon])}


def _grammar(args: argparse.Namespace, data: Path | None) -> dict[str, Path | None]:
    """The arguments `lm` and `data_dir` of hmm.steps for --lm, the key `grammar`, and a data directory.

    Raises AsrKdError for an n-gram without --lm.
    """
    grammar = args.values["grammar"]
    if args.lm:
        return {"lm": args.lm, "data_dir": None}
    if grammar == "ngram":
        raise AsrKdError("grammar ngram needs a language model: give --lm (asr-kd train-lm makes one)")
    return {"lm": None, "data_dir": data if grammar == "unigram" else None}


@command(
    "check-hmm",
    "how well a GMM-HMM does by itself",
    path("--feats", "MFCCs of the set to check it on (dev)"),
    DATA,
    HMM,
    path("--train-data", "training data directory, for a unigram grammar", required=False),
    LM,
    output("--hyps", "write the words found at the best scales here, as Kaldi's text", required=False),
    config=[
        "grammar",
        "beam",
        "min_active",
        "max_active",
        "acwts",
        "insertion_penalties",
        "tuning_utts",
        "max_oov_share",
    ],
)
def check_hmm(args: argparse.Namespace) -> None:
    """Print a GMM-HMM's log-likelihood a frame on a set, and its word error rate at the best of the scales tried.

    Compares GMM-HMMs (monophones with triphones) before nets are trained on their states. The grammar is --lm, or a
    unigram of --train-data, uniform without both. Scales are chosen on the set itself: give the dev set, or the one
    scale and penalty that dev chose.
    """
    from asr_kd.hmm import steps
    from asr_kd.hmm.check import GmmLogliks, check_likelihood
    from asr_kd.hmm.graph import make_graph as compose
    from asr_kd.scoring.decoding import SetDecoder, references, write_hyps

    config, share = resolve(DecodeConfig, args.values), args.values["max_oov_share"]
    grammar = _grammar(args, args.train_data)
    report = check_likelihood(args.hmm, args.feats, args.data, max_oov_share=share, progress=log)
    for utt_id in report.failed:
        log(f"warning: {utt_id} could not be aligned; it does not count in the likelihood")
    model, feats = steps.load_with_feats(args.hmm, args.feats)
    grammar = steps.load_grammar(model.lang, **grammar, max_oov_share=share, progress=log)
    decoder = SetDecoder(compose(model, model.lang, **grammar), np.zeros(model.num_pdfs), config)
    logliks = GmmLogliks(model, feats)
    scales = decoder.tune(logliks, references(args.data, feats.reader))
    best = min(scales.tried, key=lambda row: row["errors"])
    if args.hyps:
        write_hyps(args.hyps, decoder.decode(logliks, best["acwt"], best["insertion_penalty"]))
    print(report)
    print(
        f"WER {best['wer']:.2f} % ({best['errors']} errors) at acoustic scale {best['acwt']:g}, "
        f"insertion penalty {best['insertion_penalty']:g}"
    )


@command(
    "check-boundaries",
    "compare an alignment with known phone times",
    path("--ali", "ali.h5 that holds phones"),
    path("--truth", "CTM: utt_id 1 start_s duration_s phone"),
    option("--frame-length-ms", "window of the features (default 25)", type=float, default=25.0),
)
def check_boundaries(args: argparse.Namespace) -> None:
    """Print how far the boundaries between phones lie from the truth."""
    from asr_kd.hmm.boundaries import compare, read_truth
    from asr_kd.hmm.lang import without_position
    from asr_kd.store.ali import AliReader

    ali = AliReader(args.ali)
    if ali.phone is None:
        raise AsrKdError(f"{args.ali}: holds no phones to compare")
    aligned = {utt_id: ali.phone[ali.layout.rows(utt_id)] for utt_id in ali.layout.utt_ids}
    phones = without_position(ali.phones)
    print(compare(aligned, phones, read_truth(args.truth), ali.layout.frame_shift_ms, args.frame_length_ms))


@command(
    "check-search",
    "compare the decoder with an exact search, or a wider one",
    path("--net", "folder of one net"),
    path("--feats", "feats.h5 to decode"),
    GRAPH,
    COUNTS,
    option("--acwt", "acoustic scale (default 0.2)", type=float, default=0.2),
    option("--insertion-penalty", "cost of a word (default 0)", type=float, default=0.0),
    option("--max-utts", "only the first so many; 0 is all (default)", type=int, default=0),
    option(
        "--wide-beam",
        "compare with this beam, above --beam, instead, as on graphs too large for an exact search",
        type=float,
    ),
    DEVICE,
    config=SEARCH,
)
def check_search(args: argparse.Namespace) -> None:
    """Decode every utterance with one net, and again by an exact search; exit non-zero if any score differs.

    With --wide-beam: again at that beam, keeping ten times --max-active states. An utterance whose best path there is
    better is a search error; exit non-zero if more than 1 % are.
    """
    from asr_kd.hmm.decode import Decoder
    from asr_kd.hmm.graph import Graph
    from asr_kd.hmm.search_errors import MAX_SHARE, compare_beams
    from asr_kd.hmm.viterbi import check_search as compare_scores
    from asr_kd.nnet.device import resolve_device
    from asr_kd.nnet.priors import read_decoding_priors
    from asr_kd.scoring.decoding import load_nets
    from asr_kd.scoring.set_posteriors import SetPosteriors
    from asr_kd.store.feats import FeatsReader

    config, device = resolve(DecodeConfig, args.values), resolve_device(args.device)
    if args.wide_beam is not None and not args.wide_beam > config.beam:
        raise AsrKdError(f"--wide-beam {args.wide_beam:g}: must be above the beam, {config.beam:g}")
    if args.max_utts < 0:
        raise AsrKdError(f"--max-utts {args.max_utts}: must be 0, for all, or more")
    reader, graph = FeatsReader(args.feats), Graph.load(args.graph)
    nets = load_nets([args.net], device)
    posteriors = SetPosteriors(nets, reader, "arithmetic", device, model_digest=graph.model_digest)
    log_priors = read_decoding_priors(args.counts, config.prior_floor, graph.num_pdfs)
    utt_ids = reader.layout.utt_ids[: args.max_utts or None]
    logliks = ((utt_id, log_post - log_priors) for utt_id, log_post in posteriors.of(utt_ids))
    if args.wide_beam is not None:
        scales = {"acwt": args.acwt, "insertion_penalty": args.insertion_penalty, "min_active": config.min_active}
        errors = compare_beams(
            Decoder(graph, config.beam, max_active=config.max_active, **scales),
            Decoder(graph, args.wide_beam, max_active=10 * config.max_active, **scales),
            logliks,
            reader.layout.frame_shift_ms / 1000.0,
            log,
        )
        print(errors)
        if errors.share > MAX_SHARE:
            raise AsrKdError("the decoder made too many search errors; widen --beam, or raise --max-active")
        return
    worst = compare_scores(
        graph,
        (loglik for _, loglik in logliks),
        acwt=args.acwt,
        insertion_penalty=args.insertion_penalty,
        beam=config.beam,
        min_active=config.min_active,
        max_active=config.max_active,
    )
    print(
        f"{len(utt_ids)} utterances: largest difference between a best path's score and an exact Viterbi's {worst:.2g}"
    )
    if worst > 1e-2:
        raise AsrKdError("the decoder made search errors; widen --beam or --min-active")
