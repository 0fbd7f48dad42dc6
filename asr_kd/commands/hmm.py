"""`asr-kd train-hmm`, `align`, `make-graph`, `check-boundaries`, `check-search`."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from asr_kd.cli_common import log
from asr_kd.commands.options import add_device_option
from asr_kd.config import DecodeConfig, HmmConfig, add_config_options, config_from_args, resolve
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, fingerprint, stamp, up_to_date


def add_train_hmm(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train-hmm",
        help="flat-start a monophone GMM-HMM",
        description="Train a monophone GMM-HMM from MFCCs and transcripts alone; the same seed gives the same model.",
    )
    parser.add_argument("--feats", type=Path, required=True, help="MFCCs (data_prep/extract_fbank.py --kind mfcc)")
    parser.add_argument("--data", type=Path, required=True, help="Kaldi data directory with the transcripts")
    parser.add_argument("--lexicon", type=Path, required=True, help="Kaldi's lexicon.txt")
    parser.add_argument("--out", type=Path, required=True)
    add_config_options(parser, [HmmConfig])
    parser.set_defaults(main=train_hmm)


def train_hmm(args: argparse.Namespace) -> None:
    from asr_kd.hmm import steps
    from asr_kd.store.feats import FeatsReader

    config = resolve(HmmConfig, config_from_args(args))
    made_from = fingerprint(
        feats=FeatsReader(args.feats).content_digest,
        text=file_digest([args.data / "text", args.lexicon]),
        config=config,
    )
    if up_to_date(args.out, made_from):
        log(f"{args.out}: up to date")
        return
    steps.train_hmm(
        args.feats,
        args.data,
        args.lexicon,
        args.out,
        num_iters=config.gmm_num_iters,
        total_gauss=config.gmm_total_gauss,
        cmvn=config.gmm_cmvn,
        seed=config.gmm_seed,
        max_train_utts=config.gmm_max_train_utts,
        topology=config.gmm_phone_topology,
        progress=log,
    )
    stamp(args.out, made_from, command=args.command_line)


def add_align(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "align",
        help="give every frame its HMM state",
        description="Forced alignment. The states fit any features of the same frames: align clean MFCCs, "
        "train on noisy filterbanks.",
    )
    parser.add_argument("--feats", type=Path, required=True, help="MFCCs of the set")
    parser.add_argument("--data", type=Path, required=True, help="Kaldi data directory with the transcripts")
    parser.add_argument("--hmm", type=Path, required=True, help="folder made by asr-kd train-hmm")
    parser.add_argument("--out", type=Path, required=True, help="ali.h5")
    parser.add_argument("--counts", type=Path, help="write the states' frame counts here (of the training set: priors)")
    parser.add_argument("--nj", type=int, default=1, help="processes (default 1)")
    parser.set_defaults(main=align)


def align(args: argparse.Namespace) -> None:
    from asr_kd.hmm import steps
    from asr_kd.hmm.model import HmmModel
    from asr_kd.nnet.priors import count_pdfs, write_counts
    from asr_kd.store.ali import AliReader
    from asr_kd.store.feats import FeatsReader

    made_from = fingerprint(
        feats=FeatsReader(args.feats).content_digest,
        text=file_digest([args.data / "text"]),
        hmm=HmmModel.load(args.hmm).digest,
    )
    if up_to_date(args.out, made_from):
        log(f"{args.out}: up to date")
    else:
        failed = steps.align(args.feats, args.data, args.hmm, args.out, args.nj, progress=log)
        for utt_id in failed:
            log(f"warning: {utt_id} could not be aligned; its frames have no label")
        stamp(args.out, made_from, command=args.command_line)
    if args.counts:
        ali = AliReader(args.out)
        write_counts(args.counts, count_pdfs(ali.pdf, ali.num_pdfs))


def add_make_graph(subparsers: Any) -> None:
    parser = subparsers.add_parser("make-graph", help="build HCLG", description="A word loop composed into HCLG.")
    parser.add_argument("--hmm", type=Path, required=True, help="folder made by asr-kd train-hmm")
    parser.add_argument("--data", type=Path, required=True, help="training data directory, for a unigram grammar")
    parser.add_argument("--out", type=Path, required=True)
    add_config_options(parser, [DecodeConfig])
    parser.set_defaults(main=make_graph)


def make_graph(args: argparse.Namespace) -> None:
    from asr_kd.hmm import steps
    from asr_kd.hmm.model import HmmModel

    grammar = resolve(DecodeConfig, config_from_args(args)).grammar
    if grammar not in ("unigram", "uniform"):
        raise AsrKdError(f"grammar {grammar!r}: choose unigram or uniform")
    made_from = fingerprint(hmm=HmmModel.load(args.hmm).digest, grammar=grammar, text=file_digest([args.data / "text"]))
    if up_to_date(args.out, made_from):
        log(f"{args.out}: up to date")
        return
    graph = steps.make_graph(args.hmm, args.data if grammar == "unigram" else None, args.out)
    stamp(args.out, made_from, command=args.command_line)
    log(f"{args.out}: {graph.arcs.num_states} states, {len(graph.arcs.source)} arcs")


def add_check_boundaries(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "check-boundaries",
        help="compare an alignment with known phone times",
        description="Print how far the boundaries between phones lie from the truth.",
    )
    parser.add_argument("--ali", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True, help="CTM: utt_id 1 start_s duration_s phone")
    parser.add_argument("--frame-length-ms", type=float, default=25.0, help="window of the features (default 25)")
    parser.set_defaults(main=check_boundaries)


def check_boundaries(args: argparse.Namespace) -> None:
    from asr_kd.hmm.boundaries import compare, read_truth
    from asr_kd.store.ali import AliReader

    ali = AliReader(args.ali)
    if ali.phone is None:
        raise AsrKdError(f"{args.ali}: holds no phones to compare")
    aligned = {utt_id: ali.phone[ali.layout.rows(utt_id)] for utt_id in ali.layout.utt_ids}
    print(compare(aligned, ali.phones, read_truth(args.truth), ali.layout.frame_shift_ms, args.frame_length_ms))


def add_check_search(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "check-search",
        help="compare the decoder with an exact Viterbi search",
        description="Decode every utterance of a set with one net, and again by an exact search over the same graph; "
        "exit non-zero if any score differs.",
    )
    parser.add_argument("--net", type=Path, required=True)
    parser.add_argument("--feats", type=Path, required=True)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("--acwt", type=float, default=0.2, help="acoustic scale (default 0.2)")
    parser.add_argument("--insertion-penalty", type=float, default=0.0)
    parser.add_argument("--max-utts", type=int, default=0, help="only the first so many; 0 is all (default)")
    add_device_option(parser)
    add_config_options(parser, [DecodeConfig])
    parser.set_defaults(main=check_search)


def check_search(args: argparse.Namespace) -> None:
    import torch

    from asr_kd.hmm.graph import Graph
    from asr_kd.hmm.viterbi import check_search as compare_scores
    from asr_kd.nnet.device import resolve_device
    from asr_kd.nnet.priors import read_log_priors
    from asr_kd.scoring.decoding import FrameCache, load_nets, log_posteriors
    from asr_kd.store.feats import FeatsReader

    config, device = resolve(DecodeConfig, config_from_args(args)), resolve_device(args.device)
    reader, graph = FeatsReader(args.feats), Graph.load(args.graph)
    log_post = log_posteriors(
        load_nets([args.net], device), None, reader, FrameCache(device, torch.float32), torch.float32
    )
    logliks = log_post - read_log_priors(args.counts, config.prior_floor)
    utt_ids = reader.layout.utt_ids[: args.max_utts or None]
    worst = compare_scores(
        graph,
        [np.ascontiguousarray(logliks[reader.layout.rows(utt_id)]) for utt_id in utt_ids],
        acwt=args.acwt,
        insertion_penalty=args.insertion_penalty,
        beam=config.beam,
        min_active=config.min_active,
    )
    print(
        f"{len(utt_ids)} utterances: largest difference between a best path's score and an exact Viterbi's {worst:.2g}"
    )
    if worst > 1e-2:
        raise AsrKdError("the decoder made search errors; widen --beam or --min-active")
